//! The end of a process, described for the parent: pure.

use crate::event::Timestamp;
use crate::runner::cause::{Cause, SignalSenders};
use crate::runner::process::record::{Ending, How, Order};
use crate::runner::{EndReason, RunEnd};

/// Who sends signals to a process of this machine.
const SENDERS: SignalSenders = SignalSenders {
    kill: "by hand, or by the kernel for lack of memory (see `dmesg`)",
    terminate: "by hand",
};

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
        How::Signal(number) => {
            let process = format!("the process of `{service}`");
            let Cause { reason, message } = Cause::killed(&process, *number, None, SENDERS);
            (reason, message)
        }
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
             for lack of memory (see `dmesg`)"
        );
        assert!(told(How::Signal(64), None).1.contains("signal 64 (another signal)"));
    }
}
