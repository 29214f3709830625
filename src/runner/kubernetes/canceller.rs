//! Ends runs on request: the runs of a cancelled question, and a run that has answered already.

use crate::event::RunId;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed::{self, ObservedJob};
use crate::runner::kubernetes::state::ClusterState;
use crate::runner::{Cause, EndReason};
use k8s_openapi::api::batch::v1::Job;
use std::sync::Arc;
use uuid::Uuid;

/// How often a stop is tried when the Job changes before each try.
const MAX_TRIES: usize = 5;

/// Stops the Jobs of runs.
#[derive(Debug)]
pub(super) struct Canceller {
    api: ApiClient,
    jobs: JobWriter,
    state: Arc<ClusterState>,
}

// === impl Canceller ===

impl Canceller {
    pub(super) fn new(api: ApiClient, state: Arc<ClusterState>) -> Self {
        Self { jobs: JobWriter::new(api.clone(), Arc::clone(&state)), api, state }
    }

    /// Stops all Jobs of a question. Returns whether there was anything to stop. It reads the Jobs
    /// from the API server: another replica may have created one a moment ago.
    pub(super) async fn cancel(&self, question: Uuid) -> Result<bool, ApiError> {
        let mut any = false;
        for job in self.api.jobs_of(question).await? {
            any |= self.cancel_job(job).await?;
        }
        Ok(any)
    }

    async fn cancel_job(&self, mut job: Job) -> Result<bool, ApiError> {
        let mut last_conflict = ApiError::Conflict(String::new());
        for _ in 0..MAX_TRIES {
            let Some(observed) = ObservedJob::from_job(&job) else { return Ok(false) };
            if observed.end.is_some() {
                return Ok(false);
            }
            if observed.stopped.is_some() {
                return Ok(true);
            }
            let cause = Cause::new(EndReason::Cancelled, "The question was cancelled.");
            match self.jobs.stop(&observed, cause).await {
                Ok(()) => return Ok(true),
                Err(ApiError::NotFound(_)) => return Ok(false),
                Err(error @ ApiError::Conflict(_)) => last_conflict = error,
                Err(error) => return Err(error),
            }
            match self.api.get_job(&observed.name).await? {
                Some(now) if observed::uid(&now.metadata) == Some(observed.uid) => job = now,
                Some(_) | None => return Ok(false),
            }
        }
        Err(last_conflict)
    }

    /// Stops a run whose terminal event is on record.
    pub(super) async fn end_run(&self, run: RunId) -> Result<(), ApiError> {
        for job in self.state.jobs_of(run) {
            if job.end.is_some() || job.stopped.is_some() {
                continue;
            }
            let message = "The question was answered, and need not run again.";
            match self.jobs.stop(&job, Cause::new(EndReason::Exited, message)).await {
                Ok(()) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
