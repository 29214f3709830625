//! The file of settings as it is written.

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

/// The whole file.
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

/// How many questions may run at once; none for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunningLimits {
    /// In the whole network.
    #[serde(deserialize_with = "positive")]
    pub network: Option<u32>,
    /// In one tree of questions: all that one question of somebody outside leads to.
    #[serde(deserialize_with = "positive")]
    pub tree: Option<u32>,
}

/// What defaults and rules can set. All of it is optional; see [`super::Service`] for the meaning.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceFields {
    /// For which services; in rules alone.
    pub services: Vec<ServicePattern>,
    /// CPUs. A question asks for whole ones.
    pub cpus: ResourceFields,
    /// Memory, in bytes.
    pub memory: ResourceFields,
    /// Disk, in bytes.
    pub ephemeral_storage: ResourceFields,
    /// GPUs, or what else a node has a whole number of.
    pub gpus: Option<Gpus>,
    /// Variables with their values, which are taken as they are.
    pub environment: BTreeMap<VariableName, ScalarText>,
    /// Variables whose values are in Secrets of the namespace.
    pub secrets: BTreeMap<VariableName, SecretKey>,
    /// What is mounted.
    pub volumes: Option<Vec<Volume>>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<LabelKey, ScalarText>,
    /// Taints that a node may have.
    pub tolerations: Option<Vec<Toleration>>,
    /// As which service account of the namespace it runs.
    pub service_account: Option<ObjectName>,
    /// The priority class of its pods.
    pub priority: Option<ObjectName>,
    /// The local queue of Kueue that it waits in.
    pub queue: Option<ObjectName>,
    /// The workload priority class of Kueue that it has there.
    pub queue_priority: Option<ObjectName>,
    /// How long it may run.
    pub deadline: Option<DurationText>,
    /// Secrets with which its image is pulled.
    pub image_pull_secrets: Option<Vec<ObjectName>>,
    /// What answers a question: a program and its first arguments.
    #[serde(deserialize_with = "words")]
    pub command: Option<Vec<String>>,
    /// How a question comes in that no argument holds.
    pub inputs: Option<InputDelivery>,
    /// How often it is run again, by the reason of its end. (A question that no argument holds is
    /// not, where it was ended while it waited for its first turn.)
    pub retry: RelaunchPolicies,
    /// What its pods are kept from.
    pub security: Option<PodSecurity>,
    /// How many questions to one service run at once.
    #[serde(deserialize_with = "positive")]
    pub running: Option<u32>,
}

/// How much of a resource a question gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceFields {
    /// Where the question does not say.
    pub default: Option<Quantity>,
    /// The most that a question may ask for.
    pub cap: Option<Quantity>,
    /// What it is kept to when it runs.
    pub limit: Option<ResourceLimit>,
}

/// What a running question is kept to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceLimit {
    /// To what it asks for; written `request`.
    Request,
    /// To so much, or to what it asks for where that is more.
    Of(Quantity),
}

/// Whole things that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpus {
    /// What the node calls them.
    #[serde(default)]
    pub resource: ResourceName,
    /// How many; 0 takes away what an earlier entry gave.
    pub number: u32,
}

/// Where in a Secret a value is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// Which Secret.
    pub secret: ObjectName,
    /// Which of its keys.
    pub key: ScalarText,
}

/// What is mounted, and where. A path on the node cannot be: that is a way out of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where: absolute.
    pub path: MountPath,
    /// What.
    pub source: VolumeSource,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// A Secret.
    Secret(ObjectName),
    /// A ConfigMap.
    ConfigMap(ObjectName),
    /// A PersistentVolumeClaim.
    Claim {
        /// Which.
        name: ObjectName,
        /// Whether it cannot be written to.
        read_only: bool,
    },
    /// An empty folder on the node's disk, of at most this size.
    EmptyDir(Quantity),
}

/// A taint that a node may have, as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// Its key; none for all keys.
    pub key: Option<LabelKey>,
    /// Its value; none for any.
    pub value: Option<ScalarText>,
    /// Its effect; none for every one.
    pub effect: Option<TaintEffect>,
    /// For how long, where the effect is `NoExecute`; none for ever.
    pub seconds: Option<u32>,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TaintEffect {
    /// Nothing new is placed there.
    NoSchedule,
    /// Nothing new is placed there while there is another place.
    PreferNoSchedule,
    /// What is there is taken away.
    NoExecute,
}

/// How a question comes in that no argument holds, or that brings `children`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputDelivery {
    /// The image's own Python, with the SDK in it, is told to read it.
    #[default]
    Python,
    /// The image reads the file by itself.
    File,
}

/// What pods are kept from: the names of Kubernetes' own standards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodSecurity {
    /// From the node. Root in the container is allowed: today's images run as root.
    #[default]
    Baseline,
    /// From being root as well, and from all capabilities.
    Restricted,
}

/// How often a question is run again by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaunchPolicy {
    /// How many times at most.
    pub times: u32,
    /// How long it waits before each.
    pub backoff: Duration,
    /// By how many thousandths its memory is multiplied each time.
    pub permille: u32,
    /// The most memory that it is given so; none for any amount.
    pub ceiling: Option<Quantity>,
}

/// What is done about which end.
#[derive(Clone, Debug, Default)]
pub struct RelaunchPolicies(pub BTreeMap<EndReason, RelaunchPolicy>);

// === impl Effect ===

impl TaintEffect {
    /// The text of Kubernetes.
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
    /// Puts another's on top: what it sets, wins.
    pub(super) fn put(&mut self, over: &Self) {
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
            retry,
            security,
            running,
        } = over;
        self.cpus.put(cpus);
        self.memory.put(memory);
        self.ephemeral_storage.put(ephemeral_storage);
        put(&mut self.gpus, gpus);
        // One name has one value, from whichever of the two it comes.
        self.secrets.retain(|name, _| !environment.contains_key(name));
        self.environment.retain(|name, _| !secrets.contains_key(name));
        put_all(&mut self.environment, environment);
        put_all(&mut self.secrets, secrets);
        put(&mut self.volumes, volumes);
        put_all(&mut self.node_selector, node_selector);
        put(&mut self.tolerations, tolerations);
        put(&mut self.service_account, service_account);
        put(&mut self.priority, priority);
        put(&mut self.queue, queue);
        put(&mut self.queue_priority, queue_priority);
        put(&mut self.deadline, deadline);
        put(&mut self.image_pull_secrets, image_pull_secrets);
        put(&mut self.command, command);
        put(&mut self.inputs, inputs);
        put_all(&mut self.retry.0, &retry.0);
        put(&mut self.security, security);
        put(&mut self.running, running);
    }

    /// What one entry says must agree with itself.
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
    fn put(&mut self, over: &Self) {
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

fn put_all<K: Ord + Clone, V: Clone>(under: &mut BTreeMap<K, V>, over: &BTreeMap<K, V>) {
    under.extend(over.iter().map(|(key, value)| (key.clone(), value.clone())));
}

// === What is read in a way of its own ===

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
            other => other.parse().map(Self::Of).map_err(|err| {
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

/// A [`Retry`] as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelaunchPolicyFields {
    times: u32,
    backoff: Option<DurationText>,
    factor: Option<f64>,
    ceiling: Option<Quantity>,
}

/// How often one question is run again at most: enough for any reason that passes.
const TIMES: u32 = 20;

/// How long a retry waits where nobody says.
const BACKOFF: Duration = Duration::from_secs(10);

impl<'de> Deserialize<'de> for RelaunchPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RelaunchPolicyFields { times, backoff, factor, ceiling } =
            RelaunchPolicyFields::deserialize(deserializer)?;
        if times > TIMES {
            return Err(D::Error::custom(format_args!("`times` is {times}, over {TIMES}")));
        }
        let factor = factor.unwrap_or(1.0);
        if !(1.0..=100.0).contains(&factor) {
            return Err(D::Error::custom(format_args!("`factor` is {factor}, not from 1 to 100")));
        }
        let backoff = backoff.map_or(BACKOFF, |span| span.0);
        // From 1000 to 100,000, so nothing is cut off.
        Ok(Self { times, backoff, permille: (factor * 1000.0).round() as u32, ceiling })
    }
}

impl<'de> Deserialize<'de> for RelaunchPolicies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = BTreeMap::<String, RelaunchPolicy>::deserialize(deserializer)?;
        let can = |reason: &EndReason| !matches!(reason, EndReason::Exited | EndReason::Cancelled);
        let retries = written.into_iter().map(|(label, retry)| {
            let Some(reason) = EndReason::from_label(&label).filter(can) else {
                let all: Vec<_> =
                    EndReason::ALL.into_iter().filter(can).map(EndReason::label).collect();
                return Err(D::Error::custom(format_args!(
                    "`{label}` is no reason to run a question again; those are {}",
                    all.join(", ")
                )));
            };
            if retry.permille != 1000 && reason != EndReason::Memory {
                return Err(D::Error::custom("`factor` goes with the reason `memory` alone"));
            }
            Ok((reason, retry))
        });
        retries.collect::<Result<_, _>>().map(Self)
    }
}
