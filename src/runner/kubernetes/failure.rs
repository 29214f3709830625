//! What Jobs, pods and events say of a run, in words for the asker. Pure.
//!
//! A run can die, or never live, in these ways. The exception that the asker gets is that of the
//! [`EndReason`]. Where a row has a patience, the pod has not ended: it is ended for it when it has
//! stood so for that long without a break. Texts of others differ by version: they are matched
//! loosely, and what is not known is quoted.
//!
//! *A pod that has ended*
//!
//! | way | reason | exception |
//! |---|---|---|
//! | exit code 0, and no result was published (told after 10 s) | `Exited` | `RuntimeError` |
//! | exit code 0, but a sidecar failed beside it | `Exited` | `RuntimeError` |
//! | another exit code | `Failed` | `RuntimeError` |
//! | exit code 126 or 127: a shell's word for a bad command | `NotStarted` | `RuntimeError` |
//! | a signal: SIGKILL | `Killed` | `RuntimeError` |
//! | SIGTERM, SIGINT, SIGHUP | `Killed` | `RuntimeError` |
//! | SIGSEGV, SIGBUS, SIGFPE | `Killed` | `RuntimeError` |
//! | SIGILL: made for another processor | `Killed` | `RuntimeError` |
//! | SIGABRT; SIGSYS; any other | `Killed` | `RuntimeError` |
//! | `OOMKilled` at its limit | `Memory` | `MemoryError` |
//! | `OOMKilled` without a limit: the node was full | `Memory` | `MemoryError` |
//! | one of its processes `OOMKilled`, and it ended with 0 | `Memory` | `MemoryError` |
//! | its limit of memory too low to start in | `Memory` | `MemoryError` |
//! | `StartError`: no such command in the image | `NotStarted` | `RuntimeError` |
//! | the command may not be executed | `NotStarted` | `RuntimeError` |
//! | the working directory is not there | `NotStarted` | `RuntimeError` |
//! | no such interpreter as its `#!` line names | `NotStarted` | `RuntimeError` |
//! | arguments and environment too long | `NotStarted` | `RuntimeError` |
//! | a mount that the image has no place for | `Volume` | `RuntimeError` |
//! | `exec format error`: another processor | `Image` | `RuntimeError` |
//! | an init container failed | `NotStarted` or `Memory` | of the reason |
//! | over its limit of ephemeral storage | `Storage` | `RuntimeError` |
//! | over the size of an `emptyDir` | `Storage` | `RuntimeError` |
//! | the pod's deadline, running or still starting | `Deadline` | `TimeoutError` |
//! | refused by the node: `OutOfcpu`, `OutOfmemory`, … | `Unschedulable` | `RuntimeError` |
//! | refused: `NodeAffinity`, `TaintToleration`, … | `Unschedulable` | `RuntimeError` |
//! | refused: `UnexpectedAdmissionError` (devices), … | `NotStarted` | `RuntimeError` |
//! | refused: no more volumes can be attached | `Volume` | `RuntimeError` |
//! | refused: the node shuts down, or is short of something | `Evicted` | `InterruptedError` |
//! | deleted by hand | `Deleted` | `InterruptedError` |
//! | `ContainerStatusUnknown`: the node was restarted | `Lost` | `RuntimeError` |
//! | a failure that nothing explains | `Lost` | `RuntimeError` |
//! | it vanished while it ran, or before | `Deleted` | `InterruptedError` |
//! | it vanished unseen | `Lost` | `RuntimeError` |
//!
//! *A pod that was taken away* (`disrupted`: no failure, the Job makes another; all `Evicted`,
//! `InterruptedError` where it happens too often): by the kubelet for lack of the node's memory;
//! of its disk; for a critical pod; at its shutdown. By the scheduler for a pod of higher
//! priority. By the eviction API (a drain). By the taint manager. By the collector of pods whose
//! node is gone. By anything else.
//!
//! *A pod that does not go on*
//!
//! | way | reason | exception | patience |
//! |---|---|---|---|
//! | no such image | `NoImage` | `ServiceNotFound` | 30 s |
//! | no name of an image | `NoImage` | `ServiceNotFound` | none |
//! | the registry refuses the image | `Image` | `RuntimeError` | 2 min |
//! | the registry is down, slow, or limits its answers | `Image` | `RuntimeError` | 15 min |
//! | the image is not for that processor | `Image` | `RuntimeError` | 30 s |
//! | its format is too old; its signature is refused | `Image` | `RuntimeError` | 30 s |
//! | its layers are damaged | `Image` | `RuntimeError` | 5 min |
//! | the node's disk is full | `Image` | `RuntimeError` | 15 min |
//! | never to be pulled, and not there | `Image` | `RuntimeError` | 30 s |
//! | any other failure of a pull | `Image` | `RuntimeError` | 15 min |
//! | a Secret, ConfigMap, or key is missing | `Volume` | `RuntimeError` | 2 min |
//! | the image runs as root, and must not | `NotStarted` | `RuntimeError` | 30 s |
//! | `CreateContainerError`, `RunContainerError`: as ended | as above | as above | 2 min |
//! | the same, on a node that is slow | `NotStarted` | `RuntimeError` | 15 min |
//! | a hook failed | `NotStarted` | `RuntimeError` | 2 min |
//! | `CrashLoopBackOff` | of its last end | as above | 1 min, none from the third |
//! | a volume claim is missing | `Volume` | `RuntimeError` | 2 min |
//! | a volume claim gets no volume | `Volume` | `RuntimeError` | 15 min |
//! | a volume may not be used by it | `Volume` | `RuntimeError` | 2 min |
//! | a volume cannot be mounted, or attached | `Volume` | `RuntimeError` | 15 min |
//! | its limit of memory is too low for its sandbox | `Memory` | `MemoryError` | 30 s |
//! | no sandbox, or no network | `NotStarted` | `RuntimeError` | 15 min |
//! | no such container runtime | `NotStarted` | `RuntimeError` | 2 min |
//! | no device for it | `NotStarted` | `RuntimeError` | 15 min |
//! | no node, and the autoscaler adds none | `Unschedulable` | `RuntimeError` | 15 min |
//! | the namespace's quota is full | `Denied` | `PermissionError` | 15 min |
//! | quota or LimitRange want other requests or limits | `Denied` | `PermissionError` | 30 s |
//! | pod security, or a policy, refuses it | `Denied` | `PermissionError` | 30 s |
//! | no such service account, priority or runtime class | `Denied` | `PermissionError` | 2 min |
//! | a webhook is down | `Denied` | `PermissionError` | 15 min |
//! | the namespace is deleted; the pod is invalid | `Denied` | `PermissionError` | 30 s |
//! | a sidecar outlives the service | of its end | as above | 1 min |
//! | it is to go, and its node does not say that it is gone | `Evicted`, `Deleted` or `Lost` | of the reason | 15 min and its grace |
//!
//! No room on the nodes there are is no such way: it waits, and says for what. Nor is an
//! autoscaler that would help, but is at its limit.
//!
//! *A Job, where no pod says more*: its own deadline (`Deadline`), a pod that failed and is gone
//! (`Failed`), a pod failure policy or anything else (`Failed`), complete (`Exited`).

mod ended;
mod events;
mod images;
mod jobs;
mod scheduling;
mod pods;
mod container_start;
#[cfg(test)]
mod tests;
mod volumes;
mod waiting;
mod pod_level;
mod text;

use crate::event::Timestamp;
use crate::runner::{EndReason, RunEnd};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use std::time::Duration;

/// What cannot change by itself is told as soon as it is seen.
const AT_ONCE: Duration = Duration::ZERO;

/// For what was made a moment ago, and is not seen everywhere yet.
const SOON: Duration = Duration::from_secs(30);

/// For what may be made a moment later: our own Secrets come after the Job that owns them.
const MADE_LATER: Duration = Duration::from_secs(120);

/// For what passes by itself as a rule: a registry that is down, a node that is busy.
const PASSES: Duration = Duration::from_secs(900);

/// What one pod says.
#[derive(Clone, Debug, PartialEq)]
pub enum PodState {
    /// It does not run yet.
    Waiting {
        /// For the asker's log: what it waits for.
        why: String,
        /// Whether a node has taken it.
        scheduled: bool,
        /// Where it will not go on by itself.
        stuck: Option<Stuck>,
    },
    /// It runs, or something of it does.
    Running {
        /// When the service's container started.
        since: Timestamp,
        /// Where its end will not come by itself: a sidecar that outlives the service, or a node
        /// that does not answer.
        stuck: Option<Stuck>,
    },
    /// Nothing of it runs any more.
    Ended {
        /// How.
        end: RunEnd,
        /// Whether it was taken away (it has the condition `DisruptionTarget`): the pod failure
        /// policy does not count that as a failure, and the Job makes another pod.
        disrupted: bool,
    },
}

/// Why something does not go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// Why, in one of our reasons.
    pub reason: EndReason,
    /// In words for the asker: what stands in the way, and what to do about it.
    pub message: String,
    /// For how long it must stand so, without a break, before the run is ended for it.
    pub patience: Duration,
    /// Whether it names no cause. Where a cause was seen before, that one still holds: see
    /// [`Stuck::after`].
    pub vague: bool,
}

// === impl Stuck ===

impl Stuck {
    fn new(reason: EndReason, patience: Duration, message: String) -> Self {
        Self { reason, message, patience, vague: false }
    }

    /// What is to be told where `before` was seen last: a cause is not forgotten for a statement
    /// that has none. (Between two attempts at a pull the kubelet says only that it backs off.)
    pub fn after(self, before: Option<Self>) -> Self {
        match before {
            Some(before) if self.vague && !before.vague => before,
            _ => self,
        }
    }
}

/// What a pod of the service `recipient` says.
pub fn pod_state(pod: &Pod, recipient: &str) -> PodState {
    pods::state(pod, recipient)
}

/// How a Job ended, where it has, as far as the Job itself says: [`EndReason::Exited`] where it is
/// complete. Its pod says more, where there is one.
pub fn job_end(job: &Job, recipient: &str) -> Option<RunEnd> {
    jobs::end(job, recipient)
}

/// What an event about a pod or a Job says of why it does not go on. An event that stands in no
/// way, or that the pod's own state says better, is none.
pub fn event_stall(event: &Event, recipient: &str) -> Option<Stuck> {
    events::stuck(event, recipient)
}

/// Whether an event says that the pod or Job it is about goes on: what was said before of why it
/// does not is past.
pub fn shows_progress(event: &Event) -> bool {
    events::shows_progress(event)
}

/// What is to be told of a pod, or of a whole Job, that is gone: `last` is what its pod said when
/// it was seen last, and `at` when it was missed.
pub fn vanished_end(last: Option<&PodState>, at: Timestamp, recipient: &str) -> RunEnd {
    pods::vanished(last, at, recipient)
}
