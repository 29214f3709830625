//! The Job of one question: written, and read back. Pure.
//!
//! ```text
//! JobRequest -> manifest -> Job -> (API server) -> identify -> JobIdentity
//!                                       └──> next_attempt -> the Job of the next attempt
//! ```
//!
//! A label's value has at most 63 characters of letters, digits, `-`, `_` and `.`, with a letter or
//! a digit at both ends. A value that does not fit is [shortened](label_value), and the whole value
//! is in an annotation of the same name.
//!
//! Kubernetes replaces `$(NAME)` in commands, arguments and variables, and replaces `$$`
//! by `$`. So every `$` of a question is written twice.

mod labels;
mod pod;
mod read;
mod requests;

use crate::event::{RunId, Sruid, SruidBuf, Timestamp};
use crate::runner::kubernetes::inputs::QuestionMount;
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::runner::kubernetes::settings::{NetworkSettings, RelaunchPolicy, ServiceSettings};
use crate::runner::{Cause, EndReason, LaunchRequest};
use crate::sdk::arguments::{self, ARGUMENT_LIMIT};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use labels::label_value;
pub use read::{adoption, identify, input_secrets, is_reference, next_attempt};
use requests::ResourceRequests;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// Names of labels, which selectors can use.
pub mod label {
    /// The standard label; its value is [`super::MANAGER`].
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The name of the network's topic.
    pub const TOPIC: &str = "twined.octue.com/topic";
    /// The question's uuid.
    pub const QUESTION: &str = "twined.octue.com/question";
    /// The uuid of the question that asked it.
    pub const PARENT_QUESTION: &str = "twined.octue.com/parent-question";
    /// The uuid of the root of its tree.
    pub const ORIGINATOR_QUESTION: &str = "twined.octue.com/originator-question";
    /// The parent: `<namespace>.<name>` of its SRUID.
    pub const PARENT: &str = "twined.octue.com/parent";
    /// The originator, who asked the root of the tree: `<namespace>.<name>`.
    pub const ORIGINATOR: &str = "twined.octue.com/originator";
    /// The service that answers: `<namespace>.<name>`.
    pub const SERVICE: &str = "twined.octue.com/service";
    /// The revision tag of the service that answers.
    pub const REVISION: &str = "twined.octue.com/revision";
    /// The SDK's count of retries: decimal.
    pub const RETRY: &str = "twined.octue.com/retry";
    /// Our own attempt, from 0: decimal.
    pub const ATTEMPT: &str = "twined.octue.com/attempt";
    /// Present on a settled run; its value is `true`.
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
    /// Present, with the value `limits`, on a Job that waits for our own limits.
    pub const GATE: &str = "twined.octue.com/gate";
    /// How the question is mounted: `<nonce> <number of Secrets>`.
    pub const INPUTS: &str = "twined.octue.com/inputs";
    /// Why we ended it: JSON of its cause.
    pub const STOPPED: &str = "twined.octue.com/stopped";
    /// The uids of its evicted pods, separated by commas.
    pub const EVICTED: &str = "twined.octue.com/evicted";
    /// The claim on the report of its end: `<uuid of the report> <ISO 8601> <replica>`.
    pub const REPORT: &str = "twined.octue.com/report";
}

/// The value of [`label::MANAGED_BY`].
pub const MANAGER: &str = "twined";

/// The identity of a Job of ours, from its labels and annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct JobIdentity {
    /// Names the run.
    pub run: RunId,
    /// Our own attempt, from 0.
    pub attempt: u32,
    /// The service revision that answers.
    pub recipient: SruidBuf,
    /// The question that asked this one.
    pub parent_question: Option<Uuid>,
    /// The root of the tree.
    pub originator_question: Uuid,
    /// The depth in its tree: 0 for a root.
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
/// Keeps the autoscaler from removing a node on which a question runs.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// The name of the container.
pub const CONTAINER: &str = "question";

/// How long Kubernetes keeps a finished Job: longer than all replicas may be down.
const KEPT_SECONDS: i32 = 24 * 3600;

/// The highest attempt that fits into a name, and more than any setting allows.
const ATTEMPTS: u32 = 9999;

/// What all Jobs of a network have in common.
#[derive(Clone, Debug)]
pub struct JobDefaults {
    /// Their namespace.
    pub namespace: String,
    /// The repository of the images, without `/` at the end:
    /// `<region>-docker.pkg.dev/<project>/<name>`.
    pub images: String,
    /// The name of the topic.
    pub topic: String,
    /// Variables for every question, beside those that the SDK needs. A service's own override
    /// them.
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

/// All that the Job of a question is written from.
#[derive(Clone, Copy, Debug)]
pub struct JobRequest<'a> {
    /// The run.
    pub launch: LaunchRequest<'a>,
    /// The settings of the service that answers.
    pub service: &'a ServiceSettings,
    /// What all Jobs of the network have in common.
    pub network: &'a JobDefaults,
    /// What the Job waits for.
    pub gate: Gate,
    /// The depth in its tree: 0 for a root.
    pub depth: u32,
    /// The time of the launch.
    pub launched: Timestamp,
    /// Any number: it distinguishes the Secrets of two successive Jobs of one name.
    pub nonce: u32,
}

/// What the Job of a further attempt is written from, together with the Job of the last attempt.
#[derive(Clone, Copy, Debug)]
pub struct AttemptRequest<'a> {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The settings of the service that answers.
    pub service: &'a ServiceSettings,
    /// The relaunch policy of the settings.
    pub policy: &'a RelaunchPolicy,
    /// What all Jobs of the network have in common.
    pub network: &'a JobDefaults,
    /// What the Job waits for.
    pub gate: Gate,
    /// The time of the launch.
    pub launched: Timestamp,
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
    /// The gate of a service. Kueue counts what runs in a queue, so our own limits do not apply
    /// there.
    pub fn for_service(settings: &NetworkSettings, service: &ServiceSettings) -> Self {
        if service.queue.is_some() {
            Self::Queue
        } else if settings.limits_running(service) {
            Self::Limits
        } else {
            Self::Open
        }
    }
}

/// Checks that the settings allow a question to a service at this depth.
///
/// # Errors
///
/// If they do not; the message names the setting.
pub fn check_allowed(
    settings: &NetworkSettings,
    recipient: Sruid<'_>,
    depth: u32,
) -> Result<(), LaunchRefusal> {
    settings
        .check_allowed(recipient)
        .map_err(|denied| LaunchRefusal::denied(denied.to_string()))?;
    match settings.depth {
        Some(limit) if depth > limit => Err(LaunchRefusal::denied(format!(
            "the question to `{recipient}` is {depth} questions below the first of its tree, and \
             `depth` of the network's settings allows {limit}: a service may be asking itself"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The name of the Job of an attempt: that of the run, with `-a<m>` from the second attempt on.
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

/// Writes the Job of a question: its first attempt.
///
/// # Errors
///
/// If the question asks for more than it may have, or is larger than can be carried.
pub fn manifest(request: &JobRequest<'_>) -> Result<Job, LaunchRefusal> {
    let JobRequest { launch, service, nonce, .. } = *request;
    let recipient = launch.recipient.as_sruid();
    let requests = ResourceRequests::from_attributes(launch.attributes, service, recipient)?;
    let mount = QuestionMount::new(launch.inputs, service.inputs, nonce)?;
    write(request, 0, &requests, mount)
}

/// Writes the Job of an attempt. All attempts mount the Secrets of the first.
fn write(
    request: &JobRequest<'_>,
    attempt: u32,
    requests: &ResourceRequests,
    mount: Option<QuestionMount>,
) -> Result<Job, LaunchRefusal> {
    let JobRequest { launch, service, network, gate, depth, launched, .. } = *request;
    let attributes = arguments::attributes(launch.attributes);
    check_length(&attributes)?;
    let as_they_came = arguments::json(launch.attributes);

    let (mut labels, mut annotations) = labels::labels_and_annotations(&launch, network, attempt);
    annotations.insert(annotation::ATTRIBUTES.into(), as_they_came);
    let mut pod_annotations = annotations.clone();
    pod_annotations.insert(SAFE_TO_EVICT.into(), "false".into());
    let pod_labels = labels.clone();
    annotations.insert(annotation::LAUNCHED.into(), launched.to_string());
    annotations.insert(annotation::DEPTH.into(), depth.to_string());
    if let Some(QuestionMount { nonce, parts }) = mount {
        annotations.insert(annotation::INPUTS.into(), format!("{nonce:08x} {parts}"));
    }
    put_gate(gate, service, &mut labels, &mut annotations);

    let spec = pod::spec(request, &name(launch.run, 0), requests, attributes, mount);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name(launch.run, attempt)),
            namespace: Some(network.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            // One pod is one attempt: we, or the SDK, decide on another.
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

/// The attributes are an argument and an annotation, so their length is bounded.
fn check_length(attributes: &str) -> Result<(), LaunchRefusal> {
    if attributes.len() <= ARGUMENT_LIMIT {
        return Ok(());
    }
    Err(LaunchRefusal::invalid(format!(
        "the attributes of the question are {} bytes long, and can be {ARGUMENT_LIMIT}",
        attributes.len()
    )))
}

/// Marks a Job that waits, for Kueue or for us.
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

/// An eviction is no failure of the question: the Job creates another pod.
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
