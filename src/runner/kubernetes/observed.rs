//! What the watches and calls show of a Job and its pods, in brief.
//!
//! The state of ten thousand live questions is kept in memory, so an observed object holds just
//! what the state needs.

pub(super) mod trimmed;

use crate::event::Timestamp;
use crate::runner::RunEnd;
use crate::runner::kubernetes::failure::{self, PodState};
use crate::runner::kubernetes::job::{self, JobIdentity, StopRecord, annotation, label};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use uuid::Uuid;

/// A Job of this network, in brief.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ObservedJob {
    pub(super) uid: Uuid,
    pub(super) name: String,
    pub(super) resource_version: String,
    /// The run, as its labels and annotations name it.
    pub(super) identity: JobIdentity,
    /// Whether it waits for its admission.
    pub(super) suspended: bool,
    /// Whether it waits for our own limits.
    pub(super) gated: bool,
    /// The queue of Kueue that it waits in.
    pub(super) queue: Option<String>,
    /// Whether it has a deadline. We set one only to stop the Job.
    pub(super) has_deadline: bool,
    /// Why and when we stopped it, if we did.
    pub(super) stopped: Option<StopRecord>,
    /// The uids of its evicted pods, as far as its annotation lists them.
    pub(super) evicted_pods: Vec<Uuid>,
    /// How it finished, as far as the Job shows.
    pub(super) end: Option<RunEnd>,
}

/// A pod of a Job, in brief.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ObservedPod {
    pub(super) uid: Uuid,
    pub(super) name: String,
    pub(super) created: Timestamp,
    /// When it must be gone, if it is being deleted.
    pub(super) deletion: Option<Timestamp>,
    pub(super) resource_version: String,
    pub(super) state: PodState,
}

// === impl ObservedJob ===

impl ObservedJob {
    /// None for a Job that is not ours, or whose identity somebody changed.
    pub(super) fn from_job(job: &Job) -> Option<Self> {
        let identity = job::identify(job)?;
        let spec = job.spec.as_ref()?;
        let annotation = |name: &str| job.metadata.annotations.as_ref()?.get(name);
        let stopped = annotation(annotation::STOPPED);
        let evicted = annotation(annotation::EVICTED);
        Some(Self {
            uid: uid(&job.metadata)?,
            name: job.metadata.name.clone()?,
            resource_version: job.metadata.resource_version.clone()?,
            suspended: spec.suspend.unwrap_or(false),
            gated: annotation(annotation::GATE).is_some(),
            queue: label_of(&job.metadata, job::QUEUE_LABEL).map(str::to_owned),
            has_deadline: spec.active_deadline_seconds.is_some(),
            stopped: stopped.and_then(|text| serde_json::from_str(text).ok()),
            evicted_pods: evicted
                .into_iter()
                .flat_map(|text| text.split(','))
                .filter_map(parse_uid)
                .collect(),
            end: failure::job_end(job, identity.recipient.as_str()),
            identity,
        })
    }

    /// Whether it may still start although it was stopped: it was suspended when it was stopped, so
    /// it has no deadline that ends it.
    pub(super) fn may_still_start(&self) -> bool {
        self.end.is_none() && self.stopped.is_some() && (self.suspended || !self.has_deadline)
    }
}

// === impl ObservedPod ===

impl ObservedPod {
    /// None for a pod that the API server has not stored. `recipient` names the service in
    /// messages.
    pub(super) fn from_pod(pod: &Pod, recipient: &str) -> Option<Self> {
        Some(Self {
            uid: uid(&pod.metadata)?,
            name: pod.metadata.name.clone()?,
            created: timestamp(pod.metadata.creation_timestamp.as_ref()).unwrap_or(Timestamp(0)),
            deletion: timestamp(pod.metadata.deletion_timestamp.as_ref()),
            resource_version: pod.metadata.resource_version.clone()?,
            state: failure::pod_state(pod, recipient),
        })
    }
}

/// Whether the end of a Job's run has been dealt with.
pub(super) fn is_settled(job: &Job) -> bool {
    label_of(&job.metadata, label::SETTLED).is_some()
}

/// The value of a label.
pub(super) fn label_of<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// The uid of the Job that owns a pod.
pub(super) fn owner_job(metadata: &ObjectMeta) -> Option<Uuid> {
    let owners = metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.kind == "Job").and_then(|owner| parse_uid(&owner.uid))
}

/// The uid of an object.
pub(super) fn uid(metadata: &ObjectMeta) -> Option<Uuid> {
    parse_uid(metadata.uid.as_deref()?)
}

fn parse_uid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok()
}

fn timestamp(time: Option<&Time>) -> Option<Timestamp> {
    Some(Timestamp(time?.0.as_microsecond()))
}
