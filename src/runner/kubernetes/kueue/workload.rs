//! One Workload, in brief, and what its conditions mean. Pure.
//!
//! The messages are those of Kueue 0.10.1 and 0.16.1, written by its scheduler and its controller:
//! `pkg/scheduler`, `pkg/scheduler/flavorassigner`, `pkg/controller/core`.

use crate::runner::EndReason;
use crate::runner::kubernetes::failure::Stall;
use kube::api::DynamicObject;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// The grace of a stall that Kueue reports. It tries the next flavor, and reports something else,
/// within a moment.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The grace of a cluster queue that does not exist: when Kueue starts it does not know all of them
/// yet, and its report stays until it looks at the Job again.
pub(super) const CLUSTER_QUEUE_GRACE: Duration = Duration::from_secs(600);

/// The grace of a Workload that is finished while its Job still waits. Kueue may replace it by
/// another.
const FINISHED_GRACE: Duration = Duration::from_secs(30);

/// The report while Kueue does not know the cluster queue of a local queue, for example when a
/// stopped queue continues (seen with 0.10.1). It stays until Kueue looks at the Job again.
const CLUSTER_QUEUE_UNKNOWN: &str = "ClusterQueue \u{20}doesn't exist";

/// A Workload, in brief.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkloadBrief {
    /// The uid of its Job.
    pub job: String,
    /// Its local queue.
    pub queue: String,
    /// The greatest comes first.
    pub priority: i64,
    /// Among equal priorities the least comes first: microseconds since 1970.
    pub order: i64,
    /// How far it is.
    pub state: WorkloadState,
}

/// How far a Workload is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum WorkloadState {
    /// It waits for quota; with the message of Kueue, if there is one.
    Pending(String),
    /// It was evicted, and waits before it queues again.
    Backoff(String),
    /// It has quota, and waits for admission checks.
    Checks(String),
    /// It may start.
    Admitted,
    /// It is deactivated.
    Inactive {
        /// Why Kueue deactivated it; `None` if a person did.
        cause: Option<String>,
        /// The message of Kueue.
        message: String,
    },
    /// It waits for nothing; with the message of Kueue. A Job that still waits will not start.
    Finished(String),
}

#[derive(Deserialize)]
struct Workload {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    queue_name: String,
    #[serde(default)]
    priority: Option<i64>,
    #[serde(default)]
    active: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    admission_checks: Vec<Check>,
    #[serde(default)]
    requeue_state: Option<RequeueState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    last_transition_time: String,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequeueState {
    #[serde(default)]
    requeue_at: Option<String>,
}

// === impl WorkloadBrief ===

impl WorkloadBrief {
    /// The brief of a Workload; `None` if it belongs to no Job, or cannot be read.
    pub(super) fn from_object(object: DynamicObject) -> Option<Self> {
        let DynamicObject { metadata, data, .. } = object;
        let owners = metadata.owner_references.unwrap_or_default();
        let job = owners.into_iter().find(|owner| owner.kind == "Job")?.uid;
        let Workload { spec, status } = serde_json::from_value(data).ok()?;
        let created = metadata.creation_timestamp.map_or(0, |at| at.0.as_microsecond());
        let order = status.evicted_order().unwrap_or(created);
        let (queue, priority) = (spec.queue_name.clone(), spec.priority.unwrap_or(0));
        Some(Self { job, queue, priority, order, state: WorkloadState::new(&spec, &status) })
    }

    /// Why it waits, in a sentence. `ahead` is the number of Workloads before it in its queue.
    pub(super) fn describe_wait(&self, ahead: Option<usize>) -> String {
        let Self { queue, state, .. } = self;
        match state {
            WorkloadState::Pending(message) => {
                let place = match ahead {
                    None => format!("It waits in queue `{queue}`"),
                    Some(0) => format!("It is the first in queue `{queue}`"),
                    Some(1) => format!("It waits in queue `{queue}` behind 1 other"),
                    Some(ahead) => format!("It waits in queue `{queue}` behind {ahead} others"),
                };
                sentence(&place, message)
            }
            WorkloadState::Backoff(message) => sentence(
                &format!("It was evicted from queue `{queue}`, and will be queued again"),
                message,
            ),
            WorkloadState::Checks(message) => {
                let has =
                    format!("Its quota of queue `{queue}` is reserved, and it waits for checks");
                sentence(&has, message)
            }
            WorkloadState::Admitted => format!("Queue `{queue}` has let it go."),
            WorkloadState::Inactive { cause: Some(_), message } => {
                sentence(&format!("Kueue has taken it out of queue `{queue}`"), message)
            }
            WorkloadState::Inactive { cause: None, message } => {
                sentence(&format!("An operator holds it back from queue `{queue}`"), message)
            }
            WorkloadState::Finished(message) => {
                sentence(&format!("Queue `{queue}` has dealt with it"), message)
            }
        }
    }

    /// Its position: in a queue, the least comes first. A Workload has none that does not wait for
    /// quota, or that will never have it: it delays no other.
    pub(super) fn position(&self) -> Option<(&str, Reverse<i64>, i64)> {
        let queued = matches!(self.state, WorkloadState::Pending(_)) && self.stall().is_none();
        queued.then(|| (&*self.queue, Reverse(self.priority), self.order))
    }

    /// Why it can never start.
    pub(super) fn stall(&self) -> Option<Stall> {
        match &self.state {
            WorkloadState::Pending(message) => quota_stall(&self.queue, message),
            WorkloadState::Inactive { cause: Some(cause), message } => {
                Some(deactivated(&self.queue, cause, message))
            }
            WorkloadState::Finished(message) => Some(finished(&self.queue, message)),
            WorkloadState::Inactive { cause: None, .. }
            | WorkloadState::Backoff(_)
            | WorkloadState::Checks(_)
            | WorkloadState::Admitted => None,
        }
    }
}

// === impl Status ===

impl Status {
    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    fn is(&self, kind: &str) -> Option<&Condition> {
        self.condition(kind).filter(|condition| condition.status == "True")
    }

    /// A Workload that was evicted for its pods or its checks goes behind those that came
    /// meanwhile.
    fn evicted_order(&self) -> Option<i64> {
        let evicted = self.is("Evicted")?;
        let behind = ["PodsReadyTimeout", "AdmissionCheck"].contains(&&*evicted.reason);
        let at = evicted.last_transition_time.parse::<k8s_openapi::jiff::Timestamp>().ok()?;
        behind.then(|| at.as_microsecond())
    }

    fn open_checks(&self) -> String {
        let open = self.admission_checks.iter().filter(|check| check.state != "Ready");
        let described = open.map(|check| match &*check.message {
            "" => format!("`{}`", check.name),
            message => format!("`{}` ({})", check.name, message.trim()),
        });
        described.collect::<Vec<_>>().join(", ")
    }
}

// === impl WorkloadState ===

impl WorkloadState {
    fn new(spec: &Spec, status: &Status) -> Self {
        if let Some(finished) = status.is("Finished") {
            return Self::Finished(finished.message.clone());
        }
        if spec.active == Some(false) {
            let evicted = status.is("Evicted");
            let cause = evicted.and_then(|it| it.reason.strip_prefix("DeactivatedDueTo"));
            let message = evicted.map(|it| it.message.clone()).unwrap_or_default();
            return Self::Inactive { cause: cause.map(str::to_owned), message };
        }
        if status.is("QuotaReserved").is_some() {
            return match status.is("Admitted") {
                Some(_) => Self::Admitted,
                None => Self::Checks(status.open_checks()),
            };
        }
        let evicted = status.is("Evicted");
        let later = status.requeue_state.as_ref().is_some_and(|it| it.requeue_at.is_some());
        match (evicted, later) {
            (Some(evicted), true) => Self::Backoff(evicted.message.clone()),
            (Some(_), false) | (None, _) => {
                let reserved = status.condition("QuotaReserved");
                let known = reserved.filter(|it| it.message != CLUSTER_QUEUE_UNKNOWN);
                Self::Pending(known.map(|it| it.message.clone()).unwrap_or_default())
            }
        }
    }
}

/// A sentence with the message of Kueue, without the parts that mean nothing to a parent.
fn sentence(what: &str, message: &str) -> String {
    let message = reasons(message).trim().trim_end_matches('.');
    if message.is_empty() { format!("{what}.") } else { format!("{what}: {message}.") }
}

/// The reasons in a message of Kueue: our Jobs have one pod set.
fn reasons(message: &str) -> &str {
    let set = message.strip_prefix("couldn't assign flavors to pod set ");
    set.and_then(|set| set.split_once(": ")).map_or(message, |(_, reasons)| reasons)
}

/// Why a Workload that waits for quota will never have it.
fn quota_stall(queue: &str, message: &str) -> Option<Stall> {
    let stall = |message, grace| Some(Stall::new(EndReason::Queue, grace, message));
    let quoted = reasons(message).trim_end_matches('.');
    if message.starts_with("LocalQueue ") && message.ends_with(" doesn't exist") {
        let message = format!(
            "There is no queue `{queue}` where questions run. Correct the queue in the service's \
             settings, or create it (a LocalQueue of Kueue)."
        );
        return stall(message, GRACE);
    }
    if message.starts_with("ClusterQueue ")
        && [" doesn't exist", " not found"].iter().any(|end| message.ends_with(end))
    {
        let message = format!(
            "Queue `{queue}` leads nowhere ({quoted}). Correct the cluster queue that it names, or \
             create it."
        );
        return stall(message, CLUSTER_QUEUE_GRACE);
    }
    if message == "Workload namespace doesn't match ClusterQueue selector" {
        let message = format!(
            "The cluster queue of queue `{queue}` takes nothing from the namespace where questions \
             run. Change its `namespaceSelector`, or the namespace's labels."
        );
        return stall(message, GRACE);
    }
    if exceeds_every_flavor(quoted) {
        let message = format!(
            "Queue `{queue}` can never run it: {quoted}. Ask for less, or have the queue's quota \
             raised."
        );
        return stall(message, GRACE);
    }
    let invalid = ["resource validation failed", "resources validation failed"];
    if invalid.iter().any(|start| message.starts_with(start)) || message.contains("LimitRange") {
        let message = format!(
            "Queue `{queue}` does not take what it asks for: {quoted}. Change the resources in the \
             service's settings."
        );
        return stall(message, GRACE);
    }
    None
}

/// Whether each flavor of the report has an obstacle that waiting does not remove, and at least one
/// of them is too small: flavors with a taint or labels of their own are often meant for others.
fn exceeds_every_flavor(reasons: &str) -> bool {
    let mut flavors: BTreeMap<&str, bool> = BTreeMap::new();
    let mut too_small = false;
    for reason in reasons.split(", ") {
        if reason.starts_with("resource ") && reason.ends_with(" unavailable in ClusterQueue") {
            return true;
        }
        // The second halves of reasons that contain a comma.
        let halves = ["request > maximum capacity ", "previously considered podsets requests "];
        if halves.iter().any(|half| reason.starts_with(half)) || reason.ends_with(" more needed") {
            continue;
        }
        let Some(flavor) = flavor(reason) else { return false };
        // Kueue writes "unused quota" where only the free part is too small.
        let small = reason.starts_with("insufficient quota for ");
        let other = reason.starts_with("untolerated taint ")
            || reason.ends_with(" doesn't match node affinity");
        too_small |= small;
        *flavors.entry(flavor).or_default() |= small || other;
    }
    too_small && flavors.values().all(|hopeless| *hopeless)
}

/// The flavor that a reason names.
fn flavor(reason: &str) -> Option<&str> {
    let (_, rest) = reason.rsplit_once("flavor ")?;
    rest.split(' ').next().filter(|flavor| !flavor.is_empty())
}

/// A Workload that Kueue deactivated, and will not activate again.
fn deactivated(queue: &str, cause: &str, message: &str) -> Stall {
    let (reason, meaning) = match cause {
        "AdmissionCheck" => (EndReason::Queue, "An admission check of the queue does not take it"),
        "RequeuingLimitExceeded" => {
            (EndReason::NotStarted, "Its pod was not ready in time, as often as Kueue tries")
        }
        "MaximumExecutionTimeExceeded" => {
            (EndReason::Deadline, "It ran for longer than its queue allows")
        }
        _ => (EndReason::Queue, "Kueue has given it up"),
    };
    let message = sentence(&format!("{meaning} (queue `{queue}`)"), message);
    Stall::new(reason, GRACE, message)
}

/// A Job that still waits though its Workload is finished: Kueue could not start it.
fn finished(queue: &str, message: &str) -> Stall {
    let message = sentence(
        &format!("Kueue could not start it, and has given it up (queue `{queue}`)"),
        message,
    );
    Stall::new(EndReason::Queue, FINISHED_GRACE, message)
}

#[cfg(test)]
mod tests;
