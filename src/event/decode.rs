//! Message to event: one pass over the attributes, one over the JSON.
//!
//! The JSON is checked and looked into, but never rewritten: what is found in it is a range of its
//! bytes. Python writes bare `NaN`, `Infinity` and `-Infinity`, which JSON does not have; where the
//! first look refuses a text, a second one goes over a copy in which numbers of the same length
//! stand for them, so that its ranges hold for the original too.

use crate::event::attributes::{self, Attributes, SenderType};
use crate::event::{Digest, Event, Inputs, Kind};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// The longest piece of a refused value that is told, in characters.
const QUOTED: usize = 80;

/// Why a message is no event. It never will be: trying again is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The data is no text.
    #[error("data is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// The data is no JSON object with a kind.
    #[error("data is not a JSON object with a string `kind`")]
    NotAnEvent(#[source] serde_json::Error),
    /// An attribute is not there.
    #[error("attribute `{name}` is missing: expected {expected}")]
    MissingAttribute {
        /// Which.
        name: &'static str,
        /// What should have been there.
        expected: &'static str,
    },
    /// An attribute is not what it should be.
    #[error("attribute `{name}` is `{value}`: expected {expected}")]
    Attribute {
        /// Which.
        name: &'static str,
        /// What it is, shortened.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// Where things are in the JSON, as ranges of its bytes.
#[derive(Default)]
struct Head {
    kind: Range<usize>,
    input_values: Option<Range<usize>>,
    input_manifest: Option<Range<usize>>,
    children: Option<Range<usize>>,
}

/// Decodes a message. Borrows from it all that it can.
///
/// # Errors
///
/// Where the message can never be handled; the error names the attribute, or where in the JSON,
/// and what was expected.
pub fn decode<'a>(
    data: &'a [u8],
    map: &'a HashMap<String, String>,
) -> Result<Event<'a>, DecodeError> {
    let attributes = Attributes::check(map)?;
    let text = std::str::from_utf8(data).map_err(DecodeError::NotUtf8)?;
    let head = Head::find(text)
        .or_else(|refusal| match without_bare_words(text) {
            Some(copy) => Head::find(&copy),
            None => Err(refusal),
        })
        .map_err(DecodeError::NotAnEvent)?;
    let kind = kind(text, &head).map_err(DecodeError::NotAnEvent)?;
    check_direction(&kind, attributes.sender_type)?;
    let kind_member = member(text.as_bytes(), &head.kind);
    Ok(Event { kind, attributes, data: text, kind_member, digest: Digest::of(data) })
}

/// Whether the data says that it is a question, whatever its attributes say.
pub fn is_question(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let head = Head::find(text).ok();
    head.and_then(|head| kind(text, &head).ok())
        .is_some_and(|kind| matches!(kind, Kind::Question(_)))
}

fn kind<'a>(text: &'a str, head: &Head) -> Result<Kind<'a>, serde_json::Error> {
    let quoted = &text[head.kind.clone()];
    let name = match quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(name) if !name.contains('\\') => Cow::Borrowed(name),
        // Written with escapes, or no string at all, which is then the error.
        Some(_) | None => Cow::Owned(serde_json::from_str(quoted)?),
    };
    Ok(match &*name {
        "question" => Kind::Question(Inputs {
            input_values: head.input_values.clone().map(|range| &text[range]),
            input_manifest: head.input_manifest.clone().map(|range| &text[range]),
            children: head.children.clone().map(|range| &text[range]),
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

/// A question goes down, a response goes up. A kind that is not known may go either way.
fn check_direction(kind: &Kind<'_>, sender_type: SenderType) -> Result<(), DecodeError> {
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

/// The bytes of the member whose value is at `value`: its key, the value, and the comma after it
/// or, where it is the last of several, the comma before it.
fn member(text: &[u8], value: &Range<usize>) -> Range<usize> {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let quote = |upto: usize| text[..upto].iter().rposition(|byte| *byte == b'"');
    // Before the value: `"key" :`. A key that means `kind` holds no quote, however it is escaped.
    let key = quote(value.start).and_then(quote).expect("a value in an object follows its key");
    let after = value.end + text[value.end..].iter().take_while(|byte| space(byte)).count();
    if text[after] == b',' {
        let next = after + 1;
        return key..next + text[next..].iter().take_while(|byte| space(byte)).count();
    }
    let before = key - text[..key].iter().rev().take_while(|byte| space(byte)).count();
    if text[before - 1] == b',' { before - 1..value.end } else { key..value.end }
}

/// A copy in which numbers of the same length stand for the words that Python writes bare. None
/// where there are none.
fn without_bare_words(text: &str) -> Option<String> {
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
    let copy = String::from_utf8(copy).expect("ASCII was put in the place of ASCII");
    found.then_some(copy)
}

// === impl DecodeError ===

impl DecodeError {
    /// An attribute that is not what it should be.
    pub(crate) fn attribute(name: &'static str, value: &str, expected: &'static str) -> Self {
        let mut quoted: String = value.chars().take(QUOTED).flat_map(char::escape_debug).collect();
        if value.chars().nth(QUOTED).is_some() {
            quoted.push('…');
        }
        Self::Attribute { name, value: quoted, expected }
    }

    /// A closed set of names, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotUtf8(_) | Self::NotAnEvent(_) => "data",
            Self::MissingAttribute { .. } | Self::Attribute { .. } => "attribute",
        }
    }
}

// === impl Head ===

impl Head {
    /// Checks the JSON of the whole text, and finds what we look for in it.
    fn find(text: &str) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(text);
        let head = json.deserialize_map(HeadVisitor { text })?;
        json.end()?;
        Ok(head)
    }
}

struct HeadVisitor<'t> {
    text: &'t str,
}

impl HeadVisitor<'_> {
    /// Where a value that was borrowed from the text is in it.
    fn range(&self, value: &RawValue) -> Range<usize> {
        let start = value.get().as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + value.get().len()
    }
}

impl<'de> Visitor<'de> for HeadVisitor<'de> {
    type Value = Head;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head, A::Error> {
        let mut kind = None;
        let mut head = Head::default();
        while let Some(key) = map.next_key()? {
            let found = match key {
                Key::Kind => &mut kind,
                Key::InputValues => &mut head.input_values,
                Key::InputManifest => &mut head.input_manifest,
                Key::Children => &mut head.children,
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let range = self.range(map.next_value()?);
            // Readers differ in which of two they take, so nothing may be decided by either.
            if found.replace(range).is_some() {
                return Err(serde::de::Error::custom(format_args!(
                    "`{}` is there twice",
                    key.name()
                )));
            }
        }
        head.kind = kind.ok_or_else(|| serde::de::Error::missing_field("kind"))?;
        Ok(head)
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
