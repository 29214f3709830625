//! The record of an end in words for the asker: pure.

use crate::event::Timestamp;
use crate::runner::process::record::{Ending, How, Order};
use crate::runner::{EndReason, RunEnd};
use rustix::process::Signal;

/// Says how the run of a service ended, what happened, and what to do about it.
pub fn end(service: &str, ending: &Ending, started: Option<i64>, tail: Vec<String>) -> RunEnd {
    let (reason, message) = reason(service, ending);
    RunEnd { at: Timestamp(ending.at), started: started.map(Timestamp), reason, message, tail }
}

fn reason(service: &str, ending: &Ending) -> (EndReason, String) {
    match ending.order {
        Some(Order::Cancel) => {
            return (EndReason::Cancelled, format!("the run of `{service}` was cancelled"));
        }
        Some(Order::Interrupt) => {
            let message = format!(
                "the run of `{service}` was ended because the network that ran it was stopped; ask \
                 again once it runs"
            );
            return (EndReason::Interrupted, message);
        }
        None => {}
    }
    match &ending.how {
        How::Exit(0) => (
            EndReason::Exited,
            format!(
                "the process of `{service}` ended by itself with exit status 0; where it gave no \
                 answer, the last lines of its output may say why"
            ),
        ),
        How::Exit(status) => (
            EndReason::Failed,
            format!(
                "the process of `{service}` ended with exit status {status}; see the last lines of \
                 its output"
            ),
        ),
        How::Signal(number) => (EndReason::Killed, killed(service, *number)),
        How::NotStarted(why) => {
            (EndReason::NotStarted, format!("`{service}` could not be started: {why}"))
        }
        How::NotBegun | How::Lost => (
            EndReason::Lost,
            format!(
                "the process of `{service}` is gone, and nobody saw it end: its supervisor was \
                 killed, or the machine was restarted; ask again"
            ),
        ),
    }
}

fn killed(service: &str, number: i32) -> String {
    let name = name(number);
    let why = match Signal::from_named_raw(number) {
        Some(Signal::KILL) => "by hand, or by the kernel for lack of memory (`dmesg` tells)",
        Some(Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT) => "by hand",
        Some(Signal::SEGV | Signal::BUS | Signal::ILL | Signal::FPE | Signal::SYS) => {
            "a fault in its machine code, often that of a compiled package"
        }
        Some(Signal::ABORT) => "it gave up by itself; see the last lines of its output",
        _ => "see the last lines of its output",
    };
    format!("the process of `{service}` was killed by signal {number} ({name}): {why}")
}

/// A signal's name, as `kill -l` lists it.
fn name(number: i32) -> &'static str {
    const NAMES: [(Signal, &str); 19] = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::VTALARM, "SIGVTALRM"),
        (Signal::SYS, "SIGSYS"),
    ];
    let named = NAMES.iter().find(|(signal, _)| signal.as_raw() == number);
    named.map_or("another signal", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(how: How, order: Option<Order>) -> (EndReason, String) {
        let end = end("a/b:c", &Ending { at: 2, how, order }, Some(1), vec!["x\n".to_owned()]);
        assert_eq!((end.at, end.started), (Timestamp(2), Some(Timestamp(1))));
        assert_eq!(end.tail, ["x\n"]);
        (end.reason, end.message)
    }

    #[test]
    fn each_end_has_its_reason() {
        for (how, order, reason) in [
            (How::Exit(0), None, EndReason::Exited),
            (How::Exit(3), None, EndReason::Failed),
            (How::Signal(9), None, EndReason::Killed),
            (How::NotStarted("why".to_owned()), None, EndReason::NotStarted),
            (How::Lost, None, EndReason::Lost),
            (How::NotBegun, Some(Order::Cancel), EndReason::Cancelled),
            (How::Exit(0), Some(Order::Cancel), EndReason::Cancelled),
            (How::Signal(15), Some(Order::Interrupt), EndReason::Interrupted),
        ] {
            assert_eq!(told(how.clone(), order).0, reason, "{how:?}");
        }
    }

    #[test]
    fn a_kill_is_told_by_name_and_cause() {
        let message = told(How::Signal(9), None).1;
        assert_eq!(
            message,
            "the process of `a/b:c` was killed by signal 9 (SIGKILL): by hand, or by the kernel \
             for lack of memory (`dmesg` tells)"
        );
        assert!(told(How::Signal(64), None).1.contains("signal 64 (another signal)"));
    }
}
