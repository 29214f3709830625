//! One file, several stores and processes, and `kill -9`.

use super::*;
use std::process::ExitStatus;

/// The file that a process of [`appending_process`] appends to.
const FILE: &str = "TWINED_TEST_STORE_FILE";
/// The question of its events, a number.
const QUESTION: &str = "TWINED_TEST_STORE_QUESTION";
/// How many it appends.
const EVENTS: &str = "TWINED_TEST_STORE_EVENTS";
/// What it says of each event that it was told is on record, before the uuid.
const ON_RECORD: &str = "on record: ";

/// A process that appends, until it has or is killed.
struct Appending {
    child: Child,
    said: BufReader<ChildStdout>,
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_share_a_file_see_each_others_events() {
    let world = World::new();
    let other = SqliteStore::open(&world.path, Options::default()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for store in [world.store.clone(), other.clone()] {
        for task in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                for number in 0..25 {
                    // The same questions from both, so that both write each first.
                    append(&store, &Sent::new(task * 100 + number, "heartbeat")).await.unwrap();
                }
            });
        }
    }
    tasks.join_all().await;

    let same = Sent::new(7_000, "heartbeat");
    append(&world.store, &same).await.unwrap();
    append(&other, &same).await.unwrap();

    for store in [&world.store, &other] {
        for task in 0..4 {
            for number in 0..25 {
                assert_eq!(read(store, task * 100 + number).await.len(), 2);
            }
        }
        assert_eq!(read(store, 7_000).await.len(), 1);
    }
    assert_eq!(world.count("questions"), 101);
    assert_eq!(world.count("envelopes"), 1);
}

#[test]
fn many_may_open_a_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let path = folder.path().join(format!("{round}.sqlite"));
        let stores: Vec<_> = thread::scope(|scope| {
            let open = || SqliteStore::open(&path, Options::default());
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            opening.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for store in stores {
            store.unwrap();
        }
    }
}

#[test]
fn processes_that_share_a_file_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");

    let processes: Vec<_> =
        (1..=3).map(|question| Appending::start(&path, question, 100)).collect();
    for process in processes {
        let (said, status) = process.finish();
        assert!(status.success());
        assert_eq!(said.len(), 100);
    }

    let world = World {
        store: SqliteStore::open(&path, Options::default()).unwrap(),
        path,
        _folder: folder,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for question in 1..=3 {
        assert_eq!(runtime.block_on(world.read(question)).len(), 100);
    }
}

#[test]
fn what_was_answered_for_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let mut reported = Vec::new();
    for _ in 0..3 {
        let mut process = Appending::start(&path, 1, 1_000_000);
        let enough = reported.len() + 100;
        while reported.len() < enough {
            reported.push(process.next().expect("it goes on until it is killed"));
        }
        process.child.kill().unwrap();
        // What it said before it was killed, and was not yet read.
        reported.extend(process.finish().0);
    }

    let store = SqliteStore::open(&path, Options::default()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for uuid in reported {
        assert!(
            runtime.block_on(store.has(Uuid::from_u128(1), uuid)).unwrap(),
            "{uuid} was answered for"
        );
    }
}

/// Not a test, but what the tests above start: one caller after the other, eight at a time.
#[test]
#[ignore = "started by other tests"]
fn appending_process() {
    let text = |name| std::env::var_os(name).unwrap().into_string().unwrap();
    let path = PathBuf::from(text(FILE));
    let question: u128 = text(QUESTION).parse().unwrap();
    let events: usize = text(EVENTS).parse().unwrap();
    let store = SqliteStore::open(&path, Options::default()).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        use futures_util::StreamExt;
        let sent = futures_util::stream::iter(0..events).map(|_| Sent::new(question, "heartbeat"));
        let append = async |sent: Sent| {
            append(&store, &sent).await.unwrap();
            writeln!(std::io::stdout(), "{ON_RECORD}{}", sent.uuid()).unwrap();
        };
        sent.map(append).buffer_unordered(8).collect::<Vec<()>>().await;
    });
}

// === impl Appending ===

impl Appending {
    fn start(path: &Path, question: u128, events: usize) -> Self {
        let name = format!("{}::appending_process", module_path!().split_once("::").unwrap().1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture"])
            .env(FILE, path)
            .env(QUESTION, question.to_string())
            .env(EVENTS, events.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// The next event that is on record; none where the process has ended.
    fn next(&mut self) -> Option<Uuid> {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            // A line that the kill cut off was not said.
            if let Some((_, uuid)) = line.split_once(ON_RECORD)
                && let Some(uuid) = uuid.strip_suffix('\n')
            {
                return Some(Uuid::parse_str(uuid).unwrap());
            }
            line.clear();
        }
        None
    }

    /// All that it still says, once it has ended.
    fn finish(mut self) -> (Vec<Uuid>, ExitStatus) {
        let said = std::iter::from_fn(|| self.next()).collect();
        (said, self.child.wait().unwrap())
    }
}
