//! The settings file as it is written.

use super::SettingsError;
use super::pattern::ServicePattern;
use super::values::{
    CommandWords, DurationText, LabelKey, MountPath, ObjectName, PositiveCount, ResourceName,
    ScalarText, VariableName,
};
use crate::runner::EndReason;
use crate::runner::kubernetes::quantity::Quantity;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::collections::BTreeMap;
use std::time::Duration;

/// All keys of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SettingsFile {
    pub allow: Vec<ServicePattern>,
    pub deny: Vec<ServicePattern>,
    pub running: RunningLimits,
    pub depth: Option<u32>,
    pub waiting: Option<DurationText>,
    pub defaults: ServiceFields,
    pub rules: Vec<ServiceFields>,
}

/// How many questions may run at once; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunningLimits {
    /// In the network.
    #[serde(deserialize_with = "positive")]
    pub network: Option<u32>,
    /// In one tree of questions: all that follow from one question from outside the network.
    #[serde(deserialize_with = "positive")]
    pub tree: Option<u32>,
}

/// The fields that defaults and rules can set. All are optional; see [`super::ServiceSettings`] for
/// the meaning.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceFields {
    /// The services that a rule applies to; not allowed in defaults.
    pub services: Vec<ServicePattern>,
    /// CPUs. A question asks for a whole number.
    pub cpus: ResourceFields,
    /// Memory, in bytes.
    pub memory: ResourceFields,
    /// Disk, in bytes.
    pub ephemeral_storage: ResourceFields,
    /// GPUs, or another extended resource.
    pub gpus: Option<Gpus>,
    /// Environment variables with literal values.
    pub environment: BTreeMap<VariableName, ScalarText>,
    /// Environment variables whose values are in Secrets of the namespace.
    pub secrets: BTreeMap<VariableName, SecretKey>,
    /// The volumes to mount.
    pub volumes: Option<Vec<Volume>>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<LabelKey, ScalarText>,
    /// Taints that a node may have.
    pub tolerations: Option<Vec<Toleration>>,
    /// The service account, of the namespace of the questions.
    pub service_account: Option<ObjectName>,
    /// The priority class of its pods.
    pub priority: Option<ObjectName>,
    /// The local queue of Kueue.
    pub queue: Option<ObjectName>,
    /// The workload priority class of Kueue in that queue.
    pub queue_priority: Option<ObjectName>,
    /// How long a run may take.
    pub deadline: Option<DurationText>,
    /// Secrets for pulling the image.
    pub image_pull_secrets: Option<Vec<ObjectName>>,
    /// The command that answers a question: a program and its first arguments.
    #[serde(deserialize_with = "words")]
    pub command: Option<Vec<String>>,
    /// How a question is delivered that no argument holds.
    pub inputs: Option<InputDelivery>,
    /// When we launch another attempt, by the reason of the end. (Not for a question that no
    /// argument holds, if it was ended before it was first admitted.)
    #[serde(rename = "retry")]
    pub relaunch: RelaunchPolicies,
    /// The security standard of the pods.
    pub security: Option<PodSecurity>,
    /// How many questions to one service run at once.
    #[serde(deserialize_with = "positive")]
    pub running: Option<u32>,
}

/// How much of a resource a question gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceFields {
    /// The request of a question that asks for none.
    pub default: Option<Quantity>,
    /// The most that a question may ask for.
    pub cap: Option<Quantity>,
    /// The limit of a running question.
    pub limit: Option<ResourceLimit>,
}

/// The limit of a running question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceLimit {
    /// What it requests; written `request`.
    Request,
    /// This quantity, or the request if that is more.
    Quantity(Quantity),
}

/// An extended resource of nodes, in whole numbers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpus {
    /// The name of the resource.
    #[serde(default)]
    pub resource: ResourceName,
    /// How many; 0 removes those of an earlier entry.
    pub number: u32,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret.
    pub secret: ObjectName,
    /// The key.
    pub key: ScalarText,
}

/// A volume to mount. A path on the node is not possible: that is a way out of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The absolute path in the container.
    pub path: MountPath,
    /// What to mount.
    pub source: VolumeSource,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A Secret.
    Secret(ObjectName),
    /// A ConfigMap.
    ConfigMap(ObjectName),
    /// A PersistentVolumeClaim.
    Claim {
        /// Its name.
        name: ObjectName,
        /// Whether it is mounted read-only.
        read_only: bool,
    },
    /// An empty folder on the node's disk, of at most this size.
    EmptyDir(Quantity),
}

/// A taint that a node may have, as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// Its key; `None` for all keys.
    pub key: Option<LabelKey>,
    /// Its value; `None` for any.
    pub value: Option<ScalarText>,
    /// Its effect; `None` for every effect.
    pub effect: Option<TaintEffect>,
    /// For how long, with the effect `NoExecute`; `None` for ever.
    pub seconds: Option<u32>,
}

/// The effect of a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TaintEffect {
    /// No new pod is placed there.
    NoSchedule,
    /// No new pod is placed there while another node fits.
    PreferNoSchedule,
    /// Pods that run there are evicted.
    NoExecute,
}

/// How a question is delivered that no argument holds, or that has `children`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputDelivery {
    /// The image's own Python, with the SDK, reads the files through our hook.
    #[default]
    Python,
    /// The image reads the files by itself.
    File,
}

/// A Pod Security Standard of Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodSecurity {
    /// No access to the node. Root in the container is allowed: today's images run as root.
    #[default]
    Baseline,
    /// Also no root, and no capabilities.
    Restricted,
}

/// When we launch another attempt of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaunchPolicy {
    /// The most further attempts.
    pub times: u32,
    /// The pause before the first; it doubles with each further attempt.
    pub backoff: Duration,
    /// The factor on its memory with each attempt, in thousandths.
    pub memory_permille: u32,
    /// The most memory that the factor leads to; `None` for any amount.
    pub ceiling: Option<Quantity>,
}

/// The policies, by the reason of the end.
#[derive(Clone, Debug, Default)]
pub struct RelaunchPolicies(pub BTreeMap<EndReason, RelaunchPolicy>);

// === impl Effect ===

impl TaintEffect {
    /// The name in Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

// === impl Fields ===

impl ServiceFields {
    /// Overrides the fields that `over` sets.
    pub(super) fn override_with(&mut self, over: &Self) {
        let Self {
            services: _,
            cpus,
            memory,
            ephemeral_storage,
            gpus,
            environment,
            secrets,
            volumes,
            node_selector,
            tolerations,
            service_account,
            priority,
            queue,
            queue_priority,
            deadline,
            image_pull_secrets,
            command,
            inputs,
            relaunch,
            security,
            running,
        } = over;
        self.cpus.override_with(cpus);
        self.memory.override_with(memory);
        self.ephemeral_storage.override_with(ephemeral_storage);
        put(&mut self.gpus, gpus);
        // A variable has one value, from the map that sets it last.
        self.secrets.retain(|name, _| !environment.contains_key(name));
        self.environment.retain(|name, _| !secrets.contains_key(name));
        extend(&mut self.environment, environment);
        extend(&mut self.secrets, secrets);
        put(&mut self.volumes, volumes);
        extend(&mut self.node_selector, node_selector);
        put(&mut self.tolerations, tolerations);
        put(&mut self.service_account, service_account);
        put(&mut self.priority, priority);
        put(&mut self.queue, queue);
        put(&mut self.queue_priority, queue_priority);
        put(&mut self.deadline, deadline);
        put(&mut self.image_pull_secrets, image_pull_secrets);
        put(&mut self.command, command);
        put(&mut self.inputs, inputs);
        extend(&mut self.relaunch.0, &relaunch.0);
        put(&mut self.security, security);
        put(&mut self.running, running);
    }

    /// Checks that the fields of one entry agree.
    pub(super) fn check(&self, place: impl Fn() -> String) -> Result<(), SettingsError> {
        for (resource, own) in [
            ("cpus", &self.cpus),
            ("memory", &self.memory),
            ("ephemeral_storage", &self.ephemeral_storage),
        ] {
            if let (Some(default), Some(cap)) = (own.default, own.cap)
                && default > cap
            {
                return Err(SettingsError::OverCap { place: place(), resource, default, cap });
            }
        }
        Ok(())
    }
}

impl ResourceFields {
    fn override_with(&mut self, over: &Self) {
        let Self { default, cap, limit } = over;
        put(&mut self.default, default);
        put(&mut self.cap, cap);
        put(&mut self.limit, limit);
    }
}

fn put<T: Clone>(under: &mut Option<T>, over: &Option<T>) {
    if over.is_some() {
        under.clone_from(over);
    }
}

fn extend<K: Ord + Clone, V: Clone>(under: &mut BTreeMap<K, V>, over: &BTreeMap<K, V>) {
    under.extend(over.iter().map(|(key, value)| (key.clone(), value.clone())));
}

// === Deserialization ===

fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Option::<PositiveCount>::deserialize(deserializer)
        .map(|number| number.map(|PositiveCount(number)| number))
}

fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Option::<CommandWords>::deserialize(deserializer)
        .map(|words| words.map(|CommandWords(words)| words))
}

impl<'de> Deserialize<'de> for ResourceLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ScalarText(text) = ScalarText::deserialize(deserializer)?;
        match &*text {
            "request" => Ok(Self::Request),
            other => other.parse().map(Self::Quantity).map_err(|err| {
                D::Error::custom(format_args!(
                    "`{other}` is neither `request` nor a quantity: {err}"
                ))
            }),
        }
    }
}

/// A [`Volume`] as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeFields {
    path: MountPath,
    secret: Option<ObjectName>,
    config_map: Option<ObjectName>,
    claim: Option<ObjectName>,
    empty_dir: Option<Quantity>,
    read_only: Option<bool>,
}

impl<'de> Deserialize<'de> for Volume {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let VolumeFields { path, secret, config_map, claim, empty_dir, read_only } =
            VolumeFields::deserialize(deserializer)?;
        if read_only.is_some() && claim.is_none() {
            return Err(D::Error::custom("`read_only` goes with `claim` alone"));
        }
        let source = match (secret, config_map, claim, empty_dir) {
            (Some(name), None, None, None) => VolumeSource::Secret(name),
            (None, Some(name), None, None) => VolumeSource::ConfigMap(name),
            (None, None, Some(name), None) => {
                VolumeSource::Claim { name, read_only: read_only.unwrap_or(false) }
            }
            (None, None, None, Some(size)) => VolumeSource::EmptyDir(size),
            _ => {
                return Err(D::Error::custom(format_args!(
                    "the volume at `{path}` needs exactly one of `secret`, `config_map`, `claim` \
                     and `empty_dir`"
                )));
            }
        };
        Ok(Self { path, source })
    }
}

/// A [`RelaunchPolicy`] as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelaunchPolicyFields {
    times: u32,
    backoff: Option<DurationText>,
    factor: Option<f64>,
    ceiling: Option<Quantity>,
}

/// The most further attempts that can be set: enough for any reason that passes.
const MOST_ATTEMPTS: u32 = 20;

/// The default pause before another attempt.
const DEFAULT_BACKOFF: Duration = Duration::from_secs(10);

impl<'de> Deserialize<'de> for RelaunchPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RelaunchPolicyFields { times, backoff, factor, ceiling } =
            RelaunchPolicyFields::deserialize(deserializer)?;
        if times > MOST_ATTEMPTS {
            return Err(D::Error::custom(format_args!("`times` is {times}, over {MOST_ATTEMPTS}")));
        }
        let factor = factor.unwrap_or(1.0);
        if !(1.0..=100.0).contains(&factor) {
            return Err(D::Error::custom(format_args!("`factor` is {factor}, not from 1 to 100")));
        }
        let backoff = backoff.map_or(DEFAULT_BACKOFF, |span| span.0);
        // From 1000 to 100,000, so the cast loses nothing.
        Ok(Self { times, backoff, memory_permille: (factor * 1000.0).round() as u32, ceiling })
    }
}

impl<'de> Deserialize<'de> for RelaunchPolicies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = BTreeMap::<String, RelaunchPolicy>::deserialize(deserializer)?;
        let is_allowed =
            |reason: &EndReason| !matches!(reason, EndReason::Exited | EndReason::Cancelled);
        let policies = written.into_iter().map(|(label, policy)| {
            let Some(reason) = EndReason::from_label(&label).filter(is_allowed) else {
                let all: Vec<_> =
                    EndReason::ALL.into_iter().filter(is_allowed).map(EndReason::label).collect();
                return Err(D::Error::custom(format_args!(
                    "`{label}` is not a reason to relaunch a run; the reasons are {}",
                    all.join(", ")
                )));
            };
            if policy.memory_permille != 1000 && reason != EndReason::Memory {
                return Err(D::Error::custom("`factor` goes with the reason `memory` alone"));
            }
            Ok((reason, policy))
        });
        policies.collect::<Result<_, _>>().map(Self)
    }
}
