//! Claims the duty to report how a run ended, so that one replica reports it.
//!
//! A claim is an annotation of the Job, `<report> <time> <identity>`. It is written only if the Job
//! has not changed since it was read: of two replicas that claim at once, one gets a conflict.
//! Where the Job is gone there is no object to write the claim to, and the leader has the claim.

use crate::event::{RunId, Timestamp};
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::election::Leadership;
use crate::runner::kubernetes::job::annotation;
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed;
use crate::runner::kubernetes::state::ClusterState;
use crate::runner::{CLAIM_TIMEOUT, Claim};
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use std::sync::Arc;
use tokio::time::Instant;
use uuid::Uuid;

/// How often a claim is tried when the Job changes before each try.
const MAX_TRIES: usize = 5;

/// Claims reports in the name of one replica.
#[derive(Debug)]
pub(super) struct ReportClaims {
    // Dependencies.
    api: ApiClient,
    jobs: JobWriter,
    state: Arc<ClusterState>,
    leadership: Leadership,
    // Configuration.
    identity: String,
}

// === impl ReportClaims ===

impl ReportClaims {
    /// No other replica may have this `identity`.
    pub(super) fn new(
        api: ApiClient,
        state: Arc<ClusterState>,
        leadership: Leadership,
        identity: String,
    ) -> Self {
        Self {
            jobs: JobWriter::new(api.clone(), Arc::clone(&state)),
            api,
            state,
            leadership,
            identity,
        }
    }

    /// Claims the report of a run's end.
    pub(super) async fn claim(&self, run: RunId, report: Uuid) -> Result<Claim, ApiError> {
        let latest = self.state.table(|table| {
            let known = table.get(table.latest(run)?)?;
            known.exists.then(|| (known.job.name.clone(), known.job.uid))
        });
        let Some((name, uid)) = latest else { return Ok(self.leader_claim()) };
        let mut last_conflict = ApiError::Conflict(String::new());
        for _ in 0..MAX_TRIES {
            let job = match self.api.get_job(&name).await? {
                Some(job) if observed::uid(&job.metadata) == Some(uid) => job,
                Some(_) | None => return Ok(self.leader_claim()),
            };
            if self.is_claimed_by_another(uid, &job) {
                return Ok(Claim::Theirs);
            }
            let claim = format!("{report} {} {}", Timestamp::now(), self.identity);
            let patch = json!({
                "metadata": {
                    "resourceVersion": job.metadata.resource_version,
                    "annotations": { annotation::REPORT: claim },
                },
            });
            match self.jobs.patch(&name, &patch).await {
                Ok(()) => return Ok(Claim::Ours),
                // Another replica claimed it, or the Job controller wrote a last count of pods.
                // Only the next read shows which. Giving up here could delay the report by 30 s.
                Err(error @ ApiError::Conflict(_)) => last_conflict = error,
                Err(ApiError::NotFound(_)) => return Ok(self.leader_claim()),
                Err(error) => return Err(error),
            }
        }
        Err(last_conflict)
    }

    fn leader_claim(&self) -> Claim {
        if self.leadership.is_leading() { Claim::Ours } else { Claim::Theirs }
    }

    /// Whether another replica has a claim that has not timed out.
    fn is_claimed_by_another(&self, uid: Uuid, job: &Job) -> bool {
        let annotations = job.metadata.annotations.as_ref();
        let Some(claim) = annotations.and_then(|all| all.get(annotation::REPORT)) else {
            return false;
        };
        claim_holder(claim).is_some_and(|holder| holder != self.identity)
            && self.state.table(|table| table.claim_age(uid, claim, Instant::now())) < CLAIM_TIMEOUT
    }
}

/// The identity in a claim.
fn claim_holder(claim: &str) -> Option<&str> {
    claim.splitn(3, ' ').nth(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_names_its_holder() {
        let (report, since) = (Uuid::from_u128(7), Timestamp(1_712_832_408_236_064));
        assert_eq!(claim_holder(&format!("{report} {since} twined-5f6 a")), Some("twined-5f6 a"));
        assert_eq!(claim_holder("no claim"), None);
        assert_eq!(claim_holder(""), None);
    }
}
