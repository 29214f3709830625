//! A replica's view: how it follows the topic, and what it knows together with the history behind
//! it.

use crate::pipeline::{World, question};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twined::event::{OutgoingMessage, RunId, Timestamp, decode};
use twined::pipeline::view_feed::{self, ViewFeed};
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Admin, Subscriber, SubscriptionSpec};
use twined::store::sqlite::{Keep, Options, SqliteStore};
use twined::store::{
    EventLog, EventQuery, History, LayeredView, ReadError, RejectedQuery, Row, RunRecord,
    ServiceQuery, StoredEvent, StoredQuestion, StoredRejectedMessage, UnansweredQuery,
    UnansweredQuestion, View,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(30);
/// Longer than an answer of the history is remembered.
const LATER: Duration = Duration::from_secs(3);
const STRANGER: &str = "octue/stranger:1.0.0";

#[tokio::test]
async fn a_view_has_every_published_event_and_acks_messages_that_are_none() {
    let network = World::new(0, None, 0).await;
    let spec = SubscriptionSpec::for_view("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&spec).await.unwrap();
    let view = Disk::new();
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());

    let follows = follow(&network, view.shared()).await;
    publish(&network, question(first)).await;
    publish(&network, OutgoingMessage { data: b"no event".into(), ..question(first) }).await;
    publish(&network, question(second)).await;
    until_asked(&view.store, first).await;
    until_asked(&view.store, second).await;
    follows.end().await;

    // All was acked: a view that begins anew gets only what comes.
    let anew = Disk::new();
    let third = Uuid::new_v4();
    let follows = follow(&network, anew.shared()).await;
    publish(&network, question(third)).await;
    until_asked(&anew.store, third).await;
    follows.end().await;
    assert!(!asked(&anew.store, first).await && !asked(&anew.store, second).await);
    assert!(network.stored(first).await.is_empty(), "the view is not the store");
}

#[tokio::test]
async fn a_delivery_is_retried_while_the_view_fails_and_dropped_when_it_is_refused() {
    let (refused, kept) = (question(Uuid::new_v4()), question(Uuid::new_v4()));
    let poison = refused.attributes["uuid"].parse().unwrap();
    let network = World::new(3, Some(poison), 0).await;
    let spec = SubscriptionSpec::for_view("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&spec).await.unwrap();
    let uuid = kept.attributes["question_uuid"].parse().unwrap();

    // In one batch, if they come together.
    publish(&network, refused).await;
    publish(&network, kept).await;
    let follows = follow(&network, Arc::clone(&network.store) as Arc<dyn EventLog>).await;

    network.wait_for_events(uuid, 1).await;
    follows.end().await;
}

#[tokio::test]
async fn a_view_that_stops_while_it_fails_returns_its_deliveries() {
    let network = World::new(usize::MAX, None, 0).await;
    let spec = SubscriptionSpec::for_view("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&spec).await.unwrap();
    let uuid = Uuid::new_v4();
    publish(&network, question(uuid)).await;
    let follows = follow(&network, Arc::clone(&network.store) as Arc<dyn EventLog>).await;
    let deadline = Instant::now() + DEADLINE;
    while network.store.failures.load(Ordering::SeqCst) == usize::MAX {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    follows.end().await;

    let view = Disk::new();
    let follows = follow(&network, view.shared()).await;
    until_asked(&view.store, uuid).await;
    follows.end().await;
}

#[tokio::test]
async fn a_view_whose_subscription_was_deleted_begins_anew_with_another() {
    let network = World::new(0, None, 0).await;
    let admin = Admin::new(&network.connection);
    let spec = SubscriptionSpec::for_view("a-topic", "a-view");
    admin.subscribe(&spec).await.unwrap();
    let before = Timestamp::now();
    let (made, mut since) = watch::channel(before);
    let view = Disk::new();
    let subscriber =
        Subscriber::new(&network.connection, "a-view", FlowControl::default()).await.unwrap();
    let subscriber = subscriber.recreating(admin.clone(), spec, Some(made));
    let follows = follow_by(subscriber, view.shared());
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    publish(&network, question(first)).await;
    until_asked(&view.store, first).await;

    admin.delete_subscription("a-view").await.unwrap();

    tokio::time::timeout(DEADLINE, since.changed()).await.unwrap().unwrap();
    assert!(*since.borrow() > before);
    publish(&network, question(second)).await;
    until_asked(&view.store, second).await;
    follows.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_question_older_than_the_view_is_read_from_the_history() {
    let world = Layers::since(Timestamp::now());
    world.recorded(&[event(1, "question"), event(1, "delivery_acknowledgement")]).await;

    let old = RunRecord { question: true, acknowledged: true, ..RunRecord::default() };
    assert_eq!(world.record(1).await, old);

    world.viewed(&[event(1, "result")]).await;
    assert!(world.record(1).await.terminal, "the view has what happened since");
    assert_eq!(world.record(2).await, RunRecord::default());
}

#[tokio::test(start_paused = true)]
async fn the_history_is_read_once_for_many_lookups_of_a_run() {
    let world = Layers::since(Timestamp::now());
    for _ in 0..50 {
        assert_eq!(world.record(1).await, RunRecord::default());
    }
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 1);

    // An event from before the view began may come on record later.
    world.recorded(&[event(1, "question"), event(1, "exception")]).await;
    tokio::time::advance(LATER).await;
    assert!(world.record(1).await.terminal);
}

#[tokio::test(start_paused = true)]
async fn a_question_younger_than_the_view_is_not_read_from_the_history() {
    let world = Layers::since(hours_ago(1));
    let asked = event(1, "question").with("datetime", &Timestamp::now().to_string());
    world.viewed(&[asked]).await;

    assert_eq!(world.record(1).await, RunRecord { question: true, ..RunRecord::default() });

    world.viewed(&[event(1, "result")]).await;
    assert!(world.record(1).await.terminal);
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_question_on_its_way_into_the_view_is_not_read_from_the_history_where_its_datetime_is_known()
 {
    let world = Layers::since(hours_ago(1));
    world.recorded(&[event(1, "question"), event(1, "result")]).await;
    let since = async |retry, asked_at| {
        world.layered.run_record_since(run(1, retry), asked_at).await.unwrap()
    };

    assert_eq!(since(0, Timestamp::now()).await, RunRecord::default());
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 0);

    // One that is older than the view is.
    assert!(since(0, hours_ago(2)).await.terminal);
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 1);
    // So is a retry: its first attempt may be older, and may have been cancelled.
    since(1, Timestamp::now()).await;
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_launch_reads_the_history_of_an_older_or_redelivered_question_alone() {
    let (now, minute) = (Duration::ZERO, Duration::from_secs(60));
    let cases = [
        ("a first delivery", hours_ago(1), now, 0),
        ("redelivered, and not in the view", hours_ago(1), minute, 1),
        ("older than the view", Timestamp::now(), now, 1),
    ];
    for (case, since, age, reads) in cases {
        let network = World::new(0, None, 0).await;
        let layers = Layers::since(since);
        let view = Arc::clone(&layers.layered) as Arc<dyn View>;

        network.launch(view, question(Uuid::new_v4()), age).await;

        assert_eq!(layers.history.reads.load(Ordering::SeqCst), reads, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_from_before_the_view_began_holds() {
    let now = Timestamp::now();
    let world = Layers::since(now);
    let asked = event(1, "question").with("datetime", &now.to_string());
    world.recorded(&[event(1, "cancellation")]).await;
    world.viewed(std::slice::from_ref(&asked)).await;

    assert!(world.record(1).await.cancelled);

    // So does one of an earlier attempt, however old the view is.
    let world = Layers::since(hours_ago(1));
    world.recorded(&[event(1, "question"), event(1, "cancellation")]).await;
    let again = asked.with("retry_count", "1");
    world.viewed(&[again]).await;
    assert!(world.attempt(1, 1).await.cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_does_not_cancel_a_question_that_only_the_history_has() {
    let world = Layers::since(Timestamp::now());
    world.recorded(&[event(1, "question")]).await;
    let forged = event(1, "cancellation").with("sender", STRANGER).with("parent", STRANGER);
    world.viewed(&[forged]).await;

    assert!(!world.record(1).await.cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_fence_of_an_older_question_counts_once_the_history_has_it() {
    let world = Layers::since(Timestamp::now());
    world.recorded(&[event(1, "question")]).await;
    let fence = event(1, "heartbeat");
    let uuid = fence.attributes["uuid"].parse().unwrap();
    world.viewed(std::slice::from_ref(&fence)).await;
    assert!(!world.record(1).await.terminal);

    assert!(
        !world.layered.has(Uuid::from_u128(1), uuid).await.unwrap(),
        "a result may still be on its way"
    );

    world.recorded(&[event(1, "result"), fence]).await;
    tokio::time::advance(LATER / 2).await;
    assert!(!world.record(1).await.terminal, "the answer from before the fence is remembered");
    tokio::time::advance(LATER / 2).await;
    assert!(world.layered.has(Uuid::from_u128(1), uuid).await.unwrap());
    assert!(world.record(1).await.terminal, "the answer from before the fence is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_fence_of_a_younger_question_is_read_from_the_view_alone() {
    let world = Layers::since(hours_ago(1));
    let asked = event(1, "question").with("datetime", &Timestamp::now().to_string());
    let fence = event(1, "heartbeat");
    let uuid = fence.attributes["uuid"].parse().unwrap();
    world.viewed(&[asked]).await;
    assert!(!world.layered.has(Uuid::from_u128(1), uuid).await.unwrap());

    world.viewed(&[fence]).await;

    assert!(world.layered.has(Uuid::from_u128(1), uuid).await.unwrap());
    assert_eq!(world.history.reads.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_view_that_began_anew_is_younger_than_earlier_questions() {
    let world = Layers::since(hours_ago(2));
    let asked = event(1, "question").with("datetime", &hours_ago(1).to_string());
    world.viewed(&[asked]).await;
    world.recorded(&[event(1, "result")]).await;
    assert!(!world.record(1).await.terminal);

    world.since.send_replace(Timestamp::now());

    assert!(world.record(1).await.terminal);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_the_view_has_forgotten_is_read_from_the_history() {
    let keep = Keep { age: Duration::ZERO, bytes: u64::MAX };
    let world = Layers::keeping(hours_ago(1), keep);
    let asked = event(1, "question").with("datetime", &Timestamp::now().to_string());
    world.recorded(&[asked.clone(), event(1, "result")]).await;
    world.viewed(&[asked]).await;
    world.viewed(&[event(2, "heartbeat")]).await;

    let mut appended = world.layered.appended();
    while View::run_record(&world.view.store, run(1, 0)).await.unwrap().question {
        // Each append makes the view forget some of the oldest.
        world.viewed(&[event(3, "heartbeat")]).await;
        appended.changed().await.unwrap();
    }
    assert!(world.record(1).await.terminal);
}

async fn publish(network: &World, message: OutgoingMessage) {
    network.publisher.publish(message).await.unwrap();
}

async fn asked(store: &SqliteStore, question: Uuid) -> bool {
    View::run_record(store, RunId { question, retry: 0 }).await.unwrap().question
}

async fn until_asked(store: &SqliteStore, question: Uuid) {
    let mut appended = store.appended();
    let deadline = Instant::now() + DEADLINE;
    while !asked(store, question).await {
        let changed = tokio::time::timeout_at(deadline, appended.changed()).await;
        changed.expect("it is in the view in time").unwrap();
    }
}

fn hours_ago(hours: i64) -> Timestamp {
    Timestamp(Timestamp::now().0 - hours * 3_600_000_000)
}

fn run(question: u128, retry: u32) -> RunId {
    RunId { question: Uuid::from_u128(question), retry }
}

/// An event of a question from long ago.
fn event(number: u128, kind: &str) -> OutgoingMessage {
    let mut sent = question(Uuid::from_u128(number));
    sent.data = format!(r#"{{"kind": "{kind}"}}"#).into();
    sent = sent.with("uuid", &Uuid::new_v4().to_string()).with("datetime", "2020-01-01T00:00:00");
    match kind {
        "question" | "cancellation" => sent,
        _ => sent.with("sender_type", "CHILD"),
    }
}

trait With {
    fn with(self, name: &str, text: &str) -> Self;
}

impl With for OutgoingMessage {
    fn with(mut self, name: &str, text: &str) -> Self {
        self.attributes.insert(name.to_owned(), text.to_owned());
        self
    }
}

/// A bounded store in a folder of its own.
struct Disk {
    store: SqliteStore,
    _folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        Self::keeping(Keep { age: Duration::from_secs(86_400), bytes: 1 << 30 })
    }

    fn keeping(keep: Keep) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { synced: false, keep: Some(keep), ..Options::default() };
        let store = SqliteStore::open(&folder.path().join("view.sqlite"), options).unwrap();
        Self { store, _folder: folder }
    }

    fn shared(&self) -> Arc<dyn EventLog> {
        Arc::new(self.store.clone())
    }
}

/// A follower at work.
struct Follows {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

async fn follow(network: &World, view: Arc<dyn EventLog>) -> Follows {
    let subscriber = Subscriber::new(&network.connection, "a-view", FlowControl::default()).await;
    follow_by(subscriber.unwrap(), view)
}

fn follow_by(subscriber: Subscriber, view: Arc<dyn EventLog>) -> Follows {
    let stop = CancellationToken::new();
    let (sender, deliveries) = mpsc::channel(view_feed::BATCH);
    let mut tasks = JoinSet::new();
    tasks.spawn(subscriber.run(sender, stop.clone()));
    tasks.spawn(ViewFeed::new(view, stop.clone()).run(deliveries));
    Follows { tasks, stop }
}

impl Follows {
    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// A history that counts how often it is read.
#[derive(Debug)]
struct Counting {
    inner: SqliteStore,
    reads: AtomicUsize,
}

#[async_trait]
impl History for Counting {
    async fn events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
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

    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError> {
        self.inner.unanswered(query).await
    }

    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        History::run_record(&self.inner, run).await
    }
}

/// A view, the history behind it, and both together.
struct Layers {
    view: Disk,
    history: Arc<Counting>,
    layered: Arc<LayeredView>,
    since: watch::Sender<Timestamp>,
    _folder: TempDir,
}

impl Layers {
    fn since(since: Timestamp) -> Self {
        Self::keeping(since, Keep { age: Duration::from_secs(86_400), bytes: 1 << 30 })
    }

    fn keeping(since: Timestamp, keep: Keep) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let inner = SqliteStore::open(&path, Options::default()).unwrap();
        let history = Arc::new(Counting { inner, reads: AtomicUsize::new(0) });
        let view = Disk::keeping(keep);
        let (sender, since) = watch::channel(since);
        let layered =
            LayeredView::new(Arc::new(view.store.clone()), Arc::clone(&history) as _, since);
        Self { view, history, layered: Arc::new(layered), since: sender, _folder: folder }
    }

    async fn viewed(&self, events: &[OutgoingMessage]) {
        append(&self.view.store, events).await;
    }

    async fn recorded(&self, events: &[OutgoingMessage]) {
        append(&self.history.inner, events).await;
    }

    async fn record(&self, question: u128) -> RunRecord {
        self.attempt(question, 0).await
    }

    async fn attempt(&self, question: u128, retry: u32) -> RunRecord {
        self.layered.run_record(run(question, retry)).await.unwrap()
    }
}

async fn append(store: &dyn EventLog, events: &[OutgoingMessage]) {
    for OutgoingMessage { data, attributes, ordering_key } in events {
        let event = decode(data, attributes).unwrap();
        store.append(&[Row::new(&event, attributes, "17", ordering_key)]).await.unwrap();
    }
}
