//! Secrets, configurations and volumes that are not there.

use super::{MADE_LATER, PASSES, Stuck, text};
use crate::runner::EndReason;

/// How a kubelet says that a Secret, a ConfigMap, or a key of one is not there.
const MISSING: &[&str] = &["not found", "couldn't find key", "non-existent"];

/// What one is called in a message; and in ours.
const KINDS: [(&str, &str); 4] = [
    ("secret", "a secret, or a key of it,"),
    ("configmap", "a configuration (ConfigMap), or a key of it,"),
    ("config key", "a key of a configuration (ConfigMap)"),
    ("persistentvolumeclaim", "a volume claim"),
];

/// That something which the pod wants is not there, where the message says so.
pub fn missing(who: &str, said: &str) -> Option<Stuck> {
    // Not "in time": the kubelet's cache may be behind, and knows it.
    let unsure = text::says(said, &["timed out waiting for the condition", "not registered"]);
    if unsure || !text::says(said, MISSING) {
        return None;
    }
    let (_, what) = KINDS.iter().find(|(kind, _)| text::says(said, &[kind]))?;
    let message = format!(
        "{who} could not be started: {what} that its settings want is not there{}; make it in the \
         namespace of the questions, or see the service's settings",
        text::aside("its node says", said)
    );
    Some(Stuck::new(EndReason::Volume, MADE_LATER, message))
}

/// That a volume could not be mounted.
pub fn unmounted(who: &str, said: &str) -> Stuck {
    if let Some(missing) = missing(who, said) {
        return missing;
    }
    let quoted = text::aside("its node says", said);
    let denied = text::says(
        said,
        &["permissiondenied", "permission denied", "unauthenticated", "access denied", "forbidden"],
    );
    if denied {
        let message = format!(
            "{who} could not be started: a volume that its settings want may not be used by \
             it{quoted}; let its service account, or the nodes, use it"
        );
        return Stuck::new(EndReason::Volume, MADE_LATER, message);
    }
    let message = format!(
        "{who} could not be started: a volume that its settings want cannot be mounted{quoted}; \
         ask again, and where that does not help, see the volumes in the service's settings"
    );
    // That time is up says nothing of why.
    let vague = text::says(said, &["unmounted volumes="]);
    Stuck { vague, ..Stuck::new(EndReason::Volume, PASSES, message) }
}

/// That a volume could not be attached to the node.
pub fn unattached(who: &str, said: &str) -> Stuck {
    let busy =
        text::says(said, &["multi-attach", "already used by", "in use by", "already attached"]);
    let why = if busy {
        "another node has it, and it can be on one at a time"
    } else {
        "its node cannot have it"
    };
    let message = format!(
        "{who} could not be started: a volume that its settings want cannot be attached: {why}{}; \
         ask again when it is free, or see the volumes in the service's settings",
        text::aside("the cluster says", said)
    );
    Stuck::new(EndReason::Volume, PASSES, message)
}
