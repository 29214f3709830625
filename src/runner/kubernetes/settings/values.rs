//! Values of the settings. Each is checked when it is read, so that an error has the line.

use crate::runner::kubernetes::reserved::{self, MOUNT_FOLDER};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use std::fmt;
use std::time::Duration;

/// The longest duration that can be set: the largest deadline of a pod, in whole days.
const LONGEST: Duration = Duration::from_secs(24_855 * 24 * 3600);

/// A text; a number or a boolean keeps its spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScalarText(pub String);

/// The name of an object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName(pub String);

/// The name of an environment variable that a setting may set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VariableName(pub String);

/// The key of a label or a taint: `name` or `domain/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelKey(pub String);

/// The name of an extended resource, for example `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceName(pub String);

/// An absolute path in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPath(pub String);

/// A duration: `90s`, `30m`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationText(pub Duration);

/// A number from 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct PositiveCount(pub u32);

/// A command: a program and its first arguments.
#[derive(Clone, Debug)]
pub(super) struct CommandWords(pub Vec<String>);

// === impl Default ===

impl Default for ResourceName {
    fn default() -> Self {
        Self("nvidia.com/gpu".to_owned())
    }
}

// === impl Name, and its like ===

impl ObjectName {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// If it is no name of an object; the message names what is expected.
    pub fn new(text: &str) -> Result<Self, String> {
        if is_subdomain(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no name of an object of Kubernetes: at most 253 of lower-case letters, \
             digits, `-` and `.`, with a letter or a digit at both ends"
        ))
    }
}

impl VariableName {
    fn new(text: &str) -> Result<Self, String> {
        let first = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !first || !text.bytes().all(word) {
            return Err(format!(
                "`{text}` is no name of a variable: letters, digits and `_`, not starting with a \
                 digit"
            ));
        }
        if reserved::VARIABLES.contains(&text) {
            return Err(format!("the variable `{text}` is set for every question, and cannot be"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl LabelKey {
    fn new(text: &str) -> Result<Self, String> {
        if is_key(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no key of a label: `name` or `domain/name`, the name at most 63 of \
             letters, digits, `-`, `_` and `.`"
        ))
    }
}

impl ResourceName {
    fn new(text: &str) -> Result<Self, String> {
        let domain = text.split_once('/').map(|(domain, _)| domain);
        let is_extended = domain.is_some_and(|domain| !domain.ends_with("kubernetes.io"));
        if is_extended && is_key(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{text}` is no extended resource, for example `nvidia.com/gpu`"))
    }
}

impl MountPath {
    fn new(text: &str) -> Result<Self, String> {
        let parts = || text.split('/').skip(1);
        let bare = text.starts_with('/')
            && parts().all(|part| !matches!(part, "" | "." | ".."))
            // Kubernetes refuses a colon in the path of a mount.
            && !text.contains([':', '\0']);
        if !bare {
            return Err(format!("`{text}` is no absolute path such as `/secrets/key`"));
        }
        let reserved = MOUNT_FOLDER.trim_start_matches('/');
        if parts().next() == Some(reserved) {
            return Err(format!("`{text}` is in `{MOUNT_FOLDER}`, where questions are mounted"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl DurationText {
    fn new(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is no time such as `90s`, `30m`, `1h30m` or `7d`, of 1 s to 24855 d")
        };
        let mut seconds = 0_u64;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
            let unit = match rest.as_bytes().get(digits) {
                Some(b's') => 1,
                Some(b'm') => 60,
                Some(b'h') => 3600,
                Some(b'd') => 24 * 3600,
                Some(_) | None => return Err(wrong()),
            };
            // Below 2³² times a day: far from the end of 64 bits.
            seconds = seconds.saturating_add(u64::from(number) * unit);
            rest = &rest[digits + 1..];
        }
        let span = Duration::from_secs(seconds);
        if span.is_zero() || span > LONGEST { Err(wrong()) } else { Ok(Self(span)) }
    }
}

impl PositiveCount {
    fn new(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|&number| number > 0);
        number.map(Self).ok_or_else(|| format!("`{text}` is no whole number from 1"))
    }
}

fn is_subdomain(text: &str) -> bool {
    let end = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        end(label.bytes().next()) && end(label.bytes().next_back()) && label.bytes().all(inner)
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_key(text: &str) -> bool {
    let name = match text.split_once('/') {
        Some((domain, name)) if is_subdomain(domain) => name,
        Some(_) => return false,
        None => text,
    };
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= 63
        && end(name.bytes().next())
        && end(name.bytes().next_back())
        && name.bytes().all(inner)
}

// === Deserialization ===

/// Reads a scalar with its spelling, and checks it.
macro_rules! deserialize_checked {
    ($($checked:ident),+) => {$(
        impl<'de> Deserialize<'de> for $checked {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let ScalarText(text) = ScalarText::deserialize(deserializer)?;
                Self::new(&text).map_err(D::Error::custom)
            }
        }
    )+};
}

deserialize_checked!(
    ObjectName,
    VariableName,
    LabelKey,
    ResourceName,
    MountPath,
    DurationText,
    PositiveCount
);

/// Displays the text itself.
macro_rules! display_text {
    ($($checked:ident),+) => {$(
        impl fmt::Display for $checked {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

display_text!(ScalarText, ObjectName, VariableName, LabelKey, ResourceName, MountPath);

impl<'de> Deserialize<'de> for ScalarText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = ScalarText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ScalarText, E> {
                if text.contains('\0') {
                    return Err(E::custom("a text cannot hold the character NUL"));
                }
                Ok(ScalarText(text.to_owned()))
            }
        }

        deserializer.deserialize_str(Scalar)
    }
}

impl<'de> Deserialize<'de> for CommandWords {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<ScalarText>::deserialize(deserializer)?;
        if words.first().is_none_or(|ScalarText(program)| program.is_empty()) {
            return Err(D::Error::custom(
                "`command` needs a program, such as `[octue, twined, …]`",
            ));
        }
        Ok(Self(words.into_iter().map(|ScalarText(word)| word).collect()))
    }
}
