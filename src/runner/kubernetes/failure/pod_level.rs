//! Pods that were ended, evicted or refused as a whole.

use super::pods::PodContext;
use super::text;
use crate::runner::{Cause, EndReason};

/// The reasons with which a kubelet refuses a pod that does not fit its node.
const MISPLACED: [&str; 7] = [
    "NodeAffinity",
    "MatchNodeSelector",
    "NodeName",
    "NodePorts",
    "TaintToleration",
    "PodOSNotSupported",
    "PodOSSelectorNodeLabelDoesNotMatch",
];

/// Why the pod was evicted, if it was (`DisruptionTarget`).
pub(super) fn eviction(pod: PodContext) -> Option<Cause> {
    let condition = pod.disruption()?;
    let message = condition.message.as_deref().unwrap_or_default();
    let why = match condition.reason.as_deref().unwrap_or_default() {
        "PreemptionByScheduler" => "to make room for a pod of higher priority",
        "EvictionByEvictionAPI" => "because the node is drained: an upgrade, or a scale-down",
        "DeletionByTaintManager" => "because the node does not answer, or takes no pods any more",
        "DeletionByPodGC" => "because the node no longer exists",
        "TerminationByKubelet" => {
            return Some(Cause::new(EndReason::Evicted, node_pressure(pod, message)));
        }
        _ => "by something in the cluster",
    };
    Some(Cause::new(EndReason::Evicted, removal(pod, why, message)))
}

/// That a client deleted the pod.
pub(super) fn deletion(pod: PodContext) -> Cause {
    let service = pod.service;
    Cause::new(
        EndReason::Deleted,
        format!("the pod of `{service}` was deleted in the cluster, by hand or with its Job"),
    )
}

/// Why the kubelet ended or refused the pod, where it reports that of the whole pod.
pub(super) fn by_kubelet(pod: PodContext) -> Option<Cause> {
    let status = pod.status?;
    let message = status.message.as_deref().unwrap_or_default();
    Some(match status.reason.as_deref().unwrap_or_default() {
        "" => return None,
        "Evicted"
            if text::contains_any(
                message,
                &["storage limit", "exceeds the total limit", "emptydir"],
            ) =>
        {
            storage(pod, message)
        }
        "Evicted" => Cause::new(EndReason::Evicted, node_pressure(pod, message) + "; ask again"),
        "Preempting" | "Preempted" => {
            final_removal(pod, "to make room for a critical pod", message)
        }
        "Terminated" | "NodeShutdown" | "Shutdown" => {
            final_removal(pod, "because the node was shut down", message)
        }
        "NodeLost" => final_removal(pod, "because the node does not answer", message),
        "DeadlineExceeded" => deadline(pod),
        reason => return refusal(pod, reason, message),
    })
}

/// Why a kubelet does not take a pod that the scheduler gave it.
fn refusal(pod: PodContext, reason: &str, message: &str) -> Option<Cause> {
    let (reason, why, remedy) = match reason {
        "VolumeAttachmentLimitExceeded" => {
            (EndReason::Volume, "can attach no more volumes".to_owned(), "ask again")
        }
        _ if reason.starts_with("OutOf") => {
            let what = text::quote(reason.trim_start_matches("OutOf"));
            let why = format!(
                "had not enough `{what}` left when it came, although the scheduler had counted on it"
            );
            (EndReason::Unschedulable, why, "ask again")
        }
        _ if MISPLACED.contains(&reason) => (
            EndReason::Unschedulable,
            "does not fit what its settings want of a node".to_owned(),
            "ask again, and see the node selector and the tolerations in the service's settings",
        ),
        _ if reason.ends_with("Error") || text::contains_any(message, &["pod was rejected"]) => (
            EndReason::NotStarted,
            format!("refused its pod with `{}`", text::quote(reason)),
            "ask again, and where that does not help, see the node's devices and the kubelet's log",
        ),
        _ => return None,
    };
    let message = format!(
        "`{}` could not start: {} {why}{}; {remedy}",
        pod.service,
        pod.node_name(),
        text::reported("it", message)
    );
    Some(Cause { reason, message })
}

fn storage(pod: PodContext, message: &str) -> Cause {
    let resources = pod.container.and_then(|container| container.resources.as_ref());
    let limit = text::limit(resources, "ephemeral-storage");
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let quoted = text::reported("its node", message);
    let service = pod.service;
    let message = if text::contains_any(message, &["emptydir"]) {
        format!(
            "`{service}` was ended because it wrote more to a volume than that may hold{quoted}; \
             raise the volume's size in the service's settings, or write less"
        )
    } else {
        format!(
            "`{service}` was ended because it wrote more to its disk than its limit{limit}{quoted}; \
             ask again with more `ephemeral_storage`, or raise the limit in the service's settings"
        )
    };
    Cause::new(EndReason::Storage, message)
}

fn deadline(pod: PodContext) -> Cause {
    let seconds = pod.spec.and_then(|spec| spec.active_deadline_seconds);
    let deadline = seconds.map_or_else(String::new, |seconds| format!(" of {seconds} s"));
    let service = pod.service;
    let message = if pod.started().is_some() {
        format!(
            "`{service}` was ended because it ran for longer than its deadline{deadline}; ask for \
             less at once, or raise the deadline in the service's settings"
        )
    } else {
        format!(
            "`{service}` was ended because it had a node for longer than its deadline{deadline}, \
             and did not start: see its image and its volumes, or raise the deadline in the \
             service's settings"
        )
    };
    Cause::new(EndReason::Deadline, message)
}

/// That the pod's node had too little of something left.
fn node_pressure(pod: PodContext, message: &str) -> String {
    let (why, resource) = if text::contains_any(message, &["memory"]) {
        ("because the node ran low on memory", "`memory`")
    } else if text::contains_any(message, &["ephemeral-storage", "diskpressure", "inodes"]) {
        ("because the node ran low on disk", "`ephemeral_storage`")
    } else if text::contains_any(message, &["critical pod"]) {
        return removal(pod, "to make room for a critical pod", message);
    } else if text::contains_any(message, &["shutdown", "shutting down"]) {
        return removal(pod, "because the node was shut down", message);
    } else {
        return removal(pod, "because the node ran low on something", message);
    };
    let removal = removal(pod, why, message);
    format!("{removal}; where it used more than it requested, ask with more {resource}")
}

/// That the pod was taken off its node.
fn removal(pod: PodContext, why: &str, message: &str) -> String {
    let rejected = text::contains_any(message, &["pod was rejected"]);
    let how = if rejected { "not taken by" } else { "taken off" };
    let quoted = text::reported("the cluster", message);
    format!("`{}` was {how} {} {why}{quoted}", pod.service, pod.node_name())
}

/// That the pod was taken off its node, and the Job creates no other.
fn final_removal(pod: PodContext, why: &str, message: &str) -> Cause {
    Cause::new(EndReason::Evicted, removal(pod, why, message) + "; ask again")
}
