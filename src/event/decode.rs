//! Decodes a message: one pass over the attributes, one over the JSON.
//!
//! The JSON is validated, but never rewritten: its members are found as ranges of bytes. Python
//! writes bare `NaN`, `Infinity` and `-Infinity`, which are not JSON. If the first pass fails, a
//! second one reads a copy in which numbers of the same length replace them, so that its ranges are
//! valid for the original too.

use crate::event::attributes::{self, Attributes, SenderType};
use crate::event::{Digest, Event, Inputs, Kind};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// How many characters of an invalid value an error quotes.
const QUOTED: usize = 80;

/// Why a message is not an event. A retry cannot succeed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The data is not text.
    #[error("data is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// The data is not a JSON object with a kind.
    #[error("data is not a JSON object with a string `kind`")]
    NotAnEvent(#[source] serde_json::Error),
    /// An attribute is missing.
    #[error("attribute `{name}` is missing: expected {expected}")]
    MissingAttribute {
        /// Its name.
        name: &'static str,
        /// What is expected.
        expected: &'static str,
    },
    /// An attribute is invalid.
    #[error("attribute `{name}` is `{value}`: expected {expected}")]
    Attribute {
        /// Its name.
        name: &'static str,
        /// Its value, shortened.
        value: String,
        /// What is expected.
        expected: &'static str,
    },
}

/// The values of the members that we read, as ranges of bytes.
#[derive(Default)]
struct Members {
    kind: Range<usize>,
    input_values: Option<Range<usize>>,
    input_manifest: Option<Range<usize>>,
    children: Option<Range<usize>>,
}

/// Decodes a message. The event borrows from it.
///
/// # Errors
///
/// If the message can never be handled. The error names the attribute, or the position in the JSON,
/// and what is expected.
pub fn decode<'a>(
    data: &'a [u8],
    map: &'a HashMap<String, String>,
) -> Result<Event<'a>, DecodeError> {
    let attributes = Attributes::parse(map)?;
    let text = std::str::from_utf8(data).map_err(DecodeError::NotUtf8)?;
    let members = Members::find(text)
        .or_else(|error| match replace_python_constants(text) {
            Some(copy) => Members::find(&copy),
            None => Err(error),
        })
        .map_err(DecodeError::NotAnEvent)?;
    let kind = kind(text, &members).map_err(DecodeError::NotAnEvent)?;
    check_sender_type(&kind, attributes.sender_type)?;
    let kind_member = kind_member(text.as_bytes(), &members.kind);
    Ok(Event { kind, attributes, data: text, kind_member, digest: Digest::from_data(data) })
}

/// Whether the data is that of a question, whatever the attributes are.
pub fn is_question(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let members = Members::find(text).ok();
    members
        .and_then(|members| kind(text, &members).ok())
        .is_some_and(|kind| matches!(kind, Kind::Question(_)))
}

fn kind<'a>(text: &'a str, members: &Members) -> Result<Kind<'a>, serde_json::Error> {
    let quoted = &text[members.kind.clone()];
    let name = match quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(name) if !name.contains('\\') => Cow::Borrowed(name),
        // It has escape sequences, or it is not a string, which is then the error.
        Some(_) | None => Cow::Owned(serde_json::from_str(quoted)?),
    };
    Ok(match &*name {
        "question" => Kind::Question(Inputs {
            input_values: members.input_values.clone().map(|range| &text[range]),
            input_manifest: members.input_manifest.clone().map(|range| &text[range]),
            children: members.children.clone().map(|range| &text[range]),
        }),
        "cancellation" => Kind::Cancellation,
        "delivery_acknowledgement" => Kind::DeliveryAcknowledgement,
        "heartbeat" => Kind::Heartbeat,
        "log_record" => Kind::LogRecord,
        "monitor_message" => Kind::MonitorMessage,
        "exception" => Kind::Exception,
        "result" => Kind::Result,
        _ => Kind::Other(name),
    })
}

/// Checks that a parent sends questions and cancellations, and a child responses. An unknown kind
/// may come from either.
fn check_sender_type(kind: &Kind<'_>, sender_type: SenderType) -> Result<(), DecodeError> {
    let expected = match kind {
        Kind::Question(_) | Kind::Cancellation => SenderType::Parent,
        Kind::DeliveryAcknowledgement
        | Kind::Heartbeat
        | Kind::LogRecord
        | Kind::MonitorMessage
        | Kind::Exception
        | Kind::Result => SenderType::Child,
        Kind::Other(_) => return Ok(()),
    };
    if sender_type == expected {
        return Ok(());
    }
    let expected = match expected {
        SenderType::Parent => "`PARENT`, for a question or a cancellation",
        SenderType::Child => "`CHILD`, for a response",
    };
    Err(DecodeError::attribute(attributes::SENDER_TYPE, sender_type.as_str(), expected))
}

/// The bytes of the member `kind`, whose value is at `value`: its key, its value, and the comma
/// after it or, if it is the last of several members, the comma before it.
fn kind_member(text: &[u8], value: &Range<usize>) -> Range<usize> {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let quote = |upto: usize| text[..upto].iter().rposition(|byte| *byte == b'"');
    // Before the value is `"key" :`. Every spelling of `kind` is without a quote.
    let key = quote(value.start).and_then(quote).expect("a value in an object follows its key");
    let after = value.end + text[value.end..].iter().take_while(|byte| space(byte)).count();
    if text[after] == b',' {
        let next = after + 1;
        return key..next + text[next..].iter().take_while(|byte| space(byte)).count();
    }
    let before = key - text[..key].iter().rev().take_while(|byte| space(byte)).count();
    if text[before - 1] == b',' { before - 1..value.end } else { key..value.end }
}

/// A copy in which numbers of the same length replace bare `NaN` and `Infinity`; `None` if there
/// are none.
fn replace_python_constants(text: &str) -> Option<String> {
    const WORDS: [(&[u8], &[u8]); 2] = [(b"NaN", b"0.0"), (b"Infinity", b"1.000000")];
    let mut copy = text.as_bytes().to_vec();
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < copy.len() {
        match copy[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' if !in_string => {
                for (word, number) in WORDS {
                    if copy[at..].starts_with(word) {
                        copy[at..at + word.len()].copy_from_slice(number);
                        found = true;
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    let copy = String::from_utf8(copy).expect("ASCII replaces ASCII");
    found.then_some(copy)
}

// === impl DecodeError ===

impl DecodeError {
    /// The error for an invalid attribute.
    pub(crate) fn attribute(name: &'static str, value: &str, expected: &'static str) -> Self {
        let mut quoted: String = value.chars().take(QUOTED).flat_map(char::escape_debug).collect();
        if value.chars().nth(QUOTED).is_some() {
            quoted.push('…');
        }
        Self::Attribute { name, value: quoted, expected }
    }

    /// A label for metrics: one of a closed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotUtf8(_) | Self::NotAnEvent(_) => "data",
            Self::MissingAttribute { .. } | Self::Attribute { .. } => "attribute",
        }
    }
}

// === impl Members ===

impl Members {
    /// Validates the whole JSON, and finds the members.
    fn find(text: &str) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(MembersVisitor { text })?;
        json.end()?;
        Ok(members)
    }
}

struct MembersVisitor<'t> {
    text: &'t str,
}

impl MembersVisitor<'_> {
    /// The range of a value that is borrowed from the text.
    fn range(&self, value: &RawValue) -> Range<usize> {
        let start = value.get().as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + value.get().len()
    }
}

impl<'de> Visitor<'de> for MembersVisitor<'de> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut kind = None;
        let mut members = Members::default();
        while let Some(key) = map.next_key()? {
            let found = match key {
                Key::Kind => &mut kind,
                Key::InputValues => &mut members.input_values,
                Key::InputManifest => &mut members.input_manifest,
                Key::Children => &mut members.children,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let range = self.range(map.next_value()?);
            // Parsers differ in which of two they use, so neither is used.
            if found.replace(range).is_some() {
                return Err(serde::de::Error::custom(format_args!(
                    "duplicate member `{}`",
                    key.name()
                )));
            }
        }
        members.kind = kind.ok_or_else(|| serde::de::Error::missing_field("kind"))?;
        Ok(members)
    }
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Kind,
    InputValues,
    InputManifest,
    Children,
    #[serde(other)]
    Other,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::InputValues => "input_values",
            Self::InputManifest => "input_manifest",
            Self::Children => "children",
            Self::Other => "another member",
        }
    }
}

#[cfg(test)]
mod tests;
