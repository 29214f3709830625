//! What the readers of an event store ask for: scopes, times, cursors and limits.
//!
//! A cursor is the place of a row in the order of a listing. It names the row and not its number,
//! so a listing continues without gaps or repeats while rows are added.

use crate::event::{Digest, SruidBuf, Timestamp};
use uuid::Uuid;

/// A time: `since` and later, before `until`. A large store reads only the parts of its table that
/// may hold rows of this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// Its first moment.
    pub since: Timestamp,
    /// The first moment after it.
    pub until: Timestamp,
}

/// Which events to read.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// Those of this question, or of these questions.
    pub scope: EventScope,
    /// Only those that this service revision sent. Name the sender where it is known: BigQuery's
    /// table is clustered by sender.
    pub sender: Option<SruidBuf>,
    /// Only these kinds; all kinds where it is empty.
    pub kinds: Vec<String>,
    /// None of these kinds.
    pub exclude_kinds: Vec<String>,
    /// Only those made in this time.
    pub during: TimeRange,
    /// Only those behind this one in the order.
    pub after: Option<EventCursor>,
    /// At most this many.
    pub limit: u32,
    /// Whether the limit keeps the last events instead of the first. The order stays ascending.
    pub tail: bool,
}

/// The questions whose events are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventScope {
    /// One question.
    Question(Uuid),
    /// The questions that this question asked.
    Parent(Uuid),
    /// All questions of the tree with this root.
    Originator(Uuid),
}

/// Which questions to a service to read.
#[derive(Clone, Debug)]
pub struct ServiceQuery {
    /// `<namespace>/<name>` of the service; all its revisions.
    pub service: String,
    /// Only those that this parent sent.
    pub sender: Option<SruidBuf>,
    /// Only those made in this time.
    pub during: TimeRange,
    /// Only those behind this one in the order.
    pub after: Option<EventCursor>,
    /// At most this many. A shorter page is the last.
    pub limit: u32,
}

/// Which questions of a view to read.
#[derive(Clone, Debug)]
pub struct QuestionFilter {
    /// `<namespace>/<name>` of the service; all its revisions.
    pub service: Option<String>,
    /// Only those in this state.
    pub state: Option<QuestionState>,
    /// Only those that have this text in their inputs, in the name of recipient, parent or
    /// originator, or in the uuid of the question, its parent or its root. ASCII letters match in
    /// either case.
    pub text: Option<String>,
    /// Only those made in this time.
    pub during: TimeRange,
    /// Only those behind this one in the order.
    pub after: Option<EventCursor>,
    /// At most this many. A shorter page is the last.
    pub limit: u32,
}

/// How far one attempt at a question is, by its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionState {
    /// No child has acknowledged it.
    Waiting,
    /// A child has acknowledged it.
    Running,
    /// It has a result.
    Answered,
    /// It has an exception, and was not cancelled.
    Failed,
    /// It was cancelled, and has no result.
    Cancelled,
}

/// Which unanswered questions to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnansweredQuery {
    /// Only those made in this time.
    pub during: TimeRange,
    /// Only those behind this one in the order.
    pub after: Option<EventCursor>,
    /// At most this many. A shorter page is the last.
    pub limit: u32,
}

/// Which rejected messages to read.
#[derive(Clone, Debug)]
pub struct RejectedQuery {
    /// Only those rejected in this time.
    pub during: TimeRange,
    /// Only those behind this one in the order.
    pub after: Option<RejectedCursor>,
    /// At most this many. A shorter page is the last.
    pub limit: u32,
}

/// The place of an event in a listing by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCursor {
    /// When the event was made.
    pub datetime: Timestamp,
    /// Its question.
    pub question: Uuid,
    /// Its uuid.
    pub event: Uuid,
    /// The digest of its data.
    pub digest: Digest,
}

/// The place of a rejected message in a listing by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedCursor {
    pub(crate) at: Timestamp,
    pub(crate) message_id: String,
    pub(crate) digest: Digest,
}

/// How much of a view a reader has seen. Its default is the position before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewPosition(pub(crate) i64);

// === impl TimeRange ===

impl TimeRange {
    /// All time.
    pub const ALL: Self = Self { since: Timestamp(i64::MIN), until: Timestamp(i64::MAX) };
}

// === impl EventQuery ===

impl EventQuery {
    /// The first events of a scope, of all kinds, senders and times.
    pub fn new(scope: EventScope, limit: u32) -> Self {
        Self {
            scope,
            sender: None,
            kinds: Vec::new(),
            exclude_kinds: Vec::new(),
            during: TimeRange::ALL,
            after: None,
            limit,
            tail: false,
        }
    }
}

// === impl RejectedCursor ===

impl RejectedCursor {
    pub(crate) fn new(at: Timestamp, message_id: &str, data: &[u8]) -> Self {
        Self { at, message_id: message_id.to_owned(), digest: Digest::from_data(data) }
    }
}
