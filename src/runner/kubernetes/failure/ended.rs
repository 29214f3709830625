//! How a pod ended that has ended.

use super::pod_level::{self, Verdict};
use super::pods::Subject;
use super::{PodState, container_start, text};
use crate::event::Timestamp;
use crate::runner::{EndReason, RunEnd};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};

/// What a pod says of which nothing runs any more.
pub fn ended(subject: Subject) -> PodState {
    let failed = subject.phase() == "Failed";
    let (reason, message) = verdict(subject, failed);
    let end = RunEnd {
        at: when(subject),
        started: subject.started(),
        reason,
        message,
        tail: tail(subject),
    };
    PodState::Ended { end, disrupted: failed && subject.disruption().is_some() }
}

/// How the container of this status ended, if it has.
pub fn container(subject: Subject, status: &ContainerStatus) -> Option<Verdict> {
    let terminated = terminated(status)?;
    let who = subject.called(&status.name);
    Some(exit(subject, &who, status, terminated))
}

fn verdict(subject: Subject, failed: bool) -> Verdict {
    let told = if failed {
        pod_level::taken(subject).or_else(|| pod_level::by_kubelet(subject))
    } else {
        None
    };
    if let Some(told) = told {
        return told;
    }
    if let Some((status, terminated)) = culprit(subject)
        && (terminated.exit_code == 0 || oom(terminated) || !after_deletion(subject, terminated))
    {
        return of(subject, status, terminated);
    }
    if subject.pod.metadata.deletion_timestamp.is_some() && failed {
        let (reason, message) = pod_level::deleted(subject);
        return (reason, message + "; ask again");
    }
    let who = format!("`{}`", subject.service);
    if !failed {
        return (EndReason::Exited, without_result(&who));
    }
    let said = subject.status.and_then(|status| status.message.as_deref()).unwrap_or_default();
    let said = text::aside("all that it says", said);
    (EndReason::Lost, format!("the pod of {who} failed, and nobody says how{said}; ask again"))
}

/// The container by whose end the pod ended: the service's, or an init container before it.
fn culprit<'a>(
    subject: Subject<'a>,
) -> Option<(&'a ContainerStatus, &'a ContainerStateTerminated)> {
    let init = subject.inits().find(|init| fell(init));
    let main = subject.main.filter(|main| terminated(main).is_some());
    let status = main.or(init)?;
    Some((status, terminated(status)?))
}

/// How the pod ended by the end of one container.
fn of(
    subject: Subject,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Verdict {
    let (reason, message) = exit(subject, &subject.called(&status.name), status, terminated);
    if subject.main.is_some_and(|main| main.name == status.name) {
        return (reason, message + &beside(subject, status, terminated));
    }
    // The service never began, whatever ended before it.
    let reason = if reason == EndReason::Memory { reason } else { EndReason::NotStarted };
    (reason, format!("{message}; `{}` was not started", subject.service))
}

/// How one container ended. `who` names it.
fn exit(
    subject: Subject,
    who: &str,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Verdict {
    let said = terminated.message.as_deref().unwrap_or_default();
    match terminated.reason.as_deref().unwrap_or_default() {
        _ if oom(terminated) => return memory(subject, who, status, terminated),
        reason if !began(terminated, reason) => {
            return container_start::refused(who, image(subject, status), said);
        }
        "ContainerStatusUnknown" => {
            let message = format!(
                "{who} is gone, and {} does not know how it ended: the node or its container \
                 runtime was restarted; ask again",
                subject.place()
            );
            return (EndReason::Lost, message);
        }
        _ => {}
    }
    let signal = terminated.signal.filter(|signal| *signal > 0);
    match (terminated.exit_code, signal) {
        (0, None) => (EndReason::Exited, without_result(who)),
        (code @ (126 | 127), None) => (EndReason::NotStarted, no_command(who, code)),
        (code, Some(signal)) => (EndReason::Killed, killed(who, code, signal)),
        (code @ 129..=192, None) => (EndReason::Killed, killed(who, code, code - 128)),
        (code, None) => (
            EndReason::Failed,
            format!("{who} ended with exit code {code}; see the last lines of its output"),
        ),
    }
}

/// Whether a container was started at all.
fn began(terminated: &ContainerStateTerminated, reason: &str) -> bool {
    let started = text::moment(terminated.started_at.as_ref()).is_some();
    let printed = terminated.message.as_deref().unwrap_or_default();
    match (reason, terminated.exit_code) {
        ("StartError" | "ContainerCannotRun" | "RunContainerError", _) => false,
        ("Error", 128) => started,
        ("Error", _) => !container_start::not_executed(printed),
        _ => true,
    }
}

fn without_result(who: &str) -> String {
    format!(
        "{who} ended with exit code 0, but without a result: its code may have ended early, or the \
         SDK found the question invalid; see its log, and what its code returns"
    )
}

fn oom(terminated: &ContainerStateTerminated) -> bool {
    terminated.reason.as_deref() == Some("OOMKilled")
        || text::says(terminated.message.as_deref().unwrap_or_default(), &["init was oom-killed"])
}

fn memory(
    subject: Subject,
    who: &str,
    status: &ContainerStatus,
    terminated: &ContainerStateTerminated,
) -> Verdict {
    let asked = subject.asked(&status.name).and_then(|container| container.resources.as_ref());
    let has = status.resources.as_ref();
    let request = text::requested(has, "memory").or_else(|| text::requested(asked, "memory"));
    let limit = text::limit(has, "memory").or_else(|| text::limit(asked, "memory"));
    let request = request.map_or_else(
        || "it requested no memory".to_owned(),
        |request| format!("it requested {request}"),
    );
    let what = if terminated.exit_code == 0 {
        format!("a process of {who} was killed for the memory that it took, and the rest ended")
    } else {
        format!("{who} was killed for the memory that it took (exit code {})", terminated.exit_code)
    };
    let message = match limit {
        Some(limit) => format!(
            "{what}: its limit is {limit}, and {request}; ask again with more `memory`, or raise \
             the limit in the service's settings"
        ),
        None => format!(
            "{what}: {} ran out of memory; {request}, and has no limit; ask again with as much \
             `memory` as it really takes",
            subject.place()
        ),
    };
    (EndReason::Memory, message)
}

fn no_command(who: &str, code: i32) -> String {
    let what = if code == 127 { "does not exist" } else { "cannot be executed" };
    format!(
        "{who} ended with exit code {code}, with which a shell says that a command {what}; see the \
         last lines of its output, and the image's entry point"
    )
}

fn killed(who: &str, code: i32, signal: i32) -> String {
    let why = match signal {
        9 => "by the cluster or by hand, or for lack of memory of the node",
        1..=3 | 15 => "somebody told it to stop: the cluster, or a hand",
        4 => "its machine code wants another processor than its node has",
        7 | 8 | 11 => "a fault in its machine code, often that of a compiled package",
        31 => "it made a system call that the cluster does not let it make",
        _ => "see the last lines of its output",
    };
    let name = text::signal(signal);
    format!("{who} was killed by signal {signal} ({name}; exit code {code}): {why}")
}

/// What is to be added where another container failed beside the service's.
fn beside(subject: Subject, main: &ContainerStatus, told: &ContainerStateTerminated) -> String {
    let statuses = subject.status.and_then(|status| status.container_statuses.as_deref());
    let other =
        statuses.unwrap_or_default().iter().find(|other| other.name != main.name && fell(other));
    match other.and_then(|other| Some((other, terminated(other)?))) {
        Some((other, how)) if told.exit_code == 0 => format!(
            "; beside it the container `{}` ended with exit code {}",
            text::quote(&other.name),
            how.exit_code
        ),
        _ => String::new(),
    }
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn fell(status: &ContainerStatus) -> bool {
    terminated(status).is_some_and(|terminated| terminated.exit_code != 0)
}

/// Whether a container ended only after somebody had asked for its pod's deletion. (A pod that has
/// ended is deleted some day as well.)
fn after_deletion(subject: Subject, terminated: &ContainerStateTerminated) -> bool {
    let Some(deletion) = text::moment(subject.pod.metadata.deletion_timestamp.as_ref()) else {
        return false;
    };
    // The kubelet's own deletion, when all has ended, leaves a grace of 0 and counts a second.
    let grace = subject.pod.metadata.deletion_grace_period_seconds.unwrap_or_default().max(1);
    let asked = deletion.0.saturating_sub(grace.saturating_mul(1_000_000));
    text::moment(terminated.finished_at.as_ref()).is_none_or(|finished| finished.0 >= asked)
}

fn image<'a>(subject: Subject<'a>, status: &'a ContainerStatus) -> &'a str {
    let asked = subject.asked(&status.name).and_then(|container| container.image.as_deref());
    asked.unwrap_or(&status.image)
}

/// What the container printed last whose end is told.
fn tail(subject: Subject) -> Vec<String> {
    let Some((_, told)) = culprit(subject) else {
        return Vec::new();
    };
    let by_runtime = ["StartError", "ContainerCannotRun", "ContainerStatusUnknown"];
    if by_runtime.contains(&told.reason.as_deref().unwrap_or_default()) {
        return Vec::new();
    }
    text::tail(told.message.as_deref().unwrap_or_default())
}

/// When the pod ended: always the same moment, whoever looks.
fn when(subject: Subject) -> Timestamp {
    let statuses = subject.status.and_then(|status| status.container_statuses.as_deref());
    let finished = statuses.unwrap_or_default().iter().chain(subject.inits());
    let finished =
        finished.filter_map(|status| text::moment(terminated(status)?.finished_at.as_ref()));
    let ready = subject.condition("Ready").and_then(|ready| ready.last_transition_time.as_ref());
    let taken = subject.disruption().and_then(|taken| taken.last_transition_time.as_ref());
    finished
        .max()
        .or_else(|| text::moment(taken))
        .or_else(|| text::moment(subject.pod.metadata.deletion_timestamp.as_ref()))
        .or_else(|| text::moment(ready))
        .unwrap_or_else(|| subject.born())
}
