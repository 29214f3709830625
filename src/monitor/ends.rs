//! How a run that has ended gets its one terminal event.
//!
//! ```text
//! Ended ──► terminal event on record, or soon? ──yes──► settle
//!             │ no
//!             ▼
//!           claim ──theirs──► wait for a terminal event, for 30 s at most ──► claim
//!             │ ours
//!             ▼
//!           fence ──► on record ──► terminal event? ──yes──► settle
//!                                     │ no
//!                                     ▼
//!                                   relaunch? ──yes──► heartbeat, log record
//!                                     │ no
//!                                     └──► exception ──► on record ──► settle
//! ```
//!
//! The last events of a run may still be on their way when it ends. So a heartbeat in its name, the
//! fence, is published behind them: when it is on record, so is everything that the run published.
//! No timeout has to decide whether the run answered. But Pub/Sub keeps the order of a key only
//! within one region. So a run that exited without an error, and therefore most likely answered,
//! gets some time for its answer to arrive before the fence is published.
//!
//! A run must not get two exceptions: its parent would take the second for the answer to its next
//! retry. So only the replica that has claimed the report publishes one. It does so behind a fence
//! that it published after the claim, and it renews an older claim first.
//!
//! A relaunch may take long. The parent gets heartbeats meanwhile.

use crate::chain::Chain;
use crate::event::RunId;
use crate::monitor::publish::{BACKOFF, GRACE};
use crate::monitor::{EndInProgress, Monitor};
use crate::notifications::{GIVE_UP_AFTER, HEARTBEAT_INTERVAL, LogLevel, Notification, RunAttempt};
use crate::runner::{CLAIM_TIMEOUT, Claim, EndReason, Relaunch, RunEnd, RunState, Settlement};
use crate::store::RunRecord;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

/// The age at which our own claim is renewed before we publish. This plus the time that a
/// publication takes must be less than [`CLAIM_TIMEOUT`].
const CLAIM_RENEWAL: Duration = Duration::from_secs(20);

/// How long a replica that does not lead waits for the leader to settle a run.
const FOLLOWER_DELAY: Duration = Duration::from_secs(5);

/// What the end of a run requires.
enum EndDuty {
    /// Nothing: a terminal event is on record.
    Terminal(RunRecord),
    /// An exception, which this replica must publish.
    Silent(ClaimedReport),
    /// Nothing: the question does not name its parent.
    NoParent,
}

/// An exception that this replica has claimed to publish.
struct ClaimedReport {
    record: RunRecord,
    exception: Notification,
    claimed_at: Instant,
}

/// A terminal event came on record first.
struct TerminalEventFirst(RunRecord);

impl Monitor {
    /// Handles the end of a run: makes sure that it has one terminal event or is relaunched, and
    /// settles it. Stops early when `superseded` is cancelled.
    pub(super) async fn handle_end(
        self: Arc<Self>,
        state: RunState,
        end: RunEnd,
        superseded: CancellationToken,
    ) {
        let _in_progress = EndInProgress::new(&self.ends_in_progress);
        let judging = superseded.run_until_cancelled(self.judge(&state, &end));
        let Some(duty) = judging.await else { return };
        // Without `superseded`: the state of the next attempt cancels it before the parent is
        // notified of the relaunch.
        if let EndDuty::Silent(report) = &duty
            && self.relaunch(&state, &end, &report.record).await
        {
            return;
        }
        let finish = async {
            let record = match duty {
                EndDuty::Terminal(record) => record,
                EndDuty::Silent(report) => self.publish_exception(&state, &end, report).await,
                EndDuty::NoParent => RunRecord::default(),
            };
            self.wait_to_settle().await;
            record
        };
        let Some(record) = superseded.run_until_cancelled(finish).await else { return };
        // Without `superseded`: the settled state cancels it before the end is counted.
        self.settle(state.run, &end, &record).await;
    }

    async fn judge(&self, state: &RunState, end: &RunEnd) -> EndDuty {
        let run = state.run;
        let terminal = self.wait_for_record(run, |record| record.terminal);
        let grace = match end.cause.reason {
            EndReason::Exited => GRACE.max(self.dependencies.late_answer_timeout),
            _ => GRACE,
        };
        if let Ok(record) = tokio::time::timeout(grace, terminal).await {
            return EndDuty::Terminal(record);
        }
        let Some(exception) = RunAttempt::from_state(state).exception(end) else {
            error!(question = %run.question, "run ended, but its question does not name its parent");
            return EndDuty::NoParent;
        };
        match self.claim_and_fence(state, end, exception.uuid).await {
            Ok((record, claimed_at)) => {
                EndDuty::Silent(ClaimedReport { record, exception, claimed_at })
            }
            Err(TerminalEventFirst(record)) => EndDuty::Terminal(record),
        }
    }

    /// Claims the report, and publishes a fence. Returns the record of the run behind that fence,
    /// and the time of the claim. The record includes what an earlier holder of the claim
    /// published.
    async fn claim_and_fence(
        &self,
        state: &RunState,
        end: &RunEnd,
        report: Uuid,
    ) -> Result<(RunRecord, Instant), TerminalEventFirst> {
        let run = state.run;
        loop {
            let mut claimed_at = self.claim(run, report).await?;
            let fence = RunAttempt::from_state(state).fence(end, Uuid::new_v4());
            let mut fenced = pin!(async {
                match fence {
                    Some(fence) => self.fence(run, fence).await,
                    // Only where the question names no parent, which the caller has checked.
                    None => self.wait_for_record(run, |_| true).await,
                }
            });
            // Events may be far behind: the claim is renewed meanwhile.
            loop {
                match tokio::time::timeout(CLAIM_RENEWAL, &mut fenced).await {
                    Ok(record) if record.terminal => return Err(TerminalEventFirst(record)),
                    Ok(record) => return Ok((record, claimed_at)),
                    Err(_) if self.renew_claim(run, report, &mut claimed_at).await? => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Renews our claim. False if it had timed out: another replica may have held it meanwhile, and
    /// published.
    async fn renew_claim(
        &self,
        run: RunId,
        report: Uuid,
        claimed_at: &mut Instant,
    ) -> Result<bool, TerminalEventFirst> {
        let before = std::mem::replace(claimed_at, self.claim(run, report).await?);
        Ok(before.elapsed() < CLAIM_TIMEOUT)
    }

    /// Tries to claim the report until it is ours, or a terminal event is on record. Returns the
    /// time just before the claim.
    async fn claim(&self, run: RunId, report: Uuid) -> Result<Instant, TerminalEventFirst> {
        let mut backoff = BACKOFF;
        loop {
            let before = Instant::now();
            let wait = match self.dependencies.coordinator.claim_report(run, report).await {
                Ok(Claim::Ours) => return Ok(before),
                Ok(Claim::Theirs) => CLAIM_TIMEOUT,
                Err(error) => {
                    warn!(question = %run.question, error = %Chain(&error), "failed to claim a report");
                    backoff.next_pause()
                }
            };
            let terminal = self.wait_for_record(run, |record| record.terminal);
            if let Ok(record) = tokio::time::timeout(wait, terminal).await {
                return Err(TerminalEventFirst(record));
            }
        }
    }

    /// Relaunches the run where that is allowed. The parent gets a heartbeat in place of an
    /// exception.
    async fn relaunch(&self, state: &RunState, end: &RunEnd, record: &RunRecord) -> bool {
        if record.cancelled || end.cause.reason == EndReason::Cancelled {
            return false;
        }
        let relaunched = tokio::select! {
            relaunched = self.try_relaunch(state, end) => relaunched,
            never = self.publish_retry_heartbeats(state, end) => match never {},
        };
        let Some(Relaunch { attempt: number, message }) = relaunched else { return false };
        info!(run = %state.run, attempt = number, "run relaunched");
        let (attempt, now) = (RunAttempt::from_state(state), self.clock.now());
        if let Some(heartbeat) = attempt.relaunch_heartbeat(now)
            && self.publish_once(heartbeat).await
        {
            self.metrics.heartbeats.increment(1);
        }
        if let Some(record) = attempt.log_record(now, LogLevel::Warning, &message) {
            self.publish_once(record).await;
        }
        true
    }

    /// None if the runner does not relaunch the run, or fails for [`GIVE_UP_AFTER`].
    async fn try_relaunch(&self, state: &RunState, end: &RunEnd) -> Option<Relaunch> {
        let run = state.run;
        let unavailable_since = &OnceLock::new();
        let relaunched = self.call_runner(run, || async {
            match self.dependencies.runner.relaunch(state, end).await {
                Err(error)
                    if unavailable_since.get_or_init(Instant::now).elapsed() >= GIVE_UP_AFTER =>
                {
                    error!(question = %run.question, error = %Chain(&error), "relaunch given up");
                    Ok(None)
                }
                relaunched => relaunched,
            }
        });
        relaunched.await.flatten()
    }

    /// Publishes heartbeats while a relaunch is under way.
    async fn publish_retry_heartbeats(&self, state: &RunState, end: &RunEnd) -> Infallible {
        let next = RunAttempt { number: state.attempt + 1, ..RunAttempt::from_state(state) };
        loop {
            tokio::time::sleep(Duration::from_secs(HEARTBEAT_INTERVAL as u64)).await;
            let now = self.clock.now();
            // Counted from the end, so that a replica that takes over publishes none twice.
            let slot = now.seconds_since(end.at) as i64 / HEARTBEAT_INTERVAL;
            if let Some(heartbeat) = next.retry_heartbeat(now, slot)
                && self.publish_once(heartbeat).await
            {
                self.metrics.heartbeats.increment(1);
            }
        }
    }

    /// Publishes the exception, and waits until a terminal event is on record.
    async fn publish_exception(
        &self,
        state: &RunState,
        end: &RunEnd,
        report: ClaimedReport,
    ) -> RunRecord {
        let ClaimedReport { exception, mut claimed_at, .. } = report;
        let run = state.run;
        let mut backoff = BACKOFF;
        loop {
            if claimed_at.elapsed() > CLAIM_RENEWAL {
                let renewed = match self.renew_claim(run, exception.uuid, &mut claimed_at).await {
                    Ok(true) => Ok((self.wait_for_record(run, |_| true).await, claimed_at)),
                    Ok(false) => self.claim_and_fence(state, end, exception.uuid).await,
                    Err(terminal) => Err(terminal),
                };
                match renewed {
                    Ok((record, at)) if !record.terminal => claimed_at = at,
                    Ok((record, _)) | Err(TerminalEventFirst(record)) => return record,
                }
            }
            match self.dependencies.publisher.publish(exception.message.clone()).await {
                Ok(()) => break,
                Err(error) => {
                    warn!(question = %run.question, error = error.chain(), "failed to publish an exception")
                }
            }
            backoff.wait().await;
        }
        let (question, reason) = (run.question, end.cause.reason.label());
        info!(%question, reason, "exception published for a run that ended silently");
        let seconds = self.clock.now().seconds_since(end.at);
        self.metrics.failed(end.cause.reason, Some(seconds));
        self.wait_for_record(run, |record| record.terminal).await
    }

    /// The leader settles a run at once. The other replicas wait, and settle it only if the leader
    /// has not.
    async fn wait_to_settle(&self) {
        let mut leadership = self.leadership.clone();
        let leading = async {
            if leadership.wait_for(|leads| *leads).await.is_err() {
                // The runner is gone.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(FOLLOWER_DELAY, leading).await;
    }

    /// Settles a run that needs nothing more. One replica counts its end: the one that settled it,
    /// or the leader where nothing is left that records who did.
    async fn settle(&self, run: RunId, end: &RunEnd, record: &RunRecord) {
        let settlement = self.call_runner(run, || self.dependencies.runner.settle(run)).await;
        let counts = match settlement {
            Some(Settlement::Ours) => true,
            Some(Settlement::Unrecorded) => self.leads(),
            Some(Settlement::Theirs) | None => false,
        };
        if counts {
            self.metrics.ended(end, record);
        }
    }
}
