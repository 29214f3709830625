//! Patterns on the names of service revisions: `octue/*`, `*/wind-*:1.*`.
//!
//! `*` matches any characters within its part, also none. A pattern without a tag matches every
//! tag. No other character is special, so a match takes one pass over the name, whatever the
//! pattern.

use crate::event::Sruid;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::fmt;
use std::str::FromStr;

/// A pattern that matches service revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePattern {
    text: String,
    namespace: PatternPart,
    name: PatternPart,
    tag: PatternPart,
}

/// The texts between the stars; one text if there is no star.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PatternPart(Vec<String>);

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServicePatternError {
    /// No `/`.
    #[error(
        "pattern `{0}` has no `/`: write `<namespace>/<name>` or `<namespace>/<name>:<tag>`, with \
         `*` for any characters; `*/*` matches every service"
    )]
    NoSlash(String),
    /// A part of it is empty.
    #[error("pattern `{pattern}` has no {part}: write `*` for any")]
    Empty {
        /// The whole pattern.
        pattern: String,
        /// The part.
        part: &'static str,
    },
    /// A character that is not allowed in a name.
    #[error("pattern `{pattern}` has `{character}` in its {part}, which no {part} has")]
    Character {
        /// The whole pattern.
        pattern: String,
        /// The part.
        part: &'static str,
        /// The first such character.
        character: char,
    },
}

// === impl ServicePattern ===

impl ServicePattern {
    /// Whether it matches this revision.
    pub fn matches(&self, revision: Sruid<'_>) -> bool {
        self.namespace.matches(revision.namespace())
            && self.name.matches(revision.name())
            && self.tag.matches(revision.tag())
    }
}

impl FromStr for ServicePattern {
    type Err = ServicePatternError;

    fn from_str(text: &str) -> Result<Self, ServicePatternError> {
        let (namespace, rest) =
            text.split_once('/').ok_or_else(|| ServicePatternError::NoSlash(text.to_owned()))?;
        let (name, tag) = rest.split_once(':').unwrap_or((rest, "*"));
        let kebab = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == '-';
        let word = |byte: char| byte.is_ascii_alphanumeric() || matches!(byte, '_' | '.' | '-');
        Ok(Self {
            text: text.to_owned(),
            namespace: PatternPart::read(text, "namespace", namespace, kebab)?,
            name: PatternPart::read(text, "name", name, kebab)?,
            tag: PatternPart::read(text, "tag", tag, word)?,
        })
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ServicePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

// === impl PatternPart ===

impl PatternPart {
    fn read(
        pattern: &str,
        part: &'static str,
        text: &str,
        fits: impl Fn(char) -> bool,
    ) -> Result<Self, ServicePatternError> {
        let pattern = || pattern.to_owned();
        if text.is_empty() {
            return Err(ServicePatternError::Empty { pattern: pattern(), part });
        }
        match text.chars().find(|&character| character != '*' && !fits(character)) {
            Some(character) => {
                Err(ServicePatternError::Character { pattern: pattern(), part, character })
            }
            None => Ok(Self(text.split('*').map(str::to_owned).collect())),
        }
    }

    /// Each text is searched for after the one before it, and its first position is taken: if any
    /// positions match, the first ones do. So no character is compared twice.
    fn matches(&self, text: &str) -> bool {
        let [first, between @ .., last] = &*self.0 else {
            return self.0.iter().any(|own| own == text);
        };
        let Some(mut rest) = text.strip_prefix(&**first) else { return false };
        for own in between {
            let Some((_, behind)) = rest.split_once(&**own) else { return false };
            rest = behind;
        }
        rest.ends_with(&**last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, revision: &str) -> bool {
        pattern.parse::<ServicePattern>().unwrap().matches(Sruid::parse(revision).unwrap())
    }

    #[test]
    fn a_star_matches_any_characters_of_its_part() {
        for (pattern, revision, taken) in [
            ("octue/*:*", "octue/wind:1.0", true),
            ("octue/*", "octue/wind:1.0", true),
            ("octue/*", "other/wind:1.0", false),
            ("*/wind-*", "octue/wind-speed:1.0", true),
            ("*/wind-*", "octue/wind:1.0", false),
            ("octue/x:1.*", "octue/x:1.2.3", true),
            ("octue/x:1.*", "octue/x:11.2", false),
            ("octue/x:1", "octue/x:1", true),
            ("octue/x:1", "octue/x:1.0", false),
            ("*/*:*-rc*", "a/b:1.0-rc.1", true),
            ("*/a*b*a", "x/aba:1", true),
            ("*/a*a", "x/a:1", false),
            ("*/*a*b*", "x/b-a:1", false),
            ("*/**", "x/b-a:1", true),
        ] {
            assert_eq!(matches(pattern, revision), taken, "{pattern} {revision}");
        }
    }

    #[test]
    fn an_invalid_pattern_is_explained() {
        for (text, error) in [
            ("*", "pattern `*` has no `/`: write"),
            ("/x", "pattern `/x` has no namespace: write `*` for any"),
            ("a/:1", "pattern `a/:1` has no name: write `*` for any"),
            ("a/b:", "pattern `a/b:` has no tag: write `*` for any"),
            ("Octue/*", "pattern `Octue/*` has `O` in its namespace, which no namespace has"),
            ("a/b/c", "pattern `a/b/c` has `/` in its name, which no name has"),
            ("a/b:1@2", "pattern `a/b:1@2` has `@` in its tag, which no tag has"),
        ] {
            let message = text.parse::<ServicePattern>().unwrap_err().to_string();
            assert!(message.starts_with(error), "{message}");
        }
    }

    /// The same rule, implemented simply and slowly.
    fn simple_match(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| simple_match(rest, &text[at..])),
            Some((byte, rest)) => text.first() == Some(byte) && simple_match(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_simple_rule_matches(own in "[ab*]{1,8}", text in "[ab]{1,10}") {
            let taken = matches(&format!("*/*:{own}"), &format!("a/b:{text}"));
            prop_assert_eq!(taken, simple_match(own.as_bytes(), text.as_bytes()));
        }
    }
}
