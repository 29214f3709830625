//! A question that no argument holds: files, mounted from Secrets.
//!
//! ```text
//! {"input_values": …, "input_manifest": …, "children": …}      up to what Pub/Sub carries
//!      └─> parts of 900 KiB -> Secrets, owned by the Job -> one volume at /twined
//! ```
//!
//! | in the container | what it is |
//! |---|---|
//! | `/twined/question.json` | the question, or the first part of it |
//! | `/twined/question.json.1`, `.2`, … | the parts that follow; a part may end within a character |
//! | `TWINED_QUESTION_FILE` | the path of the first |
//! | `TWINED_QUESTION_PARTS` | the number of parts |
//!
//! With [`InputDelivery::File`] that is all, and the image reads the files by itself. With
//! [`InputDelivery::Python`] the command becomes `python3 -S /twined/start.py <command>`. Kubernetes
//! cannot put a folder before an image's own `PYTHONPATH`, so that program does, and then executes the
//! command in its own place: argument by argument, without a shell. The image's Python then finds our
//! `sitecustomize.py`, which reads the parts, gives them to the SDK, and runs the `sitecustomize` that
//! it hides. Nothing joins the parts on a disk: the reader holds the question in memory in any case,
//! and the image may have no folder that it can write to.

use super::refusal::LaunchRefusal;
use super::reserved::MOUNT_FOLDER;
use super::settings::InputDelivery;
use crate::event::Inputs;
use crate::sdk::arguments::{ARGUMENT_LIMIT, QuestionFile};
use crate::sdk::{shim, variables};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, Secret, SecretProjection, Volume, VolumeMount,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;

/// How many bytes of a question one Secret holds. Kubernetes accepts 1 MiB; the rest is for the
/// Python beside the first part.
const PART_BYTES: usize = 900 * 1024;

/// The largest question: what Pub/Sub carries.
const LARGEST_BYTES: usize = 10 * 1024 * 1024;

/// The name of the volume.
const VOLUME: &str = "twined";

/// The name of the question's file, and the prefix of the names of its parts.
const QUESTION: &str = "question.json";

/// Readable for every user, because an image may run as any.
const MODE: i32 = 0o444;

/// How a question is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QuestionMount {
    /// A number in the names of its Secrets.
    pub(super) nonce: u32,
    /// The number of Secrets.
    pub(super) parts: usize,
}

/// What the Secrets of a question have in common.
#[derive(Clone, Debug)]
pub(super) struct SecretOwner {
    /// The name of the Job of the first attempt: later attempts mount the same Secrets.
    pub(super) first_job: String,
    /// The namespace of the Job.
    pub(super) namespace: Option<String>,
    /// The labels that the Secrets share with the Job.
    pub(super) labels: BTreeMap<String, String>,
    /// The Job with which the Secrets are deleted.
    pub(super) reference: OwnerReference,
}

// === impl QuestionMount ===

impl QuestionMount {
    /// How a question is mounted; `None` if arguments hold it. It is mounted if an argument cannot
    /// hold a part of it, if there is no argument for a part, or if the SDK loses a part on its way
    /// from an argument. (All arguments together are then at most three of 120 KiB, far below the
    /// limits of the kernel and etcd.)
    ///
    /// # Errors
    ///
    /// If it is larger than can be mounted.
    pub(super) fn new(
        inputs: Inputs<'_>,
        delivery: InputDelivery,
        nonce: u32,
    ) -> Result<Option<Self>, LaunchRefusal> {
        let Inputs { input_values, input_manifest, children } = inputs;
        let long = |text: Option<&str>| text.is_some_and(|text| text.len() > ARGUMENT_LIMIT);
        let lost = delivery == InputDelivery::Python && input_values.is_some_and(is_lost_by_sdk);
        if children.is_none() && !long(input_values) && !long(input_manifest) && !lost {
            return Ok(None);
        }
        let length = QuestionFile::new(inputs).bytes.len();
        if length > LARGEST_BYTES {
            return Err(LaunchRefusal::invalid(format!(
                "the inputs of the question are {length} bytes of JSON, and the limit is \
                 {LARGEST_BYTES}: put most of them into a dataset, and name that in the input \
                 manifest"
            )));
        }
        Ok(Some(Self { nonce, parts: length.div_ceil(PART_BYTES) }))
    }

    /// The volume of the question's files. Not `optional`: a pod waits until its Secrets exist.
    pub(super) fn volume(self, job: &str, delivery: InputDelivery) -> Volume {
        let source = |part: usize| {
            let python = shim::MOUNTED.iter().map(|(name, _)| (*name).to_owned());
            let python = python.filter(|_| part == 0 && delivery == InputDelivery::Python);
            let keys = [file_name(part)].into_iter().chain(python);
            let item = |key: String| KeyToPath { path: key.clone(), key, mode: None };
            VolumeProjection {
                secret: Some(SecretProjection {
                    name: secret_name(job, self.nonce, part),
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
                sources: Some((0..self.parts).map(source).collect()),
            }),
            ..Volume::default()
        }
    }

    /// The variables that name the question's files.
    pub(super) fn variables(self) -> [(&'static str, String); 2] {
        [
            (variables::QUESTION_FILE, format!("{MOUNT_FOLDER}/{QUESTION}")),
            (variables::QUESTION_PARTS, self.parts.to_string()),
        ]
    }

    /// The Secrets of a question: the same for every redelivery of it.
    pub(super) fn secrets(self, owner: &SecretOwner, inputs: Inputs<'_>) -> Vec<Secret> {
        let secret = |(part, bytes): (usize, &[u8])| {
            let mut data = BTreeMap::from([(file_name(part), ByteString(bytes.to_vec()))]);
            if part == 0 {
                let python =
                    |(name, text): (&str, &str)| (name.to_owned(), ByteString(text.into()));
                data.extend(shim::MOUNTED.map(python));
            }
            Secret {
                metadata: ObjectMeta {
                    name: Some(secret_name(&owner.first_job, self.nonce, part)),
                    namespace: owner.namespace.clone(),
                    labels: Some(owner.labels.clone()),
                    owner_references: Some(vec![owner.reference.clone()]),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                immutable: Some(true),
                type_: Some("Opaque".into()),
                ..Secret::default()
            }
        };
        let bytes = QuestionFile::new(inputs).bytes;
        bytes.chunks(PART_BYTES).enumerate().map(secret).collect()
    }
}

/// Whether `ask-local` of the SDK fails on values that it gets as an argument: it hashes them, and
/// cannot hash a bare boolean; and it parses a string as JSON once more, which fails for an empty
/// one.
fn is_lost_by_sdk(input_values: &str) -> bool {
    matches!(input_values.trim_ascii(), "true" | "false" | "\"\"")
}

/// Where the volume is mounted in the container.
pub(super) fn volume_mount() -> VolumeMount {
    VolumeMount {
        name: VOLUME.into(),
        mount_path: MOUNT_FOLDER.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// What precedes the command. `-S`: the `sitecustomize` of the image is for the program that
/// follows, and runs there.
pub(super) fn command_prefix() -> [String; 3] {
    ["python3".to_owned(), "-S".to_owned(), format!("{MOUNT_FOLDER}/{}", shim::START)]
}

fn secret_name(job: &str, nonce: u32, part: usize) -> String {
    format!("{job}-{nonce:08x}-{part}")
}

/// The name of a part's file, and its key in the Secret.
pub(super) fn file_name(part: usize) -> String {
    if part == 0 { QUESTION.to_owned() } else { format!("{QUESTION}.{part}") }
}
