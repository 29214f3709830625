//! Why no node takes a pod, by what schedulers and autoscalers say.

use super::{MADE_LATER, PASSES, Stuck, text};
use crate::runner::EndReason;

/// Known words of a scheduler, what they mean, and the remedy.
struct Known(&'static [&'static str], &'static str, &'static str);

const KNOWN: [Known; 11] = [
    Known(&["insufficient cpu"], "not enough free CPUs", "ask for fewer `cpus`"),
    Known(&["insufficient memory"], "not enough free memory", "ask for less `memory`"),
    Known(
        &["insufficient ephemeral-storage"],
        "not enough free disk",
        "ask for less `ephemeral_storage`",
    ),
    Known(
        &[
            "insufficient nvidia.com/",
            "insufficient amd.com/",
            "insufficient google.com/tpu",
            "insufficient gpu.",
        ],
        "no free accelerator of the kind that it wants",
        "add nodes with that accelerator, or change it in the service's settings",
    ),
    Known(&["too many pods"], "no place for one more pod", "add nodes"),
    Known(
        &["node affinity/selector", "node selector", "node affinity", "incompatible with nodepool"],
        "no node of the kind that its settings want",
        "see the node selector in the service's settings",
    ),
    Known(
        &["taint"],
        "only nodes with a taint that it does not tolerate",
        "see the tolerations in the service's settings",
    ),
    Known(
        &["were unschedulable"],
        "only nodes that are closed to new pods",
        "uncordon a node, or wait for the upgrade to end",
    ),
    Known(
        &[
            "persistentvolume",
            "persistent volume",
            "pvc",
            "volume node affinity",
            "max volume count",
            "available volume zone",
            "free storage",
        ],
        "no node that can have its volume",
        "see the volumes in the service's settings",
    ),
    Known(
        &["affinity rules", "topology spread", "free ports", "no available disk"],
        "no node that its rules of placement allow",
        "see the service's settings",
    ),
    Known(&["no nodes available", "0/0 nodes"], "no nodes at all", "add nodes"),
];

/// What an autoscaler says where it would help, but cannot now: then waiting is right.
const LATER: &[&str] = &[
    "in backoff",
    "backoff after failed scale-up",
    "max node group size reached",
    "max cluster",
    "not ready for scale-up",
    "limit reached",
    "out of resources",
];

/// What a pod waits for that no node has taken, for the asker's log.
pub fn why(said: &str) -> String {
    let said = match text::quote(said) {
        quoted if quoted.is_empty() => String::new(),
        quoted => format!(": {quoted}"),
    };
    match lacks(&said) {
        Some((lacks, _)) => format!("the cluster has {lacks}{said}"),
        None => format!("no node has taken it yet{said}"),
    }
}

/// That a volume claim which the pod wants is not there, or has no volume.
pub fn claim(service: &str, said: &str) -> Option<Stuck> {
    if text::says(said, &["unbound immediate persistentvolumeclaims"]) {
        let message = format!(
            "`{service}` could not be started: a volume claim that its settings want gets no \
             volume{}; see the claim and its storage class",
            text::aside("the scheduler says", said)
        );
        return Some(Stuck::new(EndReason::Volume, PASSES, message));
    }
    let missing = text::says(said, &["persistentvolumeclaim \""])
        && text::says(said, &["not found", "is being deleted", "non-existent", "is lost"]);
    if !missing {
        return None;
    }
    let message = format!(
        "`{service}` could not be started: a volume claim that its settings want is not there{}; \
         make it, or see the volumes in the service's settings",
        text::aside("the scheduler says", said)
    );
    Some(Stuck::new(EndReason::Volume, MADE_LATER, message))
}

/// That no node will take the pod, and the autoscaler makes none for it.
pub fn never(service: &str, said: &str) -> Option<Stuck> {
    if text::says(said, LATER) {
        return None;
    }
    let quoted = text::aside("the autoscaler says", said);
    let message = match lacks(said) {
        Some((lacks, remedy)) => format!(
            "no node can take `{service}`: the cluster has {lacks}, and its autoscaler adds none \
             for it{quoted}; {remedy}"
        ),
        None => format!(
            "no node can take `{service}`, and the cluster's autoscaler adds none for it{quoted}; \
             ask for less, or see the service's settings"
        ),
    };
    Some(Stuck::new(EndReason::Unschedulable, PASSES, message))
}

/// What all of the known words mean, and their remedies.
fn lacks(said: &str) -> Option<(String, String)> {
    let fit = || KNOWN.iter().filter(|Known(texts, ..)| text::says(said, texts));
    let means: Vec<&str> = fit().map(|Known(_, means, _)| *means).collect();
    let remedies: Vec<&str> = fit().map(|Known(.., remedy)| *remedy).collect();
    if means.is_empty() { None } else { Some((means.join(", or "), remedies.join(", or "))) }
}
