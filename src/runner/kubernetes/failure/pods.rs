//! A pod: whether it waits, runs or has ended.

use super::{PASSES, PodState, Stuck, ended, pod_level, scheduling, text, waiting};
use crate::event::Timestamp;
use crate::runner::{EndReason, RunEnd};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus,
};
use std::time::Duration;

/// Which container is the one that people mean: service meshes set it where they put their own
/// container first.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A pod, and what of it matters most. Any part may be missing.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// What answers.
    pub service: &'a str,
    pub pod: &'a Pod,
    pub spec: Option<&'a PodSpec>,
    pub status: Option<&'a PodStatus>,
    /// The service's container as it was asked for.
    pub container: Option<&'a Container>,
    /// The service's container as it is.
    pub main: Option<&'a ContainerStatus>,
}

/// What a pod of `service` says.
pub fn state(pod: &Pod, service: &str) -> PodState {
    let subject = Subject::new(pod, service);
    match subject.phase() {
        "Succeeded" | "Failed" => ended::ended(subject),
        _ => alive(subject),
    }
}

/// What is to be told of a pod that is gone.
pub fn vanished(last: Option<&PodState>, at: Timestamp, service: &str) -> RunEnd {
    let (started, reason, message) = match last {
        Some(PodState::Ended { end, .. }) => return end.clone(),
        Some(PodState::Running { since, .. }) => (
            Some(*since),
            EndReason::Deleted,
            format!("the run of `{service}` was deleted in the cluster while it ran; ask again"),
        ),
        Some(PodState::Waiting { why, stuck, .. }) => {
            let why = stuck.as_ref().map_or(why, |stuck| &stuck.message);
            let before = text::aside("it waited", why);
            let message = format!(
                "the run of `{service}` was deleted in the cluster before it began{before}; ask \
                 again"
            );
            (None, EndReason::Deleted, message)
        }
        None => (
            None,
            EndReason::Lost,
            format!(
                "the run of `{service}` is gone from the cluster, and nobody saw it end: it was \
                 deleted, or it ended and was removed while nobody looked; ask again"
            ),
        ),
    };
    RunEnd { at, started, reason, message, tail: Vec::new() }
}

/// A pod that has not ended.
fn alive(subject: Subject) -> PodState {
    let state = subject.main.and_then(|main| main.state.as_ref());
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        let since = text::moment(running.started_at.as_ref());
        let since = since.unwrap_or_else(|| subject.born());
        return PodState::Running { since, stuck: leaving(subject) };
    }
    if let Some(terminated) = state.and_then(|state| state.terminated.as_ref())
        && let Some(since) = text::moment(terminated.started_at.as_ref())
    {
        let stuck = outlived(subject).or_else(|| leaving(subject));
        return PodState::Running { since, stuck };
    }
    let scheduled = subject.node().is_some();
    if !scheduled {
        return unscheduled(subject);
    }
    let stuck = waiting::stuck(subject).or_else(|| leaving(subject));
    PodState::Waiting { why: waiting::why(subject), scheduled, stuck }
}

/// A pod that no node has taken.
fn unscheduled(subject: Subject) -> PodState {
    let condition = subject.condition("PodScheduled").filter(|told| told.status == "False");
    let reason = condition.and_then(|told| told.reason.as_deref()).unwrap_or_default();
    let message = condition.and_then(|told| told.message.as_deref()).unwrap_or_default();
    let (why, stuck) = match reason {
        "SchedulingGated" => (format!("another controller holds its pod back: {reason}"), None),
        "" => ("the scheduler has not looked at it yet".to_owned(), None),
        _ => (scheduling::why(message), scheduling::claim(subject.service, message)),
    };
    PodState::Waiting { why, scheduled: false, stuck }
}

/// That the service's container has ended, and another keeps the pod from ending.
fn outlived(subject: Subject) -> Option<Stuck> {
    let main = subject.main?;
    let statuses = subject.status?.container_statuses.as_deref().unwrap_or_default();
    let sidecar = statuses.iter().find(|status| {
        let state = status.state.as_ref();
        status.name != main.name && state.is_some_and(|state| state.running.is_some())
    })?;
    let (reason, message) = ended::container(subject, main)?;
    let message = format!(
        "{message}; its pod does not end, because the container `{}` still runs: make that one a \
         sidecar (an init container with `restartPolicy: Always`), which ends with the service",
        text::quote(&sidecar.name)
    );
    // Time for a sidecar to see that it is alone.
    Some(Stuck { reason, message, patience: Duration::from_secs(60), vague: false })
}

/// That the pod is to go, or lost, and nobody says that it is gone: its node does not answer.
fn leaving(subject: Subject) -> Option<Stuck> {
    let lost = subject.phase() == "Unknown"
        || subject.status.and_then(|status| status.reason.as_deref()) == Some("NodeLost");
    if subject.pod.metadata.deletion_timestamp.is_none() && !lost {
        return None;
    }
    let grace = subject.pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
    // Longer than anybody's grace; and a sum that cannot overflow.
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default().min(604_800));
    let (reason, what) = match pod_level::taken(subject) {
        Some(taken) => taken,
        None if lost => {
            (EndReason::Lost, format!("the pod of `{}` is out of sight", subject.service))
        }
        None => pod_level::deleted(subject),
    };
    let message = format!(
        "{what}; but {} does not say that it is gone: the node may be down, and something of it \
         may still run there; ask again",
        subject.place()
    );
    Some(Stuck { reason, message, patience: PASSES + grace, vague: false })
}

// === impl Subject ===

impl<'a> Subject<'a> {
    pub fn new(pod: &'a Pod, service: &'a str) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let named = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
        let container = containers
            .iter()
            .find(|container| Some(&container.name) == named)
            .or_else(|| containers.first());
        let statuses = status.and_then(|status| status.container_statuses.as_deref());
        let statuses = statuses.unwrap_or_default();
        let main = match container {
            Some(container) => statuses.iter().find(|status| status.name == container.name),
            None => statuses.first(),
        };
        Self { service, pod, spec, status, container, main }
    }

    /// The pod's phase; empty where it has none.
    pub fn phase(&self) -> &'a str {
        self.status.and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// The node that has taken it.
    pub fn node(&self) -> Option<&'a str> {
        self.spec?.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Its node, in words.
    pub fn place(&self) -> String {
        self.node().map_or_else(|| "its node".to_owned(), |name| format!("its node `{name}`"))
    }

    /// The condition of this type, whatever its status.
    pub fn condition(&self, kind: &str) -> Option<&'a PodCondition> {
        let conditions = self.status?.conditions.as_deref()?;
        conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// What says that the pod was taken away, where it was.
    pub fn disruption(&self) -> Option<&'a PodCondition> {
        self.condition("DisruptionTarget").filter(|condition| condition.status == "True")
    }

    /// Init containers that must end before the service starts, as they are.
    pub fn inits(&self) -> impl Iterator<Item = &'a ContainerStatus> {
        let spec = self.spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let status = self.status.and_then(|status| status.init_container_statuses.as_deref());
        status.unwrap_or_default().iter().filter(move |status| {
            let container = spec.iter().find(|container| container.name == status.name);
            container.and_then(|container| container.restart_policy.as_deref()) != Some("Always")
        })
    }

    /// What was asked of a container of this name.
    pub fn asked(&self, name: &str) -> Option<&'a Container> {
        let spec = self.spec?;
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        spec.containers.iter().chain(inits).find(|container| container.name == name)
    }

    /// A container, in words: the service's own is the service.
    pub fn called(&self, name: &str) -> String {
        if self.main.is_some_and(|main| main.name == name) {
            return format!("`{}`", self.service);
        }
        let inits = self.spec.and_then(|spec| spec.init_containers.as_deref());
        let init = inits.unwrap_or_default().iter().any(|container| container.name == name);
        let kind = if init { "init container" } else { "container" };
        format!("the {kind} `{}` of `{}`", text::quote(name), self.service)
    }

    /// When the service's container started, if it did.
    pub fn started(&self) -> Option<Timestamp> {
        let state = self.main?.state.as_ref()?;
        let ContainerState { running, terminated, .. } = state;
        let running = running.as_ref().and_then(|running| running.started_at.as_ref());
        let ended = terminated.as_ref().and_then(|terminated| terminated.started_at.as_ref());
        text::moment(running.or(ended))
    }

    /// When the pod began: the earliest that is known of it.
    pub fn born(&self) -> Timestamp {
        let started = self.status.and_then(|status| status.start_time.as_ref());
        let created = self.pod.metadata.creation_timestamp.as_ref();
        text::moment(started).or_else(|| text::moment(created)).unwrap_or(Timestamp(0))
    }
}
