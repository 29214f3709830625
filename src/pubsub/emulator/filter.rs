//! The filter language of a subscription: which messages it wants, by their attributes.
//!
//! ```text
//! filter     = term { "AND" term } | term { "OR" term }
//! term       = [ "NOT" | "-" ] ( comparison | "(" filter ")" )
//! comparison = "attributes" ":" key
//!            | "attributes" "." key ( "=" | "!=" ) string
//!            | "hasPrefix" "(" "attributes" "." key "," string ")"
//! key        = 1*( letter | digit | "_" | "-" ) | string
//! ```
//!
//! `AND` and `OR` do not mix without parentheses, operators are upper case, and a filter has at
//! most 256 bytes: what this accepts, Google's service accepts. `!=` asks for no presence: a
//! message without the attribute does not have that value either, so it matches.

use std::collections::HashMap;
use std::fmt;

mod parse;

#[cfg(test)]
mod tests;

/// Google's limit on the length of a filter, in bytes.
pub const MAX_LENGTH: usize = 256;

/// A filter that was read, ready to judge messages without allocating.
///
/// Prints as a filter that reads back to an equal one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    root: Term,
}

/// Why a text is not a filter. Positions are bytes from the start of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The text is longer than Google takes.
    #[error("filter has {length} bytes, over the limit of {MAX_LENGTH}")]
    TooLong {
        /// How many bytes it has.
        length: usize,
    },
    /// Parentheses are nested deeper than anything that means something.
    #[error("filter is nested too deeply at byte {position}")]
    TooDeep {
        /// Where the first one too many opens.
        position: usize,
    },
    /// Something else should stand here.
    #[error("at byte {position}: expected {expected}, found {found}")]
    Unexpected {
        /// Where it stands.
        position: usize,
        /// What the grammar has at this place.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// `AND` and `OR` side by side, without parentheses that say which binds.
    #[error("at byte {position}: expected parentheses, for `AND` and `OR` are mixed")]
    Mixed {
        /// Where the second operator stands.
        position: usize,
    },
    /// An escape sequence in a string that names no character.
    #[error("at byte {position}: expected an escape sequence, such as `\\\"`, `\\n` or `\\u00e9`")]
    Escape {
        /// Where its backslash stands.
        position: usize,
    },
}

/// One node of the tree. `All` and `Any` have two terms or more.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Has { key: String },
    Equals { key: String, value: String },
    Differs { key: String, value: String },
    HasPrefix { key: String, prefix: String },
    Not(Box<Term>),
    All(Vec<Term>),
    Any(Vec<Term>),
}

// === impl Filter ===

impl Filter {
    /// Reads a filter, in time linear in its length.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_LENGTH {
            return Err(FilterError::TooLong { length: text.len() });
        }
        parse::filter(text).map(|root| Self { root })
    }

    /// Whether a message with these attributes is wanted.
    pub fn matches(&self, attributes: &HashMap<String, String>) -> bool {
        self.root.matches(attributes)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

// === impl Term ===

impl Term {
    fn matches(&self, attributes: &HashMap<String, String>) -> bool {
        match self {
            Self::Has { key } => attributes.contains_key(key),
            Self::Equals { key, value } => attributes.get(key) == Some(value),
            Self::Differs { key, value } => attributes.get(key) != Some(value),
            Self::HasPrefix { key, prefix } => {
                attributes.get(key).is_some_and(|value| value.starts_with(prefix))
            }
            Self::Not(term) => !term.matches(attributes),
            Self::All(terms) => terms.iter().all(|term| term.matches(attributes)),
            Self::Any(terms) => terms.iter().any(|term| term.matches(attributes)),
        }
    }

    /// Whether it must stand in parentheses when it is part of another.
    fn is_compound(&self) -> bool {
        match self {
            Self::All(_) | Self::Any(_) => true,
            Self::Has { .. }
            | Self::Equals { .. }
            | Self::Differs { .. }
            | Self::HasPrefix { .. }
            | Self::Not(_) => false,
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Has { key } => write!(f, "attributes:{}", Key(key)),
            Self::Equals { key, value } => write!(f, "attributes.{} = {}", Key(key), Text(value)),
            Self::Differs { key, value } => write!(f, "attributes.{} != {}", Key(key), Text(value)),
            Self::HasPrefix { key, prefix } => {
                write!(f, "hasPrefix(attributes.{}, {})", Key(key), Text(prefix))
            }
            Self::Not(term) if term.is_compound() || matches!(**term, Self::Not(_)) => {
                write!(f, "NOT ({term})")
            }
            Self::Not(term) => write!(f, "NOT {term}"),
            Self::All(terms) => join(f, terms, " AND "),
            Self::Any(terms) => join(f, terms, " OR "),
        }
    }
}

fn join(f: &mut fmt::Formatter<'_>, terms: &[Term], operator: &str) -> fmt::Result {
    for (place, term) in terms.iter().enumerate() {
        if place > 0 {
            f.write_str(operator)?;
        }
        if term.is_compound() { write!(f, "({term})")? } else { write!(f, "{term}")? }
    }
    Ok(())
}

/// A key, quoted only where it must be.
struct Key<'a>(&'a str);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.bytes().all(parse::is_bare) {
            f.write_str(self.0)
        } else {
            Text(self.0).fmt(f)
        }
    }
}

/// A string literal.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for letter in self.0.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                '\n' => f.write_str("\\n")?,
                letter if letter.is_control() => write!(f, "\\u{:04x}", u32::from(letter))?,
                letter => write!(f, "{letter}")?,
            }
        }
        f.write_str("\"")
    }
}
