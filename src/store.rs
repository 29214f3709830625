//! The interfaces to the event store.
//!
//! ```text
//! pipeline ──► EventLog   appends events, records rejected messages
//! pipeline, monitor, people ──► History   what was ever recorded, by question, service and time
//! pipeline, monitor ──► View   what a replica knows about its runs, within milliseconds
//! ```
//!
//! An event is on record once [`EventLog::append`] has returned. No question is run and no message
//! is acknowledged before. A row is identified by its question, the event's uuid and the digest of
//! its data: the SDK sometimes gives two different events one uuid, and both are kept.

pub mod layered;
pub mod query;
pub mod row;
pub mod sqlite;
use crate::event::{RunId, SruidBuf, Timestamp};
use async_trait::async_trait;
pub use layered::{LayeredView, PartialView};
pub use query::{
    EventCursor, EventQuery, EventScope, QuestionFilter, QuestionState, RejectedCursor,
    RejectedQuery, ServiceQuery, TimeRange, UnansweredQuery, ViewPosition,
};
pub use row::Row;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt::Debug;
use tokio::sync::watch;
use uuid::Uuid;

/// Records events.
#[async_trait]
pub trait EventLog: Debug + Send + Sync {
    /// Appends rows, except those that are on record already. All of them are durable when it
    /// returns.
    ///
    /// Calling it again with the same rows is safe; Pub/Sub delivers at least once. Concurrent
    /// calls share commits. The rows of one call keep their order.
    async fn append(&self, rows: &[Row<'_>]) -> Result<(), AppendError>;

    /// Records a message that can never be handled, with the reason. It is durable when this
    /// returns. Calling it again with the same message is safe.
    async fn reject(&self, message: &RejectedMessage<'_>) -> Result<(), AppendError>;
}

/// Reads everything that was ever recorded.
///
/// The table may hold many years. So each query names a question or bounds the time, has a limit,
/// and continues after a cursor.
#[async_trait]
pub trait History: Debug + Send + Sync {
    /// Reads events in the order of their datetimes, then of arrival.
    async fn events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError>;

    /// Reads the questions to a service, newest first. A question that was sent twice for one run
    /// is listed as it came first.
    async fn questions(&self, query: &ServiceQuery) -> Result<Vec<StoredQuestion>, ReadError>;

    /// Reads rejected messages, newest first.
    async fn rejected(
        &self,
        query: &RejectedQuery,
    ) -> Result<Vec<StoredRejectedMessage>, ReadError>;

    /// Reads the runs that have a question and no terminal event, oldest first. A question that was
    /// sent twice for one run is listed as it came first.
    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError>;

    /// What is on record of one run, as [`View::run_record`].
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError>;
}

/// Reads what a replica knows about recent questions: the basis of launches, cancellations and
/// reports.
///
/// In `local` the store is its own view.
#[async_trait]
pub trait View: Debug + Send + Sync {
    /// What is on record of one run.
    ///
    /// A cancellation counts for every attempt at the question. It is accepted from the parent or
    /// the originator that the question names. While the question is not on record, it is accepted
    /// from those that the cancellation itself names.
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError>;

    /// [`View::run_record`] for a caller that knows the datetime of the question, which may not have come
    /// to the view yet.
    ///
    /// A view that began before that datetime answers alone. It may be late, so the answer may lack
    /// recent events of the question.
    async fn run_record_since(
        &self,
        run: RunId,
        _asked_at: Timestamp,
    ) -> Result<RunRecord, ReadError> {
        self.run_record(run).await
    }

    /// Whether an event of a question is on record.
    async fn has(&self, question: Uuid, event: Uuid) -> Result<bool, ReadError>;

    /// Reads questions, newest first, with what is on record of their runs. A question that was
    /// sent twice for one run is listed as it came first.
    ///
    /// Text and state are looked up question by question, which only a view is small enough for.
    async fn questions(&self, filter: &QuestionFilter) -> Result<Vec<ViewedQuestion>, ReadError>;

    /// The cancelled questions that the view learned of after a position, in pages.
    ///
    /// Reports a question whose accepted cancellation came to the view after `after`, and a cancelled
    /// question of which another question event came after `after`. So it reports a cancellation
    /// whichever of the two comes second, and again for a later attempt. A question that was reported
    /// before its own event came may turn out to name another parent: before acting on it, check
    /// [`RunRecord::cancelled`].
    ///
    /// To follow cancellations, call this with the last position whenever [`View::appended`]
    /// changes, and again for as long as a page has `limit` questions. No question is missed:
    /// positions follow the order of arrival, and not the senders' clocks.
    async fn cancelled_questions(
        &self,
        after: ViewPosition,
        limit: u32,
    ) -> Result<CancelledQuestions, ReadError>;

    /// Changes whenever this process has appended something.
    fn appended(&self) -> watch::Receiver<u64>;
}

/// A message that can never be handled, to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct RejectedMessage<'a> {
    /// Pub/Sub's id of the message.
    pub message_id: &'a str,
    /// Its ordering key; empty where it has none.
    pub ordering_key: &'a str,
    /// Its bytes as they came, text or not.
    pub data: &'a [u8],
    /// Its attributes as they came.
    pub attributes: &'a HashMap<String, String>,
    /// Why it was rejected.
    pub reason: &'a str,
    /// When it was rejected.
    pub at: Timestamp,
}

/// A rejected message on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRejectedMessage {
    /// Pub/Sub's id of the message.
    pub message_id: String,
    /// Its ordering key; empty where it had none.
    pub ordering_key: String,
    /// Its bytes as they came, text or not.
    pub data: Vec<u8>,
    /// Its attributes as they came.
    pub attributes: BTreeMap<String, String>,
    /// Why it was rejected.
    pub reason: String,
    /// When it was rejected.
    pub at: Timestamp,
}

/// An event on record.
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
    /// Its place in the order.
    pub cursor: EventCursor,
}

/// A question on record: one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredQuestion {
    /// The run that it asks for.
    pub run: RunId,
    /// Its attributes as they came.
    pub attributes: HashMap<String, String>,
    /// The service revision that it asks.
    pub recipient: SruidBuf,
    /// Its place in the order.
    pub cursor: EventCursor,
}

/// A question in a view, with what is on record of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewedQuestion {
    /// The question.
    pub question: StoredQuestion,
    /// What is on record of its run.
    pub record: RunRecord,
}

/// A run without a terminal event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnansweredQuestion {
    /// The run.
    pub run: RunId,
    /// The attributes of its question as they came.
    pub attributes: HashMap<String, String>,
    /// The service revision that was asked.
    pub recipient: SruidBuf,
    /// Whether a cancellation of the question was accepted.
    pub cancelled: bool,
    /// Its place in the order.
    pub cursor: EventCursor,
}

/// A page of cancelled questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledQuestions {
    /// The questions, each once, in the order in which the view learned of them.
    pub questions: Vec<Uuid>,
    /// Where the next page begins.
    pub position: ViewPosition,
}

/// What is on record of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunRecord {
    /// The question itself.
    pub question: bool,
    /// A `delivery_acknowledgement`: a child has the question.
    pub acknowledged: bool,
    /// A `result` or an `exception`: no event follows.
    pub terminal: bool,
    /// A `result`.
    pub answered: bool,
    /// An accepted cancellation of the question, of any attempt.
    pub cancelled: bool,
}

/// Why something could not be appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The store could not be reached, or is busy. A later try may succeed.
    #[error("failed to reach the event store")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The store refused this row, and would refuse it again. The other rows of the call are not on
    /// record; they can be appended without it.
    #[error("event store refused event `{uuid}`: {reason}")]
    Refused {
        /// The event.
        uuid: Uuid,
        /// The store's reason.
        reason: String,
    },
}

/// Why something could not be read. A later try may succeed.
#[derive(Debug, thiserror::Error)]
#[error("failed to read the event store")]
pub struct ReadError(#[source] pub Box<dyn Error + Send + Sync>);

// === impl StoredRejectedMessage ===

impl StoredRejectedMessage {
    /// Its place in the order.
    pub fn cursor(&self) -> RejectedCursor {
        RejectedCursor::new(self.at, &self.message_id, &self.data)
    }
}

// === impl RunRecord ===

impl RunRecord {
    /// How far the run is.
    pub fn state(&self) -> QuestionState {
        match *self {
            Self { answered: true, .. } => QuestionState::Answered,
            Self { cancelled: true, .. } => QuestionState::Cancelled,
            Self { terminal: true, .. } => QuestionState::Failed,
            Self { acknowledged: true, .. } => QuestionState::Running,
            _ => QuestionState::Waiting,
        }
    }
}
