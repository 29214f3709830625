//! The attributes of a message: sender, recipient, question, and so on.
//!
//! The names of attributes are written here only.

use crate::event::decode::DecodeError;
use crate::event::service_id::Sruid;
use crate::event::timestamp::Timestamp;
use std::collections::HashMap;
use uuid::Uuid;

/// The event's own UUID.
pub const UUID: &str = "uuid";
/// When the event was made.
pub const DATETIME: &str = "datetime";
/// The question that the event belongs to.
pub const QUESTION_UUID: &str = "question_uuid";
/// The question whose run asked that question.
pub const PARENT_QUESTION_UUID: &str = "parent_question_uuid";
/// The root of the tree of questions.
pub const ORIGINATOR_QUESTION_UUID: &str = "originator_question_uuid";
/// The service revision that asked the question.
pub const PARENT: &str = "parent";
/// The service revision that asked the root of the tree.
pub const ORIGINATOR: &str = "originator";
/// The service revision that sends this event.
pub const SENDER: &str = "sender";
/// The service revision that this event is for.
pub const RECIPIENT: &str = "recipient";
/// Whether a parent or a child sends this event.
pub const SENDER_TYPE: &str = "sender_type";
/// The version of the sender's SDK.
pub const SENDER_SDK_VERSION: &str = "sender_sdk_version";
/// The retry of the question, from 0.
pub const RETRY_COUNT: &str = "retry_count";
/// Whether the parent wants the child's logs.
pub const FORWARD_LOGS: &str = "forward_logs";
/// When the child saves its inputs for diagnostics.
pub const SAVE_DIAGNOSTICS: &str = "save_diagnostics";
/// The CPUs that the question needs.
pub const CPUS: &str = "cpus";
/// The memory that the question needs.
pub const MEMORY: &str = "memory";
/// The disk space that the question needs.
pub const EPHEMERAL_STORAGE: &str = "ephemeral_storage";

const A_UUID: &str =
    "a UUID in lower case with hyphens, for example `0c5f7c76-5d0e-4b1e-9f3a-1d2c3b4a5968`";
const AN_SRUID: &str = "`<namespace>/<name>:<revision tag>`";
const A_DATETIME: &str = "a datetime in ISO 8601, for example `2026-01-31T12:00:00.000000+00:00`";
const A_SENDER_TYPE: &str = "`PARENT` or `CHILD`";
const A_COUNT: &str = "a whole number from 0 to 4294967295";
const A_VERSION: &str = "the version of the sender's SDK";

/// The valid attributes of an event.
///
/// The message may have others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// The UUID of the event. The SDK sometimes gives two events the same.
    pub uuid: Uuid,
    /// When the event was made, by the clock of its sender.
    pub datetime: Timestamp,
    /// The question that the event belongs to.
    pub question_uuid: Uuid,
    /// The question whose run asked that question; `None` for a root question.
    pub parent_question_uuid: Option<Uuid>,
    /// The root of the tree of questions.
    pub originator_question_uuid: Uuid,
    /// The service revision that asked the question.
    pub parent: Sruid<'a>,
    /// The service revision that asked the root of the tree.
    pub originator: Sruid<'a>,
    /// The service revision that sends this event.
    pub sender: Sruid<'a>,
    /// The service revision that this event is for.
    pub recipient: Sruid<'a>,
    /// Whether a parent or a child sends it.
    pub sender_type: SenderType,
    /// The version of the sender's SDK.
    pub sender_sdk_version: &'a str,
    /// The retry of the question. Old SDKs do not send it; it is then 0.
    pub retry_count: u32,
}

/// Whether a parent or a child sends an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderType {
    /// A parent, which sends questions and cancellations.
    Parent,
    /// A child, which sends responses.
    Child,
}

/// The texts of the attributes, found in one pass.
#[derive(Default)]
struct Texts<'a> {
    uuid: Option<&'a str>,
    datetime: Option<&'a str>,
    question_uuid: Option<&'a str>,
    parent_question_uuid: Option<&'a str>,
    originator_question_uuid: Option<&'a str>,
    parent: Option<&'a str>,
    originator: Option<&'a str>,
    sender: Option<&'a str>,
    recipient: Option<&'a str>,
    sender_type: Option<&'a str>,
    sender_sdk_version: Option<&'a str>,
    retry_count: Option<&'a str>,
}

// === impl Attributes ===

impl<'a> Attributes<'a> {
    /// Parses the attributes of a message.
    ///
    /// # Errors
    ///
    /// The error names the first attribute that is missing or invalid, and what is expected.
    pub fn parse(map: &'a HashMap<String, String>) -> Result<Self, DecodeError> {
        let texts = Texts::find(map);
        Ok(Self {
            uuid: uuid(UUID, required(UUID, texts.uuid, A_UUID)?)?,
            datetime: datetime(required(DATETIME, texts.datetime, A_DATETIME)?)?,
            question_uuid: uuid(
                QUESTION_UUID,
                required(QUESTION_UUID, texts.question_uuid, A_UUID)?,
            )?,
            parent_question_uuid: match texts.parent_question_uuid {
                // Old SDKs write the text `null` for a root question.
                None | Some("null") => None,
                Some(text) => Some(uuid(PARENT_QUESTION_UUID, text)?),
            },
            originator_question_uuid: uuid(
                ORIGINATOR_QUESTION_UUID,
                required(ORIGINATOR_QUESTION_UUID, texts.originator_question_uuid, A_UUID)?,
            )?,
            parent: sruid(PARENT, texts.parent)?,
            originator: sruid(ORIGINATOR, texts.originator)?,
            sender: sruid(SENDER, texts.sender)?,
            recipient: sruid(RECIPIENT, texts.recipient)?,
            sender_type: sender_type(required(SENDER_TYPE, texts.sender_type, A_SENDER_TYPE)?)?,
            sender_sdk_version: required(SENDER_SDK_VERSION, texts.sender_sdk_version, A_VERSION)?,
            retry_count: match texts.retry_count {
                None => 0,
                Some(text) => {
                    text.parse().map_err(|_| DecodeError::attribute(RETRY_COUNT, text, A_COUNT))?
                }
            },
        })
    }
}

// === impl Texts ===

impl<'a> Texts<'a> {
    fn find(map: &'a HashMap<String, String>) -> Self {
        let mut texts = Self::default();
        for (name, value) in map {
            let field = match name.as_str() {
                UUID => &mut texts.uuid,
                DATETIME => &mut texts.datetime,
                QUESTION_UUID => &mut texts.question_uuid,
                PARENT_QUESTION_UUID => &mut texts.parent_question_uuid,
                ORIGINATOR_QUESTION_UUID => &mut texts.originator_question_uuid,
                PARENT => &mut texts.parent,
                ORIGINATOR => &mut texts.originator,
                SENDER => &mut texts.sender,
                RECIPIENT => &mut texts.recipient,
                SENDER_TYPE => &mut texts.sender_type,
                SENDER_SDK_VERSION => &mut texts.sender_sdk_version,
                RETRY_COUNT => &mut texts.retry_count,
                _ => continue,
            };
            *field = Some(value);
        }
        texts
    }
}

// === impl SenderType ===

impl SenderType {
    /// The text on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parent => "PARENT",
            Self::Child => "CHILD",
        }
    }
}

fn required<'a>(
    name: &'static str,
    text: Option<&'a str>,
    expected: &'static str,
) -> Result<&'a str, DecodeError> {
    text.ok_or(DecodeError::MissingAttribute { name, expected })
}

/// Accepts the canonical form only: uuids are part of the names of Jobs, subscriptions and folders,
/// and the filter of a parent compares them as text.
fn uuid(name: &'static str, text: &str) -> Result<Uuid, DecodeError> {
    let canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    match Uuid::try_parse(text) {
        Ok(uuid) if canonical => Ok(uuid),
        Ok(_) | Err(_) => Err(DecodeError::attribute(name, text, A_UUID)),
    }
}

fn sruid<'a>(name: &'static str, text: Option<&'a str>) -> Result<Sruid<'a>, DecodeError> {
    let text = required(name, text, AN_SRUID)?;
    Sruid::parse(text).map_err(|_| DecodeError::attribute(name, text, AN_SRUID))
}

fn datetime(text: &str) -> Result<Timestamp, DecodeError> {
    Timestamp::parse(text).ok_or_else(|| DecodeError::attribute(DATETIME, text, A_DATETIME))
}

fn sender_type(text: &str) -> Result<SenderType, DecodeError> {
    match text {
        "PARENT" => Ok(SenderType::Parent),
        "CHILD" => Ok(SenderType::Child),
        _ => Err(DecodeError::attribute(SENDER_TYPE, text, A_SENDER_TYPE)),
    }
}
