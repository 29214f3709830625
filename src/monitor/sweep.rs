//! The sweep for lost runs: deleted by hand, or ended while no daemon was running.
//!
//! An unanswered question that is old enough, and of whose run nothing exists, gets an exception.
//! It is checked twice, the second time behind a fence: if events are delayed, its answer may be
//! among them.

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::monitor::Monitor;
use crate::notifications::{self, RunAttempt};
use crate::routing::RoutingError;
use crate::runner::{Claim, RunnerError};
use crate::store::{ReadError, RunRecord, TimeRange, UnansweredQuery, UnansweredQuestion};
use futures_util::StreamExt;
use futures_util::stream;
use std::sync::Arc;
use tracing::{info, warn};

/// The age of the oldest questions that are swept, in seconds: the default deadline of a run. Lost
/// runs of older questions are not found.
const OLDEST: i64 = 7 * 24 * 3600;

/// The age of the youngest questions that are swept, in seconds: younger ones may have no run yet.
const YOUNGEST: i64 = 1800;

/// How many questions are read at once.
const PAGE: u32 = 500;

/// How many questions are checked concurrently. Each may wait long for its fence.
const CONCURRENT: usize = 16;

/// Why a question could not be checked. The next sweep tries again.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error("failed to route the question")]
    Routing(#[source] RoutingError),
    #[error("runner call failed")]
    Runner(#[source] RunnerError),
    #[error("failed to read what is on record of the question")]
    View(#[source] ReadError),
}

impl Monitor {
    /// Checks each unanswered question once.
    pub(super) async fn sweep(self: Arc<Self>) {
        let Timestamp(now) = self.clock.now();
        let mut query = UnansweredQuery {
            during: TimeRange {
                since: Timestamp(now - OLDEST * 1_000_000),
                until: Timestamp(now - YOUNGEST * 1_000_000),
            },
            after: None,
            limit: PAGE,
        };
        loop {
            let page = match self.dependencies.history.unanswered(&query).await {
                Ok(page) => page,
                Err(error) => return warn!(error = %Chain(&error), "sweep for lost runs failed"),
            };
            let Some(last) = page.last() else { return };
            query.after = Some(last.cursor);
            stream::iter(page)
                .for_each_concurrent(CONCURRENT, async |question| {
                    if let Err(error) = self.judge_unanswered(&question).await {
                        let question = question.run.question;
                        warn!(%question, error = %Chain(&error), "failed to check an unanswered question");
                    }
                })
                .await;
        }
    }

    async fn judge_unanswered(&self, question: &UnansweredQuestion) -> Result<(), SweepError> {
        let run = question.run;
        let recipient = question.recipient.as_sruid();
        let is_ours = self.dependencies.router.is_ours(recipient).await;
        if !is_ours.map_err(SweepError::Routing)? || !self.is_lost(run).await? {
            return Ok(());
        }
        let now = self.clock.now();
        let attempt = RunAttempt { run, number: 0, question: &question.attributes };
        let Some(fence) = attempt.sweep_fence(now) else { return Ok(()) };
        let record = self.fence(run, fence).await;
        if record.terminal || !self.is_lost(run).await? {
            return Ok(());
        }
        let end = notifications::lost_run_end(question.cancelled || record.cancelled, now);
        let Some(exception) = attempt.exception(&end) else { return Ok(()) };
        let claim = self.dependencies.coordinator.claim_report(run, exception.uuid).await;
        if claim.map_err(SweepError::Runner)? == Claim::Theirs {
            return Ok(());
        }
        let (lost, reason) = (run.question, end.cause.reason.label());
        info!(question = %lost, reason, "run lost: publishing an exception");
        if self.publish_once(exception).await {
            self.metrics.failed(end.cause.reason, None);
            self.metrics.ended(&end, &RunRecord::default());
        }
        Ok(())
    }

    /// Whether nothing of a run exists but its question. False while a retry of the question by the
    /// SDK is unanswered: the parent would take an exception for the answer to that retry.
    async fn is_lost(&self, run: RunId) -> Result<bool, SweepError> {
        let next = RunId { retry: run.retry.saturating_add(1), ..run };
        let record =
            async |run| self.dependencies.view.run_record(run).await.map_err(SweepError::View);
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
