//! What the monitor counts. Handles are made once; every counter starts at zero.

use crate::monitor::waiting::{Counts, Took};
use crate::runner::{EndReason, RunEnd};
use crate::store::RunRecord;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use std::collections::HashMap;

/// The handles.
#[derive(Debug)]
pub struct Metrics {
    failures: HashMap<EndReason, Counter>,
    outcomes: HashMap<Outcome, Counter>,
    /// Heartbeats that were sent.
    pub heartbeats: Counter,
    detection: HashMap<EndReason, Histogram>,
    queued: Gauge,
    starting: Gauge,
    running: Gauge,
    queue: Histogram,
    startup: Histogram,
    run: Histogram,
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Answered,
    Failed,
    Cancelled,
    Lost,
}

// === impl Metrics ===

impl Metrics {
    /// Registers all of them.
    pub fn new() -> Self {
        describe();
        let zero = |counter: Counter| {
            counter.absolute(0);
            counter
        };
        let outcome = |outcome: Outcome| {
            (outcome, zero(counter!("twined_questions_total", "outcome" => outcome.label())))
        };
        let failure = |reason: EndReason| {
            (reason, zero(counter!("twined_failures_total", "reason" => reason.label())))
        };
        let detection = |reason: EndReason| {
            (reason, histogram!("twined_failure_detection_seconds", "reason" => reason.label()))
        };
        let state = |name: &'static str| gauge!("twined_questions", "state" => name);
        Self {
            failures: EndReason::ALL.into_iter().map(failure).collect(),
            outcomes: Outcome::ALL.map(outcome).into(),
            heartbeats: zero(counter!("twined_heartbeats_sent_total")),
            detection: EndReason::ALL.into_iter().map(detection).collect(),
            queued: state("queued"),
            starting: state("starting"),
            running: state("running"),
            queue: histogram!("twined_question_queue_seconds"),
            startup: histogram!("twined_question_startup_seconds"),
            run: histogram!("twined_question_run_seconds"),
        }
    }

    /// So many runs live.
    pub fn live(&self, counts: Counts) {
        self.queued.set(counts.queued);
        self.starting.set(counts.starting);
        self.running.set(counts.running);
    }

    /// A run came further.
    pub fn took(&self, took: Took) {
        if let Some(seconds) = took.queue {
            self.queue.record(seconds);
        }
        if let Some(seconds) = took.startup {
            self.startup.record(seconds);
        }
    }

    /// The asker was told that a run had ended in silence, so many seconds after its end where
    /// that is known.
    pub fn failed(&self, reason: EndReason, seconds: Option<f64>) {
        self.failures[&reason].increment(1);
        if let Some(seconds) = seconds {
            self.detection[&reason].record(seconds);
        }
    }

    /// A run has ended, and this is on record of it.
    pub fn ended(&self, end: &RunEnd, record: &RunRecord) {
        self.outcomes[&Outcome::of(end.reason, record)].increment(1);
        if let Some(started) = end.started {
            self.run.record(end.at.seconds_since(started));
        }
    }
}

// === impl Outcome ===

impl Outcome {
    const ALL: [Self; 4] = [Self::Answered, Self::Failed, Self::Cancelled, Self::Lost];

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }

    /// What is on record decides; why the run ended says what kind of failure it was.
    fn of(reason: EndReason, record: &RunRecord) -> Self {
        if record.answered {
            return Self::Answered;
        }
        match reason {
            EndReason::Cancelled => Self::Cancelled,
            EndReason::Interrupted | EndReason::Evicted | EndReason::Deleted | EndReason::Lost => {
                Self::Lost
            }
            EndReason::Exited
            | EndReason::Failed
            | EndReason::Killed
            | EndReason::Memory
            | EndReason::Storage
            | EndReason::NotStarted
            | EndReason::NoImage
            | EndReason::Image
            | EndReason::Volume
            | EndReason::Unschedulable
            | EndReason::Queue
            | EndReason::Denied
            | EndReason::Deadline
            | EndReason::Waited => Self::Failed,
        }
    }
}

fn describe() {
    describe_counter!("twined_failures_total", "Runs that ended without a word of their own");
    describe_counter!("twined_heartbeats_sent_total", "Heartbeats sent for runs that wait");
    describe_gauge!("twined_questions", "Questions that live, as this daemon sees them");
    describe_histogram!(
        "twined_failure_detection_seconds",
        Unit::Seconds,
        "From the end of a run to the exception that tells of it"
    );
    describe_histogram!(
        "twined_question_queue_seconds",
        Unit::Seconds,
        "From the launch of a run until it has its turn"
    );
    describe_histogram!(
        "twined_question_startup_seconds",
        Unit::Seconds,
        "From the turn of a run until it runs"
    );
    describe_histogram!("twined_question_run_seconds", Unit::Seconds, "From start to end");
}
