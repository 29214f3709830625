//! Carries out the actions of the table: for example, it stops a run that makes no progress. The
//! table returns an action again until the Job shows that the action was done.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::Cause;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use crate::runner::kubernetes::failure;
use crate::runner::kubernetes::job::{self, annotation, label};
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed::{self, ObservedJob};
use crate::runner::kubernetes::state::{ClusterState, JobAction};
use futures_util::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};
use uuid::Uuid;

/// How often the table is asked for actions. A parent expects to learn of a failure within a second
/// or two.
const INTERVAL: Duration = Duration::from_millis(500);

/// How many actions are done at once.
const MAX_CONCURRENT_ACTIONS: usize = 16;

/// Carries out the actions of the table.
#[derive(Clone, Debug)]
pub(super) struct Reconciler {
    api: ApiClient,
    jobs: JobWriter,
    state: Arc<ClusterState>,
}

// === impl Reconciler ===

impl Reconciler {
    pub(super) fn new(api: ApiClient, state: Arc<ClusterState>) -> Self {
        Self { jobs: JobWriter::new(api.clone(), Arc::clone(&state)), api, state }
    }

    /// Reconciles for ever.
    pub(super) async fn run(self) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let actions = self.state.table(|table| table.actions(Timestamp::now()));
            futures_util::stream::iter(actions)
                .for_each_concurrent(MAX_CONCURRENT_ACTIONS, |action| self.act(action))
                .await;
            self.state.notify_listeners();
        }
    }

    async fn act(&self, action: JobAction) {
        let uid = action.job();
        // A Job that is gone meanwhile needs no action.
        let Some(job) = self.state.existing_job(uid) else { return };
        let done = match action {
            JobAction::Stop { cause, .. } => self.stop(&job, cause).await,
            JobAction::EnforceStop { .. } => self.jobs.set_passed_deadline(&job).await,
            JobAction::RecordEviction { pod, .. } => self.record_eviction(&job, pod).await,
            JobAction::FindJob { .. } => self.find_job(&job).await,
            JobAction::FindPods { .. } => self.find_pods(&job).await,
            JobAction::ReadEvents { .. } => self.read_events(&job).await,
        };
        match done {
            Ok(()) => {}
            // Another change came first: the watch will show it.
            Err(ApiError::Conflict(_)) => {}
            // The watch may have missed its deletion.
            Err(ApiError::NotFound(_)) => self.state.job_gone(uid),
            Err(error) => {
                let run = job.identity.run;
                warn!(
                    question = %run.question, attempt = job.identity.attempt, job = job.name,
                    error = %Chain(&error), "failed to reconcile a run"
                );
            }
        }
    }

    async fn stop(&self, job: &ObservedJob, cause: Cause) -> Result<(), ApiError> {
        // Checked again: other actions came first, and the Job may have made progress meanwhile.
        if !self.state.table(|table| table.must_stop(job.uid, Timestamp::now())) {
            return Ok(());
        }
        let identity = &job.identity;
        info!(
            question = %identity.run.question, attempt = identity.attempt,
            service = %identity.recipient, reason = cause.reason.label(),
            "run stopped: it makes no progress"
        );
        self.jobs.stop(job, cause).await
    }

    async fn record_eviction(&self, job: &ObservedJob, pod: Uuid) -> Result<(), ApiError> {
        let all: Vec<_> = job.evicted_pods.iter().chain([&pod]).map(Uuid::to_string).collect();
        let patch = json!({
            "metadata": {
                "resourceVersion": job.resource_version,
                "annotations": { annotation::EVICTED: all.join(",") },
            },
        });
        let identity = &job.identity;
        info!(
            question = %identity.run.question, attempt = identity.attempt,
            service = %identity.recipient, %pod, "pod evicted"
        );
        self.jobs.patch(&job.name, &patch).await
    }

    /// Finds out whether a Job still exists that was not in a list of all Jobs.
    async fn find_job(&self, job: &ObservedJob) -> Result<(), ApiError> {
        match self.api.get_job(&job.name).await? {
            Some(found) if observed::uid(&found.metadata) == Some(job.uid) => {
                self.found_job(job.uid, &found);
            }
            Some(_) | None => self.state.job_gone(job.uid),
        }
        Ok(())
    }

    fn found_job(&self, uid: Uuid, job: &Job) {
        let topic = observed::label_of(&job.metadata, label::TOPIC);
        if observed::is_settled(job) {
            self.state.job_settled(uid);
        } else if topic == Some(self.api.topic()) && job::identify(job).is_some() {
            self.state.update_job(job);
        } else {
            self.state.job_gone(uid);
        }
    }

    async fn find_pods(&self, job: &ObservedJob) -> Result<(), ApiError> {
        self.list_pods(job).await?;
        self.state.table(|table| table.pods_looked_up(job.uid));
        Ok(())
    }

    async fn list_pods(&self, job: &ObservedJob) -> Result<(), ApiError> {
        let pods = self.api.pods_of_job(&job.name).await?;
        pods.iter().for_each(|pod| self.state.update_pod(pod));
        Ok(())
    }

    /// Reads the Kubernetes events of a Job or its pod: only they show why a volume is not mounted,
    /// or why a Job gets no pod.
    async fn read_events(&self, job: &ObservedJob) -> Result<(), ApiError> {
        let live_pod = || self.state.table(|table| table.live_pod_name(job.uid).map(str::to_owned));
        let mut pod = live_pod();
        if pod.is_none() {
            // An adopted Job may be older than its table entry: the watch showed its pod before,
            // and the pod was forgotten.
            self.list_pods(job).await?;
            pod = live_pod();
        }
        let events = match &pod {
            Some(pod) => self.api.events_about("Pod", pod).await?,
            None => self.api.events_about("Job", &job.name).await?,
        };
        let recipient = job.identity.recipient.as_str();
        let mut stall = None;
        for event in &events {
            stall = match failure::event_stall(event, recipient) {
                Some(now) => Some(now.after(stall)),
                None if failure::shows_progress(event) => None,
                None => stall,
            };
        }
        self.state.table(|table| table.set_event_stall(job.uid, stall));
        Ok(())
    }
}
