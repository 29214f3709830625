//! Launches a run: creates its Job, and the Secrets that the Job needs.
//!
//! ```text
//! settings ─► depth ─► Job ─► create ── created ──────────────► its Secrets
//!                               │ 409: whose is it?
//!                               ├─ this run's: created before ─► its Secrets
//!                               ├─ the reference's, for this question ─► adopted
//!                               └─ another client's ─► name conflict
//! ```
//!
//! The reference is the deployment that `twined` replaces, which may have created a Job for the
//! same question. A create that timed out may have been done: the question is held, and the next
//! try finds the Job. Labels are compared, never specs, because Kueue and Autopilot change specs.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::job::{
    self, AttemptRequest, Gate, JobDefaults, JobRequest, annotation,
};
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed::ObservedJob;
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::runner::kubernetes::settings::{NetworkSettings, RelaunchPolicy, ServiceSettings};
use crate::runner::kubernetes::state::ClusterState;
use crate::runner::{LaunchRequest, Relaunch, RunEnd, RunState, RunnerError};
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::{info, warn};
use uuid::Uuid;

/// How long the Job of the first attempt is kept after the latest possible end of the last attempt,
/// in seconds.
const RETENTION_SECONDS: i32 = 24 * 3600;

/// Creates the Jobs of runs.
#[derive(Debug)]
pub(super) struct Launcher {
    // Dependencies.
    api: ApiClient,
    jobs: JobWriter,
    state: Arc<ClusterState>,
    // Configuration.
    settings: Arc<NetworkSettings>,
    defaults: JobDefaults,
    // State.
    /// Limits the concurrent creates.
    permits: Semaphore,
}

// === impl Launcher ===

impl Launcher {
    pub(super) fn new(
        api: ApiClient,
        state: Arc<ClusterState>,
        settings: Arc<NetworkSettings>,
        defaults: JobDefaults,
        max_concurrent: usize,
    ) -> Self {
        Self {
            jobs: JobWriter::new(api.clone(), Arc::clone(&state)),
            api,
            state,
            settings,
            defaults,
            permits: Semaphore::new(max_concurrent),
        }
    }

    /// Makes sure that the Job of a run exists, with its Secrets.
    pub(super) async fn launch(&self, launch: &LaunchRequest<'_>) -> Result<(), RunnerError> {
        let question = launch.run.question;
        let unavailable = |error: ApiError| error.into_runner_error("launch", question);
        let refused = |refusal| refused(question, refusal);
        let depth = self.depth(launch).await.map_err(unavailable)?;
        job::check_allowed(&self.settings, launch.recipient.as_sruid(), depth).map_err(refused)?;
        let service = self.settings.service(launch.recipient);
        let request = JobRequest {
            launch: *launch,
            service: &service,
            network: &self.defaults,
            gate: Gate::for_service(&self.settings, &service),
            depth,
            launched: Timestamp::now(),
            nonce: nonce(),
        };
        let job = job::manifest(&request).map_err(refused)?;
        let job = match self.create(&job).await {
            Ok(job) => job,
            Err(ApiError::AlreadyExists(_)) => self.find_or_adopt(&request).await?,
            Err(ApiError::Invalid(message)) => {
                return Err(refused(LaunchRefusal::by_api_server(&message)));
            }
            Err(error) => return Err(unavailable(error)),
        };
        self.create_secrets(&job, launch).await.map_err(unavailable)?;
        self.state.job_launched(&job);
        Ok(())
    }

    async fn create(&self, job: &Job) -> Result<Job, ApiError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        self.api.create_job(job).await
    }

    /// Returns the Job that already has the name of this run, if it is this run's or can be
    /// adopted.
    async fn find_or_adopt(&self, request: &JobRequest<'_>) -> Result<Job, RunnerError> {
        let run = request.launch.run;
        let question = run.question;
        let unavailable = |error: ApiError| error.into_runner_error("launch", question);
        let name = job::name(run, 0);
        let vanished = || ApiError::Conflict(format!("Job `{name}` was deleted meanwhile"));
        let found = self.api.get_job(&name).await.map_err(unavailable)?;
        let found = found.ok_or_else(|| unavailable(vanished()))?;
        if job::identify(&found).is_some_and(|identity| identity.run == run) {
            return Ok(found);
        }
        let adoption = job::is_reference(&found, request).then(|| job::adoption(&found, request));
        let Some(adoption) = adoption.flatten() else {
            let message = format!(
                "A Job {name:?} is in the cluster already, and it is not this question's. Ask again \
                 under another question uuid, or delete that Job if nobody needs it."
            );
            return Err(RunnerError::NameConflict { question, message });
        };
        info!(%question, job = name, "adopted the Job of another Twined deployment");
        self.jobs.patch(&name, &adoption).await.map_err(unavailable)?;
        Ok(found)
    }

    /// Creates those Secrets of a Job that do not exist: the daemon may have crashed between the
    /// Job and its Secrets.
    async fn create_secrets(&self, job: &Job, launch: &LaunchRequest<'_>) -> Result<(), ApiError> {
        for secret in job::input_secrets(job, launch.inputs) {
            match self.api.create_secret(&secret).await {
                Ok(()) | Err(ApiError::AlreadyExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The depth of a question in its tree: one more than its parent's, which the parent's Job
    /// records. Where the depth is limited, a Job that is not known here is looked up: another
    /// replica may have created it a moment ago, or it may have ended.
    async fn depth(&self, launch: &LaunchRequest<'_>) -> Result<u32, ApiError> {
        let Some(parent) = launch.parent_question else { return Ok(0) };
        let known = self.state.table(|table| table.depth_of(parent));
        let parent_depth = match known {
            None if self.settings.depth.is_some() => {
                let jobs = self.api.jobs_of(parent).await?;
                jobs.iter().filter_map(job::identify).map(|identity| identity.depth).max()
            }
            known => known,
        };
        Ok(parent_depth.map_or(1, |depth| depth.saturating_add(1)))
    }

    // --- further attempts

    /// Launches the next attempt of a run, where its settings allow one for the reason of its end.
    pub(super) async fn relaunch(
        &self,
        state: &RunState,
        end: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        let known = self.state.jobs_of(state.run);
        let Some(last) = known.into_iter().find(|job| job.identity.attempt == state.attempt) else {
            return Ok(None);
        };
        let service = self.settings.service(&last.identity.recipient);
        let policy =
            service.relaunch.get(&end.cause.reason).filter(|policy| policy.times > state.attempt);
        let Some(policy) = policy else { return Ok(None) };
        let unavailable = |error: ApiError| error.into_runner_error("relaunch", state.run.question);
        let job = self.api.get_job(&last.name).await.map_err(unavailable)?;
        let attempt = NextAttempt { state, end, service: &service, policy };
        match job {
            Some(job) => self.launch_attempt(&job, &attempt).await.map_err(unavailable),
            None => Ok(None),
        }
    }

    async fn launch_attempt(
        &self,
        job: &Job,
        attempt: &NextAttempt<'_>,
    ) -> Result<Option<Relaunch>, ApiError> {
        let NextAttempt { state, end, service, policy } = *attempt;
        let Some(last) = ObservedJob::from_job(job) else { return Ok(None) };
        let annotations = job.metadata.annotations.as_ref();
        let has_secrets = annotations.is_some_and(|all| all.contains_key(annotation::INPUTS));
        // Such a Job must be deleted. If it is the first, the Secrets of all attempts are deleted
        // with it, and no further attempt can be made.
        if last.may_still_start() && has_secrets && state.attempt == 0 {
            return Ok(None);
        }
        tokio::time::sleep(attempt.remaining_pause()).await;
        let number = attempt.number();
        let next = job::next_attempt(
            job,
            &AttemptRequest {
                attempt: number,
                service,
                policy,
                network: &self.defaults,
                gate: Gate::for_service(&self.settings, service),
                launched: Timestamp::now(),
            },
        );
        let Some(next) = next else { return Ok(None) };
        match self.create(&next).await {
            Ok(job) => self.state.job_launched(&job),
            Err(ApiError::AlreadyExists(_)) => {}
            // The run stays ended, and its end is reported.
            Err(ApiError::Invalid(message)) => {
                warn!(
                    question = %state.run.question, attempt = number, message,
                    "relaunch refused by the API server"
                );
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        if has_secrets {
            let longest = self.settings.waiting + service.deadline + attempt.pause();
            self.extend_retention(&job::name(state.run, 0), retention(longest, number)).await?;
        }
        self.replace(&last).await?;
        let message = format!(
            "{} It is relaunched automatically: attempt {} of {}{}.",
            end.cause.message,
            number + 1,
            policy.times + 1,
            memory_note(job, &next),
        );
        Ok(Some(Relaunch { attempt: number, message }))
    }

    /// Keeps the Job of the first attempt, which owns the Secrets of all attempts.
    async fn extend_retention(&self, first_job: &str, seconds: i32) -> Result<(), ApiError> {
        let patch = json!({ "spec": { "ttlSecondsAfterFinished": seconds } });
        match self.jobs.patch(first_job, &patch).await {
            Ok(()) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Settles the Job of the previous attempt. A Job that is still suspended is deleted: until
    /// then it would keep its position in its queue, and the queue could admit it beside the next
    /// attempt.
    async fn replace(&self, last: &ObservedJob) -> Result<(), ApiError> {
        if !last.may_still_start() {
            return self.jobs.mark_settled(last).await.map(drop);
        }
        if let Err(error) = self.jobs.delete(last).await {
            // The Job is stopped, so it does not run. It is deleted when its run is settled.
            let question = last.identity.run.question;
            warn!(
                %question, job = last.name, error = %Chain(&error),
                "failed to delete the Job of a previous attempt"
            );
        }
        Ok(())
    }
}

/// What the next attempt of a run is made from.
#[derive(Clone, Copy)]
struct NextAttempt<'a> {
    /// The state of the previous attempt.
    state: &'a RunState,
    end: &'a RunEnd,
    service: &'a ServiceSettings,
    policy: &'a RelaunchPolicy,
}

// === impl NextAttempt ===

impl NextAttempt<'_> {
    fn number(&self) -> u32 {
        self.state.attempt + 1
    }

    /// The pause before this attempt: it doubles with each.
    fn pause(&self) -> Duration {
        self.policy.backoff.saturating_mul(1 << self.state.attempt.min(16))
    }

    /// What is left of the pause, which starts at the end of the previous attempt.
    fn remaining_pause(&self) -> Duration {
        let since = Timestamp::now().seconds_since(self.end.at);
        self.pause().saturating_sub(Duration::from_secs_f64(since))
    }
}

/// How long the first Job is kept, in seconds, if `attempts` further attempts take at most
/// `longest` each.
fn retention(longest: Duration, attempts: u32) -> i32 {
    let seconds = longest.saturating_mul(attempts).as_secs();
    i32::try_from(seconds).unwrap_or(i32::MAX).saturating_add(RETENTION_SECONDS)
}

/// The memory of the next attempt, if it differs from that of the last.
fn memory_note(last: &Job, next: &Job) -> String {
    let requested = |job: &Job| {
        let pod = job.spec.as_ref()?.template.spec.as_ref()?;
        let requests = pod.containers.first()?.resources.as_ref()?.requests.as_ref()?;
        requests.get("memory").map(|amount| amount.0.clone())
    };
    match (requested(last), requested(next)) {
        (last, Some(next)) if last.as_ref() != Some(&next) => format!(", with {next} of memory"),
        _ => String::new(),
    }
}

/// A random number.
fn nonce() -> u32 {
    // All bits of this field of a version 4 uuid are random.
    Uuid::new_v4().as_fields().0
}

fn refused(question: Uuid, refusal: LaunchRefusal) -> RunnerError {
    let LaunchRefusal { exception, message } = refusal;
    RunnerError::Refused { question, exception, message }
}
