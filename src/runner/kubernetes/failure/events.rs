//! Events: what is said of a pod or a Job beside its own state.

use super::{MADE_LATER, PASSES, SOON, Stuck, images, scheduling, text, volumes};
use crate::runner::EndReason;
use k8s_openapi::api::core::v1::Event;
use std::time::Duration;

/// What an event about a pod or a Job of `service` says of why it does not go on.
pub fn stuck(event: &Event, service: &str) -> Option<Stuck> {
    let said = event.message.as_deref().unwrap_or_default();
    let who = format!("`{service}`");
    match event.reason.as_deref()? {
        "NotTriggerScaleUp" => scheduling::never(service, said),
        // What the cluster's own scheduler says is in the pod as well; this one makes nodes.
        "FailedScheduling" if source(event).contains("karpenter") => {
            scheduling::never(service, said)
        }
        "FailedScheduling" => scheduling::claim(service, said),
        "FailedMount" | "FailedMapVolume" => Some(volumes::unmounted(&who, said)),
        "FailedAttachVolume" => Some(volumes::unattached(&who, said)),
        "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" => Some(sandbox(service, said)),
        "NetworkNotReady" => Some(sandbox(service, said)),
        "FailedPrepareDynamicResources" => {
            let message = format!(
                "`{service}` could not be started: its node cannot give it a device that it \
                 wants{}; ask again, and where that does not help, see the node's drivers",
                text::aside("it says", said)
            );
            Some(Stuck::new(EndReason::NotStarted, PASSES, message))
        }
        "FailedCreate"
            if event.involved_object.kind.as_deref().is_none_or(|kind| kind == "Job") =>
        {
            Some(denied(service, said))
        }
        "Failed" if said.starts_with("Failed to pull image") => {
            Some(images::pull(&who, quoted(said), said))
        }
        _ => None,
    }
}

/// Whether an event says that what it is about goes on.
pub fn shows_progress(event: &Event) -> bool {
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

/// A pod whose surroundings its node cannot make: its network, or the sandbox itself.
fn sandbox(service: &str, said: &str) -> Stuck {
    let quoted = text::aside("it says", said);
    if text::says(said, &["no runtime for", "runtimehandler", "runtimeclass"]) {
        let message = format!(
            "`{service}` could not be started: its node does not have the container runtime that \
             its settings want{quoted}; see the runtime class and the node selector in the \
             service's settings"
        );
        return Stuck::new(EndReason::NotStarted, MADE_LATER, message);
    }
    if text::says(said, &["oom-killed", "memory limit too low"]) {
        let message = format!(
            "`{service}` could not be started: its limit of memory is too low for its pod to begin \
             in{quoted}; ask again with more `memory`, or raise the limit in the service's settings"
        );
        return Stuck::new(EndReason::Memory, SOON, message);
    }
    let network = ["network", "cni", "ip address", "no ip addresses", "address range"];
    let why = if text::says(said, &network) {
        "its node cannot give it a network (it may have no address left)"
    } else {
        "its node cannot make its sandbox"
    };
    let message = format!(
        "`{service}` could not be started: {why}{quoted}; ask again, and where that does not help, \
         see the node"
    );
    Stuck::new(EndReason::NotStarted, PASSES, message)
}

/// What the API server says where it does not take a pod: known words of it, how long it is given
/// (the Job is tried again by its controller), what that means, and the remedy.
struct Known(&'static [&'static str], Duration, &'static str, &'static str);

const KNOWN: [Known; 11] = [
    Known(
        &["exceeded quota"],
        PASSES,
        "the namespace's quota has no room for it",
        "ask when others have ended, ask for less, or raise the ResourceQuota",
    ),
    Known(
        &["failed quota", "must specify"],
        SOON,
        "the namespace's quota wants requests or limits that it does not have",
        "set them in the service's settings",
    ),
    Known(
        &[
            "violates podsecurity",
            "pod security",
            "podsecuritypolic",
            "security context constraint",
        ],
        SOON,
        "it breaks the namespace's rules of pod security",
        "see the image and the service's settings, or the namespace's `pod-security` labels",
    ),
    Known(
        &["serviceaccount", "service account"],
        MADE_LATER,
        "the service account that it wants is not there",
        "make the account in the namespace of the questions, or see the service's settings",
    ),
    Known(
        &["usage per container", "usage per pod", "limit to request ratio", "limitrange"],
        SOON,
        "it asks for more or less than the namespace's LimitRange lets one have",
        "ask for what is allowed, or change the LimitRange",
    ),
    Known(
        &["priorityclass"],
        MADE_LATER,
        "the priority class that it wants is not there",
        "make it, or see the service's settings",
    ),
    Known(
        &["runtimeclass"],
        MADE_LATER,
        "the runtime class that it wants is not there",
        "make it, or see the service's settings",
    ),
    Known(
        &[
            "failed calling webhook",
            "failed to call webhook",
            "timeout",
            "deadline exceeded",
            "etcdserver",
            "connection refused",
            "too many requests",
        ],
        PASSES,
        "the cluster cannot decide on it now",
        "ask again; where that does not help, see the cluster's webhooks and API server",
    ),
    Known(
        &["denied the request", "validatingadmissionpolicy", "denied by"],
        SOON,
        "a policy of the cluster does not let it be made",
        "see what the policy wants",
    ),
    Known(
        &["being terminated"],
        SOON,
        "the namespace of the questions is being deleted",
        "make it again",
    ),
    Known(
        &["is invalid", "invalid value"],
        SOON,
        "the API server finds it invalid",
        "see what is asked for, and the service's settings",
    ),
];

/// A pod that its Job may not make.
fn denied(service: &str, said: &str) -> Stuck {
    let known = KNOWN.iter().find(|Known(texts, ..)| text::says(said, texts));
    let fallback = Known(&[], PASSES, "the cluster does not take it", "see the cluster's rules");
    let Known(_, patience, why, remedy) = known.unwrap_or(&fallback);
    let message = format!(
        "no pod could be made for `{service}`: {why}{}; {remedy}",
        text::aside("the API server says", said)
    );
    Stuck::new(EndReason::Denied, *patience, message)
}

/// Who says it.
fn source(event: &Event) -> &str {
    let old = event.source.as_ref().and_then(|source| source.component.as_deref());
    let new = event.reporting_component.as_deref();
    new.filter(|name| !name.is_empty()).or(old).unwrap_or_default()
}

/// What is between the first two quotes.
fn quoted(said: &str) -> &str {
    said.split('"').nth(1).unwrap_or_default()
}
