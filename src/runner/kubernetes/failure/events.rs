//! Events: what is reported of a pod or a Job beside its own state.

use super::symptoms;
use super::{Stall, images, scheduling, text, volumes};
use k8s_openapi::api::core::v1::Event;

/// Why the subject of an event makes no progress, where the event reports that.
pub(super) fn stall(event: &Event, service: &str) -> Option<Stall> {
    let message = event.message.as_deref().unwrap_or_default();
    let who = format!("`{service}`");
    match event.reason.as_deref()? {
        "NotTriggerScaleUp" => scheduling::no_scale_up(service, message),
        // The messages of the cluster's own scheduler are in the pod as well; Karpenter adds nodes.
        "FailedScheduling" if source(event).contains("karpenter") => {
            scheduling::no_scale_up(service, message)
        }
        "FailedScheduling" => volumes::claim_stall(service, message),
        "FailedMount" | "FailedMapVolume" => Some(volumes::mount_stall(&who, message)),
        "FailedAttachVolume" => Some(volumes::attach_stall(&who, message)),
        "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady" => {
            let symptom = symptoms::classify(symptoms::SANDBOX, message);
            Some(volumes::not_started(&who, symptom, "its node", message))
        }
        "FailedPrepareDynamicResources" => {
            Some(volumes::not_started(&who, &symptoms::DEVICE, "its node", message))
        }
        "FailedCreate"
            if event.involved_object.kind.as_deref().is_none_or(|kind| kind == "Job") =>
        {
            Some(denied_pod(service, message))
        }
        "Failed" if message.starts_with("Failed to pull image") => {
            Some(images::pull_stall(&who, quoted(message), message))
        }
        _ => None,
    }
}

/// Whether an event reports progress.
pub(super) fn shows_progress(event: &Event) -> bool {
    let reason = event.reason.as_deref().unwrap_or_default();
    [
        "TriggeredScaleUp",
        "Nominated",
        "Scheduled",
        "SuccessfulCreate",
        "SuccessfulAttachVolume",
        "Pulled",
        "Created",
        "Started",
    ]
    .contains(&reason)
}

/// A pod that its Job may not create.
fn denied_pod(service: &str, message: &str) -> Stall {
    let symptom = symptoms::classify(symptoms::POD_CREATION, message);
    let quoted = text::reported("the API server", message);
    let message = format!(
        "no pod could be made for `{service}`: {}{quoted}; {}",
        symptom.meaning, symptom.remedy
    );
    Stall::from_symptom(symptom, message)
}

/// The component that reports the event.
fn source(event: &Event) -> &str {
    let old = event.source.as_ref().and_then(|source| source.component.as_deref());
    let new = event.reporting_component.as_deref();
    new.filter(|name| !name.is_empty()).or(old).unwrap_or_default()
}

/// The text between the first two quotation marks.
fn quoted(message: &str) -> &str {
    message.split('"').nth(1).unwrap_or_default()
}
