//! Run states become events: what a child can no longer say itself is said for it.
//!
//! ```text
//! Ended ──► spoken? ──yes──► settle
//!             │ no
//!             ▼
//!           fence ──► until it is back ──► spoken? ──yes──► settle
//!                                            │ no
//!                                            └──► exception ──► until it is on record ──► settle
//! ```
//!
//! The monitor writes nothing to the store: it publishes, and what it published comes back by the
//! pipeline as any other event. The last words of a run may still be on their way when it ends, so
//! a heartbeat in its name, the fence, is sent after them: when that is on record, all that the
//! run published is. No timer decides.

pub mod report;
use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::pubsub::Publisher;
use crate::runner::{End, Phase, Reason, RunState, Runner};
use crate::store::{ReadError, Record, View};
use futures_util::StreamExt;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use report::{HEARTBEAT_INTERVAL, Report};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How long a run that has ended is given for its last words to come by themselves, before a
/// fence is sent: most have come by then, and need none.
const A_MOMENT: Duration = Duration::from_millis(200);

/// After how long a fence that is not back is sent again.
const FENCE_AGAIN: Duration = Duration::from_secs(30);

/// How often the view is asked again although nothing told us to: another process may have put on
/// record what we wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Watches the runs.
#[derive(Debug)]
pub struct Monitor {
    runner: Arc<dyn Runner>,
    view: Arc<dyn View>,
    publisher: Publisher,
    metrics: Metrics,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Metrics {
    failures: HashMap<Reason, Counter>,
    outcomes: HashMap<&'static str, Counter>,
    heartbeats: Counter,
    detection: HashMap<Reason, Histogram>,
    queue: Histogram,
    run: Histogram,
}

// === impl Monitor ===

impl Monitor {
    /// A monitor that works until `stop`.
    pub fn new(
        runner: Arc<dyn Runner>,
        view: Arc<dyn View>,
        publisher: Publisher,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { runner, view, publisher, metrics: Metrics::new(), stop })
    }

    /// Watches, until it is stopped. What is not settled then is settled after the next start.
    pub async fn run(self: Arc<Self>) {
        let mut states = self.runner.states();
        let mut settling = JoinSet::new();
        let mut waiting = HashMap::<RunId, AbortHandle>::new();
        loop {
            let state = tokio::select! {
                state = states.next() => state,
                Some(done) = settling.join_next() => {
                    // Those that wait are aborted when their turn comes; none is to panic.
                    if let Err(panic) = done && panic.is_panic() {
                        error!(%panic, "a run is not settled before the next start");
                    }
                    continue;
                }
                () = self.stop.cancelled() => break,
            };
            let Some(state) = state else { break };
            if let Some(heartbeats) = waiting.remove(&state.run) {
                heartbeats.abort();
            }
            let monitor = Arc::clone(&self);
            match state.phase {
                Phase::Queued { since, .. } | Phase::Starting { since, .. } => {
                    let run = state.run;
                    let task = settling.spawn(async move { monitor.wait(state, since).await });
                    waiting.insert(run, task);
                }
                Phase::Running { launched, since } => {
                    self.metrics.queue.record(since.seconds_since(launched));
                }
                Phase::Settled => {}
                Phase::Ended(ref end) => {
                    let end = end.clone();
                    settling.spawn(async move { monitor.settle(&state, &end).await });
                }
            }
        }
        settling.shutdown().await;
    }

    /// Sends heartbeats in the name of a run that waits, for its parent gives up on silence.
    async fn wait(&self, state: RunState, since: Timestamp) {
        let seconds = Timestamp::now().seconds_since(since);
        // Whole intervals since it was queued: small and positive.
        let mut slot = seconds as i64 / HEARTBEAT_INTERVAL + 1;
        let mut pause = Duration::from_secs_f64((slot * HEARTBEAT_INTERVAL) as f64 - seconds);
        loop {
            tokio::time::sleep(pause).await;
            let heartbeat = report::waiting(state.run, &state.attributes, since, slot);
            if let Some(Report { message, .. }) = heartbeat {
                self.metrics.heartbeats.increment(1);
                self.publisher.publish_until(message, &self.stop).await;
            }
            slot += 1;
            pause = Duration::from_secs(HEARTBEAT_INTERVAL.unsigned_abs());
        }
    }

    /// Sees to it that a run which has ended has one terminal event, and then forgets the run.
    async fn settle(&self, state: &RunState, end: &End) {
        let run = state.run;
        let spoken =
            tokio::time::timeout(A_MOMENT, self.until(run, |record| record.terminal)).await;
        let silent = match spoken {
            Ok(_) => false,
            // Not known: it is left for the next start.
            Err(_) => match self.has_spoken(state, end).await {
                Some(spoken) => !spoken,
                None => return,
            },
        };
        if silent {
            let at = Timestamp::now();
            let Some(exception) = report::ended(run, &state.attributes, end) else { return };
            info!(%run, reason = end.reason.label(), "ended without a word: telling its parent");
            if !self.send(exception).await {
                return;
            }
            self.metrics.failed(end.reason, at.seconds_since(end.at));
            self.until(run, |record| record.terminal).await;
        }
        self.metrics.ended(end, silent);
        while let Err(error) = self.runner.settle(run).await {
            warn!(%run, error = %Chain(&error), "failed to settle");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether a terminal event of the run is on record once all that it published is. None where
    /// the fence was not sent.
    async fn has_spoken(&self, state: &RunState, end: &End) -> Option<bool> {
        let fence = report::fence(state.run, &state.attributes, end)?;
        let uuid = fence.uuid;
        let mut appended = self.view.appended();
        let mut sent = None::<Instant>;
        loop {
            // Said again it is the same: one that was lost with its subscription must not be
            // waited for.
            if sent.is_none_or(|sent| sent.elapsed() > FENCE_AGAIN) {
                if !self.send(fence.clone()).await {
                    return None;
                }
                sent = Some(Instant::now());
            }
            appended.mark_unchanged();
            match self.view.has(uuid).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => warn!(error = %Chain(&error), "failed to look for a fence"),
            }
            change(&mut appended).await;
        }
        Some(self.until(state.run, |_| true).await.terminal)
    }

    /// The record of a run, as soon as it is as wanted.
    async fn until(&self, run: RunId, wanted: impl Fn(&Record) -> bool) -> Record {
        let mut appended = self.view.appended();
        loop {
            appended.mark_unchanged();
            match self.view.record(run).await {
                Ok(record) if wanted(&record) => return record,
                Ok(_) => {}
                Err(error @ ReadError(_)) => {
                    warn!(%run, error = %Chain(&error), "failed to look at a run");
                }
            }
            change(&mut appended).await;
        }
    }

    async fn send(&self, report: Report) -> bool {
        let Report { uuid, message } = report;
        let sent = self.publisher.publish_until(message, &self.stop).await;
        if !sent && !self.stop.is_cancelled() {
            error!(%uuid, "Pub/Sub refused a report");
        }
        sent
    }
}

/// Waits until there may be something new to see.
async fn change(appended: &mut watch::Receiver<u64>) {
    let changed = async {
        if appended.changed().await.is_err() {
            // The view is closed: then only time passes.
            std::future::pending::<()>().await;
        }
    };
    let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
}

// === impl Metrics ===

impl Metrics {
    fn new() -> Self {
        describe_counter!("twined_failures_total", "Runs that ended without a word of their own");
        describe_counter!("twined_heartbeats_sent_total", "Heartbeats sent for runs that wait");
        describe_histogram!(
            "twined_failure_detection_seconds",
            Unit::Seconds,
            "From the end of a run to the exception that tells of it"
        );
        describe_histogram!("twined_question_queue_seconds", Unit::Seconds, "From launch to start");
        describe_histogram!("twined_question_run_seconds", Unit::Seconds, "From start to end");
        let zero = |counter: Counter| {
            counter.absolute(0);
            counter
        };
        let outcome = |name| (name, zero(counter!("twined_questions_total", "outcome" => name)));
        let failure = |reason: Reason| {
            (reason, zero(counter!("twined_failures_total", "reason" => reason.label())))
        };
        let detection = |reason: Reason| {
            (reason, histogram!("twined_failure_detection_seconds", "reason" => reason.label()))
        };
        Self {
            failures: Reason::ALL.into_iter().map(failure).collect(),
            outcomes: ["answered", "failed", "cancelled", "lost"].map(outcome).into(),
            heartbeats: zero(counter!("twined_heartbeats_sent_total")),
            detection: Reason::ALL.into_iter().map(detection).collect(),
            queue: histogram!("twined_question_queue_seconds"),
            run: histogram!("twined_question_run_seconds"),
        }
    }

    fn failed(&self, reason: Reason, seconds: f64) {
        self.failures[&reason].increment(1);
        self.detection[&reason].record(seconds);
    }

    fn ended(&self, end: &End, silent: bool) {
        let outcome = match end.reason {
            Reason::Exited if !silent => "answered",
            Reason::Cancelled => "cancelled",
            Reason::Interrupted | Reason::Evicted | Reason::Deleted | Reason::Lost => "lost",
            Reason::Exited
            | Reason::Failed
            | Reason::Killed
            | Reason::Memory
            | Reason::Storage
            | Reason::NotStarted
            | Reason::NoImage
            | Reason::Image
            | Reason::Volume
            | Reason::Unschedulable
            | Reason::Queue
            | Reason::Denied
            | Reason::Deadline
            | Reason::Waited => "failed",
        };
        self.outcomes[outcome].increment(1);
        if let Some(started) = end.started {
            self.run.record(end.at.seconds_since(started));
        }
    }
}
