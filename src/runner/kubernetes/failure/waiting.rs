//! Containers that wait: for what, and whether they will wait for ever.

use super::pods::PodContext;
use super::symptoms::{self, NONE, PASSES};
use super::{Stall, container_start, ended, images, text, volumes};
use crate::runner::{Cause, EndReason};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus};
use std::time::Duration;

/// What a pod on a node waits for.
pub(super) fn describe_wait(pod: PodContext) -> String {
    let node = pod.node_name();
    let running_init = pod
        .init_statuses()
        .find(|init| init.state.as_ref().is_some_and(|state| state.running.is_some()));
    if let Some(init) = running_init {
        return format!("its init container `{}` runs", text::quote(&init.name));
    }
    let Some((_, waiting)) = statuses(pod).find_map(waiting) else {
        return format!("{node} has not begun with it yet");
    };
    match waiting.reason.as_deref().unwrap_or_default() {
        "" | "ContainerCreating" | "PodInitializing" => {
            format!("{node} fetches its image and prepares its volumes")
        }
        reason => {
            let message = waiting.message.as_deref().unwrap_or_default();
            let quoted = text::reported("it", message);
            format!("{node} cannot start it yet: {}{quoted}", text::quote(reason))
        }
    }
}

/// Why a pod on a node makes no progress, where one of its containers reports that.
pub(super) fn stall(pod: PodContext) -> Option<Stall> {
    statuses(pod)
        .filter_map(waiting)
        .find_map(|(status, waiting)| container_stall(pod, status, waiting))
}

fn container_stall(
    pod: PodContext,
    status: &ContainerStatus,
    waiting: &ContainerStateWaiting,
) -> Option<Stall> {
    let container = pod.describe_container(&status.name);
    let message = waiting.message.as_deref().unwrap_or_default();
    let spec = pod.container_spec(&status.name);
    let image = spec.and_then(|spec| spec.image.as_deref()).unwrap_or(&status.image);
    Some(match waiting.reason.as_deref()? {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "CrashLoopBackOff" => crash_loop(pod, status, message),
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            not_created(&container, image, reason, message)
        }
        reason if images::WAITING_STATES.contains(&reason) => {
            images::stall(&container, image, reason, message)
        }
        reason @ ("PostStartHookError" | "PreStartHookError" | "PreCreateHookError") => {
            let message = format!("{reason}: {message}");
            volumes::not_started(&container, &symptoms::HOOK, "its node", &message)
        }
        reason => {
            let message = format!(
                "{container} does not start: {} holds it with `{}`{}; ask again, and where that \
                 does not help, see the node",
                pod.node_name(),
                text::quote(reason),
                text::reported("it", message)
            );
            Stall::new(EndReason::NotStarted, PASSES, message)
        }
    })
}

/// A container that its node could not create, or not start.
fn not_created(container: &str, image: &str, reason: &str, message: &str) -> Stall {
    if symptoms::RUNS_AS_ROOT.matches(message) {
        let symptom = &symptoms::RUNS_AS_ROOT;
        let described = container_start::describe(container, image, symptom, message);
        return Stall::from_symptom(symptom, described);
    }
    if let Some(missing) = volumes::missing_object(container, message) {
        return missing;
    }
    if reason == "CreateContainerConfigError" {
        let symptom = symptoms::classify(symptoms::CONTAINER_CONFIG, message);
        return volumes::not_started(container, symptom, "its node", message);
    }
    let symptom = container_start::symptom(message);
    Stall::from_symptom(symptom, container_start::describe(container, image, symptom, message))
}

/// A container that is restarted again and again. Ours never are, but those of the reference's Jobs
/// and those that a cluster adds may be.
fn crash_loop(pod: PodContext, status: &ContainerStatus, message: &str) -> Stall {
    let restarts = status.restart_count;
    let last = ContainerStatus { state: status.last_state.clone(), ..status.clone() };
    let Cause { reason, message } = ended::container_end(pod, &last).unwrap_or_else(|| {
        let container = pod.describe_container(&status.name);
        let quoted = text::reported("its node", message);
        Cause::new(EndReason::Failed, format!("{container} ends soon after it starts{quoted}"))
    });
    let grace = if restarts < 3 { Duration::from_secs(60) } else { NONE };
    let message = format!("{message}; it was restarted {restarts} times, and ended each time");
    Stall::new(reason, grace, message)
}

/// All containers that can hold the pod, in the order in which they start.
fn statuses<'a>(pod: PodContext<'a>) -> impl Iterator<Item = &'a ContainerStatus> {
    let status = pod.status;
    let inits = status.and_then(|status| status.init_container_statuses.as_deref());
    let all = status.and_then(|status| status.container_statuses.as_deref());
    let others = all
        .unwrap_or_default()
        .iter()
        .filter(move |other| pod.main.is_none_or(|main| main.name != other.name));
    inits.unwrap_or_default().iter().chain(pod.main).chain(others)
}

fn waiting(status: &ContainerStatus) -> Option<(&ContainerStatus, &ContainerStateWaiting)> {
    Some((status, status.state.as_ref()?.waiting.as_ref()?))
}
