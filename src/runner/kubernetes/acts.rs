//! What is done about runs that do not go on by themselves: decided by the table, again and again,
//! until it shows that it was done.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::cause::Cause;
use crate::runner::kubernetes::call::{CallError, Verb};
use crate::runner::kubernetes::cluster::Cluster;
use crate::runner::kubernetes::failure;
use crate::runner::kubernetes::job::{StopRecord, annotation};
use crate::runner::kubernetes::table::{Action, JobBrief};
use futures_util::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

/// How often it is looked for what is to be done: within the second or two that an asker may wait
/// for bad news.
const EVERY: Duration = Duration::from_millis(500);

/// How often the places of all that wait are looked up, for the logs of their askers.
const HEAR: Duration = Duration::from_secs(30);

/// How many things are done at once.
const AT_ONCE: usize = 16;

/// How many events of one object are read.
const EVENTS: u32 = 50;

/// Does what is to be done, for ever.
pub async fn act(cluster: Arc<Cluster>) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let actions = cluster.table(|table| table.actions(Timestamp::now()));
        futures_util::stream::iter(actions)
            .for_each_concurrent(AT_ONCE, |action| cluster.act(action))
            .await;
        cluster.tell();
    }
}

/// Hears what Kueue says of the Jobs that wait for it, for ever.
pub async fn hear(cluster: Arc<Cluster>) {
    loop {
        match timeout(HEAR, cluster.kueue.changed()).await {
            // A look at each that changed, however many wait.
            Ok(changed) => {
                let uids = changed.iter().filter_map(|uid| uid.parse().ok());
                let queued = |uid| Some((uid, cluster.table(|table| table.queue_of(uid))?));
                cluster.hear(uids.filter_map(queued).collect());
            }
            // Only places in the queues have changed.
            Err(_) => cluster.hear(cluster.table(|table| table.queued())),
        }
        cluster.tell();
    }
}

// === impl Cluster ===

impl Cluster {
    fn hear(&self, queued: Vec<(Uuid, String)>) {
        let heard: Vec<_> = queued
            .into_iter()
            .map(|(uid, queue)| (uid, self.kueue.queue_status(&uid.to_string(), &queue)))
            .collect();
        self.table(|table| {
            for (uid, waits) in heard {
                table.waits(uid, &waits.why, waits.refusal);
            }
        });
    }

    async fn act(&self, action: Action) {
        let (uid, done) = match action {
            Action::Stop(uid, cause) => (uid, self.stop_known(uid, cause).await),
            Action::Enforce(uid) => (uid, self.enforce(uid).await),
            Action::Evicted(uid, pod) => (uid, self.record_eviction(uid, pod).await),
            Action::Job(uid) => (uid, self.look_for_known(uid).await),
            Action::Pods(uid) => (uid, self.look_for_pods(uid).await),
            Action::Events(uid) => (uid, self.look_at_events(uid).await),
        };
        match done {
            Ok(()) => {}
            // Another was faster: the watch will say.
            Err(CallError::Conflict(_)) => {}
            // The watch may have been blind when it went.
            Err(CallError::Gone(_)) => self.job_left(uid, false),
            Err(error) => warn!(error = %Chain(&error), "failed to see to a run"),
        }
    }

    async fn stop_known(&self, uid: Uuid, cause: Cause) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        // Others were seen to first, and the version that its end is to hold for is that of now.
        if !self.table(|table| table.is_hopeless(uid, Timestamp::now())) {
            return Ok(());
        }
        info!(run = %job.identity.run, reason = cause.reason.label(), "ended: it will not go on");
        self.stop(&job.name, &job.version, job.suspended, cause).await
    }

    /// Ends a Job: says why in an annotation, and lets the Job's own deadline pass, so that the
    /// Job controller ends its pods. A suspended Job has none, and must not get its turn to be
    /// ended: the annotation alone ends it. (A kubelet does not break off a pull: a pod that waits
    /// for its image goes when that has come, or cannot.)
    pub async fn stop(
        &self,
        name: &str,
        version: &str,
        suspended: bool,
        cause: Cause,
    ) -> Result<(), CallError> {
        let stopped = StopRecord::new(cause, Timestamp::now());
        let stopped = serde_json::to_string(&stopped).expect("texts and numbers are JSON");
        let mut patch = json!({
            "metadata": {
                "resourceVersion": version,
                "annotations": { annotation::STOPPED: stopped },
            },
        });
        if !suspended {
            patch["spec"] = passed();
        }
        self.patch(name, patch).await
    }

    async fn enforce(&self, uid: Uuid) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        self.patch(&job.name, json!({ "spec": passed() })).await
    }

    async fn record_eviction(&self, uid: Uuid, pod: Uuid) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        let all: Vec<_> = job.evicted.iter().chain([&pod]).map(Uuid::to_string).collect();
        let patch = json!({
            "metadata": {
                "resourceVersion": job.version,
                "annotations": { annotation::EVICTED: all.join(",") },
            },
        });
        info!(run = %job.identity.run, %pod, "what it ran on was taken away");
        self.patch(&job.name, patch).await
    }

    async fn look_for_known(&self, uid: Uuid) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        self.look_for_job(uid, &job.name).await
    }

    async fn look_for_pods(&self, uid: Uuid) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        self.see_pods_of(&job.name).await?;
        self.table(|table| table.pods_looked_for(uid));
        Ok(())
    }

    /// Events are the only place that says why a volume is not mounted, or why a Job gets no pod.
    async fn look_at_events(&self, uid: Uuid) -> Result<(), CallError> {
        let Some(job) = self.job(uid) else { return Ok(()) };
        let known = || self.table(|table| table.pod_of(uid).map(str::to_owned));
        let mut pod = known();
        if pod.is_none() {
            // That of a Job which was not ours from the start is forgotten, if it was ever seen.
            self.see_pods_of(&job.name).await?;
            pod = known();
        }
        let (kind, name) = match &pod {
            Some(pod) => ("Pod", pod.as_str()),
            None => ("Job", job.name.as_str()),
        };
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let list = ListParams::default().fields(&fields).limit(EVENTS);
        let events = self.calls.call(Verb::List, self.events().list(&list)).await?;
        let recipient = job.identity.recipient.as_str();
        let mut stall = None;
        for event in &events.items {
            stall = match failure::event_stall(event, recipient) {
                Some(now) => Some(now.after(stall)),
                None if failure::shows_progress(event) => None,
                None => stall,
            };
        }
        self.table(|table| table.stalled(uid, stall));
        Ok(())
    }

    /// A Job that is there, as the watch saw it.
    fn job(&self, uid: Uuid) -> Option<JobBrief> {
        self.table(|table| table.get(uid).filter(|(_, there)| *there).map(|(job, _)| job.clone()))
    }

    /// Changes a Job. What is seen of it then is taken in at once.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<(), CallError> {
        let (jobs, patch) = (self.jobs(), Patch::Merge(patch));
        let params = PatchParams::default();
        let job: Job = self.calls.call(Verb::Patch, jobs.patch(name, &params, &patch)).await?;
        self.changed_job(&job);
        Ok(())
    }
}

/// A Job's deadline that has passed, whenever it started: the least that there is, in seconds.
fn passed() -> Value {
    json!({ "activeDeadlineSeconds": 1 })
}
