//! Reads a Job of the API server: its identity, and the Job of the next attempt.

use super::requests::{RequestAndLimit, ResourceRequests};
use super::{
    ATTEMPTS, AttemptRequest, CONTAINER, Gate, JobIdentity, JobRequest, KEPT_SECONDS, MANAGER,
    annotation, image, label, manifest, name, pod,
};
use crate::event::attributes::RECIPIENT;
use crate::event::{Inputs, RunId, Timestamp};
use crate::runner::LaunchRequest;
use crate::runner::kubernetes::inputs::{QuestionMount, SecretOwner};
use crate::runner::kubernetes::quantity::Quantity;
use crate::runner::kubernetes::settings::RelaunchPolicy;
use crate::sdk::arguments::{self, ATTRIBUTES_OPTION, MANIFEST_OPTION, VALUES_OPTION};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The identity of a Job of ours. `None` for the Job of another client, or one whose labels or
/// annotations were changed.
pub fn identify(job: &Job) -> Option<JobIdentity> {
    let labels = job.metadata.labels.as_ref()?;
    let annotations = job.metadata.annotations.as_ref()?;
    if labels.get(label::MANAGED_BY)? != MANAGER {
        return None;
    }
    let attributes: HashMap<String, String> =
        serde_json::from_str(annotations.get(annotation::ATTRIBUTES)?).ok()?;
    let uuid = |name: &str| labels.get(name).and_then(|text| text.parse().ok());
    let question = uuid(label::QUESTION)?;
    Some(JobIdentity {
        run: RunId { question, retry: labels.get(label::RETRY)?.parse().ok()? },
        attempt: labels.get(label::ATTEMPT)?.parse().ok()?,
        recipient: attributes.get(RECIPIENT)?.parse().ok()?,
        parent_question: uuid(label::PARENT_QUESTION),
        // A question that names no originator is a root.
        originator_question: uuid(label::ORIGINATOR_QUESTION).unwrap_or(question),
        depth: annotations.get(annotation::DEPTH).and_then(|text| text.parse().ok()).unwrap_or(0),
        launched: Timestamp::parse(annotations.get(annotation::LAUNCHED)?)?,
        attributes: Arc::new(attributes),
    })
}

/// Whether a Job of this question's name was created by the reference for the same question:
/// without our label, with the same image, and with equal arguments as JSON.
///
/// The reference leaves out input values that are false in Python (`0`, `[]`), so those may be
/// missing; and it leaves out all `children`, so a question with children is not the one that runs.
pub fn is_reference(job: &Job, request: &JobRequest<'_>) -> bool {
    let ours = |labels: &BTreeMap<String, String>| labels.contains_key(label::MANAGED_BY);
    if job.metadata.labels.as_ref().is_some_and(ours) || request.launch.inputs.children.is_some() {
        return false;
    }
    let Some(container) = container(job) else { return false };
    let wanted = image(request.network, request.launch.recipient.as_sruid());
    if container.image.as_deref() != Some(&*wanted) {
        return false;
    }
    let Some(there) = options(container.args.as_deref().unwrap_or_default()) else { return false };
    let attributes = arguments::attributes(request.launch.attributes);
    let inputs = request.launch.inputs;
    let same = |option: &str, wanted: Option<&str>| match (there.get(option), wanted) {
        (None, None) => true,
        (Some(there), Some(wanted)) => same_json(there, wanted),
        (None, Some(wanted)) => is_falsy(wanted),
        (Some(_), None) => false,
    };
    there.get(ATTRIBUTES_OPTION).is_some_and(|there| same_attributes(there, &attributes))
        && same(VALUES_OPTION, inputs.input_values)
        && same(MANIFEST_OPTION, inputs.input_manifest)
}

/// The merge patch that adopts a Job of the reference: labels, annotations, time to live, and no
/// further pods, because the reference allows six more. It applies only to the Job as it was seen.
///
/// `None` if we would refuse the question: it runs all the same, and stays as it is.
pub fn adoption(job: &Job, request: &JobRequest<'_>) -> Option<Value> {
    // A Job of the reference that waits, waits in Kueue: our limits do not apply.
    let Job { mut metadata, .. } = manifest(&JobRequest { gate: Gate::Open, ..*request }).ok()?;
    // The reference mounts nothing.
    metadata.annotations.as_mut()?.remove(annotation::INPUTS);
    let failed = job.status.as_ref().and_then(|status| status.failed).unwrap_or(0);
    let mut patch = json!({
        "metadata": {"labels": metadata.labels, "annotations": metadata.annotations},
        "spec": {"ttlSecondsAfterFinished": KEPT_SECONDS, "backoffLimit": failed},
    });
    if let Some(version) = &job.metadata.resource_version {
        patch["metadata"]["resourceVersion"] = json!(version);
    }
    Some(patch)
}

/// The Job of a further attempt at a run. It is written like the first one, from the question in
/// the last Job and the present settings. A copy would contain what others have written into that
/// Job: the API server, its controllers, Kueue. Only the memory is derived from that of the last
/// Job, and raised by the factor of the settings.
///
/// `None` if the Job is not ours, has no pod, or asks for more than the settings allow by now.
pub fn next_attempt(job: &Job, next: &AttemptRequest<'_>) -> Option<Job> {
    let AttemptRequest { service, network, gate, launched, .. } = *next;
    let identity = identify(job)?;
    let container = container(job)?;
    let texts = options(container.args.as_deref().unwrap_or_default())?;
    let text = |option: &str| texts.get(option).map(|text| pod::unescaped(text));
    let (input_values, input_manifest) = (text(VALUES_OPTION), text(MANIFEST_OPTION));
    let inputs = Inputs {
        input_values: input_values.as_deref(),
        input_manifest: input_manifest.as_deref(),
        children: None,
    };
    let launch = LaunchRequest {
        run: identity.run,
        recipient: &identity.recipient,
        parent_question: identity.parent_question,
        attributes: &identity.attributes,
        inputs,
    };
    let depth = identity.depth;
    let request = JobRequest { launch, service, network, gate, depth, launched, nonce: 0 };
    let recipient = identity.recipient.as_sruid();
    let mut requests =
        ResourceRequests::from_attributes(&identity.attributes, service, recipient).ok()?;
    raise_memory(&mut requests.memory, container, next.policy);
    super::write(&request, next.attempt.min(ATTEMPTS), &requests, question_mount(job)).ok()
}

/// The Secrets of a Job that the API server has: the same for every redelivery of its question.
/// Empty for a Job that mounts nothing.
pub fn input_secrets(job: &Job, inputs: Inputs<'_>) -> Vec<Secret> {
    match question_mount(job).zip(secret_owner(job)) {
        Some((mount, owner)) => mount.secrets(&owner, inputs),
        None => Vec::new(),
    }
}

/// How the question is mounted, as an annotation records it.
fn question_mount(job: &Job) -> Option<QuestionMount> {
    let text = job.metadata.annotations.as_ref()?.get(annotation::INPUTS)?;
    let (nonce, parts) = text.split_once(' ')?;
    Some(QuestionMount { nonce: u32::from_str_radix(nonce, 16).ok()?, parts: parts.parse().ok()? })
}

fn secret_owner(job: &Job) -> Option<SecretOwner> {
    let identity = identify(job)?;
    let shared = [label::MANAGED_BY, label::TOPIC, label::QUESTION];
    let labels = job.metadata.labels.clone().unwrap_or_default();
    Some(SecretOwner {
        first_job: name(identity.run, 0),
        namespace: job.metadata.namespace.clone(),
        labels: labels.into_iter().filter(|(name, _)| shared.contains(&name.as_str())).collect(),
        reference: OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: job.metadata.name.clone()?,
            uid: job.metadata.uid.clone()?,
            ..OwnerReference::default()
        },
    })
}

/// Raises the memory of the last attempt by the factor of the settings. Never lowers it: the
/// ceiling may be below the request.
fn raise_memory(memory: &mut RequestAndLimit, last: &Container, policy: &RelaunchPolicy) {
    let amount = |amounts: Option<&BTreeMap<String, Written>>| {
        amounts?.get("memory")?.0.parse::<Quantity>().ok()
    };
    let raised = |last: Option<Quantity>, now: Quantity| {
        let last = last.unwrap_or(now);
        let raised = last.times_permille(policy.memory_permille);
        policy.ceiling.map_or(raised, |ceiling| raised.min(ceiling)).max(last).max(now)
    };
    let last = last.resources.as_ref();
    let (request, limit) = (
        amount(last.and_then(|last| last.requests.as_ref())),
        amount(last.and_then(|last| last.limits.as_ref())),
    );
    memory.request = raised(request, memory.request);
    memory.limit = memory.limit.map(|now| raised(limit, now));
}

/// The container of a question, in a Job of ours or of the reference.
fn container(job: &Job) -> Option<&Container> {
    let pod = job.spec.as_ref()?.template.spec.as_ref()?;
    let named = pod.containers.iter().find(|container| container.name == CONTAINER);
    named.or_else(|| pod.containers.first())
}

/// Options with their values. `None` if an option is unknown: then we cannot tell what runs.
fn options(arguments: &[String]) -> Option<HashMap<&str, &str>> {
    let mut all = HashMap::new();
    for pair in arguments.chunks(2) {
        let [option, value] = pair else { return None };
        if ![ATTRIBUTES_OPTION, VALUES_OPTION, MANIFEST_OPTION].contains(&&**option) {
            return None;
        }
        all.insert(&**option, &**value);
    }
    Some(all)
}

fn same_json(one: &str, other: &str) -> bool {
    let read = |text| serde_json::from_str::<Value>(text).ok();
    // Python's bare `NaN` is no JSON, so then the texts are compared.
    one == other || read(one).is_some_and(|one| Some(one) == read(other))
}

/// The reference passes the attributes as they came, or with the additions that the SDK needs.
fn same_attributes(there: &str, wanted: &str) -> bool {
    let there = serde_json::from_str::<HashMap<String, String>>(there);
    there.is_ok_and(|there| arguments::attributes(&there) == wanted)
}

/// Whether a JSON text is false in Python.
fn is_falsy(text: &str) -> bool {
    match serde_json::from_str(text) {
        Ok(Value::Null | Value::Bool(false)) => true,
        Ok(Value::Number(number)) => number.as_f64() == Some(0.0),
        Ok(Value::String(text)) => text.is_empty(),
        Ok(Value::Array(all)) => all.is_empty(),
        Ok(Value::Object(all)) => all.is_empty(),
        Ok(Value::Bool(true)) | Err(_) => false,
    }
}
