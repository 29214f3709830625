//! The interface to what runs questions.
//!
//! A run is what is started for one retry of a question. Its [`RunId`] identifies it, so launching
//! it twice creates it once. A run outlives the daemon: a runner that starts later reports its
//! state to its listeners again.

pub(crate) mod cause;
pub mod kubernetes;
pub mod process;
pub mod states;
use crate::event::{Inputs, RunId, SruidBuf, Timestamp};
use async_trait::async_trait;
pub use cause::Cause;
use futures_util::stream::BoxStream;
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// Runs questions.
#[async_trait]
pub trait Runner: Debug + Send + Sync {
    /// Makes sure that the run exists, queued or running. When it returns, the run survives the
    /// daemon: the question may be acknowledged.
    ///
    /// Idempotent: a run that exists, in whatever phase, stays as it is.
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError>;

    /// Ends every run of a question with all its processes; queued runs never start. Returns
    /// whether there was anything to end.
    ///
    /// Idempotent: runs that are gone are no error. Each run is reported as ended, with
    /// [`EndReason::Cancelled`], when nothing of it is left.
    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError>;

    /// Ends a run that runs again although its terminal event is on record: it was evicted after it
    /// had answered, and the runner replaced what was evicted.
    ///
    /// Idempotent: a run that is gone is no error. The run is reported as ended, with
    /// [`EndReason::Exited`]. A runner that never replaces a process has nothing to do here.
    async fn end_run(&self, _run: RunId) -> Result<(), RunnerError> {
        Ok(())
    }

    /// Launches a further attempt of a run that ended without a terminal event, where the settings
    /// allow one for its reason and the attempts are not used up. The attempt belongs to the same
    /// run, with a higher [`RunState::attempt`]; the previous one is reported no more.
    ///
    /// Idempotent: for an attempt that was launched before it returns the same. None where the run
    /// stays ended.
    async fn relaunch(
        &self,
        _state: &RunState,
        _end: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        Ok(None)
    }

    /// Whether anything of the run exists, ended or not.
    async fn has(&self, run: RunId) -> Result<bool, RunnerError>;

    /// Forgets a run whose end has been dealt with: it is reported no more. Of the daemons that
    /// settle a run at the same time, one gets [`Settlement::Ours`].
    ///
    /// Idempotent. A run that has not ended stays: it is [`Settlement::Theirs`].
    async fn settle(&self, run: RunId) -> Result<Settlement, RunnerError>;

    /// The states of all runs: first those that exist, then each change. A later listener misses
    /// no run that is not settled.
    fn states(&self) -> BoxStream<'static, RunState>;
}

/// Divides the work on runs between the daemons that watch them. By default there is one daemon:
/// it leads, and every claim is its own.
#[async_trait]
pub trait Coordinator: Debug + Send + Sync {
    /// Claims the duty to report how a run ended; `report` is the uuid of the report. One of the
    /// daemons gets the claim, and may renew it by another call. If a daemon has seen the claim of
    /// another for [`CLAIM_TIMEOUT`], and the report is still not on record, it takes the claim over.
    async fn claim_report(&self, _run: RunId, _report: Uuid) -> Result<Claim, RunnerError> {
        Ok(Claim::Ours)
    }

    /// Whether this daemon leads: only the leader publishes heartbeats of waiting runs and sweeps
    /// for lost runs. Nothing is lost while no daemon leads, or while two do.
    fn leadership(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }
}

/// After how long another daemon's claim can be taken over, counted from when this one first saw it,
/// if the report is still not on record. This is far longer than a publication takes, and far shorter
/// than the 6 minutes for which a parent waits.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// Which daemon must publish a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours: publish it.
    Ours,
    /// Another daemon's: check later whether the report is on record.
    Theirs,
}

/// Which daemon settled a run: it alone counts the run's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Ours, by this call.
    Ours,
    /// Another daemon, or this one by an earlier call.
    Theirs,
    /// Nothing of the run is left that could record it, so each daemon settles it for itself.
    Unrecorded,
}

/// A further attempt of a run, launched by the runner itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relaunch {
    /// The number of the attempt, from 1: the first was 0.
    pub attempt: u32,
    /// For the parent's log: why, and what is different this time.
    pub message: String,
}

/// A run to be launched.
#[derive(Clone, Copy, Debug)]
pub struct LaunchRequest<'a> {
    /// Names the run.
    pub run: RunId,
    /// Which revision answers.
    pub recipient: &'a SruidBuf,
    /// The question that asked this one, if any. (If it runs here, it waits for this one. So this
    /// one must not wait until it has ended.)
    pub parent_question: Option<Uuid>,
    /// All attributes of the question, as they came.
    pub attributes: &'a HashMap<String, String>,
    /// The inputs of the question, as they came.
    pub inputs: Inputs<'a>,
}

/// The state of a run.
#[derive(Clone, Debug)]
pub struct RunState {
    /// Names the run.
    pub run: RunId,
    /// The number of the attempt, from 0: see [`Runner::relaunch`].
    pub attempt: u32,
    /// The attributes of its question, as they came: a report is made from them.
    pub attributes: Arc<HashMap<String, String>>,
    /// How often the run was evicted and started again.
    pub evictions: u32,
    /// Its phase.
    pub phase: RunPhase,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub enum RunPhase {
    /// It waits for its admission.
    Queued {
        /// When it was launched.
        since: Timestamp,
        /// For the parent's log: what it waits for. Empty where that is not known.
        why: String,
    },
    /// It is admitted and does not run yet: its node, image or files are not ready.
    Starting {
        /// When it was launched.
        since: Timestamp,
        /// For the parent's log: what it waits for. Empty where that is not known.
        why: String,
    },
    /// It runs.
    Running {
        /// When it was launched.
        launched: Timestamp,
        /// When it started to run.
        since: Timestamp,
    },
    /// It has ended, and no process or pod of it is left.
    Ended(RunEnd),
    /// Its end has been dealt with, by this or another daemon: there is nothing more to do.
    Settled,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// When.
    pub at: Timestamp,
    /// When it started to run; none where it never did.
    pub started: Option<Timestamp>,
    /// Why, as far as the runner knows.
    pub cause: Cause,
    /// The last lines that it printed, each with its line feed.
    pub tail: Vec<String>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndReason {
    /// It exited without an error.
    Exited,
    /// It exited with an error.
    Failed,
    /// It was killed.
    Killed,
    /// It was killed for the memory that it used.
    Memory,
    /// It used more disk than its limit.
    Storage,
    /// It could not be started.
    NotStarted,
    /// There is no image of that name.
    NoImage,
    /// The image cannot be pulled, though it may exist.
    Image,
    /// A secret, a configuration or a volume that it needs does not exist.
    Volume,
    /// No node of the cluster can take it.
    Unschedulable,
    /// Its queue does not exist, or can never admit it.
    Queue,
    /// The cluster's rules do not allow its objects.
    Denied,
    /// It ran for longer than its deadline.
    Deadline,
    /// It waited for longer than its queue timeout.
    Waited,
    /// It was evicted more often than the runner replaces it.
    Evicted,
    /// It was cancelled.
    Cancelled,
    /// The network that ran it was stopped.
    Interrupted,
    /// Its Job was deleted by another client.
    Deleted,
    /// It is gone, and the cause is not known.
    Lost,
}

/// Why a runner call failed.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The runner cannot do it now: try again.
    #[error("failed to {verb} run of question `{question}`")]
    Unavailable {
        /// The call.
        verb: &'static str,
        /// The question.
        question: Uuid,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The question can never be run: its parent is notified.
    #[error("refused to run question `{question}`: {message}")]
    Refused {
        /// The question.
        question: Uuid,
        /// The name of an exception of Python or of the SDK.
        exception: &'static str,
        /// For the parent: why, and what to do about it.
        message: String,
    },
    /// An object that is not this run has the run's name, and must not be changed: the question is
    /// rejected, and its parent notified.
    #[error("failed to run question `{question}`: {message}")]
    NameConflict {
        /// The question.
        question: Uuid,
        /// For the parent: which object, and what to do about it.
        message: String,
    },
}

// === impl EndReason ===

impl EndReason {
    /// Every reason.
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

    /// Its name in metrics and settings.
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

    /// The reason of this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }

    /// The exception that the parent can catch: a name of Python's or of the SDK's.
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
