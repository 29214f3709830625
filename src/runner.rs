//! The seam to what runs questions.
//!
//! A run is one attempt at a question, named by [`RunId`]: launching it twice makes it once. A
//! runner outlives the daemon: what it was told to run, it runs and remembers, and tells whoever
//! listens next.

pub mod kubernetes;
pub mod process;
pub mod states;
use crate::event::{Inputs, RunId, SruidBuf, Timestamp};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::watch;
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

    /// Ends a run whose terminal event is on record, but of which something runs again: what took
    /// its first process away (an eviction) was no failure to the runner.
    ///
    /// Idempotent: what is gone is success. The run is told as ended, with [`Reason::Exited`].
    /// A runner that starts nothing anew by itself has nothing to do here.
    async fn end(&self, _run: RunId) -> Result<(), RunnerError> {
        Ok(())
    }

    /// Claims the duty to report how a run ended, by the uuid of the report. Of several daemons
    /// that watch the same runs one gets it; who has it may ask again. A claim that another has
    /// seen for 30 s, and whose report is still not on record, it takes over when it asks then.
    /// Where the runs are one daemon's, all reports are.
    async fn claim(&self, _run: RunId, _report: Uuid) -> Result<Claim, RunnerError> {
        Ok(Claim::Ours)
    }

    /// Runs a run again that has ended in silence, where the settings say so for its reason and
    /// the attempts that they give are not used up. The next attempt is one of the same run, with
    /// a higher [`RunState::attempt`]; the one that has ended is told no more.
    ///
    /// Idempotent: an attempt that was launched already is told again. None where the run stays
    /// ended.
    async fn again(&self, _state: &RunState, _end: &End) -> Result<Option<Again>, RunnerError> {
        Ok(None)
    }

    /// Whether anything of the run is there, ended or not.
    async fn has(&self, run: RunId) -> Result<bool, RunnerError>;

    /// Forgets a run that has ended and whose end has been dealt with: it is told no more.
    ///
    /// Idempotent.
    async fn settle(&self, run: RunId) -> Result<(), RunnerError>;

    /// The states of all runs: first what is, then what changes. A listener that comes later
    /// misses nothing that is not settled.
    fn states(&self) -> BoxStream<'static, RunState>;

    /// Whether this daemon is the one of several that does what need be done once: heartbeats of
    /// what waits, and the search for runs that vanished. Nothing is lost where none does for a
    /// while, nor where two do. Where the runs are one daemon's, it leads for ever.
    fn leads(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }
}

/// Whose duty a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours: publish it.
    Ours,
    /// Another daemon's: see in a while whether it did.
    Theirs,
}

/// That a run runs again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// The number of the attempt, from 1: the first was 0.
    pub attempt: u32,
    /// For the asker's log: why, and what is different this time.
    pub message: String,
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
    /// Which attempt of the runner's own this is, from 0: see [`Runner::again`].
    pub attempt: u32,
    /// The attributes of its question, as they came: what a report is made from.
    pub attributes: Arc<HashMap<String, String>>,
    /// How often what it ran on was taken away, and it was started anew.
    pub evictions: u32,
    /// How far it is.
    pub phase: Phase,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// It waits for its turn.
    Queued {
        /// Since when.
        since: Timestamp,
        /// For the asker's log: what it waits for. Empty where there is nothing to say.
        why: String,
    },
    /// It has its turn, and does not run yet: its machine, image or files are on their way.
    Starting {
        /// Since when it was launched.
        since: Timestamp,
        /// For the asker's log: what it waits for. Empty where there is nothing to say.
        why: String,
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
    /// Another daemon has dealt with its end: there is nothing more to do.
    Settled,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It ended by itself, without an error.
    Exited,
    /// It ended by itself, with an error.
    Failed,
    /// Something killed it.
    Killed,
    /// It was killed for the memory that it took.
    Memory,
    /// It took more disk than it may.
    Storage,
    /// It could not be started.
    NotStarted,
    /// There is no image of that name.
    NoImage,
    /// There may be an image, but it cannot be had.
    Image,
    /// A secret, a configuration or a volume that it wants is not there.
    Volume,
    /// No machine of the cluster can take it.
    Unschedulable,
    /// Its queue is not there, or will never have room for it.
    Queue,
    /// The cluster's rules do not let it be made.
    Denied,
    /// It ran for longer than it may.
    Deadline,
    /// It waited for longer than it may.
    Waited,
    /// What it ran on was taken away, more often than it is started anew.
    Evicted,
    /// It was cancelled.
    Cancelled,
    /// The network that ran it was stopped.
    Interrupted,
    /// Somebody deleted it.
    Deleted,
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
    /// Something that is not this run has its place, and is not to be touched: the question is set
    /// aside, and the asker told.
    #[error("failed to run question `{question}`: {message}")]
    Foreign {
        /// Which question.
        question: Uuid,
        /// For the asker: what, and what to do about it.
        message: String,
    },
}

// === impl Reason ===

impl Reason {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Exited,
        Self::Failed,
        Self::Killed,
        Self::Memory,
        Self::Storage,
        Self::NotStarted,
        Self::NoImage,
        Self::Image,
        Self::Volume,
        Self::Unschedulable,
        Self::Queue,
        Self::Denied,
        Self::Deadline,
        Self::Waited,
        Self::Evicted,
        Self::Cancelled,
        Self::Interrupted,
        Self::Deleted,
        Self::Lost,
    ];

    /// A closed set of names, for metrics and settings.
    pub fn label(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::Memory => "memory",
            Self::Storage => "storage",
            Self::NotStarted => "not_started",
            Self::NoImage => "no_image",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Unschedulable => "unschedulable",
            Self::Queue => "queue",
            Self::Denied => "denied",
            Self::Deadline => "deadline",
            Self::Waited => "waited",
            Self::Evicted => "evicted",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Deleted => "deleted",
            Self::Lost => "lost",
        }
    }

    /// The reason of this name.
    pub fn named(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }

    /// The exception that the asker can catch: a name of Python's or of the SDK's.
    pub fn exception(self) -> &'static str {
        match self {
            Self::Memory => "MemoryError",
            Self::NoImage => "ServiceNotFound",
            Self::Deadline | Self::Waited => "TimeoutError",
            Self::Queue | Self::Denied => "PermissionError",
            Self::Cancelled | Self::Interrupted | Self::Evicted | Self::Deleted => {
                "InterruptedError"
            }
            Self::Exited
            | Self::Failed
            | Self::Killed
            | Self::Storage
            | Self::NotStarted
            | Self::Image
            | Self::Volume
            | Self::Unschedulable
            | Self::Lost => "RuntimeError",
        }
    }
}
