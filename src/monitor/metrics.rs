//! The metrics of the monitor. Handles are made once, and every counter starts at zero.

use crate::monitor::live_runs::{StageCounts, StageDurations};
use crate::runner::{EndReason, RunEnd};
use crate::store::RunRecord;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use std::collections::HashMap;

/// The handles of all metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    failures: HashMap<EndReason, Counter>,
    outcomes: HashMap<Outcome, Counter>,
    /// Heartbeats that were published.
    pub(super) heartbeats: Counter,
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
    pub(super) fn new() -> Self {
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

    /// How many runs are live. Only the monitor sets this gauge, from the states of its runner, so
    /// it means the same with every runner.
    pub(super) fn live_runs(&self, counts: StageCounts) {
        self.queued.set(counts.queued);
        self.starting.set(counts.starting);
        self.running.set(counts.running);
    }

    /// A run has finished these stages.
    pub(super) fn stages(&self, durations: StageDurations) {
        if let Some(seconds) = durations.queue {
            self.queue.record(seconds);
        }
        if let Some(seconds) = durations.startup {
            self.startup.record(seconds);
        }
    }

    /// An exception was published for a run that ended silently: `seconds` after its end, if that
    /// is known.
    pub(super) fn failed(&self, reason: EndReason, seconds: Option<f64>) {
        self.failures[&reason].increment(1);
        if let Some(seconds) = seconds {
            self.detection[&reason].record(seconds);
        }
    }

    /// A run has ended with this record.
    pub(super) fn ended(&self, end: &RunEnd, record: &RunRecord) {
        self.outcomes[&Outcome::new(end.cause.reason, record)].increment(1);
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

    /// A run with a result on record has answered. Otherwise the reason of its end decides.
    fn new(reason: EndReason, record: &RunRecord) -> Self {
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
    describe_counter!(
        "twined_failures_total",
        "Runs that ended without a terminal event, by reason"
    );
    describe_counter!("twined_heartbeats_sent_total", "Heartbeats published for waiting runs");
    describe_gauge!(
        "twined_questions",
        "Live runs by state; every replica counts the runs of all replicas"
    );
    describe_histogram!(
        "twined_failure_detection_seconds",
        Unit::Seconds,
        "From the end of a run to the exception published for it"
    );
    describe_histogram!(
        "twined_question_queue_seconds",
        Unit::Seconds,
        "From the launch of a run to its admission"
    );
    describe_histogram!(
        "twined_question_startup_seconds",
        Unit::Seconds,
        "From the admission of a run to its start"
    );
    describe_histogram!(
        "twined_question_run_seconds",
        Unit::Seconds,
        "From the start of a run to its end"
    );
}
