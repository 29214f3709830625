//! Run states become events: what a child can no longer say itself is said for it.
//!
//! ```text
//! Queued, Starting, Running ──► a table ──► heartbeats, and notes of what a run waits for
//! Ended ──► spoken? ──► claim ──► fence ──► again? ──► exception ──► settle
//! nothing of a question is left ──► the sweep ──► fence ──► exception
//! ```
//!
//! The monitor writes nothing to the store: it publishes, and what it published comes back by the
//! pipeline as any other event. Of several monitors of the same runs one, which the runner names,
//! does what need be done once; an end is reported by the one that has claimed it.

mod ends;
mod metrics;
mod publish;
mod sweep;
mod waiting;
use crate::dependencies::Dependencies;
use crate::event::{RunId, Timestamp};
use crate::monitor::metrics::Metrics;
use crate::monitor::waiting::{Due, Waiting};
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
use tracing::error;

/// How often the table is looked through: a second is nothing to an asker, and to look through
/// ten thousand runs costs less than a millisecond.
const TICK: Duration = Duration::from_millis(500);

/// How many things are said or looked for at once for the runs that live: with 10,000 of them, a
/// daemon that begins to lead has said all that is due in a few seconds, in a few MB.
const MOST_ERRANDS: usize = 1024;

/// How soon a daemon that begins to lead looks for runs that vanished: first its runner is to see
/// what there is.
const SWEEP_SOON: Duration = Duration::from_secs(30);

/// How often it looks then.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Watches the runs.
#[derive(Debug)]
pub struct Monitor {
    dependencies: Dependencies,
    metrics: Metrics,
    leads: watch::Receiver<bool>,
    clock: Clock,
    /// How many runs are being seen to their end.
    ending: AtomicU32,
    stop: CancellationToken,
}

/// The host's clock as it was at the start, and the time since: it never goes backwards.
#[derive(Debug)]
struct Clock {
    start: (Timestamp, Instant),
}

/// What one monitor has in hand.
struct Hands {
    monitor: Arc<Monitor>,
    waiting: Waiting,
    errands: JoinSet<()>,
    ends: JoinSet<()>,
    ending: HashMap<RunId, Ending>,
    /// Of which run each task of [`Hands::ends`] is.
    tasks: HashMap<Id, RunId>,
    sweep: JoinSet<()>,
    next_sweep: Instant,
}

/// A run that is being seen to its end.
struct Ending {
    attempt: u32,
    task: AbortHandle,
    /// Cancelled when there is nothing more to do.
    over: CancellationToken,
}

// === impl Monitor ===

impl Monitor {
    /// A monitor that works until `stop`.
    pub fn new(dependencies: Dependencies, stop: CancellationToken) -> Arc<Self> {
        let leads = dependencies.coordinator.leadership();
        let (metrics, clock) = (Metrics::new(), Clock::new());
        Arc::new(Self { dependencies, metrics, leads, clock, ending: AtomicU32::new(0), stop })
    }

    /// Watches, until it is stopped. What is not settled then is settled after the next start, or
    /// by another.
    pub async fn run(self: Arc<Self>) {
        let mut states = self.dependencies.runner.states();
        let mut hands = Hands::new(Arc::clone(&self));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                state = states.next() => match state {
                    Some(state) => hands.hear(state),
                    None => break,
                },
                _ = tick.tick() => hands.tick(),
                Some(ended) = hands.ends.join_next_with_id() => hands.forget(ended),
                Some(Err(panic)) = hands.errands.join_next() => log_panic(&panic),
                Some(Err(panic)) = hands.sweep.join_next() => log_panic(&panic),
                () = self.stop.cancelled() => break,
            }
        }
        hands.drop_all().await;
    }

    fn leads(&self) -> bool {
        *self.leads.borrow()
    }
}

// === impl Hands ===

impl Hands {
    fn new(monitor: Arc<Monitor>) -> Self {
        Self {
            monitor,
            waiting: Waiting::default(),
            errands: JoinSet::new(),
            ends: JoinSet::new(),
            ending: HashMap::new(),
            tasks: HashMap::new(),
            sweep: JoinSet::new(),
            next_sweep: Instant::now() + SWEEP_SOON,
        }
    }

    fn hear(&mut self, state: RunState) {
        match &state.phase {
            RunPhase::Queued { .. } | RunPhase::Starting { .. } | RunPhase::Running { .. } => {
                // A later attempt than the one that has ended.
                self.let_go(state.run);
                let took = self.waiting.hear(&state, self.monitor.clock.now());
                if self.monitor.leads() {
                    self.monitor.metrics.took(took);
                }
            }
            RunPhase::Ended(end) => {
                let end = end.clone();
                self.waiting.remove(state.run);
                self.end(state, end);
            }
            RunPhase::Settled => {
                self.waiting.remove(state.run);
                self.let_go(state.run);
            }
        }
    }

    /// Sees a run to its end, unless that is being done already.
    fn end(&mut self, state: RunState, end: RunEnd) {
        let RunState { run, attempt, .. } = state;
        let known = self.ending.get(&run);
        if known.is_some_and(|known| known.attempt == attempt && !known.task.is_finished()) {
            return;
        }
        self.let_go(run);
        let over = CancellationToken::new();
        let monitor = Arc::clone(&self.monitor);
        let task = self.ends.spawn(monitor.end(state, end, over.clone()));
        self.tasks.insert(task.id(), run);
        self.ending.insert(run, Ending { attempt, task, over });
    }

    fn let_go(&mut self, run: RunId) {
        if let Some(ending) = self.ending.remove(&run) {
            ending.over.cancel();
        }
    }

    /// Takes note that a run has been seen to its end, or that its task died: of that, only this
    /// run suffers.
    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(panic) => {
                log_panic(panic);
                panic.id()
            }
        };
        let Some(run) = self.tasks.remove(&task) else { return };
        if self.ending.get(&run).is_some_and(|ending| ending.task.id() == task) {
            self.ending.remove(&run);
        }
    }

    fn tick(&mut self) {
        let leads = self.monitor.leads();
        let room = MOST_ERRANDS.saturating_sub(self.errands.len());
        for due in self.waiting.due(self.monitor.clock.now(), leads, room) {
            let monitor = Arc::clone(&self.monitor);
            match due {
                Due::Heartbeat(report) => self.errands.spawn(monitor.beat(report)),
                Due::Note(report) => self.errands.spawn(monitor.note(report)),
                Due::Evicted(evicted) => self.errands.spawn(monitor.evicted(evicted)),
                Due::Look(run) => self.errands.spawn(monitor.look(run)),
            };
        }
        self.monitor.metrics.live(self.waiting.counts());
        self.sweep(leads);
    }

    /// Looks for runs that vanished, for as long as we lead.
    fn sweep(&mut self, leads: bool) {
        let now = Instant::now();
        if !leads {
            self.sweep.abort_all();
            self.next_sweep = now + SWEEP_SOON;
        } else if now >= self.next_sweep && self.sweep.is_empty() {
            self.next_sweep = now + SWEEP_EVERY;
            self.sweep.spawn(Arc::clone(&self.monitor).sweep());
        }
    }

    async fn drop_all(&mut self) {
        self.sweep.shutdown().await;
        self.errands.shutdown().await;
        self.ends.shutdown().await;
    }
}

/// A task that was aborted is none that panicked.
fn log_panic(failed: &JoinError) {
    if failed.is_panic() {
        error!(%failed, "a task of one run panicked: it is seen to again after the next start");
    }
}

// === impl Clock ===

impl Clock {
    fn new() -> Self {
        Self { start: (Timestamp::now(), Instant::now()) }
    }

    fn now(&self) -> Timestamp {
        let (wall, at) = self.start;
        // Some 290,000 years of microseconds fit.
        Timestamp(wall.0.saturating_add(at.elapsed().as_micros() as i64))
    }
}

/// Counts a run that is being seen to its end.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
