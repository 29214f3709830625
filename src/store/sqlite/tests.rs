use super::*;
use crate::chain::Chain;
use crate::event::{Digest, Timestamp, decode};
use crate::store::row::BACKEND;
use crate::store::{EventScope, TimeRange};
use rusqlite::Connection;
use std::collections::HashMap;
use tempfile::TempDir;

const PARENT: &str = "local/local:local";
const SENDER: &str = "octue/child:1.2.0";
const DATETIME: &str = "2026-01-31T12:00:00.000007+00:00";

/// A store in a folder of its own.
struct World {
    store: SqliteStore,
    path: PathBuf,
    _folder: TempDir,
}

/// A message of an event.
#[derive(Clone)]
struct Sent {
    data: String,
    attributes: HashMap<String, String>,
    message_id: String,
    ordering_key: String,
}

mod bounded;
mod opening;
mod sharing;
mod views;

#[tokio::test]
async fn a_refused_row_does_not_fail_the_rows_of_other_calls() {
    let world = World::new();
    world.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.kind = 'poison' \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    );
    let sent: Vec<_> = (0..50)
        .map(|number| Sent::new(number, if number == 20 { "poison" } else { "heartbeat" }))
        .collect();

    // A lock that is held makes all wait for one transaction.
    let lock = world.lock();
    let appends = sent.iter().map(|sent| append(&world.store, sent));
    let mut appends = std::pin::pin!(futures_util::future::join_all(appends));
    assert!(futures_util::poll!(&mut appends).is_pending());
    drop(lock);
    let results = appends.await;

    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(number, 20),
            Err(AppendError::Refused { uuid, reason }) => {
                assert_eq!((number, uuid), (20, sent[20].uuid()));
                assert_eq!(reason, "not this one (constraint failed)");
            }
            Err(error) => panic!("{}", Chain(&error)),
        }
    }
    assert_eq!(world.count("events"), 49);
}

#[tokio::test]
async fn a_refused_row_keeps_its_whole_call_off_the_record() {
    let world = World::new();
    world.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.kind = 'poison' \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    );
    let sent = [Sent::new(1, "heartbeat"), Sent::new(2, "poison"), Sent::new(3, "heartbeat")];

    let result = append_all(&world.store, &sent).await;

    assert!(matches!(result, Err(AppendError::Refused { uuid, .. }) if uuid == sent[1].uuid()));
    assert_eq!(world.count("events"), 0);
    // The ids of the questions that were rolled back are not used.
    append_all(&world.store, &[sent[0].clone(), sent[2].clone()]).await.unwrap();
    assert_eq!(world.read(1).await.len(), 1);
    assert_eq!(world.read(3).await.len(), 1);
}

#[tokio::test]
async fn rows_that_another_process_deleted_are_written_again() {
    let world = World::new();
    append(&world.store, &Sent::new(1, "heartbeat")).await.unwrap();
    world.sql("DELETE FROM events; DELETE FROM envelopes; DELETE FROM questions");
    let sent = Sent::new(1, "heartbeat");

    let error = append(&world.store, &sent).await.unwrap_err();

    assert!(matches!(error, AppendError::Unavailable(_)), "{error:?}");
    append(&world.store, &sent).await.unwrap();
    assert_eq!(world.read(1).await.len(), 1);
}

#[tokio::test]
async fn a_full_disk_makes_appends_unavailable_until_there_is_room() {
    let world = World::new();
    // A limit of the writer makes SQLite report a full disk.
    world.store.close().await;
    let full = schema::writable(&world.path, &Options::default()).unwrap();
    let pages: i64 = full.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    full.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    let store = store_on(&world.path, full);
    let large = Sent::new(1, "result").data(&"x".repeat(100_000));

    let error = append(&store, &large).await.unwrap_err();

    assert_eq!(
        Chain(&error).to_string(),
        "failed to reach the event store: database or disk is full"
    );
    store.close().await;
    let store = SqliteStore::open(&world.path, Options::default()).unwrap();
    append(&store, &large).await.unwrap();
}

#[tokio::test]
async fn a_locked_file_makes_appends_unavailable_until_it_is_unlocked() {
    let world = World::waiting(Duration::from_millis(20));
    let sent = Sent::new(1, "heartbeat");
    let lock = world.lock();

    let error = append(&world.store, &sent).await.unwrap_err();

    assert!(matches!(error, AppendError::Unavailable(_)));
    assert_eq!(Chain(&error).to_string(), "failed to reach the event store: database is locked");
    assert_eq!(world.read(1).await, [], "readers are not blocked, and find nothing");
    drop(lock);
    append(&world.store, &sent).await.unwrap();
    assert_eq!(world.read(1).await.len(), 1);
}

#[tokio::test]
async fn a_writer_that_panics_leaves_no_caller_waiting() {
    let world = World::new();
    let (announce, appended) = watch::channel(0);
    let horizon = Arc::new(Horizon::new());
    let panics = move |mut queue: UnboundedReceiver<Job>| {
        let job = queue.blocking_recv();
        // As a panic would drop them, without its output.
        drop((announce, job, queue));
    };
    let options = Options::default();
    let metrics = Arc::new(Metrics::new(&options));
    let watched = (appended, horizon);
    let store = SqliteStore::with_writer(&world.path, options, metrics, watched, panics).unwrap();
    let mut appended = store.appended();

    for _ in 0..2 {
        let error = append(&store, &Sent::new(1, "heartbeat")).await.unwrap_err();
        assert_eq!(Chain(&error).to_string(), "failed to reach the event store: store is closed");
    }
    assert!(appended.changed().await.is_err(), "watchers are notified");
}

#[tokio::test]
async fn calls_to_a_closed_store_fail() {
    let world = World::new();
    let clone = world.store.clone();
    append(&clone, &Sent::new(1, "heartbeat")).await.unwrap();
    world.read(1).await;

    world.store.close().await;
    world.store.close().await;

    assert!(matches!(
        append(&clone, &Sent::new(1, "heartbeat")).await,
        Err(AppendError::Unavailable(_))
    ));
    assert!(clone.has(Uuid::nil(), Uuid::nil()).await.is_err());
    let log = format!("{}-wal", world.path.display());
    assert!(!Path::new(&log).exists(), "the file is closed");
}

#[tokio::test]
async fn the_queue_is_bounded_by_bytes() {
    // The lock is held while 80 MB are prepared.
    let world = World::waiting(Duration::from_secs(120));
    let lock = world.lock();
    let large = Sent::new(1, "result").data(&"x".repeat(9_000_000));
    let sent: Vec<_> = (0..12).map(|_| large.clone().with_new_uuid()).collect();

    let appends = sent.iter().map(|sent| append(&world.store, sent));
    let mut appends = std::pin::pin!(futures_util::future::join_all(appends));
    assert!(futures_util::poll!(&mut appends).is_pending());
    let taken = QUEUE_KIB as usize - world.store.inner.budget.available_permits();
    assert_eq!(taken / (9_000_000 / 1024), 7, "the others have not even been copied");

    drop(lock);
    assert!(appends.await.into_iter().all(|result| result.is_ok()));
    assert_eq!(world.count("events"), 12);
    assert_eq!(world.store.inner.budget.available_permits(), QUEUE_KIB as usize);
}

#[test]
fn duplicates_and_errors_are_counted_from_zero() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    let world = ::metrics::with_local_recorder(&recorder, World::new);
    let has = |line: &str| {
        let text = rendered.render();
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    };
    has(r#"twined_events_duplicate_total{kind="heartbeat"} 0"#);
    has(r#"twined_store_errors_total{store="sqlite"} 0"#);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (known, newer) = (Sent::new(1, "heartbeat"), Sent::new(1, "of_a_newer_sdk"));
        append_all(&world.store, &[known.clone(), newer.clone()]).await.unwrap();
        append_all(&world.store, &[known.clone(), newer, known]).await.unwrap();
        world.store.close().await;
        append(&world.store, &Sent::new(1, "heartbeat")).await.unwrap_err();
    });

    has(r#"twined_events_duplicate_total{kind="heartbeat"} 2"#);
    has(r#"twined_events_duplicate_total{kind="other"} 1"#);
    has(r#"twined_events_duplicate_total{kind="question"} 0"#);
    has(r#"twined_store_errors_total{store="sqlite"} 1"#);
    has(r#"twined_store_append_seconds_count{store="sqlite"} 3"#);
}

fn store_on(path: &Path, connection: Connection) -> SqliteStore {
    let options = Options::default();
    SqliteStore::with_connection(connection, path, options, Arc::new(Metrics::new(&options)))
        .unwrap()
}

async fn append(store: &SqliteStore, sent: &Sent) -> Result<(), AppendError> {
    append_all(store, std::slice::from_ref(sent)).await
}

async fn append_all(store: &SqliteStore, sent: &[Sent]) -> Result<(), AppendError> {
    let events: Vec<_> =
        sent.iter().map(|sent| decode(sent.data.as_bytes(), &sent.attributes).unwrap()).collect();
    let rows: Vec<_> = sent
        .iter()
        .zip(&events)
        .map(|(sent, event)| {
            Row::new(event, &sent.attributes, &sent.message_id, &sent.ordering_key)
        })
        .collect();
    store.append(&rows).await
}

async fn read(store: &SqliteStore, question: u128) -> Vec<StoredEvent> {
    let query = EventQuery::new(EventScope::Question(Uuid::from_u128(question)), 100_000);
    store.events(&query).await.unwrap()
}

// === impl World ===

impl World {
    fn new() -> Self {
        Self::waiting(Options::default().busy_timeout)
    }

    fn waiting(busy_timeout: Duration) -> Self {
        Self::with(Options { busy_timeout, ..Options::default() })
    }

    fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let store = SqliteStore::open(&path, options).unwrap();
        Self { store, path, _folder: folder }
    }

    /// A connection that SQLite treats as that of another process.
    fn connection(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn sql(&self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.connection().query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// Blocks all writers until it is dropped.
    fn lock(&self) -> Connection {
        let connection = self.connection();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection
    }

    async fn read(&self, question: u128) -> Vec<StoredEvent> {
        read(&self.store, question).await
    }
}

// === impl Sent ===

impl Sent {
    fn new(question: u128, kind: &str) -> Self {
        let question = Uuid::from_u128(question).to_string();
        let down = matches!(kind, "question" | "cancellation");
        let sender_type = if down { "PARENT" } else { "CHILD" };
        let attributes = [
            ("uuid", &*Uuid::new_v4().to_string()),
            ("datetime", DATETIME),
            ("question_uuid", &question),
            ("originator_question_uuid", &question),
            ("parent", PARENT),
            ("originator", PARENT),
            ("sender", SENDER),
            ("recipient", PARENT),
            ("sender_type", sender_type),
            ("sender_sdk_version", "0.69.1"),
            ("retry_count", "0"),
        ];
        Self {
            data: format!(r#"{{"kind": "{kind}"}}"#),
            attributes: attributes.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
            message_id: "17011".to_owned(),
            ordering_key: question,
        }
    }

    fn with(mut self, name: &str, text: &str) -> Self {
        self.attributes.insert(name.to_owned(), text.to_owned());
        self
    }

    fn with_new_uuid(self) -> Self {
        self.with("uuid", &Uuid::new_v4().to_string())
    }

    /// With this text in it.
    fn data(mut self, text: &str) -> Self {
        self.data = format!(r#"{{"kind": "result", "output_values": "{text}"}}"#);
        self
    }

    fn uuid(&self) -> Uuid {
        Uuid::parse_str(&self.attributes["uuid"]).unwrap()
    }
}
