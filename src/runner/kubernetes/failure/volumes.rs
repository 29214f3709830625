//! Secrets, ConfigMaps and volumes that a pod waits for.

use super::symptoms::{self, Symptom};
use super::{Stall, text};

/// That an object which the pod needs does not exist, where the message reports that.
pub(super) fn missing_object(container: &str, message: &str) -> Option<Stall> {
    // A kubelet whose cache is behind reports a timeout, and knows that it may be wrong.
    let unsure =
        text::contains_any(message, &["timed out waiting for the condition", "not registered"]);
    let symptom = symptoms::find(symptoms::MISSING_OBJECT, message).filter(|_| !unsure)?;
    Some(not_started(container, symptom, "its node", message))
}

/// That a volume cannot be mounted.
pub(super) fn mount_stall(container: &str, message: &str) -> Stall {
    if let Some(missing) = missing_object(container, message) {
        return missing;
    }
    let symptom = symptoms::classify(symptoms::VOLUME_MOUNT, message);
    // A timeout alone is no cause.
    let vague =
        symptom.fragments.is_empty() && text::contains_any(message, &["unmounted volumes="]);
    Stall { vague, ..not_started(container, symptom, "its node", message) }
}

/// That a volume cannot be attached to the node.
pub(super) fn attach_stall(container: &str, message: &str) -> Stall {
    let symptom = symptoms::classify(symptoms::VOLUME_ATTACH, message);
    not_started(container, symptom, "the cluster", message)
}

/// That a volume claim which the pod needs does not exist, or has no volume.
pub(super) fn claim_stall(service: &str, message: &str) -> Option<Stall> {
    let symptom = symptoms::find(symptoms::VOLUME_CLAIM, message)?;
    Some(not_started(&format!("`{service}`"), symptom, "the scheduler", message))
}

/// A container that could not be started, for a cause that is not in its image.
pub(super) fn not_started(container: &str, symptom: &Symptom, by: &str, message: &str) -> Stall {
    let quoted = text::reported(by, message);
    let message = format!(
        "{container} could not be started: {}{quoted}; {}",
        symptom.meaning, symptom.remedy
    );
    Stall::from_symptom(symptom, message)
}
