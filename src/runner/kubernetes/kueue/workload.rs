//! One Workload, in brief, and what its conditions mean. Pure.
//!
//! The texts are those of Kueue 0.10.1 and 0.16.1, where its scheduler and its controller write
//! them: `pkg/scheduler`, `pkg/scheduler/flavorassigner`, `pkg/controller/core`.

use crate::runner::EndReason;
use kube::api::DynamicObject;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// For how long Kueue must say that a Job can never start, before we say so. It tries the next
/// flavor, and says something else, within a moment.
pub const SETTLES: Duration = Duration::from_secs(5);

/// The same for a cluster queue that is not there: when Kueue starts it does not know all of them
/// yet, and what it has said then stays until it looks at the Job again.
pub const QUEUES_COME: Duration = Duration::from_secs(600);

/// What Kueue says while it does not know to which cluster queue a local queue leads, as when one
/// that was stopped goes on (seen with 0.10.1). It stays until the Job is looked at again.
const NOT_KNOWN_YET: &str = "ClusterQueue \u{20}doesn't exist";

/// What is kept of a Workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Brief {
    /// The uid of its Job.
    pub job: String,
    /// Its local queue.
    pub queue: String,
    /// Who comes first: the greatest.
    pub priority: i64,
    /// Among equals, the least: microseconds since 1970.
    pub order: i64,
    /// How far it is.
    pub state: State,
}

/// How far a Workload is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It waits for quota; with Kueue's words, where it has said something.
    Pending(String),
    /// It was taken back, and waits before it queues again.
    Backoff(String),
    /// It has quota, and waits for admission checks.
    Checks(String),
    /// It may start.
    Admitted,
    /// It will not start until somebody switches it on again.
    Inactive {
        /// Why Kueue switched it off; none where a person did.
        cause: Option<String>,
        /// Kueue's words.
        message: String,
    },
    /// It waits for nothing.
    Finished,
}

/// That a Workload can never start as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// Why.
    pub reason: EndReason,
    /// In words for the asker.
    pub message: String,
    /// For how long it must be so before it is told.
    pub patience: Duration,
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

// === impl Brief ===

impl Brief {
    /// Reads one; none where it is no Job's, or makes no sense.
    pub fn of(object: DynamicObject) -> Option<Self> {
        let DynamicObject { metadata, data, .. } = object;
        let owners = metadata.owner_references.unwrap_or_default();
        let job = owners.into_iter().find(|owner| owner.kind == "Job")?.uid;
        let Workload { spec, status } = serde_json::from_value(data).ok()?;
        let created = metadata.creation_timestamp.map_or(0, |at| at.0.as_microsecond());
        let order = status.order().unwrap_or(created);
        let (queue, priority) = (spec.queue_name.clone(), spec.priority.unwrap_or(0));
        Some(Self { job, queue, priority, order, state: State::of(&spec, &status) })
    }

    /// In a sentence, with so many of its queue before it; none where it has no place there.
    pub fn why(&self, ahead: Option<usize>) -> String {
        let Self { queue, state, .. } = self;
        match state {
            State::Pending(message) => {
                let place = match ahead {
                    None => format!("It waits in queue `{queue}`"),
                    Some(0) => format!("It is the first in queue `{queue}`"),
                    Some(1) => format!("It waits in queue `{queue}` behind 1 other"),
                    Some(ahead) => format!("It waits in queue `{queue}` behind {ahead} others"),
                };
                said(&place, message)
            }
            State::Backoff(message) => {
                said(&format!("It was taken back, and will be in queue `{queue}` again"), message)
            }
            State::Checks(message) => {
                let has = format!("It has its place of queue `{queue}`, and waits for checks");
                said(&has, message)
            }
            State::Admitted => format!("Queue `{queue}` has let it go."),
            State::Inactive { cause: Some(_), message } => {
                said(&format!("Kueue has taken it out of queue `{queue}`"), message)
            }
            State::Inactive { cause: None, message } => {
                said(&format!("An operator holds it back from queue `{queue}`"), message)
            }
            State::Finished => String::new(),
        }
    }

    /// Its place: of a queue, the least comes first. None has what does not wait for quota, nor
    /// what will never have it: it is in nobody's way.
    pub fn place(&self) -> Option<(&str, Reverse<i64>, i64)> {
        let queued = matches!(self.state, State::Pending(_)) && self.stuck().is_none();
        queued.then(|| (&*self.queue, Reverse(self.priority), self.order))
    }

    /// Whether, and why, it can never start.
    pub fn stuck(&self) -> Option<Stuck> {
        match &self.state {
            State::Pending(message) => never(&self.queue, message),
            State::Inactive { cause: Some(cause), message } => {
                Some(switched_off(&self.queue, cause, message))
            }
            State::Inactive { cause: None, .. }
            | State::Backoff(_)
            | State::Checks(_)
            | State::Admitted
            | State::Finished => None,
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

    /// What was taken back for its pods or its checks stands behind those that came meanwhile.
    fn order(&self) -> Option<i64> {
        let evicted = self.is("Evicted")?;
        let behind = ["PodsReadyTimeout", "AdmissionCheck"].contains(&&*evicted.reason);
        let at = evicted.last_transition_time.parse::<k8s_openapi::jiff::Timestamp>().ok()?;
        behind.then(|| at.as_microsecond())
    }

    fn checks(&self) -> String {
        let open = self.admission_checks.iter().filter(|check| check.state != "Ready");
        let words = open.map(|check| match &*check.message {
            "" => format!("`{}`", check.name),
            message => format!("`{}` ({})", check.name, message.trim()),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

// === impl State ===

impl State {
    fn of(spec: &Spec, status: &Status) -> Self {
        if status.is("Finished").is_some() {
            return Self::Finished;
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
                None => Self::Checks(status.checks()),
            };
        }
        let evicted = status.is("Evicted");
        let later = status.requeue_state.as_ref().is_some_and(|it| it.requeue_at.is_some());
        match (evicted, later) {
            (Some(evicted), true) => Self::Backoff(evicted.message.clone()),
            (Some(_), false) | (None, _) => {
                let reserved = status.condition("QuotaReserved");
                let said = reserved.filter(|it| it.message != NOT_KNOWN_YET);
                Self::Pending(said.map(|it| it.message.clone()).unwrap_or_default())
            }
        }
    }
}

/// A sentence with Kueue's words, without those that say nothing to an asker.
fn said(what: &str, message: &str) -> String {
    let message = reasons(message).trim().trim_end_matches('.');
    if message.is_empty() { format!("{what}.") } else { format!("{what}: {message}.") }
}

/// What Kueue says of the one pod set that our Jobs have.
fn reasons(message: &str) -> &str {
    let set = message.strip_prefix("couldn't assign flavors to pod set ");
    set.and_then(|set| set.split_once(": ")).map_or(message, |(_, reasons)| reasons)
}

/// Whether Kueue says of what waits for quota that it will never have it.
fn never(queue: &str, message: &str) -> Option<Stuck> {
    let told = |message, patience| Some(Stuck { reason: EndReason::Queue, message, patience });
    let words = reasons(message).trim_end_matches('.');
    if message.starts_with("LocalQueue ") && message.ends_with(" doesn't exist") {
        let message = format!(
            "There is no queue `{queue}` where questions run. Correct the queue in the service's \
             settings, or create it (a LocalQueue of Kueue)."
        );
        return told(message, SETTLES);
    }
    if message.starts_with("ClusterQueue ")
        && [" doesn't exist", " not found"].iter().any(|end| message.ends_with(end))
    {
        let message = format!(
            "Queue `{queue}` leads nowhere ({words}). Correct the cluster queue that it names, or \
             create it."
        );
        return told(message, QUEUES_COME);
    }
    if message == "Workload namespace doesn't match ClusterQueue selector" {
        let message = format!(
            "The cluster queue of queue `{queue}` takes nothing from the namespace where questions \
             run. Change its `namespaceSelector`, or the namespace's labels."
        );
        return told(message, SETTLES);
    }
    if too_much(words) {
        let message = format!(
            "Queue `{queue}` can never run it: {words}. Ask for less, or have the queue's quota \
             raised."
        );
        return told(message, SETTLES);
    }
    let invalid = ["resource validation failed", "resources validation failed"];
    if invalid.iter().any(|start| message.starts_with(start)) || message.contains("LimitRange") {
        let message = format!(
            "Queue `{queue}` does not take what it asks for: {words}. Change the resources in the \
             service's settings."
        );
        return told(message, SETTLES);
    }
    None
}

/// Whether of every flavor that Kueue speaks of one thing is said that waiting does not change,
/// and of one at least that it is too small: flavors with a taint or labels of their own are often
/// meant for others.
fn too_much(reasons: &str) -> bool {
    let mut flavors: BTreeMap<&str, bool> = BTreeMap::new();
    let mut too_small = false;
    for reason in reasons.split(", ") {
        if reason.starts_with("resource ") && reason.ends_with(" unavailable in ClusterQueue") {
            return true;
        }
        // The second halves of what has a comma of its own.
        let halves = ["request > maximum capacity ", "previously considered podsets requests "];
        if halves.iter().any(|half| reason.starts_with(half)) || reason.ends_with(" more needed") {
            continue;
        }
        let Some(flavor) = flavor(reason) else { return false };
        // Where only what is free is too little, Kueue says "unused quota".
        let small = reason.starts_with("insufficient quota for ");
        let other = reason.starts_with("untolerated taint ")
            || reason.ends_with(" doesn't match node affinity");
        too_small |= small;
        *flavors.entry(flavor).or_default() |= small || other;
    }
    too_small && flavors.values().all(|hopeless| *hopeless)
}

/// Of which flavor a reason speaks.
fn flavor(reason: &str) -> Option<&str> {
    let (_, rest) = reason.rsplit_once("flavor ")?;
    rest.split(' ').next().filter(|flavor| !flavor.is_empty())
}

/// Kueue has switched it off, and will not switch it on again.
fn switched_off(queue: &str, cause: &str, message: &str) -> Stuck {
    let (reason, remedy) = match cause {
        "AdmissionCheck" => (EndReason::Queue, "An admission check of the queue does not take it"),
        "RequeuingLimitExceeded" => {
            (EndReason::NotStarted, "Its pod was not ready in time, as often as Kueue tries")
        }
        "MaximumExecutionTimeExceeded" => {
            (EndReason::Deadline, "It ran for longer than its queue allows")
        }
        _ => (EndReason::Queue, "Kueue has given it up"),
    };
    let message = said(&format!("{remedy} (queue `{queue}`)"), message);
    Stuck { reason, message, patience: SETTLES }
}

#[cfg(test)]
mod tests;
