//! `twined serve` and `twined doctor` with the real binary, an emulator, SQLite and processes.

use crate::program::{make_service, twined};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use twined::config::{DEFAULT_PROJECT, DEFAULT_TOPIC};
use twined::pubsub::{Admin, Connection};

/// How long a test waits for an event.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a shutdown may take: five seconds, and three for a busy machine.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// A service that counts primes.
const SERVICE: &str = "octue/primes";

/// The store of the first replica, for a second one.
const STORE: &str = "sqlite:.twined/events.sqlite";

/// A daemon with the process runner and JSON logs.
struct Replica {
    process: Child,
    lines: Receiver<Value>,
    pubsub: String,
    http: String,
}

impl Replica {
    /// A replica that runs its own emulator.
    fn first(root: &Path) -> Self {
        Self::start(root, &["--emulate", "127.0.0.1:0"])
    }

    fn start(root: &Path, arguments: &[&str]) -> Self {
        let mut command = twined(&["serve", "--runner", "process", "--http", "127.0.0.1:0"]);
        command.args(arguments).args(["--log-format", "json", "services"]);
        let mut process = command.current_dir(root).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = process.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        // Read to the end, so that the daemon does not block on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let mut replica = Self { process, lines, pubsub: String::new(), http: String::new() };
        let started = replica.wait_for_log("daemon started");
        replica.pubsub = started["pubsub"].as_str().unwrap().to_owned();
        replica.http = started["http"].as_str().unwrap().to_owned();
        replica
    }

    /// A frozen first replica, and a second one that uses its emulator, so that its shutdown waits.
    fn over_a_frozen_emulator(root: &Path) -> (Self, Self) {
        let first = Self::first(root);
        let second = Self::start(root, &["--pubsub", &first.pubsub, "--data=2", "--store", STORE]);
        first.signal(Signal::STOP);
        (first, second)
    }

    /// Waits for the next line with this message.
    fn wait_for_log(&self, message: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect(message);
            if line["message"] == message {
                return line;
            }
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn ask(&self) -> Output {
        let mut command = twined(&["ask", "octue/primes:local", "-i", "{\"below\": 100}"]);
        command.env("PUBSUB_EMULATOR_HOST", &self.pubsub).output().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM, and returns the exit code and the duration.
    fn terminate(mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        self.signal(Signal::TERM);
        (self.process.wait().unwrap().code(), start.elapsed())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A folder with a service.
fn folder() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_twined");
    let script = format!("shift 3; exec '{binary}' example-service \"$@\"");
    let folder = root.path().join("services/primes");
    fs::create_dir_all(&folder).unwrap();
    make_service(&folder, SERVICE, &script);
    root
}

fn text(output: &Output) -> String {
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", utf8(&output.stdout), utf8(&output.stderr))
}

fn in_folder(root: &Path, arguments: &[&str]) -> Command {
    let mut command = twined(arguments);
    command.current_dir(root);
    command
}

#[test]
fn a_question_is_answered_and_a_drain_is_clean() {
    let root = folder();
    let replica = Replica::first(root.path());
    assert!(replica.get("/ready").ends_with("ready\n"), "{}", replica.get("/ready"));
    assert!(replica.get("/metrics").contains("twined_build_info"));

    let answer = replica.ask();

    assert_eq!(answer.status.code(), Some(0), "{}", text(&answer));
    assert!(text(&answer).contains("\"primes\":25"), "{}", text(&answer));
    let (code, took) = replica.terminate();
    assert_eq!(code, Some(0));
    assert!(took < SHUTDOWN, "{took:?}");
}

#[test]
fn two_replicas_share_the_work_and_one_can_stop() {
    let root = folder();
    let first = Replica::first(root.path());
    let second =
        Replica::start(root.path(), &["--pubsub", &first.pubsub, "--data=2", "--store", STORE]);

    let answers: Vec<_> = (0..4).map(|_| first.ask()).collect();

    assert!(answers.iter().all(|answer| answer.status.success()), "{}", text(&answers[0]));
    assert_eq!(second.terminate().0, Some(0));
    assert!(first.ask().status.success());
}

#[test]
fn a_deleted_subscription_is_created_again_and_its_loss_is_logged() {
    let root = folder();
    let replica = Replica::first(root.path());
    let subscription = format!("twined.daemon.{DEFAULT_TOPIC}");
    Runtime::new().unwrap().block_on(async {
        let connection = Connection::emulator(&replica.pubsub, DEFAULT_PROJECT).unwrap();
        Admin::new(&connection).delete_subscription(&subscription).await.unwrap();
    });

    let line = replica.wait_for_log(
        "subscription was missing: created again, without the messages published meanwhile",
    );

    assert_eq!((&line["severity"], &line["subscription"]), (&"ERROR".into(), &subscription.into()));
    let answer = replica.ask();
    assert!(answer.status.success(), "{}", text(&answer));
}

#[test]
fn a_shutdown_takes_five_seconds_if_pubsub_does_not_answer() {
    let root = folder();
    let (frozen, replica) = Replica::over_a_frozen_emulator(root.path());
    let (code, took) = replica.terminate();
    assert_eq!(code, Some(0));
    assert!(took < SHUTDOWN, "{took:?}");
    drop(frozen);
}

#[test]
fn a_second_signal_stops_a_daemon_immediately() {
    let root = folder();
    let (frozen, mut replica) = Replica::over_a_frozen_emulator(root.path());
    replica.signal(Signal::TERM);
    replica.wait_for_log("daemon stopping");
    replica.signal(Signal::TERM);
    let code = replica.process.wait().unwrap().code();
    assert_eq!(code, Some(130));
    drop(frozen);
}

#[test]
fn an_invalid_setting_is_reported_with_its_remedy() {
    let root = folder();
    fs::write(root.path().join("bad.yaml"), "rulez: []\n").unwrap();
    let images = "--images=europe-docker.pkg.dev/p/r";
    for (arguments, expected) in [
        (&["serve", "--pubsub", "127.0.0.1:9"][..], "ARTIFACT_REGISTRY_REPOSITORY_URL"),
        (&["serve", images], "--project"),
        (&["serve", images, "--project", "p", "--store", "bigquery:a.b"], "sqlite:PATH"),
        (&["serve", images, "--project", "p", "--log-format", "xml"], "--log-format"),
        (&["serve", images, "--project", "p", "--http", "here"], "--http"),
        (&["serve", images, "--pubsub", "127.0.0.1:9", "some-folder"], "--runner process"),
        (&["serve", "--runner", "process", "--pubsub", "a b", "services"], "HOST:PORT"),
        (&["serve", "--runner", "process", "--pubsub", "a:1", "nowhere"], "nowhere"),
        (&["serve", images, "--pubsub", "127.0.0.1:9", "--settings", "no.yaml"], "no.yaml"),
        (&["serve", images, "--pubsub", "127.0.0.1:9", "--settings", "bad.yaml"], "rulez"),
        (&["doctor", images, "--pubsub", "127.0.0.1:9", "--settings", "bad.yaml"], "rulez"),
        (&["doctor", "--pubsub", "127.0.0.1:9"], "--images"),
    ] {
        let output = in_folder(root.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let root = folder();
    let help = in_folder(root.path(), &["serve", "--help"]).output().unwrap();
    let help = text(&help);
    let names: Vec<&str> =
        help.split("[env: ").skip(1).map(|rest| rest.split_once('=').unwrap().0).collect();
    assert!(names.len() > 20 && names.contains(&"TWINED_RUNNER"), "{names:?}");
    let arguments = ["serve", "--images=host/r", "--emulate=127.0.0.1:0", "--http=127.0.0.1:0"];
    let empty = names.iter().map(|name| (name, ""));

    let output = in_folder(root.path(), &arguments)
        .envs(empty)
        .env("KUBECONFIG", "/nowhere/config")
        .output()
        .unwrap();

    // The settings are valid, and there is no cluster.
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("set KUBECONFIG"), "{}", text(&output));
}

#[test]
fn all_failed_checks_of_a_start_are_reported_together() {
    let root = folder();
    let arguments = [
        "serve",
        "--images=europe-docker.pkg.dev/p/r",
        "--emulate=127.0.0.1:0",
        "--http=127.0.0.1:0",
        "--store=sqlite:nowhere/events.sqlite",
    ];
    let output = in_folder(root.path(), &arguments)
        .env("BIGQUERY_EVENTS_TABLE", "p.d.t")
        .env("KUBECONFIG", "/nowhere/config")
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let lines: Vec<Value> = String::from_utf8(output.stderr)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let line = |check: &str| {
        let mut lines = lines.iter();
        lines.find(|line| line["check"].as_str().is_some_and(|name| name.starts_with(check)))
    };
    assert!(line("store").unwrap()["remedy"].as_str().unwrap().contains("--store"));
    assert!(line("kubernetes").unwrap()["remedy"].as_str().unwrap().contains("KUBECONFIG"));
    assert!(line("settings").unwrap()["found"].as_str().unwrap().contains("BIGQUERY"));
    assert_eq!(lines.last().unwrap()["exit_code"], 1);
}

#[test]
fn the_doctor_passes_a_working_network_and_leaves_nothing() {
    let root = folder();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--runner", "process", "--pubsub", &replica.pubsub];
    let before = fs::read_dir(root.path().join(".twined")).unwrap().count();

    let table = in_folder(root.path(), &doctor).output().unwrap();
    let json = in_folder(root.path(), &doctor).args(["--output", "json"]).output().unwrap();

    assert_eq!(table.status.code(), Some(0), "{}", text(&table));
    assert!(text(&table).contains("[ok]    creating subscriptions"), "{}", text(&table));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ok"], true);
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["verdict"] == "ok"), "{checks:#?}");
    assert_eq!(fs::read_dir(root.path().join(".twined")).unwrap().count(), before);
}

#[test]
fn the_doctor_uses_the_emulator_of_a_running_daemon() {
    let root = folder();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--runner", "process", "--emulate", &replica.pubsub, "services"];

    let output = in_folder(root.path(), &doctor).output().unwrap();

    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let text = text(&output);
    let subscription = "[ok]    subscription twined.daemon.main.octue.twined.services: it exists";
    assert!(text.contains(subscription), "{text}");
}

#[test]
fn the_doctor_leaves_nothing_and_reports_what_serve_would() {
    let root = folder();
    let doctor = ["doctor", "--runner", "process", "--emulate", "127.0.0.1:0"];

    let good = in_folder(root.path(), &doctor).output().unwrap();
    let nowhere = in_folder(root.path(), &doctor).arg("./nowhere").output().unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    let empty = in_folder(&root.path().join("empty"), &doctor).output().unwrap();

    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    assert!(text(&good).contains("octue/primes:local"), "{}", text(&good));
    assert_eq!(nowhere.status.code(), Some(1), "{}", text(&nowhere));
    assert!(text(&nowhere).contains("[fail]  services: "), "{}", text(&nowhere));
    assert!(text(&empty).contains("[warn]  services: "), "{}", text(&empty));
    assert!(!root.path().join(".twined").exists());
    assert!(!root.path().join("empty/.twined").exists());
}

#[test]
fn the_doctor_reports_failures_with_their_remedies() {
    let root = folder();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--images=host/r", "--pubsub", &replica.pubsub];

    let output = in_folder(root.path(), &doctor).output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let text = text(&output);
    assert!(text.contains("[fail]  kubernetes: "), "{text}");
    assert!(text.contains("set KUBECONFIG"), "{text}");
    assert!(text.contains("[warn]  pods and Pub/Sub"), "{text}");
}
