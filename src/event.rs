//! Decodes and encodes the events of a network: pure, with no I/O and no runtime.
//!
//! ```text
//! data, attributes -> decode -> Event { kind, attributes, … }      (borrowed from the message)
//! question's attributes, EventBody -> encode -> OutgoingMessage   (a message to publish)
//! ```
//!
//! The JSON of an event is stored as received and never rewritten. Only the kind, and the three
//! inputs of a question, are read from it.

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
pub use encode::OutgoingMessage;
pub use question::{Inputs, RunId};
pub use service_id::{Sruid, SruidBuf};
use std::borrow::Cow;
use std::ops::Range;
pub use timestamp::Timestamp;

/// One decoded event, borrowed from its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its kind, with the inputs of a question.
    pub kind: Kind<'a>,
    /// Its sender, recipient, question, and so on.
    pub attributes: Attributes<'a>,
    /// The JSON of the message, byte for byte. It may contain bare `NaN` and `Infinity`.
    pub data: &'a str,
    /// The bytes of [`Event::data`] with the member `kind` and one comma. The event store's table
    /// shows the event without them.
    pub kind_member: Range<usize>,
    /// Distinguishes the two events that the SDK sometimes sends under one uuid.
    pub digest: Digest,
}

/// The kind of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A parent asks a question.
    Question(Inputs<'a>),
    /// A parent no longer wants an answer.
    Cancellation,
    /// A child has received the question.
    DeliveryAcknowledgement,
    /// A child is alive.
    Heartbeat,
    /// A line of a child's log.
    LogRecord,
    /// Data that a child sends to its parent before the answer.
    MonitorMessage,
    /// The question failed: a terminal event.
    Exception,
    /// The answer: a terminal event.
    Result,
    /// A kind of a newer SDK.
    Other(Cow<'a, str>),
}

/// The first 128 bits of the BLAKE3 hash of an event's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

// === impl Event ===

impl Event<'_> {
    /// The JSON of the event without its kind.
    pub fn json_without_kind(&self) -> String {
        let Range { start, end } = self.kind_member;
        [&self.data[..start], &self.data[end..]].concat()
    }
}

// === impl Kind ===

impl Kind<'_> {
    /// The names of the known kinds, as on the wire.
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
    pub fn from_data(data: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(data).as_bytes()[..16]);
        Self(first)
    }
}
