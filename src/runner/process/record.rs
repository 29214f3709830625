//! What is written down about a run: plain values, as JSON.
//!
//! They are read by later versions of ours, and a supervisor may be older than the daemon that
//! reads what it wrote: fields may be added, none may change its meaning.

use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use uuid::Uuid;

/// What is to be run, written once, before the run's folder has its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The place in the order of launches: clocks go backwards, this does not.
    pub sequence: u64,
    /// When it was launched, in microseconds since 1970.
    pub launched: i64,
    /// Which revision answers.
    pub recipient: String,
    /// The question that asked this one, if any.
    pub parent_question: Option<Uuid>,
    /// The question's attributes, as they came.
    pub attributes: HashMap<String, String>,
    /// Which bytes of `question.json` are the input values: it may hold a bare `NaN`, which a
    /// reader of JSON refuses.
    pub input_values: Option<Range<usize>>,
    /// Which bytes of `question.json` are the input manifest.
    pub input_manifest: Option<Range<usize>>,
}

/// How the child is to be started: what the runner tells a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The service, for messages.
    pub service: String,
    /// The file to execute.
    pub program: PathBuf,
    /// What comes after the program's name.
    pub arguments: Vec<OsString>,
    /// Where the child runs.
    pub folder: PathBuf,
    /// All of the child's environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// What a supervisor is told to do with a run before its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Nobody wants the answer any more.
    Cancel,
    /// The network stops.
    Interrupt,
}

/// The record of a run's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// When, in microseconds since 1970.
    pub at: i64,
    /// What is known of it.
    pub how: How,
    /// What had been ordered by then.
    pub order: Option<Order>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The child exited, with this status.
    Exit(i32),
    /// The child was killed, by this signal.
    Signal(i32),
    /// There was no child, for this reason: words for the asker.
    NotStarted(String),
    /// There was no child: the order came first.
    NotBegun,
    /// Nobody saw it.
    Lost,
}

// === impl Ending ===

impl Ending {
    /// An end now, without an order.
    pub fn now(how: How) -> Self {
        Self { at: Timestamp::now().0, how, order: None }
    }

    /// The end, now, of a run that was stopped before it began.
    pub fn ordered(order: Order) -> Self {
        Self { order: Some(order), ..Self::now(How::NotBegun) }
    }
}
