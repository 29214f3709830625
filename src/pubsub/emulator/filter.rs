//! The filter language of subscriptions, which selects messages by their attributes.
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
//! `AND` and `OR` cannot be mixed without parentheses, operators are in upper case, and a filter
//! has at most 256 bytes: Google's service accepts what this accepts. `!=` also matches a message
//! without the attribute.

use std::collections::HashMap;
use std::fmt;

mod parse;

#[cfg(test)]
mod tests;

/// Google's limit on the length of a filter, in bytes.
pub const MAX_LENGTH: usize = 256;

/// A parsed filter, which matches messages without allocating.
///
/// It is displayed as a text that parses to an equal filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    root: Term,
}

/// Why a filter is invalid. Positions are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The text is longer than Google accepts.
    #[error("filter has {length} bytes, over the limit of {MAX_LENGTH}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Parentheses are nested too deeply.
    #[error("filter is nested too deeply at byte {position}")]
    TooDeep {
        /// The first parenthesis over the limit.
        position: usize,
    },
    /// The text has something other than the grammar requires.
    #[error("at byte {position}: expected {expected}, found {found}")]
    Unexpected {
        /// Where.
        position: usize,
        /// What the grammar requires there.
        expected: &'static str,
        /// What the text has there.
        found: String,
    },
    /// `AND` and `OR` are mixed without parentheses.
    #[error("at byte {position}: expected parentheses around mixed `AND` and `OR`")]
    Mixed {
        /// The second operator.
        position: usize,
    },
    /// An invalid escape sequence in a string.
    #[error(
        "at byte {position}: expected an escape sequence, for example `\\\"`, `\\n` or `\\u00e9`"
    )]
    Escape {
        /// Its backslash.
        position: usize,
    },
}

/// A node of the tree. `All` and `Any` have at least two terms.
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
    /// Parses a filter, in time linear in its length.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_LENGTH {
            return Err(FilterError::TooLong { length: text.len() });
        }
        parse::filter(text).map(|root| Self { root })
    }

    /// Whether a message with these attributes matches.
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

    /// Whether it needs parentheses within another term.
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
            Self::Equals { key, value } => {
                write!(f, "attributes.{} = {}", Key(key), StringLiteral(value))
            }
            Self::Differs { key, value } => {
                write!(f, "attributes.{} != {}", Key(key), StringLiteral(value))
            }
            Self::HasPrefix { key, prefix } => {
                write!(f, "hasPrefix(attributes.{}, {})", Key(key), StringLiteral(prefix))
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
    for (index, term) in terms.iter().enumerate() {
        if index > 0 {
            f.write_str(operator)?;
        }
        if term.is_compound() { write!(f, "({term})")? } else { write!(f, "{term}")? }
    }
    Ok(())
}

/// A key, quoted only if necessary.
struct Key<'a>(&'a str);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.bytes().all(parse::is_bare) {
            f.write_str(self.0)
        } else {
            StringLiteral(self.0).fmt(f)
        }
    }
}

/// A string literal.
struct StringLiteral<'a>(&'a str);

impl fmt::Display for StringLiteral<'_> {
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
