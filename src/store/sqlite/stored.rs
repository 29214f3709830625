//! How a row holds an event, and how the event is put together again, to the byte.
//!
//! The attributes of a message are split by what repeats:
//!
//! ```text
//! uuid, datetime, the three questions    columns of the event
//! names of services, and known others    an envelope, written once for all events that share it
//! unknown attributes                     `other_attributes` of the event, JSON
//! ```
//!
//! A column holds a parsed value and not its text. Where the text differs from what the column
//! yields (a datetime without an offset, `null` for no parent), the text is kept in `as_written`.

use crate::event::attributes as name;
use crate::event::{Digest, RunId, SruidBuf, Timestamp};
use crate::store::row::COLUMN_ATTRIBUTES;
use crate::store::{
    EventCursor, RejectedMessage, Row, StoredEvent, StoredQuestion, StoredRejectedMessage,
};
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// The attributes without a column that have few different values, so that there are few envelopes.
const REPEATING: [&str; 6] = [
    name::RETRY_COUNT,
    name::FORWARD_LOGS,
    name::SAVE_DIAGNOSTICS,
    name::CPUS,
    name::MEMORY,
    name::EPHEMERAL_STORAGE,
];

/// The memory that a row or a message takes beside its texts, in bytes.
const OVERHEAD: usize = 512;

/// The columns that [`attributes`] and [`cursor`] expect, in their order.
pub(super) const ATTRIBUTES: &str = "\
    e.id, e.datetime, e.uuid, v.originator, v.parent, v.sender, v.sender_type, \
    v.sender_sdk_version, v.recipient, o.uuid, p.uuid, q.uuid, v.other_attributes, \
    e.other_attributes, e.as_written, e.digest";

/// The columns that [`event`] expects behind them. The data may be megabytes, so only events are
/// read with it.
pub(super) const CONTENTS: &str = "e.kind, e.message_id, coalesce(e.ordering_key, q.uuid), e.data";

/// The columns that [`question`] expects behind [`ATTRIBUTES`].
pub(super) const RUN: &str = "e.retry_count";

/// The columns of table `rejected` that [`rejected`] expects.
pub(super) const REJECTED: &str = "message_id, ordering_key, data, attributes, reason, at";

/// The tables of the columns. A `WHERE` over `e` follows.
pub(super) const FROM: &str = "\
    FROM events AS e \
    JOIN envelopes AS v ON v.id = e.envelope \
    JOIN questions AS q ON q.id = e.question \
    JOIN questions AS o ON o.id = e.originator_question \
    LEFT JOIN questions AS p ON p.id = e.parent_question ";

/// A [`Row`] that owns its parts, ready to be written.
#[derive(Debug)]
pub(super) struct OwnedRow {
    pub(super) uuid: Uuid,
    pub(super) digest: Digest,
    pub(super) datetime: Timestamp,
    pub(super) kind: Box<str>,
    pub(super) question: Uuid,
    pub(super) parent_question: Option<Uuid>,
    pub(super) originator_question: Uuid,
    pub(super) retry_count: u32,
    pub(super) envelope: Envelope,
    pub(super) other_attributes: Option<String>,
    pub(super) as_written: Option<String>,
    /// The recipient's, where it is a question.
    pub(super) service: Option<Box<str>>,
    pub(super) message_id: Box<str>,
    /// None where it is the question's uuid.
    pub(super) ordering_key: Option<Box<str>>,
    pub(super) kind_start: usize,
    pub(super) kind_end: usize,
    pub(super) data: Box<[u8]>,
}

/// A [`RejectedMessage`] that owns its parts, ready to be written.
#[derive(Debug)]
pub(super) struct OwnedMessage {
    pub(super) message_id: Box<str>,
    pub(super) digest: Digest,
    pub(super) ordering_key: Box<str>,
    pub(super) data: Box<[u8]>,
    pub(super) attributes: String,
    pub(super) reason: Box<str>,
    pub(super) at: Timestamp,
}

/// What many events have in common, as one text: it is looked up for every row, and split only for
/// the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Envelope(String);

/// An event that was read, with its sort key.
pub(super) struct ReadEvent {
    pub(super) datetime: i64,
    pub(super) id: i64,
    pub(super) event: StoredEvent,
}

/// The texts of the attributes that have a column, as the columns yield them, in the order of
/// [`COLUMN_ATTRIBUTES`].
struct Columns<'a>([Option<Cow<'a, str>>; COLUMN_ATTRIBUTES.len()]);

/// The approximate memory of a row that waits, in bytes.
pub(super) fn weight(row: &Row<'_>) -> usize {
    OVERHEAD + row.data.len() + attributes_weight(row.attributes)
}

/// The approximate memory of a message that waits, in bytes.
pub(super) fn message_weight(message: &RejectedMessage<'_>) -> usize {
    OVERHEAD + message.data.len() + attributes_weight(message.attributes) + message.reason.len()
}

fn attributes_weight(attributes: &HashMap<String, String>) -> usize {
    attributes.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// Puts an event together again from a row of [`ATTRIBUTES`] and [`CONTENTS`].
pub(super) fn event(row: &rusqlite::Row<'_>) -> rusqlite::Result<ReadEvent> {
    let data = row.get_ref(19)?.as_blob()?.to_vec();
    let data = String::from_utf8(data).map_err(|error| unreadable(19, error))?;
    let event = StoredEvent {
        kind: row.get(16)?,
        data,
        attributes: attributes(row)?,
        message_id: row.get(17)?,
        ordering_key: row.get(18)?,
        cursor: cursor(row)?,
    };
    Ok(ReadEvent { datetime: row.get(1)?, id: row.get(0)?, event })
}

/// Puts a question together again from a row of [`ATTRIBUTES`] and [`RUN`].
pub(super) fn question(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredQuestion> {
    let recipient = row.get_ref(8)?.as_str()?.parse::<SruidBuf>();
    let cursor = cursor(row)?;
    Ok(StoredQuestion {
        run: RunId { question: cursor.question, retry: row.get(16)? },
        attributes: attributes(row)?.into_iter().collect(),
        recipient: recipient.map_err(|error| unreadable(8, error))?,
        cursor,
    })
}

/// Puts a rejected message together again from a row of [`REJECTED`].
pub(super) fn rejected(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredRejectedMessage> {
    Ok(StoredRejectedMessage {
        message_id: row.get(0)?,
        ordering_key: row.get(1)?,
        data: row.get_ref(2)?.as_bytes()?.to_vec(),
        attributes: json(row, 3)?.unwrap_or_default(),
        reason: row.get(4)?,
        at: Timestamp(row.get(5)?),
    })
}

fn cursor(row: &rusqlite::Row<'_>) -> rusqlite::Result<EventCursor> {
    Ok(EventCursor {
        datetime: Timestamp(row.get(1)?),
        question: uuid(row, 11)?,
        event: Uuid::from_bytes(row.get(2)?),
        digest: row.get(15)?,
    })
}

/// A uuid that is kept as text.
pub(super) fn uuid(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error: uuid::Error| unreadable(column, error))
}

/// Puts an event's attributes together again from a row that begins with [`ATTRIBUTES`].
fn attributes(row: &rusqlite::Row<'_>) -> rusqlite::Result<BTreeMap<String, String>> {
    let datetime = row.get(1)?;
    let columns = Columns::from_stored(row, datetime)?;
    let mut attributes: BTreeMap<String, String> = COLUMN_ATTRIBUTES
        .into_iter()
        .zip(columns.0)
        .filter_map(|(name, text)| Some((name.to_owned(), text?.into_owned())))
        .collect();
    attributes.extend(json::<BTreeMap<_, _>>(row, 12)?.unwrap_or_default());
    attributes.extend(json::<BTreeMap<_, _>>(row, 13)?.unwrap_or_default());
    for (name, text) in json::<BTreeMap<_, Option<_>>>(row, 14)?.unwrap_or_default() {
        match text {
            Some(text) => attributes.insert(name, text),
            None => attributes.remove(&name),
        };
    }
    Ok(attributes)
}

fn json<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| unreadable(column, error))
}

fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn to_json(map: &impl serde::Serialize) -> String {
    serde_json::to_string(map).expect("maps of texts are JSON")
}

// === impl Digest ===

impl ToSql for Digest {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Digest {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        FromSql::column_result(value).map(Self)
    }
}

// === impl OwnedRow ===

impl OwnedRow {
    pub(super) fn new(row: &Row<'_>) -> Self {
        let as_written: BTreeMap<_, _> = COLUMN_ATTRIBUTES
            .into_iter()
            .zip(Columns::from_row(row).0)
            .map(|(name, text)| (name, row.attributes.get(name).map(String::as_str), text))
            .filter(|(_, came, text)| *came != text.as_deref())
            .map(|(name, came, _)| (name, came))
            .collect();
        let others: BTreeMap<_, _> = row
            .attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| !COLUMN_ATTRIBUTES.contains(name) && !REPEATING.contains(name))
            .collect();
        let key = (*row.question_uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())
            != *row.ordering_key)
            .then(|| row.ordering_key.into());
        Self {
            uuid: row.uuid,
            digest: row.digest,
            datetime: row.datetime,
            kind: row.kind.into(),
            question: row.question_uuid,
            parent_question: row.parent_question_uuid,
            originator_question: row.originator_question_uuid,
            retry_count: row.retry_count,
            envelope: Envelope::new(row),
            other_attributes: (!others.is_empty()).then(|| to_json(&others)),
            as_written: (!as_written.is_empty()).then(|| to_json(&as_written)),
            service: (row.kind == "question").then(|| row.recipient.service().into()),
            message_id: row.message_id.into(),
            ordering_key: key,
            kind_start: row.kind_member.start,
            kind_end: row.kind_member.end,
            data: row.data.as_bytes().into(),
        }
    }
}

// === impl OwnedMessage ===

impl OwnedMessage {
    pub(super) fn new(message: &RejectedMessage<'_>) -> Self {
        Self {
            message_id: message.message_id.into(),
            digest: Digest::from_data(message.data),
            ordering_key: message.ordering_key.into(),
            data: message.data.into(),
            attributes: to_json(&message.attributes.iter().collect::<BTreeMap<_, _>>()),
            reason: message.reason.into(),
            at: message.at,
        }
    }
}

// === impl Envelope ===

impl Envelope {
    /// The number of its parts.
    const PARTS: usize = 7;

    fn new(row: &Row<'_>) -> Self {
        let others: BTreeMap<_, _> = REPEATING
            .into_iter()
            .filter_map(|name| Some((name, row.attributes.get(name)?.as_str())))
            .collect();
        // SRUIDs and JSON hold no NUL; the version may hold anything, so it comes last.
        let parts: [&str; Self::PARTS] = [
            row.parent.as_str(),
            row.originator.as_str(),
            row.sender.as_str(),
            row.recipient.as_str(),
            row.sender_type,
            &to_json(&others),
            row.sender_sdk_version,
        ];
        Self(parts.join("\0"))
    }

    /// Parent, originator, sender, recipient, sender's type, other attributes, SDK's version.
    pub(super) fn parts(&self) -> [&str; Self::PARTS] {
        let mut parts = self.0.splitn(Self::PARTS, '\0');
        std::array::from_fn(|_| parts.next().expect("an envelope has all of its parts"))
    }
}

// === impl Columns ===

impl<'a> Columns<'a> {
    fn from_row(row: &Row<'a>) -> Self {
        Self([
            Some(row.datetime.to_string().into()),
            Some(row.uuid.to_string().into()),
            Some(row.originator.as_str().into()),
            Some(row.parent.as_str().into()),
            Some(row.sender.as_str().into()),
            Some(row.sender_type.into()),
            Some(row.sender_sdk_version.into()),
            Some(row.recipient.as_str().into()),
            Some(row.originator_question_uuid.to_string().into()),
            row.parent_question_uuid.map(|uuid| uuid.to_string().into()),
            Some(row.question_uuid.to_string().into()),
        ])
    }

    fn from_stored(row: &'a rusqlite::Row<'_>, datetime: i64) -> rusqlite::Result<Self> {
        let text = |column| -> rusqlite::Result<_> {
            Ok(row.get_ref(column)?.as_str_or_null()?.map(Cow::Borrowed))
        };
        let uuid = Uuid::from_bytes(row.get(2)?);
        Ok(Self([
            Some(Timestamp(datetime).to_string().into()),
            Some(uuid.to_string().into()),
            text(3)?,
            text(4)?,
            text(5)?,
            text(6)?,
            text(7)?,
            text(8)?,
            text(9)?,
            text(10)?,
            text(11)?,
        ]))
    }
}
