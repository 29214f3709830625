//! Encodes our own events as messages.
//!
//! A response has exactly the attributes that the SDK gives it. With any other the SDK's event
//! replayer crashes, and without `retry_count` a waiting parent does.

use crate::event::attributes as name;
use crate::event::service_id::Sruid;
use crate::event::timestamp::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use uuid::Uuid;

/// The SDK version of the questions that we ask.
const SDK_VERSION: &str = concat!("twined-", env!("CARGO_PKG_VERSION"));

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// The JSON of the event.
    pub data: Vec<u8>,
    /// The attributes.
    pub attributes: HashMap<String, String>,
    /// The ordering key: the uuid of the question, whose events keep their order.
    pub ordering_key: String,
}

/// The data of an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// A parent no longer wants an answer.
    Cancellation,
    /// A child has received the question.
    DeliveryAcknowledgement,
    /// A child is alive.
    Heartbeat,
    /// A line of a child's log.
    LogRecord {
        /// The fields of a Python `LogRecord`.
        log_record: Value,
    },
    /// Data before the answer.
    MonitorMessage {
        /// Any JSON.
        data: Value,
    },
    /// The question failed.
    Exception {
        /// The name of an exception of Python or of the SDK, which the parent can catch.
        exception_type: String,
        /// The text for the parent.
        exception_message: String,
        /// Lines, each with a line feed.
        exception_traceback: Vec<String>,
    },
    /// The answer.
    Result {
        /// Any JSON.
        output_values: Value,
    },
}

/// A root question.
#[derive(Debug)]
pub struct NewQuestion<'a> {
    /// The uuid of the question.
    pub question_uuid: Uuid,
    /// The parent.
    pub sender: Sruid<'a>,
    /// The child.
    pub recipient: Sruid<'a>,
    /// When it is asked.
    pub datetime: Timestamp,
    /// Whether the child sends its log records.
    pub forward_logs: bool,
    /// Any JSON.
    pub input_values: Option<&'a RawValue>,
    /// An object that describes datasets.
    pub input_manifest: Option<&'a RawValue>,
}

/// A response in the name of the child of a question, from the attributes of the question. `None`
/// if an attribute that the response needs is missing.
pub fn response(
    question: &HashMap<String, String>,
    uuid: Uuid,
    datetime: Timestamp,
    body: &EventBody,
) -> Option<OutgoingMessage> {
    const COPIED: [&str; 5] = [
        name::ORIGINATOR_QUESTION_UUID,
        name::PARENT,
        name::ORIGINATOR,
        name::SENDER_SDK_VERSION,
        name::QUESTION_UUID,
    ];
    let mut attributes = HashMap::with_capacity(12);
    for name in COPIED {
        attributes.insert(name.to_owned(), question.get(name)?.clone());
    }
    if let Some(parent) = question.get(name::PARENT_QUESTION_UUID) {
        attributes.insert(name::PARENT_QUESTION_UUID.to_owned(), parent.clone());
    }
    let retry_count = question.get(name::RETRY_COUNT).map_or("0", String::as_str);
    attributes.extend([
        (name::UUID.to_owned(), uuid.to_string()),
        (name::DATETIME.to_owned(), datetime.to_string()),
        (name::SENDER.to_owned(), question.get(name::RECIPIENT)?.clone()),
        (name::RECIPIENT.to_owned(), question.get(name::SENDER)?.clone()),
        (name::SENDER_TYPE.to_owned(), "CHILD".to_owned()),
        (name::RETRY_COUNT.to_owned(), retry_count.to_owned()),
    ]);
    let ordering_key = question.get(name::QUESTION_UUID)?.clone();
    Some(OutgoingMessage { data: json(body), attributes, ordering_key })
}

// === impl NewQuestion ===

impl NewQuestion<'_> {
    /// Encodes the question as a message.
    pub fn encode(&self) -> OutgoingMessage {
        #[derive(Serialize)]
        struct Data<'a> {
            kind: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            input_values: Option<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            input_manifest: Option<&'a RawValue>,
        }
        let Self { question_uuid, sender, recipient, datetime, forward_logs, .. } = self;
        let text = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        let attributes = HashMap::from([
            text(name::UUID, &Uuid::new_v4()),
            text(name::DATETIME, datetime),
            text(name::QUESTION_UUID, question_uuid),
            text(name::ORIGINATOR_QUESTION_UUID, question_uuid),
            text(name::PARENT, sender),
            text(name::ORIGINATOR, sender),
            text(name::SENDER, sender),
            text(name::RECIPIENT, recipient),
            text(name::SENDER_TYPE, &"PARENT"),
            text(name::SENDER_SDK_VERSION, &SDK_VERSION),
            text(name::RETRY_COUNT, &0),
            text(name::FORWARD_LOGS, &u8::from(*forward_logs)),
            text(name::SAVE_DIAGNOSTICS, &"SAVE_DIAGNOSTICS_OFF"),
        ]);
        let data = Data {
            kind: "question",
            input_values: self.input_values,
            input_manifest: self.input_manifest,
        };
        OutgoingMessage { data: json(&data), attributes, ordering_key: question_uuid.to_string() }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our values have text keys and finite numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, decode};

    fn question() -> OutgoingMessage {
        let values = RawValue::from_string(r#"{"n": 1.0}"#.to_owned()).unwrap();
        NewQuestion {
            question_uuid: Uuid::from_u128(7),
            sender: Sruid::parse("local/local:local").unwrap(),
            recipient: Sruid::parse("octue/example:1.2.0").unwrap(),
            datetime: Timestamp(1_712_832_408_236_064),
            forward_logs: true,
            input_values: Some(&values),
            input_manifest: None,
        }
        .encode()
    }

    #[test]
    fn an_encoded_question_decodes_to_itself() {
        let message = question();

        let event = decode(&message.data, &message.attributes).unwrap();

        let Kind::Question(inputs) = event.kind else { panic!("{event:?}") };
        assert_eq!(inputs.input_values, Some(r#"{"n": 1.0}"#));
        assert_eq!(inputs.input_manifest, None);
        assert_eq!(event.attributes.recipient.as_str(), "octue/example:1.2.0");
        assert_eq!(event.attributes.parent_question_uuid, None);
        assert_eq!(message.attributes[name::FORWARD_LOGS], "1");
    }

    #[test]
    fn a_response_has_exactly_the_attributes_of_the_sdk() {
        let asked = question();

        let message =
            response(&asked.attributes, Uuid::from_u128(8), Timestamp(0), &EventBody::Heartbeat)
                .unwrap();

        let mut names: Vec<_> = message.attributes.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "datetime",
                "originator",
                "originator_question_uuid",
                "parent",
                "question_uuid",
                "recipient",
                "retry_count",
                "sender",
                "sender_sdk_version",
                "sender_type",
                "uuid"
            ]
        );
        let event = decode(&message.data, &message.attributes).unwrap();
        assert_eq!(event.kind, Kind::Heartbeat);
        assert_eq!(event.attributes.sender.as_str(), "octue/example:1.2.0");
        assert_eq!(event.attributes.recipient.as_str(), "local/local:local");
        assert_eq!(message.ordering_key, Uuid::from_u128(7).to_string());
    }

    #[test]
    fn a_question_without_a_sender_has_no_response() {
        let mut asked = question();
        asked.attributes.remove(name::SENDER);
        assert_eq!(
            response(&asked.attributes, Uuid::nil(), Timestamp(0), &EventBody::Heartbeat),
            None
        );
    }
}
