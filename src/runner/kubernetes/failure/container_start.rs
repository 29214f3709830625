//! Containers that could not be started, by what runc, crun and their shims say.

use super::text;
use crate::runner::EndReason;

/// Known words of a runtime, our reason, what they mean, and the remedy. The first row that fits
/// is taken: "no such file" is said of much, so it comes late.
struct Known(&'static [&'static str], EndReason, &'static str, &'static str);

const ENTRY_POINT: &str = "mend the image's entry point, or the command in the service's settings";

const SEE_THE_NODE: &str = "ask again; where that does not help, see the image and the node";

const KNOWN: [Known; 9] = [
    Known(
        &["context deadline exceeded", "failed to reserve container name"],
        EndReason::NotStarted,
        "its node is too slow",
        SEE_THE_NODE,
    ),
    Known(
        &["argument list too long"],
        EndReason::NotStarted,
        "what it is given in arguments and environment is longer than the system allows",
        "ask with less, or give large values in a file",
    ),
    Known(
        &["exec format error"],
        EndReason::Image,
        "its programs are not built for the processor of the node, or have no `#!` line",
        "build it for that platform (`docker build --platform`), or choose other nodes in the \
         service's settings",
    ),
    Known(
        &["error mounting", "subpath", "failed to mount"],
        EndReason::Volume,
        "a volume cannot be put where it is wanted in it",
        "see the volumes in the service's settings",
    ),
    Known(
        &["no space left on device"],
        EndReason::NotStarted,
        "the node has no disk left",
        "ask again",
    ),
    Known(
        &["chdir to cwd", "working directory"],
        EndReason::NotStarted,
        "the working directory that it wants is not there",
        ENTRY_POINT,
    ),
    Known(
        &["no command specified", "no command or entrypoint"],
        EndReason::NotStarted,
        "it names no command",
        ENTRY_POINT,
    ),
    Known(
        &["executable file not found", "executable file `", "no such file or directory"],
        EndReason::NotStarted,
        "its command is not in it, or the interpreter that its `#!` line names",
        ENTRY_POINT,
    ),
    Known(
        &["permission denied"],
        EndReason::NotStarted,
        "its command may not be executed",
        ENTRY_POINT,
    ),
];

/// Why a container could not be started, from what is said of it.
pub fn refused(who: &str, image: &str, said: &str) -> (EndReason, String) {
    let known = KNOWN.iter().find(|Known(texts, ..)| text::says(said, texts));
    let fallback = Known(&[], EndReason::NotStarted, "its node fails to do it", SEE_THE_NODE);
    let Known(_, reason, why, remedy) = known.unwrap_or(&fallback);
    let image = text::quote(image);
    let said = text::aside("the node says", said);
    let message =
        format!("{who} could not be started from the image `{image}`: {why}{said}; {remedy}");
    (*reason, message)
}

/// How a runtime says that the system did not execute a program.
const NOT_EXECUTED: [&str; 4] = [
    "exec format error",
    "argument list too long",
    "no such file or directory",
    "permission denied",
];

/// Whether all that a container printed is that its program was not executed: some runtimes see
/// that only when the container is started, and the words are its output. (A service whose own
/// child cannot be executed says more, or in other words.)
pub fn not_executed(printed: &str) -> bool {
    let line = printed.trim();
    let by_runtime = line.starts_with("exec /") || text::says(line, &["exec user process caused"]);
    let means = if by_runtime { NOT_EXECUTED.as_slice() } else { &NOT_EXECUTED[..1] };
    line.lines().count() == 1 && text::says(line, means)
}
