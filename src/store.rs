//! The seam to what keeps every event.
//!
//! An event is on record once [`EventStore::append`] has returned, and not before: nothing is run
//! and nothing acknowledged that is not. Appending is idempotent by the event's uuid *and* the
//! digest of its data, for the SDK sometimes gives two different events one uuid, and both are
//! kept.

pub mod layered;
pub mod row;
pub mod sqlite;
use crate::event::{RunId, SruidBuf, Timestamp};
use async_trait::async_trait;
pub use layered::{LayeredView, PartialView};
pub use row::Row;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt::Debug;
use tokio::sync::watch;
use uuid::Uuid;

/// Keeps every event that was ever received.
#[async_trait]
pub trait EventStore: Debug + Send + Sync {
    /// Appends rows, or finds that they are there already. Durable, all of them, when it returns.
    ///
    /// Safe to call again with the same rows: Pub/Sub delivers at least once, so it will be. Many
    /// calls at once share one commit. Rows of one call keep their order.
    async fn append(&self, rows: &[Row<'_>]) -> Result<(), AppendError>;

    /// Keeps a message that can never be handled, whole, with the reason. Durable when it returns;
    /// safe to call again with the same message.
    async fn reject(&self, message: &RejectedMessage<'_>) -> Result<(), AppendError>;

    /// Reads events in the order of their datetimes.
    async fn read(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError>;

    /// What is on record of one run.
    ///
    /// A cancellation counts for every attempt at the question; it is accepted from whoever the
    /// question names as its parent or originator. While the question is not on record, from whoever
    /// the cancellation names so itself.
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError>;

    /// Reads the runs that were asked for and have no terminal event, in the order of their
    /// questions' datetimes, then of their uuids. Of questions that were sent twice for one run,
    /// the first to come.
    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError>;
}

/// What has lately been said of the questions that run here: what launches and the monitor look
/// at. In local mode the store is its own view.
#[async_trait]
pub trait View: Debug + Send + Sync {
    /// What is on record of one run.
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError>;

    /// Whether an event of this uuid is on record.
    async fn has(&self, event: Uuid) -> Result<bool, ReadError>;

    /// The cancelled questions that the view learned of after a position, in pages.
    ///
    /// Reports a question whose accepted cancellation came to the view after `after`, and a cancelled
    /// question of which another question event came after `after`. So it reports a cancellation
    /// whichever of the two comes second, and again for a later attempt. A cancellation is accepted
    /// from the parent or the originator that the question names; while the view has no question, from
    /// those that the cancellation itself names. A question that was reported before it came may turn
    /// out to name others: before acting on it, check [`RunRecord::cancelled`].
    ///
    /// To follow cancellations, call this with the last position whenever [`View::appended`] changes,
    /// and again for as long as a page has `limit` questions. No question is missed: positions follow
    /// the order of arrival, and not the senders' clocks.
    async fn cancelled_questions(
        &self,
        after: ViewPosition,
        limit: u32,
    ) -> Result<CancelledQuestions, ReadError>;

    /// Changes whenever this process has appended something.
    fn appended(&self) -> watch::Receiver<u64>;
}

/// How much of a view a reader has seen. Its default is the position before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewPosition(pub(crate) i64);

/// A page of cancelled questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledQuestions {
    /// The questions, each once, in the order in which the view learned of them.
    pub questions: Vec<Uuid>,
    /// Where the next page begins.
    pub position: ViewPosition,
}

/// A message that can never be handled.
#[derive(Clone, Copy, Debug)]
pub struct RejectedMessage<'a> {
    /// Pub/Sub's id of it.
    pub message_id: &'a str,
    /// Its ordering key; empty where it has none.
    pub ordering_key: &'a str,
    /// Its bytes as they came, text or not.
    pub data: &'a [u8],
    /// Its attributes as they came.
    pub attributes: &'a HashMap<String, String>,
    /// Why, in words.
    pub reason: &'a str,
    /// When it was rejected.
    pub at: Timestamp,
}

/// Which events to read.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// Of which question or questions.
    pub of: EventScope,
    /// Only these kinds; all where it is empty.
    pub kinds: Vec<String>,
    /// None of these kinds.
    pub exclude_kinds: Vec<String>,
    /// At most so many.
    pub limit: u32,
    /// Where there are more than the limit: the last of them, else the first.
    pub tail: bool,
}

/// Whose events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventScope {
    /// Those of one question.
    Question(Uuid),
    /// Those of the questions that this question asked.
    Parent(Uuid),
    /// Those of all questions of the tree with this root.
    Originator(Uuid),
}

/// Which unanswered questions to read: a page of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnansweredQuery {
    /// Those made then or later.
    pub from: Timestamp,
    /// Those made before.
    pub until: Timestamp,
    /// Those behind this one: [`UnansweredQuestion::cursor`] of the last of the page before.
    pub after: Option<QuestionCursor>,
    /// At most so many. A shorter page is the last.
    pub limit: u32,
}

/// A question's place in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuestionCursor {
    /// When it was made.
    pub datetime: Timestamp,
    /// The uuid of its event.
    pub event: Uuid,
}

/// A run without a terminal event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnansweredQuestion {
    /// The run.
    pub run: RunId,
    /// The attributes of its question as they came.
    pub attributes: HashMap<String, String>,
    /// Which revision was asked.
    pub recipient: SruidBuf,
    /// Whether the question was cancelled, by one who may.
    pub cancelled: bool,
    /// Its place in the order.
    pub cursor: QuestionCursor,
}

/// An event as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// The name of its kind.
    pub kind: String,
    /// Its JSON, to the byte as it came.
    pub data: String,
    /// Its attributes as they came.
    pub attributes: BTreeMap<String, String>,
    /// Pub/Sub's id of its message.
    pub message_id: String,
    /// Its ordering key; empty where it had none.
    pub ordering_key: String,
}

/// What is on record of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunRecord {
    /// The question itself.
    pub question: bool,
    /// A `delivery_acknowledgement`: some child has it.
    pub acknowledged: bool,
    /// A `result` or an `exception`: nothing more is to come.
    pub terminal: bool,
    /// A `result`.
    pub answered: bool,
    /// An accepted cancellation of the question, of whatever attempt.
    pub cancelled: bool,
}

/// Why something could not be appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The store could not be reached, or is busy: try again.
    #[error("failed to reach the event store")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The store refused this row, and would again. The other rows of the call are not on record
    /// because of it: append them without it.
    #[error("event store refused event `{uuid}`: {reason}")]
    Refused {
        /// The event.
        uuid: Uuid,
        /// The store's words.
        reason: String,
    },
}

/// Why something could not be read. Try again.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the event store")]
pub struct ReadError(#[source] pub Box<dyn Error + Send + Sync>);
