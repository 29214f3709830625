//! The files of a run, as plain values in JSON.
//!
//! Later versions of the program read them, and a supervisor may be older than the daemon that
//! reads its record: fields may be added, and no field may change its meaning or its name.

use crate::event::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use uuid::Uuid;

/// What to run: written once, before the run's folder gets its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The position in the order of launches. A clock can go back; this number cannot.
    pub sequence: u64,
    /// When the run was launched, in microseconds since 1970.
    pub launched: i64,
    /// The revision that answers.
    pub recipient: String,
    /// The question that asked this one, if any.
    pub parent_question: Option<Uuid>,
    /// The question's attributes, as received.
    pub attributes: HashMap<String, String>,
    /// The bytes of `question.json` that are the input values. They may contain a bare `NaN`, which
    /// a JSON parser refuses.
    pub input_values: Option<Range<usize>>,
    /// The bytes of `question.json` that are the input manifest.
    pub input_manifest: Option<Range<usize>>,
}

/// How a supervisor starts the child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildCommand {
    /// The revision, for messages.
    pub service: String,
    /// The file to execute.
    pub program: PathBuf,
    /// The arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// The working directory.
    pub folder: PathBuf,
    /// The environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
}

/// Why a run is to be ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopRequest {
    /// The question was cancelled.
    Cancel,
    /// The network stops.
    Interrupt,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// When, in microseconds since 1970.
    pub at: i64,
    /// How its process ended.
    #[serde(rename = "how")]
    pub outcome: Outcome,
    /// The request to stop that came before the end, if any.
    #[serde(rename = "order")]
    pub stop_request: Option<StopRequest>,
}

/// How the process of a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The child exited with this status.
    Exit(i32),
    /// The child was killed by this signal.
    Signal(i32),
    /// The child could not be started, for this reason, which the parent can read.
    NotStarted(String),
    /// The request to stop came before the child was started.
    #[serde(rename = "not_begun")]
    StoppedBeforeStart,
    /// The supervisor ended before it could record the end.
    Lost,
}

// === impl EndRecord ===

impl EndRecord {
    /// An end now, without a request to stop.
    pub fn now(outcome: Outcome) -> Self {
        Self { at: Timestamp::now().0, outcome, stop_request: None }
    }

    /// The end, now, of a run that was stopped before its child was started.
    pub fn stopped_before_start(request: StopRequest) -> Self {
        Self { stop_request: Some(request), ..Self::now(Outcome::StoppedBeforeStart) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_records_of_earlier_versions_can_be_read() {
        for (json, outcome, stop_request) in [
            (r#"{"at":1,"how":{"exit":0},"order":null}"#, Outcome::Exit(0), None),
            (
                r#"{"at":1,"how":"not_begun","order":"cancel"}"#,
                Outcome::StoppedBeforeStart,
                Some(StopRequest::Cancel),
            ),
        ] {
            let record = EndRecord { at: 1, outcome, stop_request };
            assert_eq!(serde_json::from_str::<EndRecord>(json).unwrap(), record);
            assert_eq!(serde_json::to_string(&record).unwrap(), json);
        }
    }
}
