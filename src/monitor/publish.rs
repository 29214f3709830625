//! Publishes notifications, and waits for events to come on record.

use crate::chain::Chain;
use crate::event::RunId;
use crate::monitor::Monitor;
use crate::monitor::live_runs::Eviction;
use crate::notifications::{LogLevel, Notification, RunAttempt};
use crate::retry::{Backoff, retry};
use crate::runner::RunnerError;
use crate::store::RunRecord;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How long the last events of a run may take to arrive before a fence is published. Most arrive by
/// then, so most ends need no fence.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// The pauses between tries of a call to the runner or to Pub/Sub.
pub(super) const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// The time after which a fence that is not on record is published again.
const REPUBLISH_FENCE: Duration = Duration::from_secs(30);

/// How often the view is read although this process appended nothing to it: another process may
/// have.
const READ_INTERVAL: Duration = Duration::from_secs(1);

impl Monitor {
    /// Publishes the heartbeat of a live run, unless it is on record.
    pub(super) async fn publish_heartbeat(self: Arc<Self>, heartbeat: Notification) {
        if self.publish_once(heartbeat).await {
            self.metrics.heartbeats.increment(1);
        }
    }

    /// Publishes a log record for a parent, unless it is on record.
    pub(super) async fn publish_log_record(self: Arc<Self>, record: Notification) {
        self.publish_once(record).await;
    }

    /// Publishes a notification, unless it is on record. Returns whether it was published now.
    pub(super) async fn publish_once(&self, notification: Notification) -> bool {
        let Notification { uuid, question, message } = notification;
        match self.dependencies.view.has(question, uuid).await {
            Ok(true) => return false,
            Ok(false) => {}
            // A second copy does no harm.
            Err(error) => warn!(error = %Chain(&error), "failed to look up a notification"),
        }
        let is_published = self.dependencies.publisher.publish_until(message, &self.stop).await;
        if !is_published && !self.stop.is_cancelled() {
            error!(%uuid, "Pub/Sub refused a notification");
        }
        is_published
    }

    /// Handles the eviction of a run that gets another pod. If its terminal event is on record, the
    /// run is ended, because it need not run again. Otherwise its parent is notified.
    pub(super) async fn handle_eviction(self: Arc<Self>, eviction: Eviction) {
        let Eviction { run, attempt: number, question, times } = eviction;
        let attempt = RunAttempt { run, number, question: &question };
        let now = self.clock.now();
        let Some(fence) = attempt.eviction_heartbeat(now, times) else { return };
        let terminal = self.wait_for_record(run, |record| record.terminal);
        let record = match tokio::time::timeout(GRACE, terminal).await {
            Ok(record) => record,
            Err(_) => self.fence(run, fence).await,
        };
        if record.terminal {
            info!(question = %run.question, "ending a run that was started again after its terminal event");
            self.call_runner(run, || self.dependencies.runner.end_run(run)).await;
            return;
        }
        let text = format!(
            "The machine that the question ran on was removed (eviction {times}). The question \
             starts again on another machine."
        );
        if let Some(record) = attempt.log_record(now, LogLevel::Warning, &text) {
            self.publish_once(record).await;
        }
    }

    /// Publishes a fence and waits until it is on record. Everything that the run published before
    /// the fence is in the record that this returns.
    pub(super) async fn fence(&self, run: RunId, fence: Notification) -> RunRecord {
        let mut appended = self.dependencies.view.appended();
        let mut published = None::<Instant>;
        loop {
            appended.mark_unchanged();
            match self.dependencies.view.has(run.question, fence.uuid).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    warn!(question = %run.question, error = %Chain(&error), "failed to look up a fence")
                }
            }
            // A fence may be lost with a subscription that was deleted. A second copy does no harm.
            if published.is_none_or(|published| published.elapsed() > REPUBLISH_FENCE) {
                self.publish_once(fence.clone()).await;
                published = Some(Instant::now());
            }
            self.wait_for_change(&mut appended).await;
        }
        self.wait_for_record(run, |_| true).await
    }

    /// Waits until `is_wanted` holds for the record of a run, and returns the record.
    pub(super) async fn wait_for_record(
        &self,
        run: RunId,
        is_wanted: impl Fn(&RunRecord) -> bool,
    ) -> RunRecord {
        let mut appended = self.dependencies.view.appended();
        loop {
            appended.mark_unchanged();
            match self.dependencies.view.run_record(run).await {
                Ok(record) if is_wanted(&record) => return record,
                Ok(_) => {}
                Err(error) => {
                    warn!(question = %run.question, error = %Chain(&error), "failed to read the view")
                }
            }
            self.wait_for_change(&mut appended).await;
        }
    }

    /// Waits until the view may have changed.
    async fn wait_for_change(&self, appended: &mut watch::Receiver<u64>) {
        let changed = async {
            if appended.changed().await.is_err() {
                // The view is closed: only the interval is left.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(READ_INTERVAL, changed).await;
        // Every end in progress reads after each change. This limits all of them to 1000 reads a
        // second.
        let ends = u64::from(self.ends_in_progress.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(ends)).await;
    }

    /// Calls the runner until the call succeeds. None if the runner refuses.
    pub(super) async fn call_runner<T, F>(&self, run: RunId, call: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, RunnerError>>,
    {
        let may_retry = |error: &RunnerError| {
            warn!(question = %run.question, error = %Chain(error), "runner call failed");
            !matches!(error, RunnerError::Refused { .. })
        };
        retry(BACKOFF, call, may_retry).await.ok()
    }
}
