//! `twined local`, `demo` and `ask`, end to end with the real binary.

use crate::program::{Network, twined};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use twined::event::encode::{EventBody, response};
use twined::event::{OutgoingMessage, Timestamp};
use uuid::Uuid;

#[test]
fn the_demo_prints_the_events_of_a_question_and_leaves_nothing() {
    let demo = twined(&["demo"]).output().unwrap();

    let (stdout, stderr) = texts(&demo);
    assert_eq!(demo.status.code(), Some(0), "{stderr}");
    assert_eq!(stdout, "{\"output_values\":{\"primes\":1229}}\n");
    let lines = [
        "network started",
        "asked of demo/primes:1.0.0",
        "delivery_acknowledgement",
        "log_record",
        "monitor_message",
        "result",
        "network stopped: 0 runs left; data folder removed: true",
    ];
    let mut rest = &*stderr;
    for line in lines {
        let at = rest.find(line).unwrap_or_else(|| panic!("`{line}` is missing in:\n{stderr}"));
        rest = &rest[at..];
    }
}

#[test]
fn the_demo_ignores_the_settings_of_another_network() {
    let mut demo = twined(&["demo"]);
    demo.envs([("TWINED_DATA", "/nowhere"), ("TWINED_PUBSUB", "127.0.0.1:9")]);
    let demo = demo.output().unwrap();
    assert_eq!(demo.status.code(), Some(0), "{}", texts(&demo).1);
}

#[test]
fn events_after_the_answer_do_not_delay_it() {
    let network = Network::with_script("octue/slow", "echo $$ > pid; exec sleep 600");
    let uuid = Uuid::new_v4().to_string();
    let asking = network.asking("octue/slow:local", &["--question-uuid", &uuid]);
    network.wait_for("the child runs", || {
        fs::exists(network.folder("octue/slow").join("pid")).unwrap().then_some(())
    });
    let question = cancellation(&uuid, "octue/slow:local", "local/local:local").attributes;
    let publish = |body: &EventBody| {
        let uuid = Uuid::new_v4();
        network.publish(response(&question, uuid, Timestamp::now(), body).unwrap());
    };

    publish(&EventBody::Result { output_values: Value::from(7) });
    for _ in 0..5 {
        publish(&EventBody::Heartbeat);
    }

    let asked = asking.wait_with_output().unwrap();
    assert_eq!(texts(&asked).0, "{\"output_values\":7}\n", "{}", texts(&asked).1);
}

#[test]
fn a_network_with_a_closed_stderr_still_reports_a_dead_child() {
    let root = tempfile::tempdir().unwrap();
    let network = Network::with_script("octue/dying", "exit 3");
    let services = network.folder("octue");
    let mut unread = twined(&["local", "--ephemeral", "--http-port", "0", "--pubsub-port", "0"]);
    let unread = unread.arg(services).current_dir(root.path()).stderr(Stdio::piped());
    let mut unread = unread.spawn().unwrap();
    let mut stderr = BufReader::new(unread.stderr.take().unwrap());
    let mut http = String::new();
    while !http.trim_start().starts_with("http") {
        http.clear();
        stderr.read_line(&mut http).unwrap();
    }
    drop(stderr);

    let url = http.trim().trim_start_matches("http ").trim();
    let asked = twined(&["ask", "octue/dying:local", "--timeout", "20", "--url", url]);
    let asked = { asked }.output().unwrap();

    assert_eq!(asked.status.code(), Some(1), "{}", texts(&asked).1);
    let pid = rustix::process::Pid::from_child(&unread);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(unread.wait().unwrap().code(), Some(0));
}

#[test]
fn an_incomplete_request_does_not_delay_the_end_of_a_network() {
    let mut network = Network::start(&[]);
    let _half = network.send("GET /live HTTP/1.1\r\n");
    assert_eq!(network.interrupt(), Some(0));
}

#[test]
fn a_question_is_answered_on_stdout_and_its_logs_go_to_stderr() {
    let network = Network::start(&["octue/primes"]);

    let asked = network.ask("octue/primes:local", &["-i", r#"{"below": 100}"#]);

    let (stdout, stderr) = texts(&asked);
    assert_eq!(asked.status.code(), Some(0), "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["output_values"]["primes"], 25);
    assert!(stderr.contains("counting the primes below 100"), "{stderr}");
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let network = Network::start(&["octue/primes"]);
    for (sruid, arguments, code, text) in [
        ("octue/primes:local", vec!["-i", "7"], 1, "ValueError: expected {\"below\": N}"),
        ("octue/primes:local", vec!["-i", "{"], 2, "`--input-values` is not JSON"),
        ("octue/Primes:local", vec![], 2, "lower kebab case"),
        ("octue/primes:lokal", vec![], 4, "octue/primes:local"),
        ("octue/nobody:local", vec![], 4, "ServiceNotFound"),
        // Names that no subscription can have.
        ("9lives/cat:1", vec![], 4, "ServiceNotFound"),
        ("google/cat:1", vec![], 4, "ServiceNotFound"),
    ] {
        let asked = network.ask(sruid, &arguments);
        let (stdout, stderr) = texts(&asked);
        assert_eq!(asked.status.code(), Some(code), "{sruid}: {stderr}");
        assert_eq!(stdout, "");
        assert!(stderr.contains(text), "{stderr}");
    }
    let nowhere = twined(&["ask", "a/b:c", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(3));
    assert!(texts(&nowhere).1.contains("twined local"));
}

#[test]
fn ask_ends_after_its_timeout() {
    let network = Network::with_script("octue/slow", "sleep 60");
    let asked = network.ask("octue/slow:local", &["--timeout", "1"]);
    assert_eq!(asked.status.code(), Some(124));
}

#[test]
fn a_killed_child_becomes_an_exception_with_its_last_output() {
    let network = Network::with_script("octue/dying", "echo 'last words' >&2; kill -9 $$");

    let asked = network.ask("octue/dying:local", &[]);

    let (_, stderr) = texts(&asked);
    assert_eq!(asked.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("last words"), "{stderr}");
    assert!(stderr.contains("RuntimeError: "), "{stderr}");
    assert!(stderr.contains("SIGKILL"), "{stderr}");
}

#[test]
fn a_child_that_exits_without_an_answer_becomes_an_exception() {
    let network = Network::with_script("octue/silent", "exit 0");
    let asked = network.ask("octue/silent:local", &[]);
    assert_eq!(asked.status.code(), Some(1), "{}", texts(&asked).1);
}

#[test]
fn a_cancelled_question_ends_with_all_its_processes() {
    let network = Network::with_script("octue/slow", "sleep 600 & echo $! > pid; wait");
    let uuid = Uuid::new_v4().to_string();
    let asking = network.asking("octue/slow:local", &["--question-uuid", &uuid]);
    let pid = network.wait_for("the child runs", || {
        fs::read_to_string(network.folder("octue/slow").join("pid"))
            .ok()
            .filter(|pid| pid.ends_with('\n'))
    });

    network.publish(cancellation(&uuid, "octue/slow:local", "local/other:local"));
    network.publish(cancellation(&uuid, "octue/slow:local", "local/local:local"));

    let asked = asking.wait_with_output().unwrap();
    let (_, stderr) = texts(&asked);
    assert_eq!(asked.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("InterruptedError"), "{stderr}");
    let process = format!("/proc/{}", pid.trim());
    network.wait_for("the grandchild is gone", || (!fs::exists(&process).unwrap()).then_some(()));
}

#[test]
fn a_cancellation_that_comes_before_its_question_stops_its_launch() {
    let network = Network::with_script("octue/slow", "echo $$ > pid; exec sleep 600");
    let uuid = Uuid::new_v4().to_string();
    network.publish(cancellation(&uuid, "octue/slow:local", "local/local:local"));

    let asked = network.ask("octue/slow:local", &["--question-uuid", &uuid]);

    let (_, stderr) = texts(&asked);
    assert_eq!(asked.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("InterruptedError"), "{stderr}");
    assert!(!network.folder("octue/slow").join("pid").exists(), "it ran");
}

#[test]
fn a_message_that_is_no_event_is_rejected_and_the_next_ones_are_processed() {
    let network = Network::start(&["octue/primes"]);
    let question = Uuid::new_v4().to_string();
    let invalid = |data: &str, attributes: HashMap<String, String>| OutgoingMessage {
        data: data.as_bytes().to_vec(),
        attributes,
        ordering_key: question.clone(),
    };
    network.publish(invalid("{", HashMap::new()));
    network
        .publish(invalid(r#"{"kind": "question"}"#, HashMap::from([("uuid".into(), "1".into())])));

    let asked =
        network.ask("octue/primes:local", &["-i", r#"{"below": 3}"#, "--question-uuid", &question]);

    assert_eq!(asked.status.code(), Some(0), "{}", texts(&asked).1);
    let metrics = network.get("/metrics");
    assert!(metrics.contains("twined_events_rejected_total{reason=\"attribute\"} 2"), "{metrics}");
    assert!(metrics.contains("twined_deliveries_total{disposition=\"reject\"} 2"), "{metrics}");
}

#[test]
fn metrics_start_at_zero() {
    let network = Network::start(&[]);
    let metrics = network.get("/metrics");
    for line in [
        "twined_events_received_total{kind=\"question\"} 0",
        "twined_events_received_total{kind=\"other\"} 0",
        "twined_events_rejected_total{reason=\"data\"} 0",
        "twined_events_duplicate_total{kind=\"result\"} 0",
        "twined_deliveries_total{disposition=\"retry\"} 0",
        "twined_store_errors_total{store=\"sqlite\"} 0",
        "twined_questions_total{outcome=\"answered\"} 0",
        "twined_failures_total{reason=\"killed\"} 0",
        "twined_heartbeats_sent_total 0",
        "twined_publish_errors_total 0",
        "twined_build_info{",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line}\nin\n{metrics}");
    }
    assert_eq!(network.get("/live"), "live\n");
    assert_eq!(network.get("/ready"), "ready\n");
}

#[test]
fn ctrl_c_ends_a_network_with_its_runs_and_notifies_their_parents() {
    let mut network = Network::with_script("octue/slow", "echo $$ > pid; exec sleep 600");
    let asking = network.asking("octue/slow:local", &[]);
    let pid = network.wait_for("the child runs", || {
        fs::read_to_string(network.folder("octue/slow").join("pid"))
            .ok()
            .filter(|pid| pid.ends_with('\n'))
    });

    let code = network.interrupt();

    assert_eq!(code, Some(0));
    assert!(!fs::exists(format!("/proc/{}", pid.trim())).unwrap(), "the child still runs");
    let asked = asking.wait_with_output().unwrap();
    assert!(texts(&asked).1.contains("InterruptedError"), "{}", texts(&asked).1);
}

#[test]
fn a_port_or_folder_in_use_is_named() {
    let in_use = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = in_use.local_addr().unwrap().port().to_string();
    let refused = twined(&["local", "--ephemeral", "--pubsub-port", "0", "--http-port", &port])
        .output()
        .unwrap();
    let (_, stderr) = texts(&refused);
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&port) && stderr.contains("--http-port"), "{stderr}");

    let network = Network::start(&[]);
    let data = network.data().to_str().unwrap().to_owned();
    let refused = twined(&["local", "--pubsub-port", "0", "--http-port", "0", "--data", &data]);
    let refused = { refused }.output().unwrap();
    assert!(texts(&refused).1.contains("--data"), "{}", texts(&refused).1);
}

#[test]
fn the_registry_answers_as_the_sdk_expects() {
    let network = Network::start(&["octue/primes"]);
    let found = network.get("/registry/octue/primes?revision_tag=local");
    assert_eq!(found, "Service revision found");
    assert_eq!(network.get("/registry/octue/primes"), r#"{"revision_tag":"local"}"#);
    for missing in ["octue/primes?revision_tag=2", "octue/nobody", "octue/primes?revision_tag=.."] {
        assert_eq!(network.status(&format!("/registry/{missing}")), 404);
    }
}

fn cancellation(question: &str, recipient: &str, sender: &str) -> OutgoingMessage {
    let attributes = [
        ("uuid", &*Uuid::new_v4().to_string()),
        ("datetime", &Timestamp::now().to_string()),
        ("question_uuid", question),
        ("originator_question_uuid", question),
        ("parent", sender),
        ("originator", sender),
        ("sender", sender),
        ("recipient", recipient),
        ("sender_type", "PARENT"),
        ("sender_sdk_version", "0.69.1"),
        ("retry_count", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let data = serde_json::to_vec(&EventBody::Cancellation).unwrap();
    OutgoingMessage { data, attributes, ordering_key: question.to_owned() }
}

fn texts(output: &std::process::Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
