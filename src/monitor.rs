//! Watches the runs, and publishes what a child can no longer publish itself.
//!
//! ```text
//! Queued, Starting, Running ──► live runs ──► heartbeats, and log records of what a run waits for
//!                                   └──► cancelled? ──► Runner::cancel
//! Ended ──► terminal event? ──► claim ──► fence ──► relaunch? ──► exception ──► settle
//! no run of an unanswered question ──► the sweep ──► fence ──► exception
//! ```
//!
//! The monitor writes nothing to the store. It publishes, and its events come back through the
//! pipeline like any other event. Where several replicas watch the same runs, only the leader
//! publishes heartbeats and log records, and sweeps. An end is reported by the replica that has
//! claimed the report.

mod cancel;
mod ends;
mod live_runs;
mod metrics;
mod publish;
mod sweep;
use crate::dependencies::Dependencies;
use crate::event::{RunId, Timestamp};
use crate::monitor::cancel::CancellationReconciler;
use crate::monitor::live_runs::{DueNotification, LiveRuns};
use crate::monitor::metrics::Metrics;
use crate::runner::{RunEnd, RunPhase, RunState};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span};

/// How often the live runs are searched for notifications that are due. A parent does not notice
/// half a second, and a search of ten thousand runs takes less than a millisecond.
const TICK: Duration = Duration::from_millis(500);

/// How many notifications of live runs are published at once. With 10,000 runs, a new leader has
/// published everything that is due in a few seconds, in a few MB.
const MAX_PUBLISHING: usize = 1024;

/// How long a new leader waits before its first sweep: its runner must see the existing runs first.
const FIRST_SWEEP: Duration = Duration::from_secs(30);

/// The time from one sweep to the next.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Watches the runs.
#[derive(Debug)]
pub struct Monitor {
    dependencies: Dependencies,
    metrics: Metrics,
    leadership: watch::Receiver<bool>,
    clock: Clock,
    /// How many ends are being handled.
    ends_in_progress: AtomicU32,
    stop: CancellationToken,
}

/// A clock that never goes backwards: the host's time at the start, and the time since then.
#[derive(Debug)]
struct Clock {
    start: (Timestamp, Instant),
}

/// The state of one monitor's loop.
struct MonitorLoop {
    monitor: Arc<Monitor>,
    live: LiveRuns,
    reconciler: CancellationReconciler,
    publishing: JoinSet<()>,
    ends: JoinSet<()>,
    ending: HashMap<RunId, EndTask>,
    /// The run of each task in [`MonitorLoop::ends`].
    run_of_end: HashMap<Id, RunId>,
    sweep: JoinSet<()>,
    next_sweep: Instant,
}

/// A run whose end is being handled.
struct EndTask {
    attempt: u32,
    task: AbortHandle,
    /// Cancelled when nothing more needs to be done.
    superseded: CancellationToken,
}

/// Counts an end for as long as it is being handled.
struct EndInProgress<'a>(&'a AtomicU32);

// === impl Monitor ===

impl Monitor {
    /// A monitor that works until `stop`.
    pub fn new(dependencies: Dependencies, stop: CancellationToken) -> Arc<Self> {
        let leadership = dependencies.coordinator.leadership();
        Arc::new(Self {
            dependencies,
            metrics: Metrics::new(),
            leadership,
            clock: Clock::new(),
            ends_in_progress: AtomicU32::new(0),
            stop,
        })
    }

    /// Watches until it is stopped. Ends that are not settled then are handled after the next
    /// start, or by another replica.
    pub async fn run(self: Arc<Self>) {
        let mut cancelled = cancel::cancelled_questions(Arc::clone(&self.dependencies.view));
        let cancellations = Arc::clone(&self.dependencies.cancellations);
        let mut states = self.dependencies.runner.states();
        let mut watch = MonitorLoop::new(Arc::clone(&self));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                state = states.next() => match state {
                    Some(state) => watch.observe(state),
                    None => break,
                },
                Some(questions) = cancelled.next() => {
                    watch.reconciler.cancelled_questions(questions, &watch.live);
                }
                cancellation = cancellations.next() => {
                    watch.reconciler.cancellation(cancellation, &watch.live);
                }
                Some(()) = watch.reconciler.next() => {}
                _ = tick.tick() => watch.tick(),
                Some(ended) = watch.ends.join_next_with_id() => watch.forget_end(ended),
                Some(Err(panic)) = watch.publishing.join_next() => log_panic(&panic),
                Some(Err(panic)) = watch.sweep.join_next() => log_panic(&panic),
                () = self.stop.cancelled() => break,
            }
        }
        watch.shutdown().await;
    }

    fn leads(&self) -> bool {
        *self.leadership.borrow()
    }
}

// === impl MonitorLoop ===

impl MonitorLoop {
    fn new(monitor: Arc<Monitor>) -> Self {
        Self {
            reconciler: CancellationReconciler::new(Arc::clone(&monitor)),
            monitor,
            live: LiveRuns::default(),
            publishing: JoinSet::new(),
            ends: JoinSet::new(),
            ending: HashMap::new(),
            run_of_end: HashMap::new(),
            sweep: JoinSet::new(),
            next_sweep: Instant::now() + FIRST_SWEEP,
        }
    }

    fn observe(&mut self, state: RunState) {
        match &state.phase {
            RunPhase::Queued { .. } | RunPhase::Starting { .. } | RunPhase::Running { .. } => {
                // The attempt that ended was relaunched, so its end needs no more work.
                self.drop_end(state.run);
                let observed = self.live.observe(&state, self.monitor.clock.now());
                if self.monitor.leads() {
                    self.monitor.metrics.stages(observed.durations);
                }
                if observed.is_new {
                    self.reconciler.run(state.run, &state.attributes);
                }
            }
            RunPhase::Ended(end) => {
                let end = end.clone();
                self.live.remove(state.run);
                self.handle_end(state, end);
            }
            RunPhase::Settled => {
                self.live.remove(state.run);
                self.drop_end(state.run);
            }
        }
    }

    /// Starts to handle the end of an attempt, unless that is under way already.
    fn handle_end(&mut self, state: RunState, end: RunEnd) {
        let RunState { run, attempt, .. } = state;
        let known = self.ending.get(&run);
        if known.is_some_and(|known| known.attempt == attempt && !known.task.is_finished()) {
            return;
        }
        self.drop_end(run);
        let superseded = CancellationToken::new();
        let span =
            info_span!("end", question = %run.question, attempt, reason = end.cause.reason.label());
        let monitor = Arc::clone(&self.monitor);
        let task =
            self.ends.spawn(monitor.handle_end(state, end, superseded.clone()).instrument(span));
        self.run_of_end.insert(task.id(), run);
        self.ending.insert(run, EndTask { attempt, task, superseded });
    }

    fn drop_end(&mut self, run: RunId) {
        if let Some(ending) = self.ending.remove(&run) {
            ending.superseded.cancel();
        }
    }

    /// Forgets an end whose task is over. If the task panicked, only this run is affected.
    fn forget_end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(panic) => {
                log_panic(panic);
                panic.id()
            }
        };
        let Some(run) = self.run_of_end.remove(&task) else { return };
        if self.ending.get(&run).is_some_and(|ending| ending.task.id() == task) {
            self.ending.remove(&run);
        }
    }

    fn tick(&mut self) {
        let leads = self.monitor.leads();
        if leads {
            let limit = MAX_PUBLISHING.saturating_sub(self.publishing.len());
            for due in self.live.due(self.monitor.clock.now(), limit) {
                let monitor = Arc::clone(&self.monitor);
                match due {
                    DueNotification::Heartbeat(heartbeat) => {
                        self.publishing.spawn(monitor.publish_heartbeat(heartbeat))
                    }
                    DueNotification::LogRecord(record) => {
                        self.publishing.spawn(monitor.publish_log_record(record))
                    }
                    DueNotification::Eviction(eviction) => {
                        self.publishing.spawn(monitor.handle_eviction(eviction))
                    }
                };
            }
        }
        self.monitor.metrics.live_runs(self.live.counts());
        self.sweep(leads);
    }

    /// Starts a sweep if one is due and we lead. Aborts a sweep when we no longer lead.
    fn sweep(&mut self, leads: bool) {
        let now = Instant::now();
        if !leads {
            self.sweep.abort_all();
            self.next_sweep = now + FIRST_SWEEP;
        } else if now >= self.next_sweep && self.sweep.is_empty() {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep.spawn(Arc::clone(&self.monitor).sweep());
        }
    }

    async fn shutdown(&mut self) {
        self.sweep.shutdown().await;
        self.publishing.shutdown().await;
        self.reconciler.shutdown().await;
        self.ends.shutdown().await;
    }
}

/// Logs the error of a task that panicked, but not of one that was aborted.
fn log_panic(error: &JoinError) {
    if error.is_panic() {
        error!(%error, "a task of one run panicked: the run is handled again after the next start");
    }
}

// === impl Clock ===

impl Clock {
    fn new() -> Self {
        Self { start: (Timestamp::now(), Instant::now()) }
    }

    fn now(&self) -> Timestamp {
        let (host_time, at) = self.start;
        // An `i64` holds 290,000 years in microseconds.
        Timestamp(host_time.0.saturating_add(at.elapsed().as_micros() as i64))
    }
}

// === impl EndInProgress ===

impl<'a> EndInProgress<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for EndInProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
