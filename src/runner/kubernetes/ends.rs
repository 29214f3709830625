//! How a run comes to its end, and is forgotten: cancelled, reported by one, settled.

use crate::event::{RunId, Timestamp};
use crate::runner::cause::Cause;
use crate::runner::kubernetes::call::{CallError, Verb};
use crate::runner::kubernetes::cluster::Cluster;
use crate::runner::kubernetes::failure;
use crate::runner::kubernetes::job::{annotation, label};
use crate::runner::kubernetes::table::JobBrief;
use crate::runner::kubernetes::watch;
use crate::runner::{Claim, EndReason};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Preconditions};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// For how long a claim holds without its report, from when it was first seen here: far longer than a
/// publication takes, and short beside an asker's patience of 6 minutes.
const CLAIM: Duration = Duration::from_secs(30);

/// How often a change is tried again that was overtaken by another.
const TRIES: usize = 5;

// === impl Cluster ===

impl Cluster {
    /// Ends all runs of a question. Says whether there was anything to end.
    pub async fn cancel(&self, question: Uuid) -> Result<bool, CallError> {
        let mut any = false;
        for job in self.jobs_of(question).await? {
            any |= self.cancel_job(job).await?;
        }
        Ok(any)
    }

    async fn cancel_job(&self, mut job: Job) -> Result<bool, CallError> {
        let mut last = CallError::Conflict(String::new());
        for _ in 0..TRIES {
            let Some(brief) = watch::job_brief(&job) else { return Ok(false) };
            if failure::job_end(&job, brief.identity.recipient.as_str()).is_some() {
                return Ok(false);
            }
            if brief.stopped.is_some() {
                return Ok(true);
            }
            let JobBrief { name, version, suspended, .. } = &brief;
            let message = "The question was cancelled.".to_owned();
            match self
                .stop(name, version, *suspended, Cause::new(EndReason::Cancelled, message))
                .await
            {
                Ok(()) => return Ok(true),
                Err(CallError::Gone(_)) => return Ok(false),
                Err(CallError::Conflict(words)) => last = CallError::Conflict(words),
                Err(error) => return Err(error),
            }
            match self.calls.call(Verb::Get, self.jobs().get_opt(name)).await? {
                Some(now) if watch::uid(&now.metadata) == Some(brief.uid) => job = now,
                Some(_) | None => return Ok(false),
            }
        }
        Err(last)
    }

    /// Ends a run whose answer is on record already.
    pub async fn end_run(&self, run: RunId) -> Result<(), CallError> {
        for job in self.known(run) {
            if job.end.is_some() || job.stopped.is_some() {
                continue;
            }
            let message = "The question was answered, and need not run again.".to_owned();
            let JobBrief { name, version, suspended, .. } = &job;
            match self.stop(name, version, *suspended, Cause::new(EndReason::Exited, message)).await
            {
                Ok(()) | Err(CallError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Claims the duty to report how a run ended. Where its Job is gone there is nothing to write
    /// the claim on: then it is the leader's.
    pub async fn claim_report(&self, run: RunId, report: Uuid) -> Result<Claim, CallError> {
        let latest = self.table(|table| {
            let (job, there) = table.get(table.latest(run)?)?;
            there.then(|| (job.name.clone(), job.uid))
        });
        let by_lead = || if *self.leads.borrow() { Claim::Ours } else { Claim::Theirs };
        let Some((name, uid)) = latest else { return Ok(by_lead()) };
        let mut last = CallError::Conflict(String::new());
        for _ in 0..TRIES {
            let job = match self.calls.call(Verb::Get, self.jobs().get_opt(&name)).await? {
                Some(job) if watch::uid(&job.metadata) == Some(uid) => job,
                Some(_) | None => return Ok(by_lead()),
            };
            let annotations = job.metadata.annotations.as_ref();
            if let Some(claim) = annotations.and_then(|all| all.get(annotation::REPORT))
                && holder(claim).is_some_and(|holder| holder != self.options.identity)
                && self.table(|table| table.claimed(uid, claim, Instant::now())) < CLAIM
            {
                return Ok(Claim::Theirs);
            }
            let claim = format!("{report} {} {}", Timestamp::now(), self.options.identity);
            let patch = json!({
                "metadata": {
                    "resourceVersion": job.metadata.resource_version,
                    "annotations": { annotation::REPORT: claim },
                },
            });
            match self.patch(&name, patch).await {
                Ok(()) => return Ok(Claim::Ours),
                // Another claimed it, or the Job controller wrote a last count of pods: to take the
                // one for the other would cost the asker 30 s.
                Err(CallError::Conflict(words)) => last = CallError::Conflict(words),
                Err(CallError::Gone(_)) => return Ok(by_lead()),
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Whether anything of a run is there.
    pub async fn has(&self, run: RunId) -> Result<bool, CallError> {
        if !self.known(run).is_empty() {
            return Ok(true);
        }
        let retry = run.retry.to_string();
        let is_of_run = |metadata: &ObjectMeta| {
            let labels = metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(label::RETRY)) == Some(&retry)
        };
        if self.jobs_of(run.question).await?.iter().any(|job| is_of_run(&job.metadata)) {
            return Ok(true);
        }
        Ok(self.live_pods_of(run.question).await?.iter().any(|pod| is_of_run(&pod.metadata)))
    }

    /// Forgets a run that has ended. What never can end by itself, or was not wanted, goes; the
    /// rest stays for those who want to look at it, until its time to live is over. What has not
    /// ended is left alone.
    pub async fn settle(&self, run: RunId) -> Result<(), CallError> {
        if !self.table(|table| table.has_ended(run)) {
            return Ok(());
        }
        for job in self.known(run) {
            let there = self.table(|table| table.get(job.uid).is_some_and(|(_, there)| there));
            let stopped_for = job.stopped.as_ref().map(|stopped| stopped.cause().reason);
            let unwanted = stopped_for == Some(EndReason::Cancelled);
            let done = match there {
                false => Ok(()),
                true if unwanted || job.suspended || job.may_yet_run() => self.delete(&job).await,
                true => {
                    let labels = json!({ "metadata": { "labels": { label::SETTLED: "true" } } });
                    self.patch(&job.name, labels).await
                }
            };
            match done {
                Ok(()) | Err(CallError::Gone(_)) => self.forget(job.uid),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes a Job with its pods, this one and none of the same name that came after it.
    pub async fn delete(&self, job: &JobBrief) -> Result<(), CallError> {
        let preconditions =
            Preconditions { uid: Some(job.uid.to_string()), resource_version: None };
        let params = DeleteParams::background().preconditions(preconditions);
        match self.calls.call(Verb::Delete, self.jobs().delete(&job.name, &params)).await {
            Ok(_) => Ok(()),
            // Another has its name now.
            Err(CallError::Conflict(words)) => Err(CallError::Gone(words)),
            Err(error) => Err(error),
        }
    }
}

/// Who made a claim: `<report> <time> <who>`.
fn holder(claim: &str) -> Option<&str> {
    claim.splitn(3, ' ').nth(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_says_who_made_it() {
        let (report, since) = (Uuid::from_u128(7), Timestamp(1_712_832_408_236_064));
        assert_eq!(holder(&format!("{report} {since} twined-5f6 a")), Some("twined-5f6 a"));
        assert_eq!(holder("no claim"), None);
        assert_eq!(holder(""), None);
    }
}
