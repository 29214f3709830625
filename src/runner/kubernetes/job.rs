//! The Job of one question: made from it, and read back. Pure.
//!
//! ```text
//! LaunchRequest, Service, JobDefaults -> manifest -> Job -> (API server) -> identify -> JobIdentity
//!                                          └──> again -> the Job of the next attempt
//! ```
//!
//! A label's value has at most 63 characters of letters, digits, `-`, `_` and `.`, with a letter or a
//! digit at both ends. What does not fit is [shortened](label_value), and the whole of it is in an
//! annotation of the same name.
//!
//! Kubernetes replaces `$(NAME)` in commands, arguments and variables, and takes `$$` for `$`. So
//! that what a question brings comes in as it is, every `$` of it is written twice.

mod labels;
mod pod;
mod read;
mod requests;
mod template;

use crate::event::{RunId, Sruid, SruidBuf, Timestamp};
use crate::runner::cause::Cause;
use crate::runner::kubernetes::inputs::{self, QuestionMount};
use crate::runner::kubernetes::settings::{NetworkSettings, ServiceSettings};
use crate::runner::{EndReason, LaunchRequest};
use crate::sdk::arguments::{self, ARGUMENT_LIMIT};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use labels::label_value;
pub use read::{adoption, again, identify, is_reference};
use requests::ResourceRequests;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
pub use template::Templates;
use uuid::Uuid;

/// Names of labels: what a selector can use.
pub mod label {
    /// The standard one; its value is [`super::MANAGER`].
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Which network: the name of its topic.
    pub const TOPIC: &str = "twined.octue.com/topic";
    /// The question's uuid.
    pub const QUESTION: &str = "twined.octue.com/question";
    /// The uuid of the question that asked it.
    pub const PARENT_QUESTION: &str = "twined.octue.com/parent-question";
    /// The uuid of the root of its tree.
    pub const ORIGINATOR_QUESTION: &str = "twined.octue.com/originator-question";
    /// Who asked it: `<namespace>.<name>` of the asker's SRUID.
    pub const PARENT: &str = "twined.octue.com/parent";
    /// Who asked the root of its tree: `<namespace>.<name>`.
    pub const ORIGINATOR: &str = "twined.octue.com/originator";
    /// What answers it: `<namespace>.<name>`.
    pub const SERVICE: &str = "twined.octue.com/service";
    /// The revision tag of what answers it.
    pub const REVISION: &str = "twined.octue.com/revision";
    /// The attempt of the SDK: decimal.
    pub const RETRY: &str = "twined.octue.com/retry";
    /// The attempt of ours, from 0: decimal.
    pub const ATTEMPT: &str = "twined.octue.com/attempt";
    /// There once the run's end has been dealt with; its value is `true`.
    pub const SETTLED: &str = "twined.octue.com/settled";
}

/// Names of annotations.
pub mod annotation {
    /// The question's attributes as they came: a JSON object.
    pub const ATTRIBUTES: &str = "twined.octue.com/attributes";
    /// When the question was launched: ISO 8601.
    pub const LAUNCHED: &str = "twined.octue.com/launched";
    /// How deep in its tree the question is: 0 for a root.
    pub const DEPTH: &str = "twined.octue.com/depth";
    /// There, with the value `limits`, where the Job waits for our own limits.
    pub const GATE: &str = "twined.octue.com/gate";
    /// What the names of its Secrets have after `<job>-`, and how many there are: `<nonce> <n>`.
    pub const INPUTS: &str = "twined.octue.com/inputs";
    /// Why we ended it: JSON of [`super::Stopped`].
    pub const STOPPED: &str = "twined.octue.com/stopped";
    /// The uids of the pods that were taken away from it, with commas.
    pub const EVICTED: &str = "twined.octue.com/evicted";
    /// Who reports its end: `<uuid of the report> <ISO 8601> <which replica>`.
    pub const REPORT: &str = "twined.octue.com/report";
}

/// The value of [`label::MANAGED_BY`].
pub const MANAGER: &str = "twined";

/// What a Job of ours says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct JobIdentity {
    /// Names the run.
    pub run: RunId,
    /// Which attempt of ours.
    pub attempt: u32,
    /// What answers.
    pub recipient: SruidBuf,
    /// The question that asked this one.
    pub parent_question: Option<Uuid>,
    /// The root of the tree.
    pub originator_question: Uuid,
    /// How deep in its tree: 0 for a root.
    pub depth: u32,
    /// When it was launched.
    pub launched: Timestamp,
    /// The question's attributes, as they came.
    pub attributes: Arc<HashMap<String, String>>,
}

/// Why we ended a Job: written on the Job, so that every daemon reads the same.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StopRecord {
    /// The label of an [`EndReason`].
    pub reason: String,
    /// For the parent.
    pub message: String,
    /// When, in microseconds since 1970.
    pub at: i64,
}

/// The label of Kueue that names the queue.
pub const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// The label of Kueue that names the priority class.
pub const QUEUE_PRIORITY_LABEL: &str = "kueue.x-k8s.io/priority-class";
/// Keeps the autoscaler from taking a node away on which a question runs.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// The name of the container.
pub const CONTAINER: &str = "question";

/// For how long a Job that has ended is kept: longer than we are away.
const KEPT_SECONDS: i32 = 24 * 3600;

/// The most attempts of our own that a name has room for, and more than any setting gives.
const ATTEMPTS: u32 = 9999;

/// What all Jobs of a network have in common.
#[derive(Clone, Debug)]
pub struct JobDefaults {
    /// The namespace that they are in.
    pub namespace: String,
    /// Where the images are, without `/` at the end: `<region>-docker.pkg.dev/<project>/<name>`.
    pub images: String,
    /// The name of the topic.
    pub topic: String,
    /// Variables for every question, beside the contract's. A service's own win.
    pub environment: Vec<(String, String)>,
}

/// What a Job waits for before it may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// Kueue, in the queue of the service's settings.
    Queue,
    /// Our own limits of running questions.
    Limits,
}

/// What a Job is made from.
#[derive(Clone, Copy, Debug)]
pub struct JobRequest<'a> {
    /// What is to be run.
    pub launch: LaunchRequest<'a>,
    /// What the settings come to for it.
    pub service: &'a ServiceSettings,
    /// The network that it is of.
    pub network: &'a JobDefaults,
    /// What it waits for.
    pub gate: Gate,
    /// How deep it is in its tree: 0 for a root.
    pub depth: u32,
    /// When.
    pub launched: Timestamp,
    /// Any number: Secrets of two Jobs that have one name, one after the other, differ by it.
    pub nonce: u32,
}

/// Why a question cannot run as it asks. It never will, and the asker is to be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LaunchRefusal {
    /// An exception of Python.
    pub exception: &'static str,
    /// For the asker: why, and what to do about it.
    pub message: String,
}

// === impl StopRecord ===

impl StopRecord {
    /// The record of a Job that is ended for `cause`.
    pub fn new(cause: Cause, at: Timestamp) -> Self {
        let Cause { reason, message } = cause;
        Self { reason: reason.label().to_owned(), message, at: at.0 }
    }

    /// Why the Job was ended. The reason of another version may be unknown here.
    pub fn cause(&self) -> Cause {
        let reason = EndReason::from_label(&self.reason).unwrap_or(EndReason::Lost);
        Cause::new(reason, &*self.message)
    }
}

// === impl Gate ===

impl Gate {
    /// What a question to a service waits for. Kueue counts what runs, so where a service has a
    /// queue our own limits do not hold it.
    pub fn of(settings: &NetworkSettings, service: &ServiceSettings) -> Self {
        if service.queue.is_some() {
            Self::Queue
        } else if settings.limits_running(service) {
            Self::Limits
        } else {
            Self::Open
        }
    }
}

// === impl LaunchRefusal ===

impl LaunchRefusal {
    /// What the network's settings do not let happen.
    fn denied(message: String) -> Self {
        Self { exception: "PermissionError", message }
    }

    /// What makes no sense, or is more than can be carried.
    pub(super) fn wrong(message: String) -> Self {
        Self { exception: "ValueError", message }
    }
}

/// Whether the settings let a question to a service run at all, at this depth.
///
/// # Errors
///
/// Where they do not: names the setting.
pub fn admit(
    settings: &NetworkSettings,
    recipient: Sruid<'_>,
    depth: u32,
) -> Result<(), LaunchRefusal> {
    settings.admit(recipient).map_err(|denied| LaunchRefusal::denied(denied.to_string()))?;
    match settings.depth {
        Some(limit) if depth > limit => Err(LaunchRefusal::denied(format!(
            "the question to `{recipient}` is {depth} questions below the first of its tree, and \
             `depth` of the network's settings allows {limit}: a service may be asking itself"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The name of an attempt of ours at a run: the run's, with `-a<m>` from the second attempt on.
pub fn name(run: RunId, attempt: u32) -> String {
    match attempt {
        0 => run.to_string(),
        _ => format!("{run}-a{}", attempt.min(ATTEMPTS)),
    }
}

/// The image of a service revision.
pub fn image(network: &JobDefaults, recipient: Sruid<'_>) -> String {
    format!("{}/{recipient}", network.images)
}

/// Makes the Job of a question: its first attempt.
///
/// # Errors
///
/// Where it asks for what it may not have, or brings more than can be carried.
pub fn manifest(request: &JobRequest<'_>) -> Result<Job, LaunchRefusal> {
    let JobRequest { launch, service, network, gate, depth, launched, nonce: _ } = *request;
    let recipient = launch.recipient.as_sruid();
    let requests = ResourceRequests::of(launch.attributes, service, recipient)?;
    let attributes = arguments::attributes(launch.attributes);
    check_length(&attributes)?;
    let mounted = inputs::mounted(request)?;
    let as_they_came = arguments::json(launch.attributes);

    let name = name(launch.run, 0);
    let (mut labels, mut annotations) = labels::of(&launch, network, 0);
    annotations.insert(annotation::ATTRIBUTES.into(), as_they_came);
    let mut pod_annotations = annotations.clone();
    pod_annotations.insert(SAFE_TO_EVICT.into(), "false".into());
    let pod_labels = labels.clone();
    annotations.insert(annotation::LAUNCHED.into(), launched.to_string());
    annotations.insert(annotation::DEPTH.into(), depth.to_string());
    if let Some(QuestionMount { nonce, parts }) = mounted {
        annotations.insert(annotation::INPUTS.into(), format!("{nonce:08x} {parts}"));
    }
    put_gate(gate, service, &mut labels, &mut annotations);

    let spec = pod::spec(request, &name, &requests, attributes, mounted);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(network.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            // One pod is one attempt: what runs again is ours, or the asker's, to say.
            backoff_limit: Some(0),
            pod_failure_policy: Some(failure_policy()),
            suspend: Some(gate != Gate::Open),
            ttl_seconds_after_finished: Some(KEPT_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..JobSpec::default()
        }),
        status: None,
    })
}

/// They are an argument, and an annotation.
fn check_length(attributes: &str) -> Result<(), LaunchRefusal> {
    if attributes.len() <= ARGUMENT_LIMIT {
        return Ok(());
    }
    Err(LaunchRefusal::wrong(format!(
        "the attributes of the question are {} bytes long, and can be {ARGUMENT_LIMIT}",
        attributes.len()
    )))
}

/// What waits says so, where Kueue or we look for it.
fn put_gate(
    gate: Gate,
    service: &ServiceSettings,
    labels: &mut BTreeMap<String, String>,
    annotations: &mut BTreeMap<String, String>,
) {
    match gate {
        Gate::Open => {}
        Gate::Queue => {
            labels.extend(service.queue.iter().map(|name| (QUEUE_LABEL.into(), name.0.clone())));
            let priority = service.queue_priority.iter();
            labels.extend(priority.map(|name| (QUEUE_PRIORITY_LABEL.into(), name.0.clone())));
        }
        Gate::Limits => {
            annotations.insert(annotation::GATE.into(), "limits".into());
        }
    }
}

/// That a pod's node was taken away is no failure of its question: another pod is made.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![PodFailurePolicyRule {
            action: "Ignore".into(),
            on_exit_codes: None,
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
            }]),
        }],
    }
}

#[cfg(test)]
mod tests;
