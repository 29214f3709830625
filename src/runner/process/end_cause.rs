//! The end of a process, described for the parent: pure.

use crate::event::Timestamp;
use crate::runner::cause::{Cause, SignalSenders};
use crate::runner::process::records::{EndRecord, Outcome, StopRequest};
use crate::runner::{EndReason, RunEnd};

/// Who sends signals to a process of this machine.
const SENDERS: SignalSenders = SignalSenders {
    kill: "by a person, or by the kernel for lack of memory (see `dmesg`)",
    terminate: "by a person",
};

/// How the run of a service ended, with the cause and the remedy.
pub(super) fn run_end(
    service: &str,
    record: &EndRecord,
    started: Option<i64>,
    tail: Vec<String>,
) -> RunEnd {
    let cause = cause(service, record);
    RunEnd { at: Timestamp(record.at), started: started.map(Timestamp), cause, tail }
}

fn cause(service: &str, record: &EndRecord) -> Cause {
    match record.stop_request {
        Some(StopRequest::Cancel) => {
            let message = format!("the run of `{service}` was cancelled");
            return Cause::new(EndReason::Cancelled, message);
        }
        Some(StopRequest::Interrupt) => {
            let message = format!(
                "the run of `{service}` was ended because its network was stopped; ask again when \
                 the network runs"
            );
            return Cause::new(EndReason::Interrupted, message);
        }
        None => {}
    }
    match &record.outcome {
        Outcome::Exit(0) => Cause::new(
            EndReason::Exited,
            format!(
                "the process of `{service}` ended with exit status 0; if it gave no answer, the \
                 last lines of its output may have the reason"
            ),
        ),
        Outcome::Exit(status) => Cause::new(
            EndReason::Failed,
            format!(
                "the process of `{service}` ended with exit status {status}; see the last lines of \
                 its output"
            ),
        ),
        Outcome::Signal(number) => {
            Cause::killed(&format!("the process of `{service}`"), *number, None, SENDERS)
        }
        Outcome::NotStarted(why) => {
            Cause::new(EndReason::NotStarted, format!("failed to start `{service}`: {why}"))
        }
        Outcome::StoppedBeforeStart | Outcome::Lost => Cause::new(
            EndReason::Lost,
            format!(
                "the process of `{service}` is gone, and its end was not recorded: its supervisor \
                 was killed, or the machine was restarted; ask again"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause_of(outcome: Outcome, stop_request: Option<StopRequest>) -> Cause {
        let record = EndRecord { at: 2, outcome, stop_request };
        let end = run_end("a/b:c", &record, Some(1), vec!["x\n".to_owned()]);
        assert_eq!((end.at, end.started), (Timestamp(2), Some(Timestamp(1))));
        assert_eq!(end.tail, ["x\n"]);
        end.cause
    }

    #[test]
    fn each_outcome_has_its_reason() {
        for (outcome, stop_request, reason) in [
            (Outcome::Exit(0), None, EndReason::Exited),
            (Outcome::Exit(3), None, EndReason::Failed),
            (Outcome::Signal(9), None, EndReason::Killed),
            (Outcome::NotStarted("why".to_owned()), None, EndReason::NotStarted),
            (Outcome::Lost, None, EndReason::Lost),
            (Outcome::StoppedBeforeStart, Some(StopRequest::Cancel), EndReason::Cancelled),
            (Outcome::Exit(0), Some(StopRequest::Cancel), EndReason::Cancelled),
            (Outcome::Signal(15), Some(StopRequest::Interrupt), EndReason::Interrupted),
        ] {
            assert_eq!(cause_of(outcome.clone(), stop_request).reason, reason, "{outcome:?}");
        }
    }

    #[test]
    fn a_kill_is_reported_with_its_signal_and_sender() {
        assert_eq!(
            cause_of(Outcome::Signal(9), None).message,
            "the process of `a/b:c` was killed by signal 9 (SIGKILL): by a person, or by the \
             kernel for lack of memory (see `dmesg`)"
        );
    }
}
