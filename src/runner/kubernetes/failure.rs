//! Why runs end or make no progress, from what Jobs, pods and events report. Pure.
//!
//! The parent gets the exception of the [`EndReason`]. Messages of others differ by version, so
//! they are matched loosely, and a message that is not known is quoted.
//!
//! *A pod that has ended*
//!
//! | way | reason |
//! |---|---|
//! | exit code 0, and no result was published | `Exited` |
//! | exit code 0, but a sidecar failed beside it | `Exited` |
//! | another exit code | `Failed` |
//! | exit code 126 or 127: a shell reports a bad command | `NotStarted` |
//! | a signal | `Killed` |
//! | `OOMKilled`: at its limit, without a limit on a full node, or one process of several | `Memory` |
//! | a limit of memory too low to start in | `Memory` |
//! | `StartError` and its like | by the table of [`symptoms`] |
//! | an init container failed | `NotStarted` or `Memory` |
//! | over its limit of ephemeral storage, or the size of an `emptyDir` | `Storage` |
//! | the pod's deadline, running or still starting | `Deadline` |
//! | refused by the node: `OutOfcpu`, `NodeAffinity`, `TaintToleration`, … | `Unschedulable` |
//! | refused: `UnexpectedAdmissionError` (devices), … | `NotStarted` |
//! | refused: no more volumes can be attached | `Volume` |
//! | refused: the node shuts down, or is short of something | `Evicted` |
//! | deleted by a client | `Deleted` |
//! | `ContainerStatusUnknown`: the node was restarted | `Lost` |
//! | a failure without any report | `Lost` |
//! | vanished while it ran, or before | `Deleted` |
//! | vanished unseen | `Lost` |
//!
//! *A pod that was evicted* (the condition `DisruptionTarget`) is no failure: the Job creates another
//! pod. A run that is evicted too often ends with `Evicted`.
//!
//! *A pod that makes no progress* is ended when its [`Stall`] has lasted for its grace. [`symptoms`]
//! is the table of stalls by message. Beside it:
//!
//! | way | reason | grace |
//! |---|---|---|
//! | `CrashLoopBackOff` | of its last end | 1 min, none from the third restart on |
//! | a container outlives the service | of the service's end | 1 min |
//! | being deleted, and its node does not report that it is gone | `Evicted`, `Deleted` or `Lost` | 15 min and its own grace |
//! | a waiting state that is not known | `NotStarted` | 15 min |
//!
//! A cluster whose nodes are full does not stall a pod: it waits, and reports for what. Nor does an
//! autoscaler that would help, but is at its limit.
//!
//! *A Job whose pods report no more*: its own deadline (`Deadline`), a pod that failed and is gone, a
//! pod failure policy or anything else (`Failed`), complete (`Exited`).

mod container_start;
mod ended;
mod events;
mod images;
mod jobs;
mod pod_level;
mod pods;
mod scheduling;
mod symptoms;
#[cfg(test)]
mod tests;
mod text;
mod volumes;
mod waiting;

use crate::event::Timestamp;
use crate::runner::{Cause, EndReason, RunEnd};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use std::time::Duration;
use symptoms::Symptom;

/// The state of one pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PodState {
    /// It does not run yet.
    Waiting {
        /// For the parent's log: what it waits for.
        why: String,
        /// Whether it has a node.
        scheduled: bool,
        /// Why it makes no progress.
        stall: Option<Stall>,
    },
    /// It runs, or a part of it does.
    Running {
        /// When the service's container started.
        since: Timestamp,
        /// Why its end will not come by itself: a sidecar that outlives the service, or a node that
        /// does not answer.
        stall: Option<Stall>,
    },
    /// Nothing of it runs any more.
    Ended {
        /// How it ended.
        end: RunEnd,
        /// Whether it was evicted (it has the condition `DisruptionTarget`): the pod failure policy
        /// does not count that as a failure, and the Job creates another pod.
        disrupted: bool,
    },
}

/// Why a run makes no progress.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stall {
    /// The cause, as it is reported if the run is ended for it.
    pub cause: Cause,
    /// How long the stall must last, without a break, before the run is ended for it.
    pub grace: Duration,
    /// Whether the report names no cause. A cause that was seen before then still holds: see
    /// [`Stall::after`].
    pub vague: bool,
}

// === impl Stall ===

impl Stall {
    /// A stall with a known cause.
    pub(super) fn new(reason: EndReason, grace: Duration, message: String) -> Self {
        Self { cause: Cause { reason, message }, grace, vague: false }
    }

    /// A stall of which `message` describes the symptom.
    fn from_symptom(symptom: &Symptom, message: String) -> Self {
        Self::new(symptom.reason, symptom.grace, message)
    }

    /// The stall that holds where `before` was seen last: a report without a cause does not replace
    /// a cause. (Between two attempts at a pull the kubelet reports only that it backs off.)
    #[must_use]
    pub(super) fn after(self, before: Option<Self>) -> Self {
        match before {
            Some(before) if self.vague && !before.vague => before,
            _ => self,
        }
    }
}

/// The state of a pod of the service revision `recipient`.
pub(super) fn pod_state(pod: &Pod, recipient: &str) -> PodState {
    pods::state(pod, recipient)
}

/// How a Job ended, as far as the Job itself reports: [`EndReason::Exited`] where it is complete.
/// `None` while it is unfinished. Its pod reports more, where there is one.
pub(super) fn job_end(job: &Job, recipient: &str) -> Option<RunEnd> {
    jobs::end(job, recipient)
}

/// Why a pod or a Job makes no progress, from an event about it. `None` for an event that is
/// harmless, or that the pod's own state describes better.
pub(super) fn event_stall(event: &Event, recipient: &str) -> Option<Stall> {
    events::stall(event, recipient)
}

/// Whether an event reports progress of its pod or Job: a stall that was reported before is over.
pub(super) fn shows_progress(event: &Event) -> bool {
    events::shows_progress(event)
}

/// The end of a run whose pod, or whole Job, vanished. `last` is the state in which the pod was
/// last seen, and `at` the time when it was missed.
pub(super) fn vanished_end(last: Option<&PodState>, at: Timestamp, recipient: &str) -> RunEnd {
    pods::vanished(last, at, recipient)
}
