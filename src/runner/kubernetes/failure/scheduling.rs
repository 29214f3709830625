//! Why no node takes a pod, from the messages of schedulers and autoscalers.

use super::symptoms::{self, Symptom};
use super::{Stall, text};
use crate::runner::EndReason;

/// What a pod without a node waits for, for the parent's log.
pub(super) fn describe_wait(message: &str) -> String {
    let quoted = match text::quote(message) {
        quoted if quoted.is_empty() => String::new(),
        quoted => format!(": {quoted}"),
    };
    match lacking(&quoted) {
        Some((lacking, _)) => format!("the cluster has {lacking}{quoted}"),
        None => format!("no node has taken it yet{quoted}"),
    }
}

/// That no node will take the pod, and the autoscaler adds none for it.
pub(super) fn no_scale_up(service: &str, message: &str) -> Option<Stall> {
    if text::contains_any(message, symptoms::AUTOSCALER_WAITS) {
        return None;
    }
    let quoted = text::reported("the autoscaler", message);
    let described = match lacking(message) {
        Some((lacking, remedy)) => format!(
            "no node can take `{service}`: the cluster has {lacking}, and its autoscaler adds none \
             for it{quoted}; {remedy}"
        ),
        None => format!(
            "no node can take `{service}`, and the cluster's autoscaler adds none for it{quoted}; \
             ask for less, or see the service's settings"
        ),
    };
    Some(Stall::new(EndReason::Unschedulable, symptoms::PASSES, described))
}

/// Everything that the cluster lacks for the pod, and the remedies.
fn lacking(message: &str) -> Option<(String, String)> {
    let shown: Vec<&Symptom> =
        symptoms::SCHEDULING.iter().filter(|symptom| symptom.matches(message)).collect();
    let join = |part: fn(&Symptom) -> &'static str| {
        shown.iter().map(|symptom| part(symptom)).collect::<Vec<_>>().join(", or ")
    };
    (!shown.is_empty()).then(|| (join(|symptom| symptom.meaning), join(|symptom| symptom.remedy)))
}
