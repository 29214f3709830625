//! Why a run ended, or makes no progress.

use crate::runner::EndReason;

/// Why a run ended, or makes no progress: a reason for programs and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Decides which exception the parent gets, and whether the run is relaunched.
    pub reason: EndReason,
    /// For the parent: what happened, and what to do about it.
    pub message: String,
}

/// Who sends the signals that a process does not cause itself: that depends on where the run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalSenders {
    /// Who sends SIGKILL.
    pub kill: &'static str,
    /// Who sends SIGTERM, SIGINT, SIGHUP and SIGQUIT.
    pub terminate: &'static str,
}

/// A signal of Linux.
struct Signal {
    number: i32,
    name: &'static str,
    meaning: Meaning,
}

/// What a signal reveals of the end of a process.
#[derive(Clone, Copy)]
enum Meaning {
    /// Only the platform or a person sends it.
    Kill,
    /// The platform or a person sends it, so that the process ends by itself.
    Terminate,
    /// The process, or the kernel on its behalf.
    Process(&'static str),
}

const FAULT: Meaning =
    Meaning::Process("a fault in its machine code, often in that of a compiled package");
const OUTPUT: Meaning = Meaning::Process("see the last lines of its output");

const SIGNALS: [Signal; 19] = [
    Signal { number: 1, name: "SIGHUP", meaning: Meaning::Terminate },
    Signal { number: 2, name: "SIGINT", meaning: Meaning::Terminate },
    Signal { number: 3, name: "SIGQUIT", meaning: Meaning::Terminate },
    Signal {
        number: 4,
        name: "SIGILL",
        meaning: Meaning::Process("its machine code needs another processor than its machine has"),
    },
    Signal { number: 5, name: "SIGTRAP", meaning: OUTPUT },
    Signal {
        number: 6,
        name: "SIGABRT",
        meaning: Meaning::Process("it aborted itself; see the last lines of its output"),
    },
    Signal { number: 7, name: "SIGBUS", meaning: FAULT },
    Signal { number: 8, name: "SIGFPE", meaning: FAULT },
    Signal { number: 9, name: "SIGKILL", meaning: Meaning::Kill },
    Signal { number: 10, name: "SIGUSR1", meaning: OUTPUT },
    Signal { number: 11, name: "SIGSEGV", meaning: FAULT },
    Signal { number: 12, name: "SIGUSR2", meaning: OUTPUT },
    Signal { number: 13, name: "SIGPIPE", meaning: OUTPUT },
    Signal { number: 14, name: "SIGALRM", meaning: OUTPUT },
    Signal { number: 15, name: "SIGTERM", meaning: Meaning::Terminate },
    Signal { number: 24, name: "SIGXCPU", meaning: OUTPUT },
    Signal { number: 25, name: "SIGXFSZ", meaning: OUTPUT },
    Signal { number: 26, name: "SIGVTALRM", meaning: OUTPUT },
    Signal {
        number: 31,
        name: "SIGSYS",
        meaning: Meaning::Process("it made a system call that it is not permitted to make"),
    },
];

// === impl Cause ===

impl Cause {
    /// A cause with its message.
    pub fn new(reason: EndReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The end of a process by a signal. `process` names it in the message; `exit_code` is the code
    /// that a container reports for the signal, if it reports one.
    pub(crate) fn killed(
        process: &str,
        signal: i32,
        exit_code: Option<i32>,
        senders: SignalSenders,
    ) -> Self {
        let known = SIGNALS.iter().find(|known| known.number == signal);
        let name = known.map_or("another signal", |known| known.name);
        let meaning = match known.map_or(OUTPUT, |known| known.meaning) {
            Meaning::Kill => senders.kill,
            Meaning::Terminate => senders.terminate,
            Meaning::Process(meaning) => meaning,
        };
        let code = exit_code.map_or_else(String::new, |code| format!("; exit code {code}"));
        let message = format!("{process} was killed by signal {signal} ({name}{code}): {meaning}");
        Self { reason: EndReason::Killed, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDERS: SignalSenders = SignalSenders { kill: "by a person", terminate: "by request" };

    #[test]
    fn a_kill_is_described_by_name_code_and_sender() {
        let killed = |signal, code| Cause::killed("`a/b:c`", signal, code, SENDERS).message;
        assert_eq!(
            killed(9, Some(137)),
            "`a/b:c` was killed by signal 9 (SIGKILL; exit code 137): by a person"
        );
        assert_eq!(killed(15, None), "`a/b:c` was killed by signal 15 (SIGTERM): by request");
        assert!(killed(11, None).contains("SIGSEGV): a fault in its machine code"));
        assert!(
            killed(64, None)
                .ends_with("signal 64 (another signal): see the last lines of its output")
        );
    }
}
