//! Deliveries whose store or runner fails: nothing is lost, and nothing is done twice.

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
use twined::event::encode::{EventBody, NewQuestion};
use twined::event::{OutgoingMessage, RunId, Sruid, SruidBuf, Timestamp, decode};
use twined::pipeline::Pipeline;
use twined::pubsub::emulator::{Emulator, EmulatorOptions};
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Admin, Connection, Delivery, Message, Publisher, Subscriber};
use twined::registry::ListedRegistry;
use twined::routing::Router;
use twined::runner::{Coordinator, LaunchRequest, RunState, Runner, RunnerError, Settlement};
use twined::store::sqlite::{self, SqliteStore};
use twined::store::{
    AppendError, CancelledQuestions, EventLog, EventQuery, EventScope, History, QuestionFilter,
    ReadError, RejectedMessage, RejectedQuery, Row, RunRecord, ServiceQuery, StoredEvent,
    StoredQuestion, StoredRejectedMessage, UnansweredQuery, UnansweredQuestion, View, ViewPosition,
    ViewedQuestion,
};
use uuid::Uuid;

const TOPIC: &str = "a-topic";
const SUBSCRIPTION: &str = "a-subscription";
const DEADLINE: Duration = Duration::from_secs(30);

/// A store that fails so many times, and always refuses one event.
#[derive(Debug)]
pub(crate) struct Flaky {
    inner: SqliteStore,
    pub failures: AtomicUsize,
    refused: Option<Uuid>,
    /// The unanswered questions that a sweep reads.
    pub unanswered: Mutex<Vec<UnansweredQuestion>>,
}

#[async_trait]
impl EventLog for Flaky {
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
}

#[async_trait]
impl History for Flaky {
    async fn events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError> {
        self.inner.events(query).await
    }

    async fn questions(&self, query: &ServiceQuery) -> Result<Vec<StoredQuestion>, ReadError> {
        History::questions(&self.inner, query).await
    }

    async fn rejected(
        &self,
        query: &RejectedQuery,
    ) -> Result<Vec<StoredRejectedMessage>, ReadError> {
        self.inner.rejected(query).await
    }

    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        History::run_record(&self.inner, run).await
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

    async fn has(&self, question: Uuid, event: Uuid) -> Result<bool, ReadError> {
        self.inner.has(question, event).await
    }

    async fn questions(&self, filter: &QuestionFilter) -> Result<Vec<ViewedQuestion>, ReadError> {
        View::questions(&self.inner, filter).await
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

/// A runner that fails so many times, and records its calls.
#[derive(Debug, Default)]
struct Ledger {
    failures: AtomicUsize,
    launched: Mutex<Vec<Uuid>>,
    /// Whether it refuses every launch.
    refuses: AtomicBool,
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
        self.cancelled.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    async fn has(&self, _: RunId) -> Result<bool, RunnerError> {
        Ok(false)
    }

    async fn settle(&self, _: RunId) -> Result<Settlement, RunnerError> {
        Ok(Settlement::Ours)
    }

    fn states(&self) -> futures_util::stream::BoxStream<'static, RunState> {
        Box::pin(futures_util::stream::pending())
    }
}

impl Coordinator for Ledger {}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// An emulator, a store, and the dependencies of a pipeline.
pub(crate) struct World {
    pub store: Arc<Flaky>,
    runner: Arc<Ledger>,
    pub connection: Connection,
    pub publisher: Publisher,
    servers: JoinSet<()>,
    _folder: TempDir,
}

impl World {
    pub(crate) async fn new(
        failures: usize,
        refused: Option<Uuid>,
        launch_failures: usize,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let inner = SqliteStore::open(&path, sqlite::Options::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let emulator = Emulator::new(EmulatorOptions::default());
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

    /// Runs the pipeline and its subscriber until `done`, and then to their end.
    pub(crate) async fn work_until<T>(&self, done: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let dependencies = self.dependencies(&self.runner);
        let pipeline = Pipeline::new(dependencies, FlowControl::default(), stop.clone());
        let subscriber =
            Subscriber::new(&self.connection, SUBSCRIPTION, FlowControl::default()).await.unwrap();
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

    /// Launches a question by a pipeline with this view, as if it had been published some time ago.
    pub(crate) async fn launch(&self, view: Arc<dyn View>, asked: OutgoingMessage, age: Duration) {
        let stop = CancellationToken::new();
        let dependencies = Dependencies { view, ..self.dependencies(&self.runner) };
        let pipeline = Pipeline::new(dependencies, FlowControl::default(), stop.clone());
        let subscriber =
            Subscriber::new(&self.connection, SUBSCRIPTION, FlowControl::default()).await.unwrap();
        let (sender, mut received) = mpsc::channel(1);
        let (aged, deliveries) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(subscriber.run(sender, stop.clone()));
        tasks.spawn(pipeline.run(deliveries));
        self.publisher.publish(asked).await.unwrap();
        let mut delivery = received.recv().await.unwrap();
        let published = delivery.message.published.unwrap();
        delivery.message.published = Some(Timestamp(published.0 - age.as_micros() as i64));
        aged.send(delivery).await.unwrap();
        self.wait_until(|runner| !runner.launched.lock().unwrap().is_empty()).await;
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// The dependencies of a monitor and a pipeline with this runner.
    pub(crate) fn dependencies<R>(&self, runner: &Arc<R>) -> Dependencies
    where
        R: Runner + Coordinator + 'static,
    {
        let revision: SruidBuf = "octue/example:1.0.0".parse().unwrap();
        let registry: ListedRegistry = [revision].into_iter().collect();
        let admin = Admin::new(&self.connection);
        Dependencies {
            runner: Arc::clone(runner) as Arc<dyn Runner>,
            coordinator: Arc::clone(runner) as Arc<dyn Coordinator>,
            view: Arc::clone(&self.store) as Arc<dyn View>,
            log: Arc::clone(&self.store) as Arc<dyn EventLog>,
            history: Arc::clone(&self.store) as Arc<dyn History>,
            router: Arc::new(Router::new(Arc::new(registry), admin, true)),
            cancellations: Arc::default(),
            publisher: self.publisher.clone(),
            late_answer_timeout: Duration::ZERO,
        }
    }

    /// Records what is published from now on.
    pub(crate) async fn wire(&self) -> Wire {
        let name = format!("wire-{}", Uuid::new_v4());
        Admin::new(&self.connection).ensure_subscription(&name, TOPIC, "").await.unwrap();
        let subscriber =
            Subscriber::new(&self.connection, &name, FlowControl::default()).await.unwrap();
        let (sender, mut deliveries) = mpsc::channel(1);
        let published = watch::Sender::new(Vec::new());
        let recorded = published.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(subscriber.run(sender, CancellationToken::new()));
        tasks.spawn(async move {
            while let Some(Delivery { message, receipt }) = deliveries.recv().await {
                recorded.send_modify(|published| published.push(message));
                receipt.ack();
            }
        });
        Wire { published, _tasks: tasks }
    }

    /// The cancellation of a question by its parent.
    pub(crate) fn cancellation(asked: &OutgoingMessage) -> OutgoingMessage {
        let data = serde_json::to_vec(&EventBody::Cancellation).unwrap();
        let mut attributes = asked.attributes.clone();
        attributes.insert("uuid".into(), Uuid::new_v4().to_string());
        OutgoingMessage { data, attributes, ordering_key: asked.ordering_key.clone() }
    }

    pub(crate) async fn stored(&self, question: Uuid) -> Vec<StoredEvent> {
        let query = EventQuery::new(EventScope::Question(question), 1000);
        self.store.events(&query).await.unwrap()
    }

    /// Waits until the runner is as wanted.
    async fn wait_until(&self, wanted: impl Fn(&Ledger) -> bool) {
        let deadline = Instant::now() + 10 * DEADLINE;
        while !wanted(&self.runner) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }

    /// Waits until so many events of a question are on record.
    pub(crate) async fn wait_for_events(&self, question: Uuid, count: usize) -> Vec<StoredEvent> {
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

/// A record of what was published.
pub(crate) struct Wire {
    published: watch::Sender<Vec<Message>>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// Waits for an event with this text in its data, and returns its data.
    async fn wait_for(&self, text: &str) -> String {
        let mut published = self.published.subscribe();
        let data = |message: &Message| String::from_utf8_lossy(&message.data).into_owned();
        let has_text = |message: &&Message| data(message).contains(text);
        let waiting = published.wait_for(|all| all.iter().any(|message| has_text(&message)));
        let published = tokio::time::timeout(10 * DEADLINE, waiting).await.unwrap().unwrap();
        published.iter().find(has_text).map(data).unwrap()
    }

    /// Waits for so many messages, and returns the kinds of all there are then.
    pub(crate) async fn kinds(&self, count: usize) -> Vec<String> {
        let mut published = self.published.subscribe();
        let waiting = published.wait_for(|all| all.len() >= count);
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

/// Advances the test's clock.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Advances the clock by ten seconds again and again, until something is done.
pub(crate) async fn passing<T>(done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            done = &mut done => return done,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        pass(Duration::from_secs(10)).await;
    }
}

pub(crate) fn question(question_uuid: Uuid) -> OutgoingMessage {
    NewQuestion {
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

/// Numbered log records of the question's child.
fn log_records(asked: &OutgoingMessage, count: usize) -> Vec<OutgoingMessage> {
    let record = |number: usize| {
        let mut attributes = asked.attributes.clone();
        let data = format!(r#"{{"kind": "log_record", "log_record": {{"msg": "{number}"}}}}"#);
        attributes.extend(
            [
                ("uuid", Uuid::new_v4().to_string()),
                ("sender_type", "CHILD".to_owned()),
                // All equal, so the store reads them in the order of their arrival.
                ("datetime", Timestamp(0).to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        OutgoingMessage { data: data.into(), attributes, ordering_key: asked.ordering_key.clone() }
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
async fn a_failed_launch_is_retried_and_later_events_keep_their_order() {
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
    let data: Vec<_> = stored[..50].iter().map(|event| event.data.clone()).collect();
    let published = log_records(&asked, 50).into_iter().map(|record| record.data);
    assert_eq!(data, published.map(|data| String::from_utf8(data).unwrap()).collect::<Vec<_>>());
}

#[tokio::test]
async fn deliveries_held_when_a_pipeline_stops_are_redelivered_to_the_next() {
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

    let data: Vec<_> = stored.iter().map(|event| &*event.data).collect();
    assert!(data[0].contains("\"1\"") && data[1].contains("\"3\""), "{data:?}");
}

#[tokio::test]
async fn a_question_delivered_twice_is_on_record_once_and_launched_idempotently() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);

    world
        .work_until(async {
            world.publisher.publish(asked.clone()).await.unwrap();
            world.publisher.publish(asked.clone()).await.unwrap();
            let deadline = Instant::now() + DEADLINE;
            while world.runner.launched.lock().unwrap().len() < 2 {
                assert!(
                    Instant::now() < deadline,
                    "a row on record does not prove that there is a run"
                );
                tokio::task::yield_now().await;
            }
        })
        .await;

    assert_eq!(world.stored(uuid).await.len(), 1);
    assert_eq!(*world.runner.launched.lock().unwrap(), [uuid, uuid]);
}

#[tokio::test]
async fn a_question_that_nobody_answers_gets_an_exception_and_no_run() {
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
async fn a_refused_question_gets_one_exception_however_often_it_is_delivered() {
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
async fn a_launch_that_fails_for_long_is_given_up_and_its_parent_is_notified() {
    let world = World::new(0, None, usize::MAX).await;
    let wire = world.wire().await;
    let uuid = Uuid::new_v4();

    world
        .work_until(async {
            world.publisher.publish(question(uuid)).await.unwrap();
            world.wait_for_events(uuid, 1).await;
            world
                .wait_until(|runner| runner.failures.load(Ordering::SeqCst) < usize::MAX - 1)
                .await;
            // Meanwhile its parent gets heartbeats.
            pass(Duration::from_secs(200)).await;
            wire.wait_for("heartbeat").await;
            pass(Duration::from_secs(701)).await;
            let exception = wire.wait_for("RuntimeError").await;
            assert!(exception.contains("on purpose"), "{exception}");
            world.wait_until(|runner| runner.cancelled.load(Ordering::SeqCst) > 0).await;
        })
        .await;
}
