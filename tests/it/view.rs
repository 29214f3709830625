//! A replica's view: what it takes in, and what it knows together with the store behind it.

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
use twined::event::{Outgoing, RunId, Timestamp, decode};
use twined::pipeline::view_feed::{self, ViewFeed};
use twined::pubsub::subscriber::Flow;
use twined::pubsub::{Admin, Subscriber, Wanted};
use twined::store::sqlite::{Keep, Options, SqliteStore};
use twined::store::{
    AppendError, EventQuery, EventStore, LayeredView, ReadError, RejectedMessage, Row, RunRecord,
    StoredEvent, UnansweredQuery, UnansweredQuestion, View,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(30);
/// Longer than an answer of the store is remembered.
const LATER: Duration = Duration::from_secs(3);
const STRANGER: &str = "octue/stranger:1.0.0";

#[tokio::test]
async fn a_view_has_what_is_published_and_leaves_what_is_no_event_to_the_pipeline() {
    let network = World::new(0, None, 0).await;
    let wanted = Wanted::view_of("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&wanted).await.unwrap();
    let view = Disk::new();
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());

    let follows = follow(&network, view.shared()).await;
    publish(&network, question(first)).await;
    publish(&network, Outgoing { data: b"no event".into(), ..question(first) }).await;
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
async fn what_a_view_cannot_take_comes_again_and_what_it_refuses_does_not() {
    let (refused, kept) = (question(Uuid::new_v4()), question(Uuid::new_v4()));
    let poison = refused.attributes["uuid"].parse().unwrap();
    let network = World::new(3, Some(poison), 0).await;
    let wanted = Wanted::view_of("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&wanted).await.unwrap();
    let uuid = kept.attributes["question_uuid"].parse().unwrap();

    // In one batch, if they come together.
    publish(&network, refused).await;
    publish(&network, kept).await;
    let follows = follow(&network, Arc::clone(&network.store) as Arc<dyn EventStore>).await;

    network.wait_for_events(uuid, 1).await;
    follows.end().await;
}

#[tokio::test]
async fn a_view_that_is_stopped_while_its_store_fails_gives_back_what_it_holds() {
    let network = World::new(usize::MAX, None, 0).await;
    let wanted = Wanted::view_of("a-topic", "a-view");
    Admin::new(&network.connection).subscribe(&wanted).await.unwrap();
    let uuid = Uuid::new_v4();
    publish(&network, question(uuid)).await;
    let follows = follow(&network, Arc::clone(&network.store) as Arc<dyn EventStore>).await;
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
async fn a_view_whose_subscription_is_gone_gets_another_and_is_told_that_it_is_young() {
    let network = World::new(0, None, 0).await;
    let admin = Admin::new(&network.connection);
    let wanted = Wanted::view_of("a-topic", "a-view");
    admin.subscribe(&wanted).await.unwrap();
    let before = Timestamp::now();
    let (made, mut born) = watch::channel(before);
    let view = Disk::new();
    let subscriber = Subscriber::new(&network.connection, "a-view", Flow::default()).await.unwrap();
    let subscriber = subscriber.restoring_as(admin.clone(), wanted, made);
    let follows = follow_by(subscriber, view.shared());
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    publish(&network, question(first)).await;
    until_asked(&view.store, first).await;

    admin.delete_subscription("a-view").await.unwrap();

    tokio::time::timeout(DEADLINE, born.changed()).await.unwrap().unwrap();
    assert!(*born.borrow() > before);
    publish(&network, question(second)).await;
    until_asked(&view.store, second).await;
    follows.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_view_is_asked_of_the_store() {
    let world = Looks::born(Timestamp::now());
    world.stored(&[said(1, "question"), said(1, "delivery_acknowledgement")]).await;

    let old = RunRecord { question: true, acknowledged: true, ..RunRecord::default() };
    assert_eq!(world.record(1).await, old);

    world.seen(&[said(1, "result")]).await;
    assert!(world.record(1).await.terminal, "the view tells what happens since");
    assert_eq!(world.record(2).await, RunRecord::default());
}

#[tokio::test(start_paused = true)]
async fn the_store_is_asked_once_for_many_looks_at_a_run() {
    let world = Looks::born(Timestamp::now());
    for _ in 0..50 {
        assert_eq!(world.record(1).await, RunRecord::default());
    }
    assert_eq!(world.store.asked.load(Ordering::SeqCst), 1);

    // What was published before the view was born may be put on record after.
    world.stored(&[said(1, "question"), said(1, "exception")]).await;
    tokio::time::advance(LATER).await;
    assert!(world.record(1).await.terminal);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_since_is_not_asked_of_the_store() {
    let world = Looks::born(hours_ago(1));
    let asked = said(1, "question").with("datetime", &Timestamp::now().to_string());
    world.seen(&[asked]).await;

    assert_eq!(world.record(1).await, RunRecord { question: true, ..RunRecord::default() });

    world.seen(&[said(1, "result")]).await;
    assert!(world.record(1).await.terminal);
    assert_eq!(world.store.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_from_before_the_view_was_born_holds() {
    let now = Timestamp::now();
    let world = Looks::born(now);
    let asked = said(1, "question").with("datetime", &now.to_string());
    world.stored(&[said(1, "cancellation")]).await;
    world.seen(std::slice::from_ref(&asked)).await;

    assert!(world.record(1).await.cancelled);

    // So does one of an earlier attempt, however long ago the view was born.
    let world = Looks::born(hours_ago(1));
    world.stored(&[said(1, "question"), said(1, "cancellation")]).await;
    let again = asked.with("retry_count", "1");
    world.seen(&[again]).await;
    assert!(world.look(1, 1).await.cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_does_not_cancel_what_only_the_store_has() {
    let world = Looks::born(Timestamp::now());
    world.stored(&[said(1, "question")]).await;
    let forged = said(1, "cancellation").with("sender", STRANGER).with("parent", STRANGER);
    world.seen(&[forged]).await;

    assert!(!world.record(1).await.cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_fence_counts_when_the_store_has_it_too_where_the_view_is_younger() {
    let world = Looks::born(Timestamp::now());
    world.stored(&[said(1, "question")]).await;
    let fence = said(1, "heartbeat");
    let uuid = fence.attributes["uuid"].parse().unwrap();
    world.seen(std::slice::from_ref(&fence)).await;
    assert!(!world.record(1).await.terminal);

    assert!(!world.layered.has(uuid).await.unwrap(), "a result may still be on its way");

    world.stored(&[said(1, "result"), fence]).await;
    tokio::time::advance(LATER / 2).await;
    assert!(!world.record(1).await.terminal, "an answer of before the fence");
    tokio::time::advance(LATER / 2).await;
    assert!(world.layered.has(uuid).await.unwrap());
    assert!(world.record(1).await.terminal, "and not so after it");
}

#[tokio::test(start_paused = true)]
async fn a_fence_of_a_young_question_is_looked_for_in_the_view_alone() {
    let world = Looks::born(hours_ago(1));
    let asked = said(1, "question").with("datetime", &Timestamp::now().to_string());
    let fence = said(1, "heartbeat");
    let uuid = fence.attributes["uuid"].parse().unwrap();
    world.seen(&[asked]).await;
    assert!(!world.layered.has(uuid).await.unwrap());

    world.seen(&[fence]).await;

    assert!(world.layered.has(uuid).await.unwrap());
    assert_eq!(world.store.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_view_that_was_born_anew_is_as_young_as_that() {
    let world = Looks::born(hours_ago(2));
    let asked = said(1, "question").with("datetime", &hours_ago(1).to_string());
    world.seen(&[asked]).await;
    world.stored(&[said(1, "result")]).await;
    assert!(!world.record(1).await.terminal);

    world.born.send_replace(Timestamp::now());

    assert!(world.record(1).await.terminal);
}

#[tokio::test(start_paused = true)]
async fn what_the_view_has_forgotten_is_asked_of_the_store() {
    let keep = Keep { age: Duration::ZERO, bytes: u64::MAX };
    let world = Looks::keeping(hours_ago(1), keep);
    let asked = said(1, "question").with("datetime", &Timestamp::now().to_string());
    world.stored(&[asked.clone(), said(1, "result")]).await;
    world.seen(&[asked]).await;
    world.seen(&[said(2, "heartbeat")]).await;

    let mut appended = world.layered.appended();
    while View::run_record(&world.view.store, run(1, 0)).await.unwrap().question {
        // Each append has some of what is old go.
        world.seen(&[said(3, "heartbeat")]).await;
        appended.changed().await.unwrap();
    }
    assert!(world.record(1).await.terminal);
}

async fn publish(network: &World, message: Outgoing) {
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

/// An event of a question, of a long time ago.
fn said(number: u128, kind: &str) -> Outgoing {
    let mut event = question(Uuid::from_u128(number));
    event.data = format!(r#"{{"kind": "{kind}"}}"#).into();
    event = event.with("uuid", &Uuid::new_v4().to_string()).with("datetime", "2020-01-01T00:00:00");
    match kind {
        "question" | "cancellation" => event,
        _ => event.with("sender_type", "CHILD"),
    }
}

trait With {
    fn with(self, name: &str, text: &str) -> Self;
}

impl With for Outgoing {
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

    fn shared(&self) -> Arc<dyn EventStore> {
        Arc::new(self.store.clone())
    }
}

/// A follower at work.
struct Follows {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

async fn follow(network: &World, view: Arc<dyn EventStore>) -> Follows {
    let subscriber = Subscriber::new(&network.connection, "a-view", Flow::default()).await;
    follow_by(subscriber.unwrap(), view)
}

fn follow_by(subscriber: Subscriber, view: Arc<dyn EventStore>) -> Follows {
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

/// A store that counts how often it is asked.
#[derive(Debug)]
struct Counting {
    inner: SqliteStore,
    asked: AtomicUsize,
}

#[async_trait]
impl EventStore for Counting {
    async fn append(&self, rows: &[Row<'_>]) -> Result<(), AppendError> {
        self.inner.append(rows).await
    }

    async fn reject(&self, message: &RejectedMessage<'_>) -> Result<(), AppendError> {
        self.inner.reject(message).await
    }

    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.inner.read(query).await
    }

    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        EventStore::run_record(&self.inner, run).await
    }

    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError> {
        self.inner.unanswered(query).await
    }
}

/// A view, the store behind it, and both together.
struct Looks {
    view: Disk,
    store: Arc<Counting>,
    layered: LayeredView,
    born: watch::Sender<Timestamp>,
    _folder: TempDir,
}

impl Looks {
    fn born(born: Timestamp) -> Self {
        Self::keeping(born, Keep { age: Duration::from_secs(86_400), bytes: 1 << 30 })
    }

    fn keeping(born: Timestamp, keep: Keep) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let inner = SqliteStore::open(&path, Options::default()).unwrap();
        let store = Arc::new(Counting { inner, asked: AtomicUsize::new(0) });
        let view = Disk::keeping(keep);
        let (sender, born) = watch::channel(born);
        let behind = Arc::clone(&store) as Arc<dyn EventStore>;
        let layered = LayeredView::new(Arc::new(view.store.clone()), behind, born);
        Self { view, store, layered, born: sender, _folder: folder }
    }

    async fn seen(&self, events: &[Outgoing]) {
        append(&self.view.store, events).await;
    }

    async fn stored(&self, events: &[Outgoing]) {
        append(&*self.store, events).await;
    }

    async fn record(&self, question: u128) -> RunRecord {
        self.look(question, 0).await
    }

    async fn look(&self, question: u128, retry: u32) -> RunRecord {
        self.layered.run_record(run(question, retry)).await.unwrap()
    }
}

async fn append(store: &dyn EventStore, events: &[Outgoing]) {
    for Outgoing { data, attributes, ordering_key } in events {
        let event = decode(data, attributes).unwrap();
        store.append(&[Row::new(&event, attributes, "17", ordering_key)]).await.unwrap();
    }
}
