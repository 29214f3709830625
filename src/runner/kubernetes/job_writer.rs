//! Changes Jobs. The API server's answer goes into the state at once, ahead of the watch.

use crate::event::Timestamp;
use crate::runner::cause::Cause;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::job::{StopRecord, annotation, label};
use crate::runner::kubernetes::observed::ObservedJob;
use crate::runner::kubernetes::state::ClusterState;
use serde_json::{Value, json};
use std::sync::Arc;

/// Changes Jobs, and keeps the state up to date.
#[derive(Clone, Debug)]
pub(super) struct JobWriter {
    api: ApiClient,
    state: Arc<ClusterState>,
}

// === impl JobWriter ===

impl JobWriter {
    pub(super) fn new(api: ApiClient, state: Arc<ClusterState>) -> Self {
        Self { api, state }
    }

    /// Changes a Job by a merge patch.
    pub(super) async fn patch(&self, name: &str, patch: &Value) -> Result<(), ApiError> {
        let job = self.api.patch_job(name, patch).await?;
        self.state.job_patched(&job);
        Ok(())
    }

    /// Stops a Job: writes the cause to an annotation, and sets a deadline that has passed, so that
    /// the Job controller ends its pods. A suspended Job has no pods, and must not be admitted only
    /// to be ended: the annotation alone ends its run. (A kubelet does not interrupt a pull: a pod
    /// that waits for its image is gone only when the pull has ended.)
    pub(super) async fn stop(&self, job: &ObservedJob, cause: Cause) -> Result<(), ApiError> {
        let stopped = StopRecord::new(cause, Timestamp::now());
        let stopped = serde_json::to_string(&stopped).expect("texts and numbers are JSON");
        let mut patch = json!({
            "metadata": {
                "resourceVersion": job.resource_version,
                "annotations": { annotation::STOPPED: stopped },
            },
        });
        if !job.suspended {
            patch["spec"] = passed_deadline();
        }
        self.patch(&job.name, &patch).await
    }

    /// Sets the deadline of a Job that was admitted although it had been stopped.
    pub(super) async fn enforce_stop(&self, job: &ObservedJob) -> Result<(), ApiError> {
        self.patch(&job.name, &json!({ "spec": passed_deadline() })).await
    }

    /// Marks a Job as settled, and forgets it. A Job that is gone is no error.
    pub(super) async fn mark_settled(&self, job: &ObservedJob) -> Result<(), ApiError> {
        let patch = json!({ "metadata": { "labels": { label::SETTLED: "true" } } });
        self.forget(job, self.patch(&job.name, &patch).await)
    }

    /// Deletes a Job with its pods, and forgets it. A Job that is gone is no error.
    pub(super) async fn delete(&self, job: &ObservedJob) -> Result<(), ApiError> {
        self.forget(job, self.api.delete_job(&job.name, job.uid).await)
    }

    fn forget(&self, job: &ObservedJob, result: Result<(), ApiError>) -> Result<(), ApiError> {
        match result {
            Ok(()) | Err(ApiError::NotFound(_)) => {
                self.state.job_settled(job.uid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The shortest deadline, in seconds after the start of the Job: it has passed, or passes at once.
fn passed_deadline() -> Value {
    json!({ "activeDeadlineSeconds": 1 })
}
