//! What is said for runs, and what is looked up of them: each of it is one errand of its own.

use crate::chain::Chain;
use crate::event::RunId;
use crate::monitor::Monitor;
use crate::monitor::waiting::Evicted;
use crate::notifications::{Attempt, LogLevel, Notification};
use crate::runner::RunnerError;
use crate::store::{ReadError, RunRecord};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How long a run is given for words that are on their way to come by themselves, before a fence
/// is sent: most have come by then, and need none.
pub(super) const A_MOMENT: Duration = Duration::from_millis(200);

/// After how long a fence that is not back is sent again.
const FENCE_AGAIN: Duration = Duration::from_secs(30);

/// How often the view is asked again although nothing told us to: another process may have put on
/// record what we wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The pauses between tries of what the runner or Pub/Sub cannot do now: the first, and the
/// longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

impl Monitor {
    /// Says that a run lives, unless another has said it.
    pub(super) async fn beat(self: Arc<Self>, report: Notification) {
        if self.say(report).await {
            self.metrics.heartbeats.increment(1);
        }
    }

    /// Puts a line into an asker's log, unless another has.
    pub(super) async fn note(self: Arc<Self>, report: Notification) {
        self.say(report).await;
    }

    /// Says something that may have been said already: then it is not said again. Whether it was
    /// said now.
    pub(super) async fn say(&self, report: Notification) -> bool {
        let Notification { uuid, message } = report;
        match self.dependencies.view.has(uuid).await {
            Ok(true) => return false,
            Ok(false) => {}
            // Said twice it is the same.
            Err(error) => warn!(error = %Chain(&error), "failed to look for a report"),
        }
        let said = self.dependencies.publisher.publish_until(message, &self.stop).await;
        if !said && !self.stop.is_cancelled() {
            error!(%uuid, "Pub/Sub refused a report");
        }
        said
    }

    /// Ends a run that is cancelled already: whoever put the cancellation on record may have
    /// found no run yet.
    pub(super) async fn look(self: Arc<Self>, run: RunId) {
        let record = self.until(run, |_| true).await;
        if record.cancelled {
            info!(%run, "was cancelled before its run was there");
            let cancel = || self.dependencies.runner.cancel(run.question);
            self.insist(run, cancel).await;
        }
    }

    /// Sees to a run that goes on though what it ran on was taken away: to its end where it has
    /// answered already, else its asker is told.
    pub(super) async fn evicted(self: Arc<Self>, evicted: Evicted) {
        let Evicted { run, attempt, question, times } = evicted;
        let about = Attempt { run, number: attempt, question: &question };
        let now = self.clock.now();
        let Some(fence) = about.eviction_heartbeat(now, times) else { return };
        let spoken = self.until(run, |record| record.terminal);
        let record = match tokio::time::timeout(A_MOMENT, spoken).await {
            Ok(record) => record,
            Err(_) => self.fence(run, fence).await,
        };
        if record.terminal {
            info!(%run, "was started anew after its answer: ended");
            self.insist(run, || self.dependencies.runner.end_run(run)).await;
            return;
        }
        let text = format!(
            "The machine that the question ran on was taken away (eviction {times}). It starts \
             anew on another."
        );
        if let Some(note) = about.log_record(now, LogLevel::Warning, &text) {
            self.say(note).await;
        }
    }

    /// What is on record of a run once all is that it has published so far: all that was
    /// published before the fence is on record when the fence is.
    pub(super) async fn fence(&self, run: RunId, fence: Notification) -> RunRecord {
        let uuid = fence.uuid;
        let mut appended = self.dependencies.view.appended();
        let mut sent = None::<Instant>;
        loop {
            appended.mark_unchanged();
            match self.dependencies.view.has(uuid).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => warn!(error = %Chain(&error), "failed to look for a fence"),
            }
            // Said again it is the same: one that was lost with its subscription must not be
            // waited for.
            if sent.is_none_or(|sent| sent.elapsed() > FENCE_AGAIN) {
                self.say(fence.clone()).await;
                sent = Some(Instant::now());
            }
            self.change(&mut appended).await;
        }
        self.until(run, |_| true).await
    }

    /// The record of a run, as soon as it is as wanted.
    pub(super) async fn until(&self, run: RunId, wanted: impl Fn(&RunRecord) -> bool) -> RunRecord {
        let mut appended = self.dependencies.view.appended();
        loop {
            appended.mark_unchanged();
            match self.dependencies.view.run_record(run).await {
                Ok(record) if wanted(&record) => return record,
                Ok(_) => {}
                Err(error @ ReadError(_)) => {
                    warn!(%run, error = %Chain(&error), "failed to look at a run");
                }
            }
            self.change(&mut appended).await;
        }
    }

    /// Waits until there may be something new to see.
    async fn change(&self, appended: &mut watch::Receiver<u64>) {
        let changed = async {
            if appended.changed().await.is_err() {
                // The view is closed: then only time passes.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
        // All who wait look at every change: a thousand looks a second, however many they are.
        let many = u64::from(self.ending.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(many)).await;
    }

    /// Tells the runner to do something until it has, or says that it never will: none then.
    pub(super) async fn insist<T, F>(&self, run: RunId, act: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, RunnerError>>,
    {
        for tries in 0.. {
            match act().await {
                Ok(done) => return Some(done),
                Err(error) => {
                    warn!(%run, error = %Chain(&error), "the runner did not do as it was told");
                    if matches!(error, RunnerError::Refused { .. }) {
                        return None;
                    }
                }
            }
            tokio::time::sleep(pause(tries)).await;
        }
        unreachable!("the tries are counted without end")
    }
}

/// How long to wait before the try after `tries` of them.
pub(super) fn pause(tries: u32) -> Duration {
    let (first, longest) = BACKOFF;
    longest.min(first.saturating_mul(1 << tries.min(16)))
}
