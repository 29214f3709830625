//! Settles runs, and finds out whether a Job or a pod of a run exists.

use crate::event::RunId;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::job::label;
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed::{self, ObservedJob};
use crate::runner::kubernetes::state::ClusterState;
use crate::runner::{EndReason, Settlement};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// Settles the Jobs of runs.
#[derive(Debug)]
pub(super) struct Settler {
    api: ApiClient,
    jobs: JobWriter,
    state: Arc<ClusterState>,
}

// === impl Settler ===

impl Settler {
    pub(super) fn new(api: ApiClient, state: Arc<ClusterState>) -> Self {
        Self { jobs: JobWriter::new(api.clone(), Arc::clone(&state)), api, state }
    }

    /// Whether a Job of a run exists, or a pod that has not ended.
    pub(super) async fn has(&self, run: RunId) -> Result<bool, ApiError> {
        if !self.state.jobs_of(run).is_empty() {
            return Ok(true);
        }
        let retry = run.retry.to_string();
        let is_of_run = |metadata: &ObjectMeta| {
            observed::label_of(metadata, label::RETRY) == Some(retry.as_str())
        };
        if self.api.jobs_of(run.question).await?.iter().any(|job| is_of_run(&job.metadata)) {
            return Ok(true);
        }
        Ok(self.api.live_pods_of(run.question).await?.iter().any(|pod| is_of_run(&pod.metadata)))
    }

    /// Settles a run that has ended. Jobs that were cancelled, or that could still start, are
    /// deleted; the others stay for inspection until their time to live is over. A run that has not
    /// ended is left alone.
    pub(super) async fn settle(&self, run: RunId) -> Result<Settlement, ApiError> {
        let latest = self.state.table(|table| table.latest(run).filter(|_| table.has_ended(run)));
        let mut settlement = Settlement::Theirs;
        let Some(latest) = latest else { return Ok(settlement) };
        for job in self.state.jobs_of(run) {
            let of_job = self.settle_job(&job).await?;
            // Those of earlier attempts are left over.
            if job.uid == latest {
                settlement = of_job;
            }
        }
        Ok(settlement)
    }

    async fn settle_job(&self, job: &ObservedJob) -> Result<Settlement, ApiError> {
        if self.state.existing_job(job.uid).is_none() {
            self.state.job_settled(job.uid);
            Ok(Settlement::Unrecorded)
        } else if was_cancelled(job) || job.suspended || job.may_still_start() {
            self.jobs.delete(job).await
        } else {
            self.jobs.mark_settled(job).await
        }
    }
}

fn was_cancelled(job: &ObservedJob) -> bool {
    job.stopped.as_ref().is_some_and(|stopped| stopped.cause().reason == EndReason::Cancelled)
}
