//! `twined serve` and `twined doctor`: the real binary, over an emulator, SQLite and processes.

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

/// How long a test waits for what is to happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// What an end may take: five seconds, and three for a machine that is busy with other tests.
const END: Duration = Duration::from_secs(8);

/// A service that counts primes.
const SERVICE: &str = "octue/primes";

/// The store of the first, for another.
const STORE: &str = "sqlite:.twined/events.sqlite";

/// A daemon of processes, with JSON logs.
struct Replica {
    process: Child,
    lines: Receiver<Value>,
    pubsub: String,
    http: String,
}

impl Replica {
    /// One that runs its own emulator.
    fn first(root: &Path) -> Self {
        Self::start(root, &["--emulate", "127.0.0.1:0"])
    }

    fn start(root: &Path, arguments: &[&str]) -> Self {
        let mut command = twined(&["serve", "--runner", "process", "--http", "127.0.0.1:0"]);
        command.args(arguments).args(["--log-format", "json", "services"]);
        let mut process = command.current_dir(root).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = process.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        // Read to its end, so that the daemon never waits for us.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let mut replica = Self { process, lines, pubsub: String::new(), http: String::new() };
        let started = replica.logged("daemon started");
        replica.pubsub = started["pubsub"].as_str().unwrap().to_owned();
        replica.http = started["http"].as_str().unwrap().to_owned();
        replica
    }

    /// One whose Pub/Sub, that of the first, says nothing any more: its end has to wait.
    fn over_a_frozen_emulator(root: &Path) -> (Self, Self) {
        let first = Self::first(root);
        let second = Self::start(root, &["--pubsub", &first.pubsub, "--data=2", "--store", STORE]);
        first.signal(Signal::STOP);
        (first, second)
    }

    /// The next line with this message.
    fn logged(&self, message: &str) -> Value {
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

    /// SIGTERM, its exit code, and how long that took.
    fn end(mut self) -> (Option<i32>, Duration) {
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

fn world() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_twined");
    let script = format!("shift 3; exec '{binary}' example-service \"$@\"");
    let folder = root.path().join("services/primes");
    fs::create_dir_all(&folder).unwrap();
    make_service(&folder, SERVICE, &script);
    root
}

fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn in_folder(root: &Path, arguments: &[&str]) -> Command {
    let mut command = twined(arguments);
    command.current_dir(root);
    command
}

#[test]
fn a_question_is_answered_and_a_drain_is_clean() {
    let root = world();
    let replica = Replica::first(root.path());
    assert!(replica.get("/ready").ends_with("ready\n"), "{}", replica.get("/ready"));
    assert!(replica.get("/metrics").contains("twined_build_info"));

    let answer = replica.ask();

    assert_eq!(answer.status.code(), Some(0), "{}", words(&answer));
    assert!(words(&answer).contains("\"primes\":25"), "{}", words(&answer));
    let (code, took) = replica.end();
    assert_eq!(code, Some(0));
    assert!(took < END, "{took:?}");
}

#[test]
fn two_replicas_share_the_work_and_one_may_go() {
    let root = world();
    let first = Replica::first(root.path());
    let second =
        Replica::start(root.path(), &["--pubsub", &first.pubsub, "--data=2", "--store", STORE]);

    let answers: Vec<_> = (0..4).map(|_| first.ask()).collect();

    assert!(answers.iter().all(|answer| answer.status.success()), "{}", words(&answers[0]));
    assert_eq!(second.end().0, Some(0));
    assert!(first.ask().status.success());
}

#[test]
fn a_deleted_subscription_is_created_again_and_its_loss_is_logged() {
    let root = world();
    let replica = Replica::first(root.path());
    let subscription = format!("twined.daemon.{DEFAULT_TOPIC}");
    Runtime::new().unwrap().block_on(async {
        let connection = Connection::emulator(&replica.pubsub, DEFAULT_PROJECT).unwrap();
        Admin::new(&connection).delete_subscription(&subscription).await.unwrap();
    });

    let said = replica.logged(
        "subscription was missing: created again, without the messages published meanwhile",
    );

    assert_eq!((&said["severity"], &said["subscription"]), (&"ERROR".into(), &subscription.into()));
    let answer = replica.ask();
    assert!(answer.status.success(), "{}", words(&answer));
}

#[test]
fn an_end_takes_five_seconds_though_pubsub_does_not_answer() {
    let root = world();
    let (frozen, replica) = Replica::over_a_frozen_emulator(root.path());
    let (code, took) = replica.end();
    assert_eq!(code, Some(0));
    assert!(took < END, "{took:?}");
    drop(frozen);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let root = world();
    let (frozen, mut replica) = Replica::over_a_frozen_emulator(root.path());
    replica.signal(Signal::TERM);
    replica.logged("daemon stopping");
    replica.signal(Signal::TERM);
    let code = replica.process.wait().unwrap().code();
    assert_eq!(code, Some(130));
    drop(frozen);
}

#[test]
fn a_wrong_setting_ends_it_with_what_to_do() {
    let root = world();
    fs::write(root.path().join("bad.yaml"), "rulez: []\n").unwrap();
    let images = "--images=europe-docker.pkg.dev/p/r";
    for (arguments, word) in [
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
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", words(&output));
        assert!(words(&output).contains(word), "{arguments:?}: {}", words(&output));
    }
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let root = world();
    let help = in_folder(root.path(), &["serve", "--help"]).output().unwrap();
    let help = words(&help);
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

    // The settings are right, and there is no cluster.
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(words(&output).contains("set KUBECONFIG"), "{}", words(&output));
}

#[test]
fn all_that_stands_in_the_way_of_a_start_is_told_at_once() {
    let root = world();
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

    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    let lines: Vec<Value> = String::from_utf8(output.stderr)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said = |check: &str| {
        let mut lines = lines.iter();
        lines.find(|line| line["check"].as_str().is_some_and(|name| name.starts_with(check)))
    };
    assert!(said("store").unwrap()["remedy"].as_str().unwrap().contains("--store"));
    assert!(said("kubernetes").unwrap()["remedy"].as_str().unwrap().contains("KUBECONFIG"));
    assert!(said("settings").unwrap()["found"].as_str().unwrap().contains("BIGQUERY"));
    assert_eq!(lines.last().unwrap()["exit_code"], 1);
}

#[test]
fn the_doctor_finds_a_good_network_good_and_leaves_nothing() {
    let root = world();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--runner", "process", "--pubsub", &replica.pubsub];
    let before = fs::read_dir(root.path().join(".twined")).unwrap().count();

    let table = in_folder(root.path(), &doctor).output().unwrap();
    let json = in_folder(root.path(), &doctor).args(["--output", "json"]).output().unwrap();

    assert_eq!(table.status.code(), Some(0), "{}", words(&table));
    assert!(words(&table).contains("[ok]    creating subscriptions"), "{}", words(&table));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ok"], true);
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["verdict"] == "ok"), "{checks:#?}");
    assert_eq!(fs::read_dir(root.path().join(".twined")).unwrap().count(), before);
}

#[test]
fn the_doctor_asks_a_daemon_that_runs_with_the_same_settings() {
    let root = world();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--runner", "process", "--emulate", &replica.pubsub, "services"];

    let output = in_folder(root.path(), &doctor).output().unwrap();

    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let words = words(&output);
    let subscription = "[ok]    subscription twined.daemon.main.octue.twined.services: it exists";
    assert!(words.contains(subscription), "{words}");
}

#[test]
fn the_doctor_leaves_nothing_and_finds_what_serve_would() {
    let root = world();
    let doctor = ["doctor", "--runner", "process", "--emulate", "127.0.0.1:0"];

    let good = in_folder(root.path(), &doctor).output().unwrap();
    let nowhere = in_folder(root.path(), &doctor).arg("./nowhere").output().unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    let empty = in_folder(&root.path().join("empty"), &doctor).output().unwrap();

    assert_eq!(good.status.code(), Some(0), "{}", words(&good));
    assert!(words(&good).contains("octue/primes:local"), "{}", words(&good));
    assert_eq!(nowhere.status.code(), Some(1), "{}", words(&nowhere));
    assert!(words(&nowhere).contains("[fail]  services: "), "{}", words(&nowhere));
    assert!(words(&empty).contains("[warn]  services: "), "{}", words(&empty));
    assert!(!root.path().join(".twined").exists());
    assert!(!root.path().join("empty/.twined").exists());
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let root = world();
    let replica = Replica::first(root.path());
    let doctor = ["doctor", "--images=host/r", "--pubsub", &replica.pubsub];

    let output = in_folder(root.path(), &doctor).output().unwrap();

    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    let words = words(&output);
    assert!(words.contains("[fail]  kubernetes: "), "{words}");
    assert!(words.contains("set KUBECONFIG"), "{words}");
    assert!(words.contains("[warn]  pods and Pub/Sub"), "{words}");
}
