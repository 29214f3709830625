//! A pod: whether it waits, runs or has ended.

use super::symptoms::PASSES;
use super::{PodState, Stall, ended, pod_level, scheduling, text, volumes, waiting};
use crate::event::Timestamp;
use crate::runner::{Cause, EndReason, RunEnd};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus,
};
use std::time::Duration;

/// The annotation that names the main container: service meshes set it where they put their own
/// container first.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// How long a container that runs beside the service may take to see that it is alone.
const SIDECAR_GRACE: Duration = Duration::from_secs(60);

/// The longest termination grace period that is counted: longer than anybody's, and a sum with it
/// cannot overflow.
const LONGEST_GRACE_SECONDS: u64 = 7 * 24 * 3600;

/// A pod, and the parts of it that matter most. Any part may be missing.
#[derive(Clone, Copy)]
pub(super) struct PodContext<'a> {
    /// The service revision that answers.
    pub(super) service: &'a str,
    pub(super) pod: &'a Pod,
    pub(super) spec: Option<&'a PodSpec>,
    pub(super) status: Option<&'a PodStatus>,
    /// The spec of the service's container.
    pub(super) container: Option<&'a Container>,
    /// The status of the service's container.
    pub(super) main: Option<&'a ContainerStatus>,
}

/// The state of a pod of `service`.
pub(super) fn state(pod: &Pod, service: &str) -> PodState {
    let context = PodContext::new(pod, service);
    match context.phase() {
        "Succeeded" | "Failed" => ended::pod_end(context),
        _ => unfinished(context),
    }
}

/// The end of a run whose pod, or whole Job, vanished. `last` is the state in which the pod was
/// last seen.
pub(super) fn vanished(last: Option<&PodState>, at: Timestamp, service: &str) -> RunEnd {
    let (started, reason, message) = match last {
        Some(PodState::Ended { end, .. }) => return end.clone(),
        Some(PodState::Running { since, .. }) => (
            Some(*since),
            EndReason::Deleted,
            format!("the run of `{service}` was deleted in the cluster while it ran; ask again"),
        ),
        Some(PodState::Waiting { why, stall, .. }) => {
            let why = stall.as_ref().map_or(why, |stall| &stall.cause.message);
            let before = match text::quote(why) {
                quoted if quoted.is_empty() => String::new(),
                quoted => format!(" (it waited: {quoted})"),
            };
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
    RunEnd { at, started, cause: Cause::new(reason, message), tail: Vec::new() }
}

/// The state of a pod that has not ended.
fn unfinished(pod: PodContext) -> PodState {
    let state = pod.main.and_then(|main| main.state.as_ref());
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        let since = text::timestamp(running.started_at.as_ref());
        let since = since.unwrap_or_else(|| pod.created());
        return PodState::Running { since, stall: stuck_deletion(pod) };
    }
    if let Some(terminated) = state.and_then(|state| state.terminated.as_ref())
        && let Some(since) = text::timestamp(terminated.started_at.as_ref())
    {
        let stall = lingering_sidecar(pod).or_else(|| stuck_deletion(pod));
        return PodState::Running { since, stall };
    }
    let scheduled = pod.node().is_some();
    if !scheduled {
        return unscheduled(pod);
    }
    let stall = waiting::stall(pod).or_else(|| stuck_deletion(pod));
    PodState::Waiting { why: waiting::describe_wait(pod), scheduled, stall }
}

/// The state of a pod without a node.
fn unscheduled(pod: PodContext) -> PodState {
    let condition = pod.condition("PodScheduled").filter(|scheduled| scheduled.status == "False");
    let reason = condition.and_then(|scheduled| scheduled.reason.as_deref()).unwrap_or_default();
    let message = condition.and_then(|scheduled| scheduled.message.as_deref()).unwrap_or_default();
    let (why, stall) = match reason {
        "SchedulingGated" => (format!("another controller holds its pod back: {reason}"), None),
        "" => ("the scheduler has not looked at it yet".to_owned(), None),
        _ => (scheduling::describe_wait(message), volumes::claim_stall(pod.service, message)),
    };
    PodState::Waiting { why, scheduled: false, stall }
}

/// That the service's container has ended, and another keeps the pod from ending.
fn lingering_sidecar(pod: PodContext) -> Option<Stall> {
    let main = pod.main?;
    let statuses = pod.status?.container_statuses.as_deref().unwrap_or_default();
    let sidecar = statuses.iter().find(|status| {
        let state = status.state.as_ref();
        status.name != main.name && state.is_some_and(|state| state.running.is_some())
    })?;
    let Cause { reason, message } = ended::container_end(pod, main)?;
    let message = format!(
        "{message}; its pod does not end, because the container `{}` still runs: make that one a \
         sidecar (an init container with `restartPolicy: Always`), which ends with the service",
        text::quote(&sidecar.name)
    );
    Some(Stall::new(reason, SIDECAR_GRACE, message))
}

/// That the pod is being deleted, or its node lost, and the node does not report that it is gone.
fn stuck_deletion(pod: PodContext) -> Option<Stall> {
    let lost = pod.phase() == "Unknown"
        || pod.status.and_then(|status| status.reason.as_deref()) == Some("NodeLost");
    if pod.pod.metadata.deletion_timestamp.is_none() && !lost {
        return None;
    }
    let grace = pod.pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
    let grace = u64::try_from(grace).unwrap_or_default().min(LONGEST_GRACE_SECONDS);
    let Cause { reason, message } = match pod_level::eviction(pod) {
        Some(eviction) => eviction,
        None if lost => {
            let message = format!("the pod of `{}` is out of sight", pod.service);
            Cause::new(EndReason::Lost, message)
        }
        None => pod_level::deletion(pod),
    };
    let message = format!(
        "{message}; but {} does not report that it is gone: the node may be down, and something of \
         it may still run there; ask again",
        pod.node_name()
    );
    Some(Stall::new(reason, PASSES + Duration::from_secs(grace), message))
}

// === impl PodContext ===

impl<'a> PodContext<'a> {
    /// The parts of a pod of `service`.
    pub(super) fn new(pod: &'a Pod, service: &'a str) -> Self {
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
    pub(super) fn phase(&self) -> &'a str {
        self.status.and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// The name of its node.
    pub(super) fn node(&self) -> Option<&'a str> {
        self.spec?.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Its node, for messages.
    pub(super) fn node_name(&self) -> String {
        self.node().map_or_else(|| "its node".to_owned(), |name| format!("its node `{name}`"))
    }

    /// The condition of this type, whatever its status.
    pub(super) fn condition(&self, kind: &str) -> Option<&'a PodCondition> {
        let conditions = self.status?.conditions.as_deref()?;
        conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// The condition that the pod was evicted, if it was.
    pub(super) fn disruption(&self) -> Option<&'a PodCondition> {
        self.condition("DisruptionTarget").filter(|condition| condition.status == "True")
    }

    /// The statuses of init containers that must end before the service starts.
    pub(super) fn init_statuses(&self) -> impl Iterator<Item = &'a ContainerStatus> {
        let spec = self.spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let status = self.status.and_then(|status| status.init_container_statuses.as_deref());
        status.unwrap_or_default().iter().filter(move |status| {
            let container = spec.iter().find(|container| container.name == status.name);
            container.and_then(|container| container.restart_policy.as_deref()) != Some("Always")
        })
    }

    /// The spec of the container of this name.
    pub(super) fn container_spec(&self, name: &str) -> Option<&'a Container> {
        let spec = self.spec?;
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        spec.containers.iter().chain(inits).find(|container| container.name == name)
    }

    /// A container, for messages: the service's own container is named as the service.
    pub(super) fn describe_container(&self, name: &str) -> String {
        if self.main.is_some_and(|main| main.name == name) {
            return format!("`{}`", self.service);
        }
        let inits = self.spec.and_then(|spec| spec.init_containers.as_deref());
        let init = inits.unwrap_or_default().iter().any(|container| container.name == name);
        let kind = if init { "init container" } else { "container" };
        format!("the {kind} `{}` of `{}`", text::quote(name), self.service)
    }

    /// When the service's container started; `None` if it did not.
    pub(super) fn started(&self) -> Option<Timestamp> {
        let state = self.main?.state.as_ref()?;
        let ContainerState { running, terminated, .. } = state;
        let running = running.as_ref().and_then(|running| running.started_at.as_ref());
        let ended = terminated.as_ref().and_then(|terminated| terminated.started_at.as_ref());
        text::timestamp(running.or(ended))
    }

    /// The earliest time that is known of the pod.
    pub(super) fn created(&self) -> Timestamp {
        let started = self.status.and_then(|status| status.start_time.as_ref());
        let created = self.pod.metadata.creation_timestamp.as_ref();
        text::timestamp(started).or_else(|| text::timestamp(created)).unwrap_or(Timestamp(0))
    }
}
