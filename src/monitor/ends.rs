//! How a run that has ended gets its one terminal event.
//!
//! ```text
//! Ended ──► spoken, or soon? ──yes──► settle
//!             │ no
//!             ▼
//!           claim ──theirs──► until it is on record, or 30 s have passed ──► claim
//!             │ ours
//!             ▼
//!           fence ──► until it is back ──► spoken? ──yes──► settle
//!                                            │ no
//!                                            ▼
//!                                          again? ──yes──► a line in the asker's log
//!                                            │ no
//!                                            └──► exception ──► until it is on record ──► settle
//! ```
//!
//! The last words of a run may still be on their way when it ends, so a heartbeat in its name, the
//! fence, is sent after them: when that is on record, all that the run published is. No timer
//! decides. But Pub/Sub keeps the order of a key only of what is published in one region, so a run
//! that ended without an error, and so most likely answered, is given time for that before the
//! fence is sent. Only the one who has claimed the report speaks, behind a fence of that claim, and makes
//! sure that the claim is fresh before he does: by the asker a second exception is taken for the
//! answer of his next attempt. A run may pause before it runs again: its asker hears that it is not
//! lost meanwhile.

use crate::chain::Chain;
use crate::event::RunId;
use crate::monitor::publish::{A_MOMENT, pause};
use crate::monitor::{Counted, Monitor};
use crate::notifications::{Attempt, GIVE_UP_AFTER, HEARTBEAT_INTERVAL, LogLevel, Notification};
use crate::runner::{Claim, EndReason, Relaunch, RunEnd, RunState};
use crate::store::RunRecord;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

/// After how long a claim of another daemon may be ours to take over.
const THEIRS: Duration = Duration::from_secs(30);

/// For how long we rely on a claim of our own: with the time that it takes to publish, it is to be
/// less than that after which another takes it over.
const FRESH: Duration = Duration::from_secs(20);

/// How long who does not lead leaves it to the leader to settle what is on record.
const SETTLE_LATER: Duration = Duration::from_secs(5);

/// Whether a run had a word of its own.
enum Judged {
    /// A terminal event is on record.
    Spoken(RunRecord),
    /// There is none, and the duty to say so is ours since then.
    Silent(RunRecord, Notification, Instant),
    /// Its question does not say whom to tell.
    Nobody,
}

/// A terminal event came on record first.
struct Spoken(RunRecord);

impl Monitor {
    /// Sees to it that a run which has ended has one terminal event or runs again, and then
    /// forgets the run. Stops where it is when that is `over`.
    pub(super) async fn end(
        self: Arc<Self>,
        state: RunState,
        end: RunEnd,
        over: CancellationToken,
    ) {
        let _counted = Counted::new(&self.ending);
        let Some(judged) = over.run_until_cancelled(self.judge(&state, &end)).await else { return };
        let (record, silent) = match judged {
            Judged::Spoken(record) => (record, None),
            Judged::Nobody => (RunRecord::default(), None),
            Judged::Silent(record, report, since) => (record, Some((report, since))),
        };
        // Not to be cut off: the next attempt is told of before its asker is.
        if silent.is_some() && self.again(&state, &end, &record).await {
            return;
        }
        let finish = async {
            let record = match silent {
                Some((report, since)) => self.speak(&state, &end, report, since).await,
                None => record,
            };
            self.settle(state.run, &end, &record).await;
        };
        over.run_until_cancelled(finish).await;
    }

    async fn judge(&self, state: &RunState, end: &RunEnd) -> Judged {
        let run = state.run;
        let spoken = self.until(run, |record| record.terminal);
        let patience = match end.reason {
            EndReason::Exited => A_MOMENT.max(self.dependencies.late_answers),
            _ => A_MOMENT,
        };
        if let Ok(record) = tokio::time::timeout(patience, spoken).await {
            return Judged::Spoken(record);
        }
        let Some(report) = Attempt::from_state(state).exception(end) else {
            error!(%run, "ended, but its question does not say whom to tell");
            return Judged::Nobody;
        };
        match self.claim_and_fence(state, end, report.uuid).await {
            Ok((record, since)) => Judged::Silent(record, report, since),
            Err(Spoken(record)) => Judged::Spoken(record),
        }
    }

    /// What is on record of a run once all is that was published before the report became ours, and
    /// since when it is: also what another has said who had the claim before us, and whose words
    /// nobody may have dealt with yet.
    async fn claim_and_fence(
        &self,
        state: &RunState,
        end: &RunEnd,
        report: Uuid,
    ) -> Result<(RunRecord, Instant), Spoken> {
        let run = state.run;
        loop {
            let mut since = self.claim(run, report).await?;
            let fence = Attempt::from_state(state).fence(end, Uuid::new_v4());
            let mut fenced = pin!(async {
                match fence {
                    Some(fence) => self.fence(run, fence).await,
                    // It named an asker a moment ago.
                    None => self.until(run, |_| true).await,
                }
            });
            // Events may be far behind: the claim is kept meanwhile.
            loop {
                match tokio::time::timeout(FRESH, &mut fenced).await {
                    Ok(record) if record.terminal => return Err(Spoken(record)),
                    Ok(record) => return Ok((record, since)),
                    Err(_) if self.keep(run, report, &mut since).await? => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Claims anew what is ours since then. Whether it was ours all the time: if not, another may
    /// have spoken.
    async fn keep(&self, run: RunId, report: Uuid, since: &mut Instant) -> Result<bool, Spoken> {
        let claimed = std::mem::replace(since, self.claim(run, report).await?);
        Ok(claimed.elapsed() < THEIRS)
    }

    /// Claims the duty to report, for as long as it takes another to do it.
    /// Says since when it is ours: since before it was asked for.
    async fn claim(&self, run: RunId, report: Uuid) -> Result<Instant, Spoken> {
        for tries in 0.. {
            let asked = Instant::now();
            let wait = match self.dependencies.coordinator.claim_report(run, report).await {
                Ok(Claim::Ours) => return Ok(asked),
                Ok(Claim::Theirs) => THEIRS,
                Err(error) => {
                    warn!(%run, error = %Chain(&error), "failed to claim a report");
                    pause(tries)
                }
            };
            let spoken = self.until(run, |record| record.terminal);
            if let Ok(record) = tokio::time::timeout(wait, spoken).await {
                return Err(Spoken(record));
            }
        }
        unreachable!("the tries are counted without end")
    }

    /// Runs it again where it may be. Its asker is told, and hears nothing of an exception.
    async fn again(&self, state: &RunState, end: &RunEnd, record: &RunRecord) -> bool {
        if record.cancelled || end.reason == EndReason::Cancelled {
            return false;
        }
        let again = tokio::select! {
            again = self.try_again(state, end) => again,
            never = self.say_held(state, end) => match never {},
        };
        let Some(again) = again else { return false };
        info!(run = %state.run, attempt = again.attempt, "runs again");
        let (about, now) = (Attempt::from_state(state), self.clock.now());
        if let Some(heartbeat) = about.relaunch_heartbeat(now)
            && self.say(heartbeat).await
        {
            self.metrics.heartbeats.increment(1);
        }
        if let Some(note) = about.log_record(now, LogLevel::Warning, &again.message) {
            self.say(note).await;
        }
        true
    }

    /// Has the runner run it again: none where it does not, or cannot for too long.
    async fn try_again(&self, state: &RunState, end: &RunEnd) -> Option<Relaunch> {
        let run = state.run;
        let unavailable = &OnceLock::new();
        let again = self.insist(run, || async {
            match self.dependencies.runner.relaunch(state, end).await {
                Err(error) if unavailable.get_or_init(Instant::now).elapsed() >= GIVE_UP_AFTER => {
                    error!(%run, error = %Chain(&error), "it is given up to run it again");
                    Ok(None)
                }
                again => again,
            }
        });
        again.await.flatten()
    }

    /// Says now and then that a run is not lost which does not run again yet.
    async fn say_held(&self, state: &RunState, end: &RunEnd) -> Infallible {
        let next = Attempt { number: state.attempt + 1, ..Attempt::from_state(state) };
        loop {
            tokio::time::sleep(Duration::from_secs(HEARTBEAT_INTERVAL as u64)).await;
            let now = self.clock.now();
            // Of its end, so that one who goes on for another does not say again what was said.
            let slot = now.seconds_since(end.at) as i64 / HEARTBEAT_INTERVAL;
            if let Some(heartbeat) = next.retry_heartbeat(now, slot)
                && self.say(heartbeat).await
            {
                self.metrics.heartbeats.increment(1);
            }
        }
    }

    /// Tells the asker that the run has ended, and waits until that is on record.
    async fn speak(
        &self,
        state: &RunState,
        end: &RunEnd,
        report: Notification,
        mut since: Instant,
    ) -> RunRecord {
        let run = state.run;
        for tries in 0.. {
            if since.elapsed() > FRESH {
                let kept = self.keep(run, report.uuid, &mut since).await;
                let again = match kept {
                    Ok(true) => Ok((self.until(run, |_| true).await, since)),
                    Ok(false) => self.claim_and_fence(state, end, report.uuid).await,
                    Err(spoken) => Err(spoken),
                };
                match again {
                    Ok((record, now)) if !record.terminal => since = now,
                    Ok((record, _)) | Err(Spoken(record)) => return record,
                }
            }
            match self.dependencies.publisher.publish(report.message.clone()).await {
                Ok(()) => break,
                Err(error) => warn!(%run, error = error.chain(), "failed to tell of an end"),
            }
            tokio::time::sleep(pause(tries)).await;
        }
        info!(%run, reason = end.reason.label(), "ended without a word: its parent was told");
        let seconds = self.clock.now().seconds_since(end.at);
        self.metrics.failed(end.reason, Some(seconds));
        self.until(run, |record| record.terminal).await
    }

    /// Forgets a run whose end is on record: at once where we lead, else if nobody has.
    async fn settle(&self, run: RunId, end: &RunEnd, record: &RunRecord) {
        let mut leads = self.leads.clone();
        let leading = async {
            if leads.wait_for(|leads| *leads).await.is_err() {
                // Nobody says any more who leads.
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_LATER, leading).await;
        // Before, for when it is done we may be told so before we hear of it here.
        self.metrics.ended(end, record);
        self.insist(run, || self.dependencies.runner.settle(run)).await;
    }
}
