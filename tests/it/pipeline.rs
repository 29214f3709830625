//! Deliveries whose store or runner fails: nothing is lost, nothing is done twice.

use async_trait::async_trait;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twined::dependencies::Dependencies;
use twined::event::encode::{Ask, Body};
use twined::event::{Outgoing, RunId, Sruid, SruidBuf, Timestamp, decode};
use twined::pipeline::Pipeline;
use twined::pubsub::emulator::{Emulator, Options};
use twined::pubsub::subscriber::Flow;
use twined::pubsub::{Admin, Connection, Delivery, Message, Publisher, Subscriber};
use twined::registry::Listed;
use twined::runner::{Coordinator, LaunchRequest, RunState, Runner, RunnerError};
use twined::store::sqlite::{self, SqliteStore};
use twined::store::{
    AppendError, CancelledQuestions, EventQuery, EventScope, EventStore, ReadError,
    RejectedMessage, Row, RunRecord, StoredEvent, UnansweredQuery, UnansweredQuestion, View,
    ViewPosition,
};
use uuid::Uuid;

const TOPIC: &str = "a-topic";
const SUBSCRIPTION: &str = "a-subscription";
const DEADLINE: Duration = Duration::from_secs(30);

/// A store that fails so many times, and refuses one event for good.
#[derive(Debug)]
pub struct Flaky {
    inner: SqliteStore,
    pub failures: AtomicUsize,
    refused: Option<Uuid>,
    /// What a sweep finds.
    pub unanswered: Mutex<Vec<UnansweredQuestion>>,
}

#[async_trait]
impl EventStore for Flaky {
    async fn append(&self, rows: &[Row<'_>]) -> Result<(), AppendError> {
        if let Some(uuid) = self.refused.filter(|uuid| rows.iter().any(|row| row.uuid == *uuid)) {
            return Err(AppendError::Refused { uuid, reason: "on purpose".into() });
        }
        if take_one(&self.failures) {
            return Err(AppendError::Unavailable("on purpose".into()));
        }
        self.inner.append(rows).await
    }

    async fn reject(&self, message: &RejectedMessage<'_>) -> Result<(), AppendError> {
        self.inner.reject(message).await
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError> {
        self.inner.read(query).await
    }

    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        EventStore::run_record(&self.inner, run).await
    }

    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError> {
        match query.after {
            Some(_) => Ok(vec![]),
            None => Ok(self.unanswered.lock().unwrap().clone()),
        }
    }
}

#[async_trait]
impl View for Flaky {
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        View::run_record(&self.inner, run).await
    }

    async fn has(&self, event: Uuid) -> Result<bool, ReadError> {
        self.inner.has(event).await
    }

    async fn cancelled_questions(
        &self,
        after: ViewPosition,
        limit: u32,
    ) -> Result<CancelledQuestions, ReadError> {
        self.inner.cancelled_questions(after, limit).await
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.inner.appended()
    }
}

/// A runner that fails so many times, and writes down what it was to run.
#[derive(Debug, Default)]
struct Ledger {
    failures: AtomicUsize,
    launched: Mutex<Vec<Uuid>>,
    /// Refuses what it is to launch.
    refuses: AtomicBool,
    /// How many cancellations find nothing to end.
    misses: AtomicUsize,
    cancelled: AtomicUsize,
}

#[async_trait]
impl Runner for Ledger {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        let question = launch.run.question;
        if self.refuses.load(Ordering::SeqCst) {
            let (exception, message) = ("PermissionError", "Over the limit of 4 CPUs.".into());
            return Err(RunnerError::Refused { question, exception, message });
        }
        if take_one(&self.failures) {
            let source = "on purpose".into();
            return Err(RunnerError::Unavailable { verb: "launch", question, source });
        }
        self.launched.lock().unwrap().push(question);
        Ok(())
    }

    async fn cancel(&self, _: Uuid) -> Result<bool, RunnerError> {
        let missed = take_one(&self.misses);
        self.cancelled.fetch_add(1, Ordering::SeqCst);
        Ok(!missed)
    }

    async fn has(&self, _: RunId) -> Result<bool, RunnerError> {
        Ok(false)
    }

    async fn settle(&self, _: RunId) -> Result<(), RunnerError> {
        Ok(())
    }

    fn states(&self) -> futures_util::stream::BoxStream<'static, RunState> {
        Box::pin(futures_util::stream::pending())
    }
}

impl Coordinator for Ledger {}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// An emulator, a store, and what the pipeline works with.
pub struct World {
    pub store: Arc<Flaky>,
    runner: Arc<Ledger>,
    pub connection: Connection,
    pub publisher: Publisher,
    servers: JoinSet<()>,
    _folder: TempDir,
}

impl World {
    pub async fn new(failures: usize, refused: Option<Uuid>, launch_failures: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let inner = SqliteStore::open(&path, sqlite::Options::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let emulator = Emulator::new(Options::default());
        let mut servers = JoinSet::new();
        servers.spawn(async move {
            emulator.serve(listener, std::future::pending()).await.unwrap();
        });
        let connection = Connection::emulator(&address, "a-project").unwrap();
        let admin = Admin::new(&connection);
        admin.ensure_topic(TOPIC).await.unwrap();
        admin.ensure_subscription(SUBSCRIPTION, TOPIC, "").await.unwrap();
        Self {
            store: Arc::new(Flaky {
                inner,
                failures: failures.into(),
                refused,
                unanswered: Mutex::default(),
            }),
            runner: Arc::new(Ledger { failures: launch_failures.into(), ..Ledger::default() }),
            publisher: Publisher::new(&connection, TOPIC),
            connection,
            servers,
            _folder: folder,
        }
    }

    /// The pipeline and its subscriber, until `done`, and then to their end.
    pub async fn work_until<T>(&self, done: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let dependencies = self.dependencies(&self.runner);
        let pipeline = Pipeline::new(dependencies, Flow::default(), stop.clone());
        let subscriber =
            Subscriber::new(&self.connection, SUBSCRIPTION, Flow::default()).await.unwrap();
        let (sender, deliveries) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(subscriber.run(sender, stop.clone()));
        tasks.spawn(pipeline.run(deliveries));
        let found = done.await;
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        found
    }

    /// What a monitor and a pipeline of this runner work with.
    pub fn dependencies<R>(&self, runner: &Arc<R>) -> Dependencies
    where
        R: Runner + Coordinator + 'static,
    {
        let revision: SruidBuf = "octue/example:1.0.0".parse().unwrap();
        Dependencies {
            runner: Arc::clone(runner) as Arc<dyn Runner>,
            coordinator: Arc::clone(runner) as Arc<dyn Coordinator>,
            view: Arc::clone(&self.store) as Arc<dyn View>,
            store: Arc::clone(&self.store) as Arc<dyn EventStore>,
            registry: Arc::new([revision].into_iter().collect::<Listed>()),
            admin: Admin::new(&self.connection),
            publisher: self.publisher.clone(),
            subscriptions_first: true,
            late_answers: Duration::ZERO,
        }
    }

    /// What is published from now on, as anybody sees it.
    pub async fn wire(&self) -> Wire {
        let name = format!("wire-{}", Uuid::new_v4());
        Admin::new(&self.connection).ensure_subscription(&name, TOPIC, "").await.unwrap();
        let subscriber = Subscriber::new(&self.connection, &name, Flow::default()).await.unwrap();
        let (sender, mut deliveries) = mpsc::channel(1);
        let heard = watch::Sender::new(Vec::new());
        let told = heard.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(subscriber.run(sender, CancellationToken::new()));
        tasks.spawn(async move {
            while let Some(Delivery { message, receipt }) = deliveries.recv().await {
                told.send_modify(|heard| heard.push(message));
                receipt.ack();
            }
        });
        Wire { heard, _tasks: tasks }
    }

    /// The cancellation of a question by the one who asked it.
    pub fn cancellation(asked: &Outgoing) -> Outgoing {
        let data = serde_json::to_vec(&Body::Cancellation).unwrap();
        let mut attributes = asked.attributes.clone();
        attributes.insert("uuid".into(), Uuid::new_v4().to_string());
        Outgoing { data, attributes, ordering_key: asked.ordering_key.clone() }
    }

    pub async fn stored(&self, question: Uuid) -> Vec<StoredEvent> {
        let query = EventQuery {
            of: EventScope::Question(question),
            kinds: vec![],
            exclude_kinds: vec![],
            limit: 1000,
            tail: false,
        };
        self.store.read(&query).await.unwrap()
    }

    /// Waits until the runner is as wanted.
    async fn until(&self, wanted: impl Fn(&Ledger) -> bool) {
        let deadline = Instant::now() + 10 * DEADLINE;
        while !wanted(&self.runner) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }

    /// Waits until so many events of a question are on record.
    pub async fn wait_for_events(&self, question: Uuid, count: usize) -> Vec<StoredEvent> {
        let mut appended = self.store.appended();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let stored = self.stored(question).await;
            if stored.len() >= count {
                return stored;
            }
            let changed = tokio::time::timeout_at(deadline, appended.changed()).await;
            changed.expect("the events are on record in time").unwrap();
        }
    }
}

/// What was published.
pub struct Wire {
    heard: watch::Sender<Vec<Message>>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// Waits for an event that says this, and gives it.
    async fn hear(&self, text: &str) -> String {
        let mut heard = self.heard.subscribe();
        let data = |message: &Message| String::from_utf8_lossy(&message.data).into_owned();
        let says = |message: &&Message| data(message).contains(text);
        let waiting = heard.wait_for(|heard| heard.iter().any(|message| says(&message)));
        let heard = tokio::time::timeout(10 * DEADLINE, waiting).await.unwrap().unwrap();
        heard.iter().find(says).map(data).unwrap()
    }

    /// Waits for so many messages, and gives the kinds of all there are then.
    pub async fn kinds(&self, count: usize) -> Vec<String> {
        let mut heard = self.heard.subscribe();
        let waiting = heard.wait_for(|heard| heard.len() >= count);
        let messages = tokio::time::timeout(10 * DEADLINE, waiting).await.unwrap().unwrap();
        let kind = |message: &Message| {
            let event = decode(&message.data, &message.attributes).unwrap();
            event.kind.name().to_owned()
        };
        let mut kinds: Vec<_> = messages.iter().map(kind).collect();
        kinds.sort_unstable();
        kinds
    }
}

/// Puts the test's clock forward.
pub async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Lets ten seconds pass again and again, in no time, until something is done.
pub async fn passing<T>(done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            done = &mut done => return done,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        pass(Duration::from_secs(10)).await;
    }
}

pub fn question(question_uuid: Uuid) -> Outgoing {
    Ask {
        question_uuid,
        sender: Sruid::parse("local/local:local").unwrap(),
        recipient: Sruid::parse("octue/example:1.0.0").unwrap(),
        datetime: Timestamp::now(),
        forward_logs: false,
        input_values: None,
        input_manifest: None,
    }
    .encode()
}

/// Log records that the question's child might say, numbered.
fn log_records(asked: &Outgoing, count: usize) -> Vec<Outgoing> {
    let record = |number: usize| {
        let mut attributes = asked.attributes.clone();
        let data = format!(r#"{{"kind": "log_record", "log_record": {{"msg": "{number}"}}}}"#);
        attributes.extend(
            [
                ("uuid", Uuid::new_v4().to_string()),
                ("sender_type", "CHILD".to_owned()),
                // All the same: the store then reads them in the order of their arrival.
                ("datetime", Timestamp(0).to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Outgoing { data: data.into(), attributes, ordering_key: asked.ordering_key.clone() }
    };
    (1..=count).map(record).collect()
}

#[tokio::test]
async fn events_wait_for_a_store_that_fails_and_are_then_on_record_once() {
    let world = World::new(3, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);

    let stored = world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            world.wait_for_events(uuid, 1).await
        })
        .await;

    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].attributes, asked.attributes.into_iter().collect());
    assert_eq!(*world.runner.launched.lock().unwrap(), [uuid]);
}

#[tokio::test]
async fn a_launch_that_fails_is_tried_again_here_and_what_follows_keeps_its_order() {
    let world = World::new(0, None, 3).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);

    let stored = world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            for record in log_records(&asked, 50) {
                world.publisher.publish(record).await.unwrap();
            }
            world.wait_for_events(uuid, 51).await
        })
        .await;

    assert_eq!(*world.runner.launched.lock().unwrap(), [uuid]);
    let said: Vec<_> = stored[..50].iter().map(|event| event.data.clone()).collect();
    let published = log_records(&asked, 50).into_iter().map(|record| record.data);
    assert_eq!(said, published.map(|data| String::from_utf8(data).unwrap()).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_held_when_the_pipeline_stops_comes_again_to_the_next_one() {
    let world = World::new(usize::MAX, None, 0).await;
    let uuid = Uuid::new_v4();
    world.publisher.publish(question(uuid)).await.unwrap();
    world
        .work_until(async {
            let deadline = Instant::now() + DEADLINE;
            while world.store.failures.load(Ordering::SeqCst) == usize::MAX {
                assert!(Instant::now() < deadline);
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert!(world.stored(uuid).await.is_empty());

    world.store.failures.store(0, Ordering::SeqCst);
    let stored = world.work_until(world.wait_for_events(uuid, 1)).await;

    assert_eq!(stored.len(), 1);
}

#[tokio::test]
async fn an_event_that_the_store_refuses_is_rejected_and_its_neighbors_are_kept() {
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let mut records = log_records(&asked, 3);
    let poison = records[1].attributes["uuid"].parse().unwrap();
    let world = World::new(0, Some(poison), 0).await;

    let stored = world
        .work_until(async {
            for record in records.drain(..) {
                world.publisher.publish(record).await.unwrap();
            }
            world.wait_for_events(uuid, 2).await
        })
        .await;

    let said: Vec<_> = stored.iter().map(|event| &*event.data).collect();
    assert!(said[0].contains("\"1\"") && said[1].contains("\"3\""), "{said:?}");
}

#[tokio::test]
async fn a_question_that_comes_twice_is_on_record_once_and_its_run_is_only_ensured() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);

    world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            world.publisher.publish(asked.clone()).await.unwrap();
            let deadline = Instant::now() + DEADLINE;
            while world.runner.launched.lock().unwrap().len() < 2 {
                assert!(Instant::now() < deadline, "a duplicate row does not mean that it runs");
                tokio::task::yield_now().await;
            }
        })
        .await;

    assert_eq!(world.stored(uuid).await.len(), 1);
    assert_eq!(*world.runner.launched.lock().unwrap(), [uuid, uuid]);
}

#[tokio::test]
async fn a_question_to_nobody_is_answered_by_an_exception_and_not_run() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let mut asked = question(uuid);
    asked.attributes.insert("recipient".into(), "octue/example:2.0.0".into());

    let stored = world
        .work_until(async {
            world.publisher.publish(asked).await.unwrap();
            world.wait_for_events(uuid, 2).await
        })
        .await;

    assert!(world.runner.launched.lock().unwrap().is_empty());
    let exception = &stored[1];
    let attributes: HashMap<_, _> = exception.attributes.clone().into_iter().collect();
    let event = decode(exception.data.as_bytes(), &attributes).unwrap();
    assert_eq!(event.attributes.recipient.as_str(), "local/local:local");
    assert!(event.data.contains("ServiceNotFound"), "{}", event.data);
    assert!(event.data.contains("octue/example:1.0.0"), "{}", event.data);
    assert_eq!(world.servers.len(), 1, "the emulator is up");
}

#[tokio::test]
async fn a_question_that_is_refused_gets_one_exception_however_often_it_comes() {
    let world = World::new(0, None, 0).await;
    let wire = world.wire().await;
    world.runner.refuses.store(true, Ordering::SeqCst);
    let uuid = Uuid::new_v4();
    let mut asked = question(uuid);
    asked.attributes.insert("retry_count".into(), "2".into());

    let stored = world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            let stored = world.wait_for_events(uuid, 2).await;
            world.publisher.publish(asked.clone()).await.unwrap();
            wire.kinds(3).await;
            stored
        })
        .await;

    assert_eq!(stored[1].attributes["retry_count"], "2");
    assert!(stored[1].data.contains("PermissionError"), "{}", stored[1].data);
    assert!(stored[1].data.contains("Over the limit of 4 CPUs."), "{}", stored[1].data);
    assert_eq!(wire.kinds(3).await, ["exception", "question", "question"]);
}

#[tokio::test]
async fn a_question_that_the_runner_cannot_take_for_long_is_told_and_called_off() {
    let world = World::new(0, None, usize::MAX).await;
    let wire = world.wire().await;
    let uuid = Uuid::new_v4();

    world
        .work_until(async {
            world.publisher.publish(question(uuid)).await.unwrap();
            world.wait_for_events(uuid, 1).await;
            world.until(|runner| runner.failures.load(Ordering::SeqCst) < usize::MAX - 1).await;
            // Meanwhile its asker hears that it is not lost.
            pass(Duration::from_secs(200)).await;
            wire.hear("heartbeat").await;
            pass(Duration::from_secs(701)).await;
            let exception = wire.hear("RuntimeError").await;
            assert!(exception.contains("on purpose"), "{exception}");
            world.until(|runner| runner.cancelled.load(Ordering::SeqCst) > 0).await;
        })
        .await;
}

#[tokio::test]
async fn a_cancellation_waits_for_a_run_that_another_daemon_is_launching() {
    let world = World::new(0, None, 0).await;
    world.runner.misses.store(2, Ordering::SeqCst);
    let uuid = Uuid::new_v4();
    let asked = question(uuid);

    world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            world.publisher.publish(World::cancellation(&asked)).await.unwrap();
            world.until(|runner| runner.cancelled.load(Ordering::SeqCst) >= 3).await;
        })
        .await;
}

#[tokio::test]
async fn the_cancellation_of_a_stranger_ends_nothing() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let mut cancellation = World::cancellation(&asked);
    cancellation.attributes.insert("sender".into(), "octue/stranger:1.0.0".into());

    world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            world.publisher.publish(cancellation).await.unwrap();
            // What comes after it is dealt with after it.
            world.publisher.publish(log_records(&asked, 1).remove(0)).await.unwrap();
            world.wait_for_events(uuid, 3).await
        })
        .await;

    assert_eq!(world.runner.cancelled.load(Ordering::SeqCst), 0);
}
