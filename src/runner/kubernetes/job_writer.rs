//! Changes Jobs. The API server's answer goes into the state at once, ahead of the watch.

use crate::event::Timestamp;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::job::{StopRecord, annotation, label};
use crate::runner::kubernetes::observed::{self, ObservedJob};
use crate::runner::kubernetes::state::ClusterState;
use crate::runner::{Cause, Settlement};
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
    pub(super) async fn set_passed_deadline(&self, job: &ObservedJob) -> Result<(), ApiError> {
        self.patch(&job.name, &json!({ "spec": passed_deadline() })).await
    }

    /// Marks a Job as settled, and forgets it. Of several replicas, one succeeds: the patch applies
    /// to a version without the mark. A Job that is gone is no error.
    pub(super) async fn mark_settled(&self, job: &ObservedJob) -> Result<Settlement, ApiError> {
        let mut version = job.resource_version.clone();
        loop {
            let patch = json!({
                "metadata": { "resourceVersion": version, "labels": { label::SETTLED: "true" } },
            });
            match self.patch(&job.name, &patch).await {
                Ok(()) => return Ok(self.forget(job, Settlement::Ours)),
                Err(ApiError::NotFound(_)) => return Ok(self.forget(job, Settlement::Unrecorded)),
                Err(ApiError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
            // Another replica has settled it, or the watch is behind.
            let found = self.api.get_job(&job.name).await?;
            match found.filter(|found| observed::uid(&found.metadata) == Some(job.uid)) {
                None => return Ok(self.forget(job, Settlement::Unrecorded)),
                Some(found) if observed::is_settled(&found) => {
                    return Ok(self.forget(job, Settlement::Theirs));
                }
                Some(found) => version = found.metadata.resource_version.unwrap_or_default(),
            }
        }
    }

    /// Deletes a Job with its pods, and forgets it. A Job that is gone is no error: of several
    /// replicas, one deletes it.
    pub(super) async fn delete(&self, job: &ObservedJob) -> Result<Settlement, ApiError> {
        match self.api.delete_job(&job.name, job.uid).await {
            Ok(()) => Ok(self.forget(job, Settlement::Ours)),
            Err(ApiError::NotFound(_)) => Ok(self.forget(job, Settlement::Theirs)),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, job: &ObservedJob, settlement: Settlement) -> Settlement {
        self.state.job_settled(job.uid);
        settlement
    }
}

/// The shortest deadline, in seconds after the start of the Job: it has passed, or passes at once.
fn passed_deadline() -> Value {
    json!({ "activeDeadlineSeconds": 1 })
}
