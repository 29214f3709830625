//! What a message of a network says, decoded and encoded: pure, with no I/O and no runtime.
//!
//! ```text
//! data, attributes -> decode -> Event { kind, attributes, … }      (borrowed from the message)
//! question's attributes, a Body -> encode -> Outgoing              (a message to publish)
//! ```
//!
//! An event's JSON is kept as it came and never rewritten: it is stored, not understood. Only the
//! kind, and the three inputs of a question, are looked for in it.

pub mod attributes;
mod cancellation;
pub mod decode;
pub mod encode;
pub mod question;
pub mod service_id;
pub mod timestamp;
pub use attributes::{Attributes, SenderType};
pub(crate) use cancellation::may_cancel;
pub use decode::{DecodeError, decode};
pub use encode::Outgoing;
pub use question::{Inputs, RunId};
pub use service_id::{Sruid, SruidBuf};
use std::borrow::Cow;
use std::ops::Range;
pub use timestamp::Timestamp;

/// One decoded event, borrowed from its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What it says.
    pub kind: Kind<'a>,
    /// Whom it is from and for, and of which question it speaks.
    pub attributes: Attributes<'a>,
    /// The message's JSON, to the byte as it came; bare `NaN` and `Infinity` may be in it.
    pub data: &'a str,
    /// The bytes of [`Event::data`] that hold the member `kind` and one comma: what is left
    /// without them is the event as the event store's table shows it.
    pub kind_member: Range<usize>,
    /// Tells apart the two events that the SDK sometimes sends under one uuid.
    pub digest: Digest,
}

/// The kind of an event, with what we need to know of its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A parent asks.
    Question(Inputs<'a>),
    /// A parent no longer wants an answer.
    Cancellation,
    /// A child has the question.
    DeliveryAcknowledgement,
    /// A child is alive.
    Heartbeat,
    /// A line of a child's log.
    LogRecord,
    /// Something that a child wants its parent to see before the answer.
    MonitorMessage,
    /// The question failed: a terminal event.
    Exception,
    /// The answer: a terminal event.
    Result,
    /// A kind of a newer SDK, kept as it came.
    Other(Cow<'a, str>),
}

/// The first 128 bits of the BLAKE3 hash of an event's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

// === impl Event ===

impl Event<'_> {
    /// The JSON of all that it says beside its kind.
    pub fn said(&self) -> String {
        let Range { start, end } = self.kind_member;
        [&self.data[..start], &self.data[end..]].concat()
    }
}

// === impl Kind ===

impl Kind<'_> {
    /// The names of the kinds that we know, as they are on the wire.
    pub const NAMES: [&'static str; 8] = [
        "question",
        "cancellation",
        "delivery_acknowledgement",
        "heartbeat",
        "log_record",
        "monitor_message",
        "exception",
        "result",
    ];

    /// The name on the wire.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            Self::Question(_)
            | Self::Cancellation
            | Self::DeliveryAcknowledgement
            | Self::Heartbeat
            | Self::LogRecord
            | Self::MonitorMessage
            | Self::Exception
            | Self::Result => self.label(),
        }
    }

    /// The name on the wire, or `other`: a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Question(_) => "question",
            Self::Cancellation => "cancellation",
            Self::DeliveryAcknowledgement => "delivery_acknowledgement",
            Self::Heartbeat => "heartbeat",
            Self::LogRecord => "log_record",
            Self::MonitorMessage => "monitor_message",
            Self::Exception => "exception",
            Self::Result => "result",
            Self::Other(_) => "other",
        }
    }
}

// === impl Digest ===

impl Digest {
    /// The digest of an event's data.
    pub fn of(data: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
        Self(first)
    }
}
