//! What is said of a whole pod that was ended, taken away or refused.

use super::pods::Subject;
use super::text;
use crate::runner::EndReason;

/// A reason, and words for the asker.
pub type Verdict = (EndReason, String);

/// With what names a kubelet says that its node is the wrong one.
const WRONG_NODE: [&str; 7] = [
    "NodeAffinity",
    "MatchNodeSelector",
    "NodeName",
    "NodePorts",
    "TaintToleration",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
];

/// That the pod was taken away, and by what, where it was.
pub fn taken(subject: Subject) -> Option<Verdict> {
    let condition = subject.disruption()?;
    let said = condition.message.as_deref().unwrap_or_default();
    let by = match condition.reason.as_deref().unwrap_or_default() {
        "PreemptionByScheduler" => "to make room for a pod of higher priority",
        "EvictionByEvictionAPI" => "because the node is drained: an upgrade, or a scale-down",
        "DeletionByTaintManager" => "because the node does not answer, or takes no pods any more",
        "DeletionByPodGC" => "because the node no longer exists",
        "TerminationByKubelet" => return Some((EndReason::Evicted, pressed(subject, said))),
        _ => "by something in the cluster",
    };
    Some((EndReason::Evicted, off(subject, by, said)))
}

/// That somebody deleted the pod.
pub fn deleted(subject: Subject) -> Verdict {
    let service = subject.service;
    let message =
        format!("the pod of `{service}` was deleted in the cluster, by hand or with its Job");
    (EndReason::Deleted, message)
}

/// What the kubelet says of the whole pod, where it ended or refused it.
pub fn by_kubelet(subject: Subject) -> Option<Verdict> {
    let status = subject.status?;
    let said = status.message.as_deref().unwrap_or_default();
    Some(match status.reason.as_deref().unwrap_or_default() {
        "" => return None,
        "Evicted"
            if text::says(said, &["storage limit", "exceeds the total limit", "emptydir"]) =>
        {
            storage(subject, said)
        }
        "Evicted" => (EndReason::Evicted, pressed(subject, said) + "; ask again"),
        "Preempting" | "Preempted" => off_once(subject, "to make room for a critical pod", said),
        "Terminated" | "NodeShutdown" | "Shutdown" => {
            off_once(subject, "because the node was shut down", said)
        }
        "NodeLost" => off_once(subject, "because the node does not answer", said),
        "DeadlineExceeded" => deadline(subject),
        reason => return refused(subject, reason, said),
    })
}

/// What a kubelet says that does not take a pod which the scheduler gave it.
fn refused(subject: Subject, reason: &str, said: &str) -> Option<Verdict> {
    let (reason, why, remedy) = match reason {
        "VolumeAttachmentLimitExceeded" => {
            (EndReason::Volume, "can attach no more volumes".to_owned(), "ask again")
        }
        _ if reason.starts_with("OutOf") => {
            let what = text::quote(reason.trim_start_matches("OutOf"));
            let why = format!(
                "had not enough `{what}` left when it came, though the scheduler had thought so"
            );
            (EndReason::Unschedulable, why, "ask again")
        }
        _ if WRONG_NODE.contains(&reason) => (
            EndReason::Unschedulable,
            "does not fit what its settings want of a node".to_owned(),
            "ask again, and see the node selector and the tolerations in the service's settings",
        ),
        _ if reason.ends_with("Error") || text::says(said, &["pod was rejected"]) => (
            EndReason::NotStarted,
            format!("refused its pod with `{}`", text::quote(reason)),
            "ask again, and where that does not help, see the node's devices and the kubelet's log",
        ),
        _ => return None,
    };
    let message = format!(
        "`{}` could not start: {} {why}{}; {remedy}",
        subject.service,
        subject.place(),
        text::aside("it says", said)
    );
    Some((reason, message))
}

fn storage(subject: Subject, said: &str) -> Verdict {
    let resources = subject.container.and_then(|container| container.resources.as_ref());
    let limit = text::limit(resources, "ephemeral-storage");
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let message = if text::says(said, &["emptydir"]) {
        format!(
            "`{}` was ended because it wrote more to a volume than that may hold{}; raise the \
             volume's size in the service's settings, or write less",
            subject.service,
            text::aside("its node says", said)
        )
    } else {
        format!(
            "`{}` was ended because it wrote more to its disk than its limit{limit}{}; ask again \
             with more `ephemeral_storage`, or raise the limit in the service's settings",
            subject.service,
            text::aside("its node says", said)
        )
    };
    (EndReason::Storage, message)
}

fn deadline(subject: Subject) -> Verdict {
    let seconds = subject.spec.and_then(|spec| spec.active_deadline_seconds);
    let deadline = seconds.map_or_else(String::new, |seconds| format!(" of {seconds} s"));
    let message = if subject.started().is_some() {
        format!(
            "`{}` was ended because it ran for longer than its deadline{deadline}; ask for less at \
             once, or raise the deadline in the service's settings",
            subject.service
        )
    } else {
        format!(
            "`{}` was ended because it had a node for longer than its deadline{deadline}, and did \
             not start: see its image and its volumes, or raise the deadline in the service's \
             settings",
            subject.service
        )
    };
    (EndReason::Deadline, message)
}

/// That the pod's node had too little left.
fn pressed(subject: Subject, said: &str) -> String {
    let (by, remedy) = if text::says(said, &["memory"]) {
        ("because the node ran low on memory", "`memory`")
    } else if text::says(said, &["ephemeral-storage", "diskpressure", "inodes"]) {
        ("because the node ran low on disk", "`ephemeral_storage`")
    } else if text::says(said, &["critical pod"]) {
        return off(subject, "to make room for a critical pod", said);
    } else if text::says(said, &["shutdown", "shutting down"]) {
        return off(subject, "because the node was shut down", said);
    } else {
        return off(subject, "because the node ran low on something", said);
    };
    let told = off(subject, by, said);
    format!("{told}; where it used more than it requested, ask with more {remedy}")
}

/// That the pod was taken off its node.
fn off(subject: Subject, by: &str, said: &str) -> String {
    let how = if text::says(said, &["pod was rejected"]) { "not taken by" } else { "taken off" };
    let said = text::aside("the cluster says", said);
    format!("`{}` was {how} {} {by}{said}", subject.service, subject.place())
}

/// The same, where the Job makes no other pod.
fn off_once(subject: Subject, by: &str, said: &str) -> Verdict {
    (EndReason::Evicted, off(subject, by, said) + "; ask again")
}
