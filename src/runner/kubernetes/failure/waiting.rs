//! A container that waits: for what, and whether it will wait for ever.

use super::pods::Subject;
use super::{
    AT_ONCE, MADE_LATER, PASSES, SOON, Stuck, container_start, ended, images, text, volumes,
};
use crate::runner::EndReason;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus};
use std::time::Duration;

/// What a pod waits for that has a node.
pub fn why(subject: Subject) -> String {
    let place = subject.place();
    let init = subject
        .inits()
        .find(|init| init.state.as_ref().is_some_and(|state| state.running.is_some()));
    if let Some(init) = init {
        return format!("its init container `{}` runs", text::quote(&init.name));
    }
    let Some((_, waiting)) = statuses(subject).find_map(waits) else {
        return format!("{place} has not begun with it yet");
    };
    match waiting.reason.as_deref().unwrap_or_default() {
        "" | "ContainerCreating" | "PodInitializing" => {
            format!("{place} fetches its image and prepares its volumes")
        }
        reason => {
            let said = text::aside("it says", waiting.message.as_deref().unwrap_or_default());
            format!("{place} cannot start it yet: {}{said}", text::quote(reason))
        }
    }
}

/// Why a pod that has a node will not go on by itself, where one of its containers says so.
pub fn stuck(subject: Subject) -> Option<Stuck> {
    statuses(subject).filter_map(waits).find_map(|(status, waiting)| held(subject, status, waiting))
}

fn held(
    subject: Subject,
    status: &ContainerStatus,
    waiting: &ContainerStateWaiting,
) -> Option<Stuck> {
    let who = subject.called(&status.name);
    let said = waiting.message.as_deref().unwrap_or_default();
    let asked = subject.asked(&status.name).and_then(|container| container.image.as_deref());
    let image = asked.unwrap_or(&status.image);
    let (reason, patience, message) = match waiting.reason.as_deref()? {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "CrashLoopBackOff" => return Some(loops(subject, status, said)),
        reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            return Some(unmade(&who, image, reason, said));
        }
        reason if images::KUBELET.contains(&reason) => {
            return Some(images::refused(&who, image, reason, said));
        }
        reason @ ("PostStartHookError" | "PreStartHookError" | "PreCreateHookError") => {
            let message = format!(
                "{who} could not be started: a hook around its start failed with `{reason}`{}; see \
                 the hooks in the service's settings",
                text::aside("its node says", said)
            );
            (EndReason::NotStarted, MADE_LATER, message)
        }
        reason => {
            let message = format!(
                "{who} does not start: {} holds it with `{}`{}; ask again, and where that does not \
                 help, see the node",
                subject.place(),
                text::quote(reason),
                text::aside("it says", said)
            );
            (EndReason::NotStarted, PASSES, message)
        }
    };
    Some(Stuck::new(reason, patience, message))
}

/// A container that its node could not make, or not start.
fn unmade(who: &str, image: &str, reason: &str, said: &str) -> Stuck {
    if text::says(said, &["runasnonroot"]) {
        let message = format!(
            "{who} could not be started: the image `{}` runs as root, or does not say as whom by \
             number, and the cluster lets nothing run as root{}; set a numeric user in the image \
             (`USER 1000`)",
            text::quote(image),
            text::aside("its node says", said)
        );
        return Stuck::new(EndReason::NotStarted, SOON, message);
    }
    if let Some(missing) = volumes::missing(who, said) {
        return missing;
    }
    // The same container is being made by an earlier call, on a node that is slow.
    let slow = text::says(said, &["context deadline exceeded", "failed to reserve container name"]);
    let (reason, message) = match reason {
        "CreateContainerConfigError" => (
            EndReason::NotStarted,
            format!(
                "{who} could not be started: what its settings want cannot be had{}; see its \
                 environment, secrets and volumes in the service's settings",
                text::aside("its node says", said)
            ),
        ),
        _ => container_start::refused(who, image, said),
    };
    Stuck::new(reason, if slow { PASSES } else { MADE_LATER }, message)
}

/// A container that is started again and again: none of ours, which are never restarted, but the
/// reference's Jobs and what a cluster adds may be.
fn loops(subject: Subject, status: &ContainerStatus, said: &str) -> Stuck {
    let restarts = status.restart_count;
    let again = format!("it was started {restarts} times again, and ended each time");
    let last = ContainerStatus { state: status.last_state.clone(), ..status.clone() };
    let (reason, message) = ended::container(subject, &last).unwrap_or_else(|| {
        let who = subject.called(&status.name);
        let message =
            format!("{who} ends soon after it starts{}", text::aside("its node says", said));
        (EndReason::Failed, message)
    });
    let patience = if restarts < 3 { Duration::from_secs(60) } else { AT_ONCE };
    Stuck::new(reason, patience, format!("{message}; {again}"))
}

/// All containers that can hold the pod: first those that come first.
fn statuses<'a>(subject: Subject<'a>) -> impl Iterator<Item = &'a ContainerStatus> {
    let status = subject.status;
    let inits = status.and_then(|status| status.init_container_statuses.as_deref());
    let all = status.and_then(|status| status.container_statuses.as_deref());
    let others = all
        .unwrap_or_default()
        .iter()
        .filter(move |other| subject.main.is_none_or(|main| main.name != other.name));
    inits.unwrap_or_default().iter().chain(subject.main).chain(others)
}

fn waits(status: &ContainerStatus) -> Option<(&ContainerStatus, &ContainerStateWaiting)> {
    Some((status, status.state.as_ref()?.waiting.as_ref()?))
}
