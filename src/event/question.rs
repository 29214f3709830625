//! The inputs of a question, and the id of a run.

use std::fmt;
use uuid::Uuid;

/// The inputs of a question: raw JSON. Absent is not the same as `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inputs<'a> {
    /// Any JSON.
    pub input_values: Option<&'a str>,
    /// An object that describes datasets.
    pub input_manifest: Option<&'a str>,
    /// A list of children to use instead of the service's own.
    pub children: Option<&'a str>,
}

/// The id of a run: one retry of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId {
    /// The question.
    pub question: Uuid,
    /// The retry, from 0: the SDK asks again under the same uuid with a higher count.
    pub retry: u32,
}

impl fmt::Display for RunId {
    /// `question-<uuid>` for retry 0, `question-<uuid>-r<n>` for others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { question, retry } = self;
        match retry {
            0 => write!(f, "question-{question}"),
            _ => write!(f, "question-{question}-r{retry}"),
        }
    }
}
