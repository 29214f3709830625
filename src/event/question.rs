//! A question: what it brings, and what names an attempt at it.

use std::fmt;
use uuid::Uuid;

/// What a question brings: raw JSON, as it came. Each may be absent, which is not `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs<'a> {
    /// Any JSON.
    pub input_values: Option<&'a str>,
    /// An object that describes datasets.
    pub input_manifest: Option<&'a str>,
    /// A list of children to use instead of the service's own.
    pub children: Option<&'a str>,
}

/// Names a run: one attempt at a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId {
    /// The question.
    pub question: Uuid,
    /// Which attempt, from 0: the SDK asks again under the same uuid with a higher count.
    pub retry: u32,
}

impl fmt::Display for RunId {
    /// `question-<uuid>` for a first attempt, `question-<uuid>-r<n>` after.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { question, retry } = self;
        match retry {
            0 => write!(f, "question-{question}"),
            _ => write!(f, "question-{question}-r{retry}"),
        }
    }
}
