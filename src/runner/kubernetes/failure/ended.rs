//! How a pod ended.

use super::pods::PodContext;
use super::{PodState, container_start, pod_level, text};
use crate::event::Timestamp;
use crate::runner::cause::{Cause, SignalSenders};
use crate::runner::{EndReason, RunEnd};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};

/// Who sends signals to a container.
const SENDERS: SignalSenders = SignalSenders {
    kill: "by the cluster or by hand, or for lack of memory of the node",
    terminate: "the cluster or a person asked it to stop",
};

/// The offset of a signal's number in an exit code.
const SIGNAL_OFFSET: i32 = 128;

/// The state of a pod of which nothing runs any more.
pub(super) fn pod_end(pod: PodContext) -> PodState {
    let failed = pod.phase() == "Failed";
    let cause = pod_cause(pod, failed);
    let end = RunEnd { at: ended_at(pod), started: pod.started(), cause, tail: tail(pod) };
    PodState::Ended { end, disrupted: failed && pod.disruption().is_some() }
}

/// How the container of this status ended; `None` if it has not.
pub(super) fn container_end(pod: PodContext, status: &ContainerStatus) -> Option<Cause> {
    let terminated = terminated(status)?;
    let container = pod.describe_container(&status.name);
    Some(container_cause(pod, &container, status, terminated))
}

fn pod_cause(pod: PodContext, failed: bool) -> Cause {
    let of_whole_pod =
        if failed { pod_level::eviction(pod).or_else(|| pod_level::by_kubelet(pod)) } else { None };
    if let Some(cause) = of_whole_pod {
        return cause;
    }
    if let Some((status, terminated)) = decisive_container(pod)
        && (terminated.exit_code == 0
            || is_out_of_memory(terminated)
            || !ended_after_deletion(pod, terminated))
    {
        return pod_cause_by_container(pod, status, terminated);
    }
    if pod.pod.metadata.deletion_timestamp.is_some() && failed {
        let Cause { reason, message } = pod_level::deletion(pod);
        return Cause::new(reason, message + "; ask again");
    }
    let service = format!("`{}`", pod.service);
    if !failed {
        return Cause::new(EndReason::Exited, without_result(&service));
    }
    let message = pod.status.and_then(|status| status.message.as_deref()).unwrap_or_default();
    let quoted = text::reported("it", message);
    Cause::new(
        EndReason::Lost,
        format!("the pod of {service} failed, and nobody knows how{quoted}; ask again"),
    )
}

/// The container by whose end the pod ended: the service's, or an init container before it.
fn decisive_container<'a>(
    pod: PodContext<'a>,
) -> Option<(&'a ContainerStatus, &'a ContainerStateTerminated)> {
    let init = pod.init_statuses().find(|init| has_failed(init));
    let main = pod.main.filter(|main| terminated(main).is_some());
    let status = main.or(init)?;
    Some((status, terminated(status)?))
}

/// How the pod ended by the end of one container.
fn pod_cause_by_container(
    pod: PodContext,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Cause {
    let container = pod.describe_container(&status.name);
    let Cause { reason, message } = container_cause(pod, &container, status, terminated);
    if pod.main.is_some_and(|main| main.name == status.name) {
        return Cause::new(reason, message + &failed_sidecar(pod, status, terminated));
    }
    // The service never began, whatever ended before it.
    let reason = if reason == EndReason::Memory { reason } else { EndReason::NotStarted };
    Cause::new(reason, format!("{message}; `{}` was not started", pod.service))
}

/// How one container ended.
fn container_cause(
    pod: PodContext,
    container: &str,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Cause {
    let message = terminated.message.as_deref().unwrap_or_default();
    match terminated.reason.as_deref().unwrap_or_default() {
        _ if is_out_of_memory(terminated) => {
            return out_of_memory(pod, container, status, terminated);
        }
        reason if !has_begun(terminated, reason) => {
            return container_start::cause(container, image(pod, status), message);
        }
        "ContainerStatusUnknown" => {
            let message = format!(
                "{container} is gone, and {} does not know how it ended: the node or its container \
                 runtime was restarted; ask again",
                pod.node_name()
            );
            return Cause::new(EndReason::Lost, message);
        }
        _ => {}
    }
    let signal = terminated.signal.filter(|signal| *signal > 0);
    match (terminated.exit_code, signal) {
        (0, None) => Cause::new(EndReason::Exited, without_result(container)),
        (code @ (126 | 127), None) => {
            Cause::new(EndReason::NotStarted, bad_command(container, code))
        }
        (code, Some(signal)) => Cause::killed(container, signal, Some(code), SENDERS),
        (code @ 129..=192, None) => {
            Cause::killed(container, code - SIGNAL_OFFSET, Some(code), SENDERS)
        }
        (code, None) => Cause::new(
            EndReason::Failed,
            format!("{container} ended with exit code {code}; see the last lines of its output"),
        ),
    }
}

/// Whether a container was started at all.
fn has_begun(terminated: &ContainerStateTerminated, reason: &str) -> bool {
    let started = text::timestamp(terminated.started_at.as_ref()).is_some();
    let output = terminated.message.as_deref().unwrap_or_default();
    match (reason, terminated.exit_code) {
        ("StartError" | "ContainerCannotRun" | "RunContainerError", _) => false,
        ("Error", 128) => started,
        ("Error", _) => !container_start::is_exec_failure(output),
        _ => true,
    }
}

fn without_result(container: &str) -> String {
    format!(
        "{container} ended with exit code 0, but without a result: its code may have ended early, \
         or the SDK found the question invalid; see its log, and what its code returns"
    )
}

fn is_out_of_memory(terminated: &ContainerStateTerminated) -> bool {
    let message = terminated.message.as_deref().unwrap_or_default();
    terminated.reason.as_deref() == Some("OOMKilled")
        || text::contains_any(message, &["init was oom-killed"])
}

fn out_of_memory(
    pod: PodContext,
    container: &str,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Cause {
    let spec = pod.container_spec(&status.name).and_then(|spec| spec.resources.as_ref());
    let actual = status.resources.as_ref();
    let request = text::requested(actual, "memory").or_else(|| text::requested(spec, "memory"));
    let limit = text::limit(actual, "memory").or_else(|| text::limit(spec, "memory"));
    let request = request.map_or_else(
        || "it requested no memory".to_owned(),
        |request| format!("it requested {request}"),
    );
    let code = terminated.exit_code;
    let what = if code == 0 {
        format!(
            "a process of {container} was killed for the memory that it took, and the rest ended"
        )
    } else {
        format!("{container} was killed for the memory that it took (exit code {code})")
    };
    let message = match limit {
        Some(limit) => format!(
            "{what}: its limit is {limit}, and {request}; ask again with more `memory`, or raise \
             the limit in the service's settings"
        ),
        None => format!(
            "{what}: {} ran out of memory; {request}, and has no limit; ask again with as much \
             `memory` as it really takes",
            pod.node_name()
        ),
    };
    Cause::new(EndReason::Memory, message)
}

fn bad_command(container: &str, code: i32) -> String {
    let what = if code == 127 { "does not exist" } else { "cannot be executed" };
    format!(
        "{container} ended with exit code {code}, by which a shell reports that a command {what}; \
         see the last lines of its output, and the image's entry point"
    )
}

/// An addition to the message, where another container failed beside one that ended without error.
fn failed_sidecar(
    pod: PodContext,
    main: &ContainerStatus,
    main_end: &ContainerStateTerminated,
) -> String {
    let statuses = pod.status.and_then(|status| status.container_statuses.as_deref());
    let other = statuses
        .unwrap_or_default()
        .iter()
        .find(|other| other.name != main.name && has_failed(other));
    match other.and_then(|other| Some((other, terminated(other)?))) {
        Some((other, end)) if main_end.exit_code == 0 => format!(
            "; beside it the container `{}` ended with exit code {}",
            text::quote(&other.name),
            end.exit_code
        ),
        _ => String::new(),
    }
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn has_failed(status: &ContainerStatus) -> bool {
    terminated(status).is_some_and(|terminated| terminated.exit_code != 0)
}

/// Whether a container ended only after a client had deleted its pod. (A pod that has ended is
/// deleted some day as well.)
fn ended_after_deletion(pod: PodContext, terminated: &ContainerStateTerminated) -> bool {
    let metadata = &pod.pod.metadata;
    let Some(deletion) = text::timestamp(metadata.deletion_timestamp.as_ref()) else {
        return false;
    };
    // The deletion timestamp is the request plus the grace. The kubelet's own deletion, after all
    // containers have ended, leaves a grace of 0 and still takes a second.
    let grace = metadata.deletion_grace_period_seconds.unwrap_or_default().max(1);
    let requested = deletion.0.saturating_sub(grace.saturating_mul(1_000_000));
    text::timestamp(terminated.finished_at.as_ref()).is_none_or(|finished| finished.0 >= requested)
}

fn image<'a>(pod: PodContext<'a>, status: &'a ContainerStatus) -> &'a str {
    let spec = pod.container_spec(&status.name).and_then(|spec| spec.image.as_deref());
    spec.unwrap_or(&status.image)
}

/// The last output of the container by whose end the pod ended.
fn tail(pod: PodContext) -> Vec<String> {
    let Some((_, terminated)) = decisive_container(pod) else {
        return Vec::new();
    };
    let by_runtime = ["StartError", "ContainerCannotRun", "ContainerStatusUnknown"];
    if by_runtime.contains(&terminated.reason.as_deref().unwrap_or_default()) {
        return Vec::new();
    }
    text::tail(terminated.message.as_deref().unwrap_or_default())
}

/// When the pod ended: the same time for every observer.
fn ended_at(pod: PodContext) -> Timestamp {
    let statuses = pod.status.and_then(|status| status.container_statuses.as_deref());
    let finished = statuses.unwrap_or_default().iter().chain(pod.init_statuses());
    let finished =
        finished.filter_map(|status| text::timestamp(terminated(status)?.finished_at.as_ref()));
    let ready = pod.condition("Ready").and_then(|ready| ready.last_transition_time.as_ref());
    let evicted = pod.disruption().and_then(|evicted| evicted.last_transition_time.as_ref());
    finished
        .max()
        .or_else(|| text::timestamp(evicted))
        .or_else(|| text::timestamp(pod.pod.metadata.deletion_timestamp.as_ref()))
        .or_else(|| text::timestamp(ready))
        .unwrap_or_else(|| pod.created())
}
