//! A SQLite file that several processes append to, and processes that are killed.

use crate::helper;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use twined::store::sqlite::{Options, SqliteStore};
use twined::store::{EventQuery, EventScope, History, View};
use uuid::Uuid;

/// A process that appends events until it has appended all, or is killed.
struct Appender {
    process: Child,
    output: BufReader<ChildStdout>,
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_share_a_file_lose_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");

    let appenders: Vec<_> = (1..=3).map(|question| Appender::start(&path, question, 100)).collect();
    for appender in appenders {
        let (on_record, status) = appender.finish();
        assert!(status.success());
        assert_eq!(on_record.len(), 100);
    }

    let store = SqliteStore::open(&path, Options::default()).unwrap();
    for question in 1..=3 {
        let scope = EventScope::Question(Uuid::from_u128(question));
        let query = EventQuery::new(scope, 1_000);
        assert_eq!(store.events(&query).await.unwrap().len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appended_event_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let mut on_record = Vec::new();
    for _ in 0..3 {
        let mut appender = Appender::start(&path, 1, 1_000_000);
        let enough = on_record.len() + 100;
        while on_record.len() < enough {
            on_record.push(appender.next().expect("it appends until it is killed"));
        }
        appender.process.kill().unwrap();
        on_record.extend(appender.finish().0);
    }

    let store = SqliteStore::open(&path, Options::default()).unwrap();
    for uuid in on_record {
        assert!(
            store.has(Uuid::from_u128(1), uuid).await.unwrap(),
            "{uuid} was on record before the kill"
        );
    }
}

// === impl Appender ===

impl Appender {
    fn start(path: &Path, question: u128, events: usize) -> Self {
        let mut process = helper::command("append-events")
            .arg(path)
            .args([question.to_string(), events.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    /// The next event that is on record; none if the process has ended.
    fn next(&mut self) -> Option<Uuid> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        // The kill may have cut off the last line.
        Some(Uuid::parse_str(line.strip_suffix('\n')?).unwrap())
    }

    /// The other events that are on record, when the process has ended.
    fn finish(mut self) -> (Vec<Uuid>, ExitStatus) {
        let on_record = std::iter::from_fn(|| self.next()).collect();
        (on_record, self.process.wait().unwrap())
    }
}
