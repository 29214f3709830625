//! Containers that could not be started, from the messages of runc, crun and their shims.

use super::symptoms::{self, Symptom};
use super::text;
use crate::runner::Cause;

/// Why a container could not be started.
pub(super) fn cause(container: &str, image: &str, message: &str) -> Cause {
    let symptom = symptom(message);
    Cause::new(symptom.reason, describe(container, image, symptom, message))
}

/// The symptom that a runtime's message shows.
pub(super) fn symptom(message: &str) -> &'static Symptom {
    symptoms::classify(symptoms::CONTAINER_START, message)
}

/// The message for a parent: `quoted` is what the node reports.
pub(super) fn describe(container: &str, image: &str, symptom: &Symptom, quoted: &str) -> String {
    format!(
        "{container} could not be started from the image `{image}`: {}{}; {}",
        symptom.meaning,
        text::reported("the node", quoted),
        symptom.remedy,
        image = text::quote(image),
    )
}

/// How a runtime reports that the kernel did not execute a program.
const NOT_EXECUTED: [&str; 4] = [
    "exec format error",
    "argument list too long",
    "no such file or directory",
    "permission denied",
];

/// Whether all that a container printed is that its program was not executed: some runtimes find
/// that out only after the container has started, and print it as its output. (A service whose own
/// child process cannot be executed prints more, or other words.)
pub(super) fn is_exec_failure(output: &str) -> bool {
    let line = output.trim();
    let by_runtime =
        line.starts_with("exec /") || text::contains_any(line, &["exec user process caused"]);
    let fragments = if by_runtime { NOT_EXECUTED.as_slice() } else { &NOT_EXECUTED[..1] };
    line.lines().count() == 1 && text::contains_any(line, fragments)
}
