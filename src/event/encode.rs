//! Event to message: what we publish ourselves.
//!
//! The attributes of a response are just those that the SDK gives one. With any other its event
//! replayer crashes, and without `retry_count` a waiting parent does.

use crate::event::attributes as name;
use crate::event::service_id::Sruid;
use crate::event::timestamp::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use uuid::Uuid;

/// What the SDK would say that it is, of the events that we make from nothing.
const SDK_VERSION: &str = concat!("twined-", env!("CARGO_PKG_VERSION"));

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The JSON of the event.
    pub data: Vec<u8>,
    /// Everything else of it.
    pub attributes: HashMap<String, String>,
    /// The question: the events of one question keep their order.
    pub ordering_key: String,
}

/// What an event says, beside who says it to whom.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// A parent no longer wants an answer.
    Cancellation,
    /// A child has the question.
    DeliveryAcknowledgement,
    /// A child is alive.
    Heartbeat,
    /// A line of a child's log.
    LogRecord {
        /// The fields of a Python `LogRecord`.
        log_record: Value,
    },
    /// Something to see before the answer.
    MonitorMessage {
        /// Any JSON.
        data: Value,
    },
    /// The question failed.
    Exception {
        /// The name of an exception of Python or of the SDK, so that it can be caught.
        exception_type: String,
        /// For the asker.
        exception_message: String,
        /// Lines, each with its line feed.
        exception_traceback: Vec<String>,
    },
    /// The answer.
    Result {
        /// Any JSON.
        output_values: Value,
    },
}

/// A question of somebody who has not been asked one: the root of a tree.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Names the question.
    pub question_uuid: Uuid,
    /// Who asks.
    pub sender: Sruid<'a>,
    /// Who is asked.
    pub recipient: Sruid<'a>,
    /// When.
    pub datetime: Timestamp,
    /// Whether the asker wants the child's logs.
    pub forward_logs: bool,
    /// Any JSON.
    pub input_values: Option<&'a RawValue>,
    /// An object that describes datasets.
    pub input_manifest: Option<&'a RawValue>,
}

/// A response to a question, in the name of the one who was asked, from the question's attributes
/// as they came. None where they do not say enough to tell anybody.
pub fn response(
    question: &HashMap<String, String>,
    uuid: Uuid,
    datetime: Timestamp,
    body: &Body,
) -> Option<Outgoing> {
    const KEPT: [&str; 5] = [
        name::ORIGINATOR_QUESTION_UUID,
        name::PARENT,
        name::ORIGINATOR,
        name::SENDER_SDK_VERSION,
        name::QUESTION_UUID,
    ];
    let mut attributes = HashMap::with_capacity(12);
    for name in KEPT {
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
    Some(Outgoing { data: json(body), attributes, ordering_key })
}

// === impl Ask ===

impl Ask<'_> {
    /// The message that asks it.
    pub fn encode(&self) -> Outgoing {
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
        Outgoing { data: json(&data), attributes, ordering_key: question_uuid.to_string() }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("values of ours have text keys and finite numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, decode};

    fn question() -> Outgoing {
        let values = RawValue::from_string(r#"{"n": 1.0}"#.to_owned()).unwrap();
        Ask {
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
    fn a_question_that_we_ask_decodes_to_itself() {
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
    fn a_response_has_the_attributes_of_the_sdk_and_no_other() {
        let asked = question();

        let message =
            response(&asked.attributes, Uuid::from_u128(8), Timestamp(0), &Body::Heartbeat)
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
    fn nobody_is_told_where_nobody_is_named() {
        let mut asked = question();
        asked.attributes.remove(name::SENDER);
        assert_eq!(response(&asked.attributes, Uuid::nil(), Timestamp(0), &Body::Heartbeat), None);
    }
}
