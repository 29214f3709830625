//! A question becomes a Job.
//!
//! ```text
//! settings ─► depth ─► Job ─► create ── made ─────────────────────► its Secrets
//!                               │ 409: whose is it?
//!                               ├─ this run's: it was made before ► its Secrets
//!                               ├─ the reference's, of this question ► adopted
//!                               └─ somebody else's ► set aside
//! ```
//!
//! A call that timed out may have been done: the question is held, and the next try finds the Job.
//! Specs are never compared, for Kueue and Autopilot change them; labels are.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::kubernetes::call::{CallError, Verb};
use crate::runner::kubernetes::cluster::Cluster;
use crate::runner::kubernetes::failed;
use crate::runner::kubernetes::job::{self, Gate, JobRequest, annotation, label};
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::runner::kubernetes::table::JobBrief;
use crate::runner::kubernetes::watch;
use crate::runner::{LaunchRequest, Relaunch, RunEnd, RunState, RunnerError};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::json;
use std::time::Duration;
use tracing::{info, warn};
use uuid::Uuid;

/// For how long, in seconds, the Job of the first attempt is kept after the longest that the last one
/// may take.
const KEPT: i32 = 24 * 3600;

// === impl Cluster ===

impl Cluster {
    /// Makes sure that a run's Job exists, and all that it needs.
    pub async fn launch(&self, launch: &LaunchRequest<'_>) -> Result<(), RunnerError> {
        let question = launch.run.question;
        let refused = |refusal| refused(question, refusal);
        let settings = &self.options.settings;
        let recipient = launch.recipient.as_sruid();
        let depth = self.depth(launch).await.map_err(|error| failed("launch", question, error))?;
        job::admit(settings, recipient, depth).map_err(refused)?;
        let service = settings.service(launch.recipient);
        let order = JobRequest {
            launch: *launch,
            service: &service,
            network: &self.options.network,
            gate: Gate::for_service(settings, &service),
            depth,
            launched: Timestamp::now(),
            nonce: nonce(),
        };
        let body = self.templates.body(&order).map_err(refused)?;
        let job = match self.create(body).await {
            Ok(job) => job,
            Err(CallError::Exists(_)) => self.find(&order).await?,
            Err(CallError::Refused(words)) => {
                return Err(refused(LaunchRefusal::by_api_server(&words)));
            }
            Err(error) => return Err(failed("launch", question, error)),
        };
        self.bring(&job, launch).await.map_err(|error| failed("launch", question, error))?;
        self.made_job(&job);
        Ok(())
    }

    /// Makes a Job from its JSON.
    async fn create(&self, body: Vec<u8>) -> Result<Job, CallError> {
        let request = Request::new(self.jobs().resource_url());
        let create = async {
            let request = request.create(&PostParams::default(), body);
            self.client.request(request.map_err(kube::Error::BuildRequest)?).await
        };
        // Never closed.
        let _permit = self.launches.acquire().await;
        self.calls.call(Verb::Create, create).await
    }

    /// The Job that has the name of this run.
    async fn find(&self, order: &JobRequest<'_>) -> Result<Job, RunnerError> {
        let run = order.launch.run;
        let question = run.question;
        let failed = |error| failed("launch", question, error);
        let name = job::name(run, 0);
        let gone = || CallError::Conflict(format!("Job `{name}` came and went"));
        let found = self.calls.call(Verb::Get, self.jobs().get_opt(&name)).await;
        let found = found.map_err(failed)?.ok_or_else(|| failed(gone()))?;
        if job::identify(&found).is_some_and(|identity| identity.run == run) {
            return Ok(found);
        }
        let adoption = job::is_reference(&found, order).then(|| job::adoption(&found, order));
        let Some(adoption) = adoption.flatten() else {
            let message = format!(
                "A Job {name:?} is in the cluster already, and it is not this question's. Ask again \
                 under another question uuid, or delete that Job if nobody needs it."
            );
            return Err(RunnerError::NameConflict { question, message });
        };
        info!(%run, "adopted a Job that was made before us");
        self.patch(&name, adoption).await.map_err(failed)?;
        Ok(found)
    }

    /// Makes sure that the Secrets of a Job exist: a crash may have come between it and them.
    async fn bring(&self, job: &Job, launch: &LaunchRequest<'_>) -> Result<(), CallError> {
        for secret in job::input_secrets(job, launch.inputs) {
            let (secrets, how) = (self.secrets(), PostParams::default());
            match self.calls.call(Verb::Create, secrets.create(&how, &secret)).await {
                Ok(_) | Err(CallError::Exists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How deep in its tree a question is: the Job of the one that asked it knows its own depth.
    /// Where there is a limit that Job is looked for, if it is not known here: it may have been made
    /// a moment ago by another replica, or have ended.
    async fn depth(&self, launch: &LaunchRequest<'_>) -> Result<u32, CallError> {
        let Some(parent) = launch.parent_question else { return Ok(0) };
        let known = self.table(|table| table.depth(parent));
        let of_parent = match known {
            None if self.options.settings.depth.is_some() => {
                let jobs = self.jobs_of(parent).await?;
                jobs.iter().filter_map(job::identify).map(|job| job.depth).max()
            }
            known => known,
        };
        Ok(of_parent.map_or(1, |depth| depth.saturating_add(1)))
    }

    /// Runs a run again, where its settings say so for the reason of its end.
    pub async fn relaunch(
        &self,
        state: &RunState,
        end: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        let question = state.run.question;
        let failed = |error| failed("relaunch", question, error);
        let known = self.known(state.run);
        let Some(last) = known.into_iter().find(|job| job.identity.attempt == state.attempt) else {
            return Ok(None);
        };
        let service = self.options.settings.service(&last.identity.recipient);
        let Some(retry) = service.relaunch.get(&end.reason).filter(|it| it.times > state.attempt)
        else {
            return Ok(None);
        };
        let job = self.calls.call(Verb::Get, self.jobs().get_opt(&last.name)).await;
        let Some(job) = job.map_err(failed)? else { return Ok(None) };
        let Some(last) = watch::job_brief(&job) else { return Ok(None) };
        let annotations = job.metadata.annotations.as_ref();
        let mounts = annotations.is_some_and(|all| all.contains_key(annotation::INPUTS));
        // It has to be deleted, and the Secrets of the first go with it: the next has none then.
        if last.may_yet_run() && mounts && state.attempt == 0 {
            return Ok(None);
        }
        let attempt = state.attempt + 1;
        let gate = Gate::for_service(&self.options.settings, &service);
        // Twice as long each time.
        let pause = retry.backoff.saturating_mul(1 << state.attempt.min(16));
        let since = Duration::from_secs_f64(Timestamp::now().seconds_since(end.at));
        tokio::time::sleep(pause.saturating_sub(since)).await;

        let now = Timestamp::now();
        let Some(next) = job::next_attempt(&job, attempt, &service, retry, gate, now) else {
            return Ok(None);
        };
        let body = serde_json::to_vec(&next).expect("a Job has text keys and whole numbers");
        match self.create(body).await {
            Ok(job) => self.made_job(&job),
            Err(CallError::Exists(_)) => {}
            // It stays ended, and is told so.
            Err(CallError::Refused(words)) => {
                warn!(run = %state.run, words, "the API server refused to run it again");
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        }
        if mounts {
            let longest = self.options.settings.waiting + service.deadline + pause;
            let first = job::name(state.run, 0);
            self.keep(&first, kept(longest, attempt)).await.map_err(failed)?;
        }
        self.replace(&last).await.map_err(failed)?;
        let message = format!(
            "{} It runs again, by itself: attempt {} of {}{}.",
            end.message,
            attempt + 1,
            retry.times + 1,
            memory(&job, &next),
        );
        Ok(Some(Relaunch { attempt, message }))
    }

    /// The Job of the first attempt owns the Secrets of all: it stays for as long as they may run.
    async fn keep(&self, first: &str, seconds: i32) -> Result<(), CallError> {
        let patch = json!({ "spec": { "ttlSecondsAfterFinished": seconds } });
        match self.patch(first, patch).await {
            Ok(()) | Err(CallError::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The Job of the attempt before is dealt with. One that waits goes: its queue would give it a
    /// turn beside the next, and until then it would hold its place there.
    async fn replace(&self, last: &JobBrief) -> Result<(), CallError> {
        if last.may_yet_run() {
            match self.delete(last).await {
                Ok(()) | Err(CallError::Gone(_)) => self.forget(last.uid),
                // What is known and ended does not run, and goes with the rest of its run.
                Err(error) => warn!(job = last.name, error = %Chain(&error), "failed to delete"),
            }
            return Ok(());
        }
        let settled = json!({ "metadata": { "labels": { label::SETTLED: "true" } } });
        match self.patch(&last.name, settled).await {
            Ok(()) | Err(CallError::Gone(_)) => self.forget(last.uid),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// For how long, in seconds, the first Job is kept where so many attempts follow it, each of which
/// takes so long at most.
fn kept(longest: Duration, attempts: u32) -> i32 {
    let seconds = longest.saturating_mul(attempts).as_secs();
    i32::try_from(seconds).unwrap_or(i32::MAX).saturating_add(KEPT)
}

/// What the next attempt has of memory, where that is more.
fn memory(last: &Job, next: &Job) -> String {
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

/// Some number: the last bits of a new uuid are random.
fn nonce() -> u32 {
    Uuid::new_v4().as_fields().0
}

/// The asker is told why.
fn refused(question: Uuid, refusal: LaunchRefusal) -> RunnerError {
    let LaunchRefusal { exception, message } = refusal;
    RunnerError::Refused { question, exception, message }
}
