//! The contract of every event store, checked for each implementation.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use twined::event::{RunId, Timestamp, decode};
use twined::store::sqlite::{Keep, Options, SqliteStore};
use twined::store::{
    AppendError, EventCursor, EventLog, EventQuery, EventScope, History, QuestionFilter,
    QuestionState, RejectedMessage, RejectedQuery, Row, RunRecord, ServiceQuery, StoredEvent,
    StoredQuestion, StoredRejectedMessage, TimeRange, UnansweredQuery, UnansweredQuestion, View,
    ViewPosition, ViewedQuestion,
};
use uuid::Uuid;

mod cancelled;
mod events;
mod questions;
mod rejected;
mod unanswered;
use cancelled::*;
use events::*;
use questions::*;
use rejected::*;
use unanswered::*;

/// An empty store by its three interfaces.
struct World {
    log: Arc<dyn EventLog>,
    history: Arc<dyn History>,
    view: Arc<dyn View>,
    _folder: TempDir,
}

/// A message of an event.
#[derive(Clone, Debug)]
struct Sent {
    data: String,
    attributes: HashMap<String, String>,
    message_id: String,
    ordering_key: String,
}

macro_rules! contract {
    ($world:expr; $($claim:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $claim() {
                super::$claim($world).await;
            }
        )*
    };
}

macro_rules! every_claim {
    ($world:expr) => {
        contract! {
            $world;
            an_event_comes_back_as_it_went_in
            odd_events_come_back_as_they_went_in
            a_large_event_comes_back_as_it_went_in
            an_event_is_on_record_once_however_often_it_comes
            two_events_of_one_uuid_are_both_kept
            many_append_at_once
            rows_of_one_call_keep_their_order
            kinds_are_chosen_or_left_out
            a_limit_keeps_the_first_or_the_last_events_in_order
            a_tree_is_read_by_its_root_and_by_its_parents
            a_question_without_events_reads_as_empty
            events_are_bounded_by_time
            events_of_a_tree_come_page_by_page_without_gaps_or_repeats
            the_last_events_after_a_cursor_are_those_behind_it
            events_are_chosen_by_their_sender
            an_event_is_found_by_its_question_only
            a_record_is_of_one_attempt
            a_cancellation_holds_for_every_attempt
            a_cancellation_by_a_stranger_is_not_accepted
            a_cancellation_before_its_question_counts_by_its_own_names
            an_appended_event_is_announced
            history_and_view_have_the_same_record_of_a_run
            rejected_messages_are_read_as_they_came
            a_message_that_is_rejected_again_is_on_record_once
            rejected_messages_come_page_by_page_without_gaps_or_repeats
            rejected_messages_are_bounded_by_time
            unanswered_questions_are_those_without_a_terminal_event
            unanswered_questions_show_which_were_cancelled
            unanswered_questions_come_page_by_page_without_gaps_or_repeats
            an_unanswered_run_is_listed_once_however_often_its_question_came
            questions_to_a_service_are_listed_newest_first
            questions_to_a_service_come_page_by_page_without_gaps_or_repeats
            questions_to_a_service_are_chosen_by_their_sender
            questions_are_bounded_by_time
            a_view_lists_the_questions_of_all_services_or_of_one
            a_view_lists_questions_by_state
            a_view_lists_questions_by_text_to_the_letter
            a_view_finds_text_as_it_is_written_in_json
            a_view_finds_names_and_uuids_of_a_tree
            a_page_by_text_and_state_goes_on_until_it_is_full
            a_run_is_listed_once_however_often_its_question_came
            a_cancellation_is_reported_whichever_of_it_and_its_question_comes_second
            a_cancellation_that_only_the_question_allows_is_reported_when_the_question_comes
            a_cancellation_that_is_not_accepted_is_never_reported
            a_cancelled_question_is_reported_again_for_each_attempt
            cancelled_questions_come_page_by_page_without_gaps_or_repeats
        }
    };
}

mod sqlite {
    every_claim!(super::World::sqlite());
}

mod bounded_sqlite {
    every_claim!(super::World::bounded());
}

async fn an_event_comes_back_as_it_went_in(world: World) {
    let sent = Sent::new(1, "result")
        .data(r#"{"kind": "result",  "output_values": [1.0, NaN, -Infinity, 9007199254740993]}"#)
        .with("retry_count", "007")
        .with("datetime", "2024-04-11T12:46:48.236064+02:00")
        .with("a_newer_attribute", "é \u{0}\n\"")
        .with("parent_question_uuid", "null");

    world.append(&[&sent]).await;

    assert_eq!(world.events_of(1).await, [sent.stored()]);
}

async fn odd_events_come_back_as_they_went_in(world: World) {
    let runtime = tokio::runtime::Handle::current();
    let check = move || {
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&odd(), |sent| {
            let found = runtime.block_on(async {
                world.append(&[&sent]).await;
                let question = Uuid::parse_str(&sent.attributes["question_uuid"]).unwrap();
                world.read(EventScope::Question(question), |_| {}).await
            });
            prop_assert_eq!(found, [sent.stored()]);
            Ok(())
        });
        result.unwrap();
    };
    // It blocks, and the runtime must not.
    tokio::task::spawn_blocking(check).await.unwrap();
}

async fn a_large_event_comes_back_as_it_went_in(world: World) {
    let values = "0.123456789, ".repeat(170_000);
    let data = format!(r#"{{"output_values": [{values}NaN], "kind": "result"}}"#);
    assert!(data.len() > 2_000_000);
    let sent = Sent::new(1, "result").data(&data);

    world.append(&[&sent]).await;

    assert!(world.events_of(1).await == [sent.stored()], "2 MB are not the same");
}

async fn an_event_is_on_record_once_however_often_it_comes(world: World) {
    let sent = Sent::new(1, "heartbeat");
    let mut again = sent.clone();
    again.message_id = "another delivery".to_owned();

    world.append(&[&sent]).await;
    world.append(&[&again, &sent]).await;

    assert_eq!(world.events_of(1).await, [sent.stored()]);
}

async fn two_events_of_one_uuid_are_both_kept(world: World) {
    let log = Sent::new(1, "log_record");
    let mut result = Sent::new(1, "result");
    result.attributes = log.attributes.clone();

    world.append(&[&log, &result]).await;
    world.append(&[&result, &log]).await;

    assert_eq!(world.events_of(1).await, [log.stored(), result.stored()]);
    assert!(world.view.has(Uuid::from_u128(1), log.uuid()).await.unwrap());
    assert!(!world.view.has(Uuid::from_u128(1), Uuid::new_v4()).await.unwrap());
}

async fn many_append_at_once(world: World) {
    let world = Arc::new(world);
    let mut tasks = JoinSet::new();
    for question in 0..8 {
        let world = Arc::clone(&world);
        tasks.spawn(async move {
            for at in 0..50 {
                world.append(&[&Sent::new(question, "log_record").at(at)]).await;
            }
        });
    }
    tasks.join_all().await;

    for question in 0..8 {
        assert_eq!(world.events_of(question).await.len(), 50);
    }
    assert_eq!(world.read(EventScope::Originator(Uuid::from_u128(3)), |_| {}).await.len(), 50);
}

async fn rows_of_one_call_keep_their_order(world: World) {
    let sent: Vec<_> = (0..20).map(|_| Sent::new(1, "log_record").at(7)).collect();

    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let expected: Vec<_> = sent.iter().map(Sent::stored).collect();
    assert_eq!(world.events_of(1).await, expected);
}

async fn kinds_are_chosen_or_left_out(world: World) {
    let kinds = ["question", "heartbeat", "log_record", "a_newer_kind", "result"];
    let sent: Vec<_> = (0..).zip(kinds).map(|(at, kind)| Sent::new(1, kind).at(at)).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;
    let read = async |kinds: &[&str], excluded: &[&str]| {
        let owned = |kinds: &[&str]| kinds.iter().map(|&kind| kind.to_owned()).collect();
        let query = |query: &mut EventQuery| {
            (query.kinds, query.exclude_kinds) = (owned(kinds), owned(excluded));
        };
        let events = world.read(EventScope::Question(Uuid::from_u128(1)), query).await;
        events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
    };

    assert_eq!(read(&[], &[]).await, kinds);
    assert_eq!(read(&["result", "question"], &[]).await, ["question", "result"]);
    assert_eq!(read(&["a_newer_kind"], &[]).await, ["a_newer_kind"]);
    assert_eq!(
        read(&[], &["log_record", "heartbeat"]).await,
        ["question", "a_newer_kind", "result"]
    );
    assert_eq!(read(&["result", "heartbeat"], &["heartbeat"]).await, ["result"]);
    assert_eq!(read(&["unheard of', '"], &[]).await, Vec::<String>::new());
}

async fn a_limit_keeps_the_first_or_the_last_events_in_order(world: World) {
    // They arrive in another order than they were made in; two were made at one moment.
    let made = [5, 1, 4, 1, 3];
    let sent = made.map(|at| Sent::new(1, "log_record").at(at));
    world.append(&sent.iter().collect::<Vec<_>>()).await;
    let ordered = [1, 3, 4, 2, 0].map(|index: usize| sent[index].stored());
    let read = async |limit, tail| {
        let query = |query: &mut EventQuery| (query.limit, query.tail) = (limit, tail);
        world.read(EventScope::Question(Uuid::from_u128(1)), query).await
    };

    assert_eq!(read(5, false).await, ordered);
    assert_eq!(read(2, false).await, ordered[..2]);
    assert_eq!(read(4, true).await, ordered[1..]);
    assert_eq!(read(9, true).await, ordered);
    assert_eq!(read(0, true).await, []);
}

async fn a_tree_is_read_by_its_root_and_by_its_parents(world: World) {
    let uuid = |question| Uuid::from_u128(question).to_string();
    let child = |question, parent, at| {
        Sent::new(question, "question")
            .at(at)
            .with("originator_question_uuid", &uuid(1))
            .with("parent_question_uuid", &uuid(parent))
    };
    let root = Sent::new(1, "question").at(0);
    let (left, right) = (child(2, 1, 1), child(3, 1, 3));
    let grandchild = child(4, 2, 2);
    let answer = Sent::new(1, "result").at(4);
    let other = Sent::new(9, "question").at(2);
    world.append(&[&answer, &right, &other, &grandchild, &left, &root]).await;
    let read = async |of: fn(Uuid) -> EventScope, question| {
        world.read(of(Uuid::from_u128(question)), |_| {}).await
    };

    let tree = [&root, &left, &grandchild, &right, &answer].map(Sent::stored);
    assert_eq!(read(EventScope::Originator, 1).await, tree);
    assert_eq!(read(EventScope::Parent, 1).await, [left.stored(), right.stored()]);
    assert_eq!(read(EventScope::Parent, 2).await, [grandchild.stored()]);
    assert_eq!(read(EventScope::Question, 1).await, [root.stored(), answer.stored()]);
    let last = |query: &mut EventQuery| (query.limit, query.tail) = (2, true);
    assert_eq!(world.read(EventScope::Originator(Uuid::from_u128(1)), last).await, tree[3..]);
    let first = |query: &mut EventQuery| query.limit = 3;
    assert_eq!(world.read(EventScope::Originator(Uuid::from_u128(1)), first).await, tree[..3]);
}

async fn a_question_without_events_reads_as_empty(world: World) {
    world.append(&[&Sent::new(1, "question")]).await;

    for of in [EventScope::Question, EventScope::Parent, EventScope::Originator] {
        assert_eq!(world.read(of(Uuid::from_u128(2)), |_| {}).await, []);
    }
    assert_eq!(world.record(2, 0).await, RunRecord::default());
}

async fn a_record_is_of_one_attempt(world: World) {
    let first = ["question", "delivery_acknowledgement", "heartbeat", "exception"];
    for kind in first {
        world.append(&[&Sent::new(1, kind)]).await;
    }
    world.append(&[&Sent::new(1, "question").with("retry_count", "1")]).await;

    let failed =
        RunRecord { question: true, acknowledged: true, terminal: true, ..RunRecord::default() };
    assert_eq!(world.record(1, 0).await, failed);
    assert_eq!(world.record(1, 1).await, RunRecord { question: true, ..RunRecord::default() });
    assert_eq!(world.record(1, 2).await, RunRecord::default());

    world.append(&[&Sent::new(1, "result").with("retry_count", "2")]).await;
    let answered = RunRecord { terminal: true, answered: true, ..RunRecord::default() };
    assert_eq!(world.record(1, 2).await, answered);
}

async fn a_cancellation_holds_for_every_attempt(world: World) {
    for (question, by) in [(1, PARENT), (2, ORIGINATOR)] {
        let asked = Sent::new(question, "question").with("originator", ORIGINATOR);
        let cancelled = Sent::new(question, "cancellation").with("sender", by);
        world.append(&[&asked]).await;
        assert!(!world.record(question, 0).await.cancelled);

        world.append(&[&cancelled]).await;

        assert!(world.record(question, 0).await.cancelled);
        let later = RunRecord { cancelled: true, ..RunRecord::default() };
        assert_eq!(world.record(question, 3).await, later);
    }
}

async fn a_cancellation_by_a_stranger_is_not_accepted(world: World) {
    let stranger = "octue/stranger:1.0.0";
    let mistaken = Sent::new(1, "cancellation").with("sender", stranger);
    // It names its sender as the parent, but the question names another.
    let forged =
        mistaken.clone().with("parent", stranger).with("uuid", &Uuid::new_v4().to_string());

    world.append(&[&Sent::new(1, "question"), &mistaken, &forged]).await;

    assert!(!world.record(1, 0).await.cancelled);
}

async fn a_cancellation_before_its_question_counts_by_its_own_names(world: World) {
    world.append(&[&Sent::new(1, "cancellation").with("sender", "octue/stranger:1.0.0")]).await;
    world.append(&[&Sent::new(2, "cancellation").with("sender", PARENT)]).await;

    assert_eq!(world.record(1, 0).await, RunRecord::default());
    assert_eq!(world.record(2, 0).await, RunRecord { cancelled: true, ..RunRecord::default() });
}

async fn an_appended_event_is_announced(world: World) {
    let mut appended = world.view.appended();
    let sent = Sent::new(1, "heartbeat");

    world.append(&[&sent]).await;
    tokio::time::timeout(Duration::from_secs(10), appended.changed()).await.unwrap().unwrap();
    assert!(world.view.has(Uuid::from_u128(1), sent.uuid()).await.unwrap());

    world.append(&[&sent]).await;
    assert!(!appended.has_changed().unwrap(), "nothing was added");
}

async fn history_and_view_have_the_same_record_of_a_run(world: World) {
    let run = RunId { question: Uuid::from_u128(1), retry: 0 };
    for kind in ["question", "delivery_acknowledgement", "cancellation", "result"] {
        world.append(&[&Sent::new(1, kind)]).await;
        assert_eq!(world.history.run_record(run).await.unwrap(), world.record(1, 0).await);
    }
    assert!(world.history.run_record(run).await.unwrap().cancelled);
}

const PARENT: &str = "local/local:local";
const ORIGINATOR: &str = "octue/root:1.0.0";

/// Events with everything odd about them that still decodes.
fn odd() -> impl Strategy<Value = Sent> {
    let datetime = prop_oneof![
        Just("2024-04-11T10:46:48.236064+00:00"),
        Just("2024-04-11T10:46:48"),
        Just("2024-04-11 10:46:48.236064123"),
        Just("1969-12-31T23:59:59.999999Z"),
        Just("0001-01-01T00:00:00+00:00"),
    ];
    let parent = prop_oneof![
        Just(None),
        Just(Some("null".to_owned())),
        any::<u128>().prop_map(|uuid| Some(Uuid::from_u128(uuid).to_string())),
    ];
    let retry_count = prop_oneof![Just(None), Just(Some("0")), Just(Some("+007"))];
    let names = prop_oneof!["cpus", "memory", "save_diagnostics", "\\PC{0,8}", "[a-z]{12}"];
    let others = prop::collection::hash_map(names, any::<String>(), 0..5);
    let value = prop_oneof![
        Just("NaN".to_owned()),
        Just("[-Infinity, 1.0, 1e400]".to_owned()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    let kind = prop_oneof![Just("result"), Just(r"\u0072esult"), Just("a_newer_kind")];
    let key = prop_oneof![Just("kind"), Just(r"\u006bind")];
    let texts = (any::<String>(), any::<String>(), any::<String>());
    (any::<u128>(), datetime, parent, retry_count, others, value, kind, key, texts).prop_map(
        |(question, datetime, parent, retry_count, others, value, kind, key, texts)| {
            let mut sent = Sent::new(question, "result");
            let (version, message_id, ordering_key) = texts;
            sent.data = format!("{{\"x\":{value}\t,\n\"{key}\" : \"{kind}\" }}");
            let named =
                [("parent_question_uuid", parent), ("retry_count", retry_count.map(str::to_owned))];
            sent.attributes.remove("retry_count");
            sent.attributes.extend(others);
            sent.attributes.extend(
                named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))),
            );
            sent = sent.with("datetime", datetime).with("sender_sdk_version", &version);
            Sent { message_id, ordering_key, ..sent }
        },
    )
}

// === impl World ===

impl World {
    fn sqlite() -> Self {
        Self::with(Options::default())
    }

    /// A view of the last days, in which nothing is that old yet.
    fn bounded() -> Self {
        let keep = Keep { age: Duration::from_secs(86_400), bytes: 1 << 30 };
        Self::with(Options { synced: false, keep: Some(keep), ..Options::default() })
    }

    fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        let store = SqliteStore::open(&path, options).unwrap();
        Self {
            log: Arc::new(store.clone()),
            history: Arc::new(store.clone()),
            view: Arc::new(store),
            _folder: folder,
        }
    }

    async fn append(&self, sent: &[&Sent]) {
        self.try_append(sent).await.unwrap();
    }

    async fn try_append(&self, sent: &[&Sent]) -> Result<(), AppendError> {
        let events: Vec<_> = sent
            .iter()
            .map(|sent| decode(sent.data.as_bytes(), &sent.attributes).unwrap())
            .collect();
        let rows: Vec<_> = sent
            .iter()
            .zip(&events)
            .map(|(sent, event)| {
                Row::new(event, &sent.attributes, &sent.message_id, &sent.ordering_key)
            })
            .collect();
        self.log.append(&rows).await
    }

    async fn events_of(&self, question: u128) -> Vec<StoredEvent> {
        self.read(EventScope::Question(Uuid::from_u128(question)), |_| {}).await
    }

    async fn read(
        &self,
        scope: EventScope,
        choose: impl FnOnce(&mut EventQuery),
    ) -> Vec<StoredEvent> {
        let mut query = EventQuery::new(scope, 1000);
        choose(&mut query);
        self.history.events(&query).await.unwrap()
    }

    async fn record(&self, question: u128, retry: u32) -> RunRecord {
        self.view.run_record(RunId { question: Uuid::from_u128(question), retry }).await.unwrap()
    }
}

// === impl Sent ===

impl Sent {
    fn new(question: u128, kind: &str) -> Self {
        let question = Uuid::from_u128(question).to_string();
        let down = matches!(kind, "question" | "cancellation");
        let (sender_type, sender, recipient) = match down {
            true => ("PARENT", PARENT, "octue/child:1.2.0"),
            false => ("CHILD", "octue/child:1.2.0", PARENT),
        };
        let attributes = [
            ("uuid", &*Uuid::new_v4().to_string()),
            ("datetime", "2026-01-31T12:00:00.000000+00:00"),
            ("question_uuid", &question),
            ("originator_question_uuid", &question),
            ("parent", PARENT),
            ("originator", PARENT),
            ("sender", sender),
            ("recipient", recipient),
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

    fn data(mut self, data: &str) -> Self {
        self.data = data.to_owned();
        self
    }

    /// As an event of the tree with this root, asked by this question.
    fn under(self, root: u128, parent: u128) -> Self {
        self.with("originator_question_uuid", &Uuid::from_u128(root).to_string())
            .with("parent_question_uuid", &Uuid::from_u128(parent).to_string())
    }

    fn at(self, second: i64) -> Self {
        self.with("datetime", &Timestamp(second * 1_000_000).to_string())
    }

    fn uuid(&self) -> Uuid {
        Uuid::parse_str(&self.attributes["uuid"]).unwrap()
    }

    fn stored(&self) -> StoredEvent {
        let event = decode(self.data.as_bytes(), &self.attributes).unwrap();
        StoredEvent {
            kind: event.kind.name().to_owned(),
            data: self.data.clone(),
            attributes: self.attributes.clone().into_iter().collect::<BTreeMap<_, _>>(),
            message_id: self.message_id.clone(),
            ordering_key: self.ordering_key.clone(),
            cursor: self.cursor(),
        }
    }

    fn cursor(&self) -> EventCursor {
        let event = decode(self.data.as_bytes(), &self.attributes).unwrap();
        EventCursor {
            datetime: event.attributes.datetime,
            question: event.attributes.question_uuid,
            event: event.attributes.uuid,
            digest: event.digest,
        }
    }
}

/// From one second until before another.
fn seconds(since: i64, until: i64) -> TimeRange {
    let [since, until] = [since, until].map(|second| Timestamp(second * 1_000_000));
    TimeRange { since, until }
}

/// All pages of a listing, and how many there were. A shorter page is the last.
async fn pages<T, C>(
    limit: usize,
    cursor: impl Fn(&T) -> C,
    read: impl AsyncFn(Option<C>) -> Vec<T>,
) -> (Vec<T>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = read(found.last().map(&cursor)).await;
        pages += 1;
        let last = page.len() < limit;
        found.extend(page);
        if last {
            return (found, pages);
        }
    }
}
