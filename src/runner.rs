//! The seam to what runs questions.
//!
//! A run is one attempt at a question, named by [`RunId`]: launching it twice makes it once. A
//! runner outlives the daemon: what it was told to run, it runs and remembers, and tells whoever
//! listens next.

pub mod process;
use crate::event::{Inputs, RunId, SruidBuf, Timestamp};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use uuid::Uuid;

/// Runs questions.
#[async_trait]
pub trait Runner: Debug + Send + Sync {
    /// Makes sure that the run exists, now or in its turn. When it returns, the run survives us:
    /// the question may be acknowledged.
    ///
    /// Idempotent: a run that exists, waits, runs or has ended is left as it is.
    async fn launch(&self, launch: Launch<'_>) -> Result<(), RunnerError>;

    /// Ends every run of a question, and all the processes of it; what waits never starts.
    ///
    /// Idempotent: what is gone is success. Each run is told as ended, with [`Reason::Cancelled`],
    /// when nothing of it is left. Says whether there was anything to end.
    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError>;

    /// Forgets a run that has ended and whose end has been dealt with: it is told no more.
    ///
    /// Idempotent.
    async fn settle(&self, run: RunId) -> Result<(), RunnerError>;

    /// The states of all runs: first what is, then what changes. A listener that comes later
    /// misses nothing that is not settled.
    fn states(&self) -> BoxStream<'static, RunState>;
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Names the run.
    pub run: RunId,
    /// Which revision answers.
    pub recipient: &'a SruidBuf,
    /// The question that asked this one, if any. (One that runs here waits for this one, so this
    /// one must not wait for its end.)
    pub parent_question: Option<Uuid>,
    /// The question's attributes, all, as they came.
    pub attributes: &'a HashMap<String, String>,
    /// What the question brings, as it came.
    pub inputs: Inputs<'a>,
}

/// Where a run is.
#[derive(Clone, Debug)]
pub struct RunState {
    /// Names the run.
    pub run: RunId,
    /// The attributes of its question, as they came: what a report is made from.
    pub attributes: Arc<HashMap<String, String>>,
    /// How far it is.
    pub phase: Phase,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// It waits for its turn.
    Queued {
        /// Since when.
        since: Timestamp,
    },
    /// It runs.
    Running {
        /// When it was launched.
        launched: Timestamp,
        /// When it started to run.
        since: Timestamp,
    },
    /// Nothing of it is left.
    Ended(End),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// When it started to run; none where it never did.
    pub started: Option<Timestamp>,
    /// Why, as far as the runner can tell.
    pub reason: Reason,
    /// In words for the asker: what happened, and what to do about it.
    pub message: String,
    /// The last lines of what it printed, each with its line feed.
    pub tail: Vec<String>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It ended by itself, without an error.
    Exited,
    /// It ended by itself, with an error.
    Failed,
    /// Something killed it.
    Killed,
    /// The kernel killed it for the memory that it took.
    Memory,
    /// It could not be started.
    NotStarted,
    /// It was cancelled.
    Cancelled,
    /// The network that ran it was stopped.
    Interrupted,
    /// It is gone, and nobody knows how.
    Lost,
}

/// Why a runner did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// It cannot now: try again.
    #[error("failed to {verb} run of question `{question}`")]
    Unavailable {
        /// What it was told to do.
        verb: &'static str,
        /// Of which question.
        question: Uuid,
        /// What stood in the way.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It never will: the asker is to be told why.
    #[error("refused to run question `{question}`: {message}")]
    Refused {
        /// Which question.
        question: Uuid,
        /// The name of an exception of Python or of the SDK.
        exception: &'static str,
        /// For the asker: why, and what to do about it.
        message: String,
    },
}

// === impl Reason ===

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Exited,
        Self::Failed,
        Self::Killed,
        Self::Memory,
        Self::NotStarted,
        Self::Cancelled,
        Self::Interrupted,
        Self::Lost,
    ];

    /// A closed set of names, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::Memory => "memory",
            Self::NotStarted => "not_started",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
        }
    }

    /// The exception that the asker can catch: a name of Python's or of the SDK's.
    pub fn exception(self) -> &'static str {
        match self {
            Self::Memory => "MemoryError",
            Self::Cancelled | Self::Interrupted => "InterruptedError",
            Self::Exited | Self::Failed | Self::Killed | Self::NotStarted | Self::Lost => {
                "RuntimeError"
            }
        }
    }
}
