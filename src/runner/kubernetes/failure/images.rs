//! Images that cannot be pulled, from the messages of registries, runtimes and kubelets.

use super::symptoms::{self, Symptom};
use super::{Stall, container_start, text};

/// The waiting states in which a kubelet reports that a container has no image.
pub(super) const WAITING_STATES: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// Why a container in this waiting state has no image.
pub(super) fn stall(container: &str, image: &str, state: &str, message: &str) -> Stall {
    match state {
        "InvalidImageName" => describe(container, image, &symptoms::INVALID_IMAGE_NAME, message),
        "ErrImageNeverPull" => describe(container, image, &symptoms::IMAGE_NEVER_PULLED, message),
        "RegistryUnavailable" => {
            pull_stall(container, image, &format!("registry is unavailable: {message}"))
        }
        "SignatureValidationFailed" => {
            pull_stall(container, image, &format!("signature validation failed: {message}"))
        }
        _ => pull_stall(container, image, message),
    }
}

/// Why a pull failed.
pub(super) fn pull_stall(container: &str, image: &str, message: &str) -> Stall {
    let plain = without_names(message, image);
    let symptom = symptoms::classify(symptoms::IMAGE_PULL, &plain);
    // A bare back-off reports no cause.
    let unknown = symptom.fragments.is_empty();
    let vague = unknown && !text::contains_any(&plain, &["error:", "errimagepull", "failed"]);
    Stall { vague, ..describe(container, image, symptom, message) }
}

fn describe(container: &str, image: &str, symptom: &Symptom, message: &str) -> Stall {
    let quoted = last_cause(message, image);
    Stall::from_symptom(symptom, container_start::describe(container, image, symptom, quoted))
}

/// The last part of a message: each layer before it names the image once more.
fn last_cause<'a>(message: &'a str, image: &str) -> &'a str {
    let named = format!("{image}\": ");
    message.rsplit_once(&named).map_or(message, |(_, cause)| cause)
}

/// A message without URLs and without the image's own name, neither of which is a cause.
fn without_names(message: &str, image: &str) -> String {
    let name = image.split(['@', ':']).next().unwrap_or_default();
    let words = message.split_whitespace().filter(|word| !word.contains("://"));
    let plain = words.collect::<Vec<_>>().join(" ");
    if name.is_empty() { plain } else { plain.replace(image, "").replace(name, "") }
}
