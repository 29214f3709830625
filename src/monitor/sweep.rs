//! The search for runs that vanished: deleted by hand, or gone while nobody looked.
//!
//! A question that has no answer, though it was asked a while ago, and of whose run nothing is
//! left, is told as lost. Before that all is looked at again behind a fence: where events are
//! behind, the answer may be among them.

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::monitor::Monitor;
use crate::notifications::{self, Attempt};
use crate::pubsub::CallError;
use crate::registry::RegistryError;
use crate::runner::{Claim, RunnerError};
use crate::store::{ReadError, RunRecord, UnansweredQuery, UnansweredQuestion};
use futures_util::StreamExt;
use futures_util::stream;
use std::sync::Arc;
use tracing::{info, warn};

/// Which questions are looked at, by their age in seconds: of the last seven days, for no run
/// lasts longer; and not of the last half hour, for their runs may not be there yet.
const AGES: (i64, i64) = (7 * 24 * 3600, 1800);

/// How many questions are read at once.
const PAGE: u32 = 500;

/// How many are looked at together. Each may wait long for its fence.
const TOGETHER: usize = 16;

/// Why it could not be found out what became of a question. The next sweep tries again.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("failed to look up the service revision")]
    Find(#[source] RegistryError),
    #[error("failed to ask Pub/Sub")]
    Call(#[source] CallError),
    #[error("failed to ask the runner")]
    Runner(#[source] RunnerError),
    #[error("failed to look at what is on record")]
    Look(#[source] ReadError),
}

impl Monitor {
    /// Looks once at all unanswered questions.
    pub(super) async fn sweep(self: Arc<Self>) {
        let Timestamp(now) = self.clock.now();
        let (oldest, youngest) = AGES;
        let mut sweep = UnansweredQuery {
            from: Timestamp(now - oldest * 1_000_000),
            until: Timestamp(now - youngest * 1_000_000),
            after: None,
            limit: PAGE,
        };
        loop {
            let page = match self.dependencies.store.unanswered(&sweep).await {
                Ok(page) => page,
                Err(error) => return warn!(error = %Chain(&error), "failed to sweep"),
            };
            let Some(last) = page.last() else { return };
            sweep.after = Some(last.cursor);
            stream::iter(page)
                .for_each_concurrent(TOGETHER, async |question| {
                    if let Err(error) = self.judge_unanswered(&question).await {
                        warn!(run = %question.run, error = %Chain(&error), "not swept");
                    }
                })
                .await;
        }
    }

    async fn judge_unanswered(&self, question: &UnansweredQuestion) -> Result<(), SweepError> {
        let run = question.run;
        if !self.is_ours(question).await? || !self.is_lost(run).await? {
            return Ok(());
        }
        let now = self.clock.now();
        let about = Attempt { run, number: 0, question: &question.attributes };
        let Some(fence) = about.sweep_fence(now) else { return Ok(()) };
        let record = self.fence(run, fence).await;
        if record.terminal || !self.is_lost(run).await? {
            return Ok(());
        }
        let end = notifications::end_of_lost_run(question.cancelled || record.cancelled, now);
        let Some(report) = about.exception(&end) else { return Ok(()) };
        let claim = self.dependencies.coordinator.claim_report(run, report.uuid).await;
        if claim.map_err(SweepError::Runner)? == Claim::Theirs {
            return Ok(());
        }
        info!(%run, reason = end.reason.label(), "nothing is left of it: telling its parent");
        if self.say(report).await {
            self.metrics.failed(end.reason, None);
            self.metrics.ended(&end, &RunRecord::default());
        }
        Ok(())
    }

    /// Whether it is ours to judge: what a service answers that somebody runs outside is not.
    async fn is_ours(&self, question: &UnansweredQuestion) -> Result<bool, SweepError> {
        let recipient = question.recipient.as_sruid();
        if !self.dependencies.registry.has(recipient).await.map_err(SweepError::Find)? {
            return Ok(false);
        }
        if !self.dependencies.subscriptions_first {
            return Ok(true);
        }
        let subscription = recipient.subscription();
        let outside = self.dependencies.admin.has_subscription(&subscription).await;
        Ok(!outside.map_err(SweepError::Call)?)
    }

    /// Whether nothing is there of a run but its question. Where it is being tried again, its
    /// asker would take the exception for the answer of that: it is told later.
    async fn is_lost(&self, run: RunId) -> Result<bool, SweepError> {
        let next = RunId { retry: run.retry.saturating_add(1), ..run };
        let record =
            async |run| self.dependencies.view.run_record(run).await.map_err(SweepError::Look);
        if record(run).await?.terminal {
            return Ok(false);
        }
        let retried = record(next).await?;
        if next != run && retried.question && !retried.terminal {
            return Ok(false);
        }
        Ok(!self.dependencies.runner.has(run).await.map_err(SweepError::Runner)?)
    }
}
