//! Watches Jobs and pods, and never goes blind.
//!
//! A watch begins with what is, and goes on with what changes; a stream that breaks, ends or falls
//! silent is opened again where it was, or where the server no longer knows where that is, with
//! what is. What went in between is then seen by its absence.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::kubernetes::cluster::Cluster;
use crate::runner::kubernetes::lean::Lean;
use crate::runner::kubernetes::table::{JobBrief, PodBrief};
use crate::runner::kubernetes::{failure, job};
use futures_util::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Event, watcher};
use kube::{Api, Resource};
use metrics::{Counter, counter, describe_counter};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::warn;
use uuid::Uuid;

/// How long one call of watch lasts, in seconds. A stream that is silent for 5 s longer is taken
/// for dead, so this is how long we may be blind behind a connection that is half open. Calls are
/// cheap: they go on where the last one ended.
const CALL: u32 = 30;

/// The label that Kubernetes gives the pods of a Job.
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// Watches Jobs, for ever. Says through `listed` when all that is has been seen.
pub async fn jobs(cluster: Arc<Cluster>, listed: oneshot::Sender<()>) {
    let config = Config::default().labels(&cluster.selector()).timeout(CALL);
    let mut events = stream::<Job>(cluster.api(), config, "jobs");
    let mut listed = Some(listed);
    let mut seen = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(Lean(job)) => {
                seen.extend(uid(&job.metadata));
                cluster.saw_job(&job);
            }
            Event::InitDone => {
                cluster.jobs_are(&std::mem::take(&mut seen));
                // Nobody may wait for it any more.
                listed.take().map(|listed| listed.send(()));
            }
            Event::Apply(Lean(job)) => cluster.saw_job(&job),
            Event::Delete(Lean(job)) => cluster.lost_job(&job),
        }
        cluster.tell();
    }
}

/// Watches the pods of Jobs, for ever. Says through `listed` when all that is has been seen.
pub async fn pods(cluster: Arc<Cluster>, listed: oneshot::Sender<()>) {
    let config = Config::default().labels(JOB_NAME).timeout(CALL);
    let mut events = stream::<Pod>(cluster.api(), config, "pods");
    let mut listed = Some(listed);
    let mut seen = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => seen.clear(),
            Event::InitApply(Lean(pod)) => {
                seen.extend(uid(&pod.metadata));
                cluster.saw_pod(&pod);
            }
            Event::InitDone => {
                cluster.pods_are(&std::mem::take(&mut seen));
                // Nobody may wait for it any more.
                listed.take().map(|listed| listed.send(()));
            }
            Event::Apply(Lean(pod)) => cluster.saw_pod(&pod),
            Event::Delete(Lean(pod)) => cluster.lost_pod(&pod),
        }
        cluster.tell();
    }
}

fn stream<K>(
    api: Api<Lean<K>>,
    config: Config,
    resource: &'static str,
) -> impl Stream<Item = Event<Lean<K>>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    Lean<K>: DeserializeOwned,
{
    let restarts = restarts(resource);
    let events = watcher(api, config).backoff(DefaultBackoff::default());
    Box::pin(events.filter_map(move |event: watcher::Result<Event<Lean<K>>>| {
        let event = event
            .inspect_err(|error| {
                restarts.increment(1);
                warn!(resource, error = %Chain(error), "lost a watch: it is opened again");
            })
            .ok();
        std::future::ready(event)
    }))
}

fn restarts(resource: &'static str) -> Counter {
    describe_counter!("twined_watch_restarts_total", "Watches that broke, and were opened again");
    let restarts = counter!("twined_watch_restarts_total", "resource" => resource);
    restarts.absolute(0);
    restarts
}

/// A Job in brief; none where it is not one of ours, or does not say what it should.
pub fn job_brief(job: &Job) -> Option<JobBrief> {
    let identity = job::identify(job)?;
    let spec = job.spec.as_ref()?;
    let annotation = |name: &str| job.metadata.annotations.as_ref()?.get(name);
    let labels = job.metadata.labels.as_ref();
    let stopped = annotation(job::annotation::STOPPED);
    let evicted = annotation(job::annotation::EVICTED);
    Some(JobBrief {
        uid: uid(&job.metadata)?,
        name: job.metadata.name.clone()?,
        version: job.metadata.resource_version.clone()?,
        suspended: spec.suspend.unwrap_or(false),
        gated: annotation(job::annotation::GATE).is_some(),
        queue: labels.and_then(|labels| labels.get(job::QUEUE_LABEL)).cloned(),
        deadline: spec.active_deadline_seconds.is_some(),
        stopped: stopped.and_then(|text| serde_json::from_str(text).ok()),
        evicted: evicted.into_iter().flat_map(|text| text.split(',')).filter_map(parse).collect(),
        end: failure::job_end(job, identity.recipient.as_str()),
        identity,
    })
}

/// A pod in brief; none where it is none of the API server's.
pub fn pod_brief(pod: &Pod, recipient: &str) -> Option<PodBrief> {
    Some(PodBrief {
        uid: uid(&pod.metadata)?,
        name: pod.metadata.name.clone()?,
        created: moment(pod.metadata.creation_timestamp.as_ref()).unwrap_or(Timestamp(0)),
        deleting: moment(pod.metadata.deletion_timestamp.as_ref()),
        version: pod.metadata.resource_version.clone()?,
        state: failure::pod_state(pod, recipient),
    })
}

/// The uid of the Job that a pod is of.
pub fn owner(metadata: &ObjectMeta) -> Option<Uuid> {
    let owners = metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.kind == "Job").and_then(|owner| parse(&owner.uid))
}

/// The uid of an object.
pub fn uid(metadata: &ObjectMeta) -> Option<Uuid> {
    parse(metadata.uid.as_deref()?)
}

fn parse(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok()
}

fn moment(time: Option<&Time>) -> Option<Timestamp> {
    Some(Timestamp(time?.0.as_microsecond()))
}
