//! One event as the event store records it: the columns of the table in BigQuery, and everything
//! that is needed to return the event as it came.

use crate::event::attributes as name;
use crate::event::{Digest, Event, Sruid, Timestamp};
use std::collections::HashMap;
use std::ops::Range;
use uuid::Uuid;

/// The value of the column `backend`: where events come from.
pub const BACKEND: &str = "GoogleCloudPubSub";

/// The attributes that have their own column. The others are in `other_attributes`.
pub const COLUMN_ATTRIBUTES: [&str; 11] = [
    name::DATETIME,
    name::UUID,
    name::ORIGINATOR,
    name::PARENT,
    name::SENDER,
    name::SENDER_TYPE,
    name::SENDER_SDK_VERSION,
    name::RECIPIENT,
    name::ORIGINATOR_QUESTION_UUID,
    name::PARENT_QUESTION_UUID,
    name::QUESTION_UUID,
];

/// A row, borrowed from its event and message.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The event. Question, event and digest together identify the row.
    pub uuid: Uuid,
    /// Of [`Row::data`].
    pub digest: Digest,
    /// When the event was made.
    pub datetime: Timestamp,
    /// The name of its kind.
    pub kind: &'a str,
    /// Its JSON as it came.
    pub data: &'a str,
    /// The bytes of [`Row::data`] that the column `event` leaves out.
    pub kind_member: Range<usize>,
    /// The question that it belongs to.
    pub question_uuid: Uuid,
    /// The question that asked that question.
    pub parent_question_uuid: Option<Uuid>,
    /// The root of the tree.
    pub originator_question_uuid: Uuid,
    /// The number of the attempt at the question, from 0.
    pub retry_count: u32,
    /// The parent of the question.
    pub parent: Sruid<'a>,
    /// The parent of the root question.
    pub originator: Sruid<'a>,
    /// Who sent the event.
    pub sender: Sruid<'a>,
    /// Who the event is for.
    pub recipient: Sruid<'a>,
    /// `PARENT` or `CHILD`.
    pub sender_type: &'static str,
    /// The version of the sender's SDK.
    pub sender_sdk_version: &'a str,
    /// Every attribute as it came, also those with a column.
    pub attributes: &'a HashMap<String, String>,
    /// Pub/Sub's id of the message.
    pub message_id: &'a str,
    /// The message's ordering key; empty where it has none.
    pub ordering_key: &'a str,
}

// === impl Row ===

impl<'a> Row<'a> {
    /// The row of an event and its message.
    pub fn new(
        event: &'a Event<'a>,
        attributes: &'a HashMap<String, String>,
        message_id: &'a str,
        ordering_key: &'a str,
    ) -> Self {
        let checked = &event.attributes;
        Self {
            uuid: checked.uuid,
            digest: event.digest,
            datetime: checked.datetime,
            kind: event.kind.name(),
            data: event.data,
            kind_member: event.kind_member.clone(),
            question_uuid: checked.question_uuid,
            parent_question_uuid: checked.parent_question_uuid,
            originator_question_uuid: checked.originator_question_uuid,
            retry_count: checked.retry_count,
            parent: checked.parent,
            originator: checked.originator,
            sender: checked.sender,
            recipient: checked.recipient,
            sender_type: checked.sender_type.as_str(),
            sender_sdk_version: checked.sender_sdk_version,
            attributes,
            message_id,
            ordering_key,
        }
    }
}
