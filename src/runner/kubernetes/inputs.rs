//! The road of a question that no argument holds: files, mounted from Secrets.
//!
//! ```text
//! {"input_values": …, "input_manifest": …, "children": …}      up to what Pub/Sub carries
//!      └─> parts of 900 KiB -> Secrets, owned by the Job -> one volume at /twined
//! ```
//!
//! | in the container | what |
//! |---|---|
//! | `/twined/question.json` | the question, or the first part of it |
//! | `/twined/question.json.1`, `.2`, … | the parts that follow; a part may end within a character |
//! | `TWINED_QUESTION_FILE` | the path of the first |
//! | `TWINED_QUESTION_PARTS` | how many there are |
//!
//! With [`InputDelivery::File`] that is all, and the image reads it by itself. With [`InputDelivery::Python`] the
//! command becomes `python3 -S /twined/start.py <command>`. Kubernetes cannot put a folder before
//! an image's own `shim::MOUNTEDPATH`, so that program does, and then executes the command in its own
//! place: argument by argument, through no shell. The image's Python then finds our
//! `sitecustomize.py`, which reads the parts, gives them to the SDK, and runs the `sitecustomize`
//! that it hides. Nothing joins the parts on a disk: the reader holds the question in memory in any
//! case, and the image may have no place to write to.

use super::job::{JobRequest, LaunchRefusal, annotation, identify, label, name};
use super::settings::InputDelivery;
use crate::event::Inputs;
use crate::runner::LaunchRequest;
use crate::sdk::arguments::{ARGUMENT_LIMIT, QuestionFile};
use crate::sdk::{shim, variables};
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, Secret, SecretProjection, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;

/// Where a question is mounted.
pub const FOLDER: &str = "/twined";

/// How much one Secret holds of a question. Kubernetes takes 1 MiB; the rest is for the Python
/// beside the first part.
const PART: usize = 900 * 1024;

/// The largest question: what Pub/Sub carries.
const LIMIT: usize = 10 * 1024 * 1024;

/// The name of the volume.
const VOLUME: &str = "twined";

/// The name of the question's file, and the start of the names of its parts.
const QUESTION: &str = "question.json";

/// That everybody can read them, whoever the image runs as.
const MODE: i32 = 0o444;

/// That a question is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuestionMount {
    /// What its Secrets have in their names.
    pub nonce: u32,
    /// How many there are.
    pub parts: usize,
}

/// Whether a question is to be mounted: where an argument cannot hold a part of it, or there is
/// none for it, or the SDK loses what it holds. (All arguments together are then at most three of
/// 120 KiB, far below what the kernel and etcd take.)
///
/// # Errors
///
/// Where it is over what can be mounted.
pub fn mounted(request: &JobRequest<'_>) -> Result<Option<QuestionMount>, LaunchRefusal> {
    let JobRequest { launch: LaunchRequest { inputs, .. }, service, nonce, .. } = *request;
    let Inputs { input_values, input_manifest, children } = inputs;
    let long = |text: Option<&str>| text.is_some_and(|text| text.len() > ARGUMENT_LIMIT);
    let lost = service.inputs == InputDelivery::Python && input_values.is_some_and(is_lost);
    if children.is_none() && !long(input_values) && !long(input_manifest) && !lost {
        return Ok(None);
    }
    let length = QuestionFile::new(inputs).bytes.len();
    if length > LIMIT {
        return Err(LaunchRefusal::wrong(format!(
            "what the question brings is {length} bytes of JSON, and it can be {LIMIT}: put the \
             most of it into a dataset, and name that in the input manifest"
        )));
    }
    Ok(Some(QuestionMount { nonce, parts: length.div_ceil(PART) }))
}

/// Whether `ask-local` of the SDK fails on values that it is given as an argument: it hashes them,
/// and cannot hash a bare boolean; and it reads a text as JSON once more, which an empty one is not.
fn is_lost(input_values: &str) -> bool {
    matches!(input_values.trim_ascii(), "true" | "false" | "\"\"")
}

/// The volume of a question's files. Not `optional`: a pod waits until its Secrets are there.
pub(super) fn volume(job: &str, mounted: QuestionMount, road: InputDelivery) -> Volume {
    let QuestionMount { nonce, parts } = mounted;
    let source = |part: usize| {
        let python = shim::MOUNTED.iter().map(|(name, _)| (*name).to_owned());
        let python = python.filter(|_| part == 0 && road == InputDelivery::Python);
        let keys = [file(part)].into_iter().chain(python);
        let item = |key: String| KeyToPath { path: key.clone(), key, mode: None };
        VolumeProjection {
            secret: Some(SecretProjection {
                name: secret_name(job, nonce, part),
                items: Some(keys.map(item).collect()),
                optional: None,
            }),
            ..VolumeProjection::default()
        }
    };
    Volume {
        name: VOLUME.into(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(MODE),
            sources: Some((0..parts).map(source).collect()),
        }),
        ..Volume::default()
    }
}

/// Where the volume is in the container.
pub(super) fn mount() -> VolumeMount {
    VolumeMount {
        name: VOLUME.into(),
        mount_path: FOLDER.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// What stands before the command. `-S`: the `sitecustomize` of the image is for the program that
/// follows, and runs there.
pub(super) fn start() -> [String; 3] {
    ["python3".to_owned(), "-S".to_owned(), format!("{FOLDER}/{}", shim::START)]
}

/// The variables that tell where the question is.
pub(super) fn variables(mounted: QuestionMount) -> impl Iterator<Item = (&'static str, String)> {
    let file = (variables::QUESTION_FILE, format!("{FOLDER}/{QUESTION}"));
    [file, (variables::QUESTION_PARTS, mounted.parts.to_string())].into_iter()
}

/// The Secrets of a Job that the API server has: the same for every redelivery of its question.
/// None where it has none.
pub fn secrets(job: &Job, inputs: Inputs<'_>) -> Vec<Secret> {
    let Some((QuestionMount { nonce, .. }, owner)) = mounted_of(job).zip(owner(job)) else {
        return Vec::new();
    };
    let Some(identity) = identify(job) else { return Vec::new() };
    let first = name(identity.run, 0);
    let bytes = QuestionFile::new(inputs).bytes;
    let secret = |(part, bytes): (usize, &[u8])| {
        let mut data = BTreeMap::from([(file(part), ByteString(bytes.to_vec()))]);
        if part == 0 {
            let python = |(name, text): (&str, &str)| (name.to_owned(), ByteString(text.into()));
            data.extend(shim::MOUNTED.map(python));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(secret_name(&first, nonce, part)),
                namespace: job.metadata.namespace.clone(),
                labels: Some(labels(job)),
                owner_references: Some(vec![owner.clone()]),
                ..ObjectMeta::default()
            },
            data: Some(data),
            immutable: Some(true),
            type_: Some("Opaque".into()),
            ..Secret::default()
        }
    };
    bytes.chunks(PART).enumerate().map(secret).collect()
}

/// What the annotation of a Job says of its Secrets.
fn mounted_of(job: &Job) -> Option<QuestionMount> {
    let text = job.metadata.annotations.as_ref()?.get(annotation::INPUTS)?;
    let (nonce, parts) = text.split_once(' ')?;
    Some(QuestionMount { nonce: u32::from_str_radix(nonce, 16).ok()?, parts: parts.parse().ok()? })
}

/// By which its Secrets go when the Job does.
fn owner(job: &Job) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: job.metadata.name.clone()?,
        uid: job.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

fn labels(job: &Job) -> BTreeMap<String, String> {
    let ours = [label::MANAGED_BY, label::TOPIC, label::QUESTION];
    let all = job.metadata.labels.iter().flatten();
    all.filter(|(name, _)| ours.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn secret_name(job: &str, nonce: u32, part: usize) -> String {
    format!("{job}-{nonce:08x}-{part}")
}

fn file(part: usize) -> String {
    if part == 0 { QUESTION.to_owned() } else { format!("{QUESTION}.{part}") }
}

#[cfg(test)]
mod tests;
