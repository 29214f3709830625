//! What each service may have, and how it runs: the one file of settings, and what it comes to
//! for one service.
//!
//! ```yaml
//! allow: ["octue/*"]              # all others are denied; none here allows all
//! deny: ["octue/old-*"]           # wins over `allow`
//! running: {network: 500, tree: 50}
//! depth: 20
//! waiting: 24h
//! defaults:                       # of every service
//!   memory: {default: 512Mi, cap: 64Gi}
//!   deadline: 7d
//! rules:                          # for some; the later wins, field by field
//!   - services: ["octue/wind-*", "*/*:*-gpu"]
//!     gpus: {number: 1}
//!     retry: {memory: {times: 2, factor: 2, ceiling: 64Gi}}
//! ```
//!
//! JSON is YAML too. [`Fields`] says all that defaults and rules can hold. Of a map (`environment`,
//! `secrets`, `node_selector`, `retry`) and of the fields of a resource each entry is a field of its
//! own; a list is replaced as a whole. A rule can change what is set, and cannot unset it.
//!
//! Everything is checked when the file is read: an error says the line, and what is expected there.

mod file;
mod pattern;
mod values;

use crate::event::{Sruid, SruidBuf};
use crate::runner::EndReason;
use crate::runner::kubernetes::quantity::Quantity;
use crate::sdk::ASK_LOCAL;
pub use file::{
    Gpus, InputDelivery, PodSecurity, RelaunchPolicy, ResourceFields, ResourceLimit, RunningLimits,
    SecretKey, ServiceFields, TaintEffect, Toleration, Volume, VolumeSource,
};
use file::{RelaunchPolicies, SettingsFile};
use pattern::ServicePattern;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
pub use values::{
    DurationText, LabelKey, MountPath, ObjectName, ResourceName, ScalarText, VariableName,
};

/// How long a run may run where nobody says: the reference's.
const DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a question may wait where nobody says.
const WAITING: Duration = Duration::from_secs(24 * 3600);

/// How many resolved services are kept. Real networks have hundreds; who asks for made-up ones,
/// one after another, empties the cache and does not grow it.
const KEPT: usize = 4096;

/// The settings of all services.
#[derive(Debug)]
pub struct NetworkSettings {
    allow: Vec<ServicePattern>,
    deny: Vec<ServicePattern>,
    /// How many questions may run at once, in the network and in one tree.
    pub running: RunningLimits,
    /// How deep a question may be in its tree, where the root is 0; none for any depth.
    pub depth: Option<u32>,
    /// How long a question may wait for its turn.
    pub waiting: Duration,
    /// Later ones win.
    layers: Vec<ServiceFields>,
    kept: RwLock<HashMap<SruidBuf, Arc<ServiceSettings>>>,
}

/// What the settings come to for one service revision.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSettings {
    /// CPUs.
    pub cpus: ResourcePolicy,
    /// Memory, in bytes.
    pub memory: ResourcePolicy,
    /// Disk, in bytes.
    pub ephemeral_storage: ResourcePolicy,
    /// GPUs; none for none.
    pub gpus: Option<Gpus>,
    /// Variables, with their values as they are.
    pub environment: BTreeMap<VariableName, ScalarText>,
    /// Variables whose values are in Secrets.
    pub secrets: BTreeMap<VariableName, SecretKey>,
    /// What is mounted.
    pub volumes: Vec<Volume>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<LabelKey, ScalarText>,
    /// Taints that a node may have.
    pub tolerations: Vec<Toleration>,
    /// As whom it runs; none for the namespace's default account.
    pub service_account: Option<ObjectName>,
    /// Its pods' priority class.
    pub priority: Option<ObjectName>,
    /// Its local queue of Kueue; none where it does not wait there.
    pub queue: Option<ObjectName>,
    /// Its priority class in that queue.
    pub queue_priority: Option<ObjectName>,
    /// How long it may run.
    pub deadline: Duration,
    /// Secrets with which its image is pulled.
    pub image_pull_secrets: Vec<ObjectName>,
    /// What answers a question: a program and its first arguments.
    pub command: Vec<String>,
    /// How a question comes in that no argument holds.
    pub inputs: InputDelivery,
    /// How often it is run again by itself, by the reason of its end.
    pub retry: BTreeMap<EndReason, RelaunchPolicy>,
    /// What its pods are kept from.
    pub security: PodSecurity,
    /// How many questions to this service, of whatever revision, run at once; none for any number.
    pub running: Option<u32>,
}

/// How much of a resource a question gets.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourcePolicy {
    /// Where the question does not say.
    pub default: Quantity,
    /// The most that it may ask for; none for any amount.
    pub cap: Option<Quantity>,
    /// What it is kept to when it runs; none for no limit.
    pub limit: Option<ResourceLimit>,
}

/// Why a file of settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is no YAML, or something in it is not what is expected there.
    #[error("the settings are wrong: {0}")]
    Unreadable(String),
    /// A rule is for no service.
    #[error(
        "rule {0} of the settings names no service: give it `services`, a list of patterns such as \
         `octue/*`"
    )]
    NoServices(usize),
    /// What is for all has a list of services.
    #[error(
        "`defaults` of the settings are for every service: leave `services` out, or make a rule"
    )]
    ServicesOfDefaults,
    /// A default is over the cap of the same entry.
    #[error(
        "in {place} of the settings `{resource}.default` is {default}, over its `cap` of {cap}"
    )]
    OverCap {
        /// Which entry.
        place: String,
        /// Which resource.
        resource: &'static str,
        /// What it gives.
        default: Quantity,
        /// What it allows.
        cap: Quantity,
    },
}

/// Why a service may not run here: words for the asker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceDenied {
    /// A pattern of `deny` takes it.
    #[error("`{service}` may not run in this network: its settings `deny` `{pattern}`")]
    Deny {
        /// Which service revision.
        service: String,
        /// Which pattern.
        pattern: String,
    },
    /// No pattern of `allow` takes it.
    #[error(
        "`{service}` may not run in this network: no pattern of `allow` in its settings takes it"
    )]
    NotAllowed {
        /// Which service revision.
        service: String,
    },
}

// === impl Settings ===

impl NetworkSettings {
    /// Reads a file of settings, which is put over `base`: what flags and the environment say.
    ///
    /// # Errors
    ///
    /// Says what is wrong, where, and what is expected there.
    pub fn read(text: &str, base: ServiceFields) -> Result<Self, SettingsError> {
        let file = if text.trim().is_empty() {
            SettingsFile::default()
        } else {
            serde_saphyr::from_str(text)
                .map_err(|err| SettingsError::Unreadable(err.without_snippet().to_string()))?
        };
        let SettingsFile { allow, deny, running, depth, waiting, defaults, rules } = file;
        if !defaults.services.is_empty() {
            return Err(SettingsError::ServicesOfDefaults);
        }
        if let Some(at) = rules.iter().position(|rule| rule.services.is_empty()) {
            return Err(SettingsError::NoServices(at + 1));
        }
        defaults.check(|| "`defaults`".to_owned())?;
        for (at, rule) in rules.iter().enumerate() {
            rule.check(|| format!("rule {}", at + 1))?;
        }
        Ok(Self {
            allow,
            deny,
            running,
            depth,
            waiting: waiting.map_or(WAITING, |span| span.0),
            layers: [base, defaults].into_iter().chain(rules).collect(),
            kept: RwLock::default(),
        })
    }

    /// What holds for a service revision.
    pub fn of(&self, revision: &SruidBuf) -> Arc<ServiceSettings> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = kept.get(revision) {
            return Arc::clone(service);
        }
        drop(kept);
        let service = Arc::new(self.resolve(revision.as_sruid()));
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        Arc::clone(kept.entry(revision.clone()).or_insert(service))
    }

    /// Whether a service revision may run here.
    ///
    /// # Errors
    ///
    /// Where it may not: says which setting keeps it.
    pub fn admit(&self, revision: Sruid<'_>) -> Result<(), ServiceDenied> {
        let service = || revision.to_string();
        if let Some(pattern) = self.deny.iter().find(|pattern| pattern.matches(revision)) {
            return Err(ServiceDenied::Deny { service: service(), pattern: pattern.to_string() });
        }
        if self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(revision)) {
            Ok(())
        } else {
            Err(ServiceDenied::NotAllowed { service: service() })
        }
    }

    /// Whether a limit of running questions is on those to a service: the network's, that of
    /// trees, or its own. Where none is, a question need not wait for anybody to let it go.
    pub fn limits_running(&self, service: &ServiceSettings) -> bool {
        let RunningLimits { network, tree } = self.running;
        network.or(tree).or(service.running).is_some()
    }

    /// Which of the queues of Kueue the settings name, each once.
    pub fn queues(&self) -> Vec<&ObjectName> {
        let mut queues: Vec<_> = self.layers.iter().filter_map(|own| own.queue.as_ref()).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    fn resolve(&self, revision: Sruid<'_>) -> ServiceSettings {
        let mut fields = ServiceFields::default();
        for layer in &self.layers {
            // What is for all has no patterns.
            let all = layer.services.is_empty();
            if all || layer.services.iter().any(|pattern| pattern.matches(revision)) {
                fields.put(layer);
            }
        }
        ServiceSettings::from(fields)
    }
}

// === impl Service ===

impl From<ServiceFields> for ServiceSettings {
    fn from(fields: ServiceFields) -> Self {
        let ServiceFields {
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
            retry: RelaunchPolicies(retry),
            security,
            running,
        } = fields;
        let command = command.unwrap_or_else(|| ASK_LOCAL.map(str::to_owned).into());
        Self {
            cpus: ResourcePolicy::of(cpus, Quantity::whole(1)),
            memory: ResourcePolicy::of(memory, Quantity::mebi(512)),
            ephemeral_storage: ResourcePolicy::of(ephemeral_storage, Quantity::mebi(1024)),
            gpus: gpus.filter(|gpus| gpus.number > 0),
            environment,
            secrets,
            volumes: volumes.unwrap_or_default(),
            node_selector,
            tolerations: tolerations.unwrap_or_default(),
            service_account,
            priority,
            queue,
            queue_priority,
            deadline: deadline.map_or(DEADLINE, |span| span.0),
            image_pull_secrets: image_pull_secrets.unwrap_or_default(),
            command,
            inputs: inputs.unwrap_or_default(),
            retry,
            security: security.unwrap_or_default(),
            running,
        }
    }
}

// === impl Amount ===

impl ResourcePolicy {
    fn of(resource: ResourceFields, otherwise: Quantity) -> Self {
        let ResourceFields { default, cap, limit } = resource;
        let default = default.unwrap_or(otherwise);
        // A rule may lower the cap alone. What nobody asked for must not be refused for it.
        Self { default: cap.map_or(default, |cap| default.min(cap)), cap, limit }
    }
}

#[cfg(test)]
mod tests;
