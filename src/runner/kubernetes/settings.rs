//! The settings of a network: one file of limits, defaults and rules, resolved for each service.
//!
//! ```yaml
//! allow: ["octue/*"]              # other services are denied; without `allow` all are allowed
//! deny: ["octue/old-*"]           # overrides `allow`
//! running: {network: 500, tree: 50}
//! depth: 20
//! waiting: 24h
//! defaults:                       # of every service
//!   memory: {default: 512Mi, cap: 64Gi}
//!   deadline: 7d
//! rules:                          # of some services; later rules override, field by field
//!   - services: ["octue/wind-*", "*/*:*-gpu"]
//!     gpus: {number: 1}
//!     retry: {memory: {times: 2, factor: 2, ceiling: 64Gi}}
//! ```
//!
//! JSON is YAML too. [`ServiceFields`] lists what defaults and rules can hold. Each entry of a map
//! (`environment`, `secrets`, `node_selector`, `retry`) and each field of a resource is overridden
//! by itself; a list is replaced as a whole. A rule can change a field, but cannot unset it.
//!
//! The file is checked when it is read: an error names the line, and what is expected there.

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

/// The default deadline of a run: that of the reference.
const DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The default limit of the time in which a question waits.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The most resolved services in the cache. Real networks have hundreds; requests for invented
/// names empty the cache and cannot grow it.
const CACHE_CAPACITY: usize = 4096;

/// The settings of all services.
#[derive(Debug)]
pub struct NetworkSettings {
    allow: Vec<ServicePattern>,
    deny: Vec<ServicePattern>,
    /// How many questions may run at once, in the network and in one tree of questions.
    pub running: RunningLimits,
    /// The deepest level of a question in its tree, where the root is 0; `None` for any depth.
    pub depth: Option<u32>,
    /// How long a question may wait to run.
    pub waiting: Duration,
    /// Later layers override earlier ones.
    layers: Vec<ServiceFields>,
    cache: RwLock<HashMap<SruidBuf, Arc<ServiceSettings>>>,
}

/// The settings of one service revision, resolved from defaults and rules.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSettings {
    /// CPUs.
    pub cpus: ResourcePolicy,
    /// Memory, in bytes.
    pub memory: ResourcePolicy,
    /// Disk, in bytes.
    pub ephemeral_storage: ResourcePolicy,
    /// GPUs, if any.
    pub gpus: Option<Gpus>,
    /// Environment variables, with literal values.
    pub environment: BTreeMap<VariableName, ScalarText>,
    /// Environment variables whose values are in Secrets.
    pub secrets: BTreeMap<VariableName, SecretKey>,
    /// The volumes to mount.
    pub volumes: Vec<Volume>,
    /// Labels that its node must have.
    pub node_selector: BTreeMap<LabelKey, ScalarText>,
    /// Taints that its node may have.
    pub tolerations: Vec<Toleration>,
    /// Its service account; `None` for the namespace's default account.
    pub service_account: Option<ObjectName>,
    /// The priority class of its pods.
    pub priority: Option<ObjectName>,
    /// Its local queue of Kueue; `None` if Kueue does not queue it.
    pub queue: Option<ObjectName>,
    /// Its priority class in that queue.
    pub queue_priority: Option<ObjectName>,
    /// How long a run may take.
    pub deadline: Duration,
    /// Secrets for pulling its image.
    pub image_pull_secrets: Vec<ObjectName>,
    /// The command that answers a question: a program and its first arguments.
    pub command: Vec<String>,
    /// How a question is delivered that no argument holds.
    pub inputs: InputDelivery,
    /// When we launch another attempt, by the reason of the end.
    pub relaunch: BTreeMap<EndReason, RelaunchPolicy>,
    /// The security standard of its pods.
    pub security: PodSecurity,
    /// How many questions to this service, of all revisions, run at once; `None` for any number.
    pub running: Option<u32>,
}

/// How much of a resource a question gets: the default, and the limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourcePolicy {
    /// The request of a question that asks for none.
    pub default: Quantity,
    /// The most that a question may ask for; `None` for any amount.
    pub cap: Option<Quantity>,
    /// The limit of a running question; `None` for no limit.
    pub limit: Option<ResourceLimit>,
}

/// Why a settings file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is no YAML, or a value is not what is expected.
    #[error("failed to read the settings: {0}")]
    Unreadable(String),
    /// A rule names no service.
    #[error(
        "rule {0} of the settings names no service: give it `services`, a list of patterns such as \
         `octue/*`"
    )]
    NoServices(usize),
    /// The defaults have a list of services.
    #[error(
        "`defaults` of the settings apply to every service: remove `services`, or write a rule"
    )]
    ServicesOfDefaults,
    /// A default exceeds the cap of the same entry.
    #[error(
        "in {place} of the settings `{resource}.default` is {default}, over its `cap` of {cap}"
    )]
    OverCap {
        /// The entry.
        place: String,
        /// The resource.
        resource: &'static str,
        /// The default.
        default: Quantity,
        /// The cap.
        cap: Quantity,
    },
}

/// Why a service may not run in this network: a message for the parent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceDenied {
    /// A pattern of `deny` matches it.
    #[error("`{service}` may not run in this network: its settings `deny` `{pattern}`")]
    Deny {
        /// The service revision.
        service: String,
        /// The pattern.
        pattern: String,
    },
    /// No pattern of `allow` matches it.
    #[error(
        "`{service}` may not run in this network: no pattern of `allow` in its settings matches it"
    )]
    NotAllowed {
        /// The service revision.
        service: String,
    },
}

// === impl Settings ===

impl NetworkSettings {
    /// Reads a settings file. It overrides `base`, the fields from flags and the environment.
    ///
    /// # Errors
    ///
    /// If a value is not what is expected: the error names the place, and what is expected.
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
            waiting: waiting.map_or(QUEUE_TIMEOUT, |span| span.0),
            layers: [base, defaults].into_iter().chain(rules).collect(),
            cache: RwLock::default(),
        })
    }

    /// The settings of a service revision.
    pub fn service(&self, revision: &SruidBuf) -> Arc<ServiceSettings> {
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = cache.get(revision) {
            return Arc::clone(service);
        }
        drop(cache);
        let service = Arc::new(self.resolve(revision.as_sruid()));
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_CAPACITY {
            cache.clear();
        }
        Arc::clone(cache.entry(revision.clone()).or_insert(service))
    }

    /// Checks that a service revision may run in this network.
    ///
    /// # Errors
    ///
    /// If it may not: the error names the setting.
    pub fn check_allowed(&self, revision: Sruid<'_>) -> Result<(), ServiceDenied> {
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

    /// Whether a limit of running questions applies to a service: the network's, that of trees, or
    /// its own. Without a limit a question need not wait to be admitted.
    pub fn limits_running(&self, service: &ServiceSettings) -> bool {
        let RunningLimits { network, tree } = self.running;
        network.or(tree).or(service.running).is_some()
    }

    /// The queues of Kueue that the settings name, each once.
    pub fn queues(&self) -> Vec<&ObjectName> {
        let mut queues: Vec<_> = self.layers.iter().filter_map(|own| own.queue.as_ref()).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    fn resolve(&self, revision: Sruid<'_>) -> ServiceSettings {
        let mut fields = ServiceFields::default();
        for layer in &self.layers {
            // The base and the defaults have no patterns.
            let all = layer.services.is_empty();
            if all || layer.services.iter().any(|pattern| pattern.matches(revision)) {
                fields.override_with(layer);
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
            relaunch: RelaunchPolicies(relaunch),
            security,
            running,
        } = fields;
        let command = command.unwrap_or_else(|| ASK_LOCAL.map(str::to_owned).into());
        Self {
            cpus: ResourcePolicy::new(cpus, Quantity::whole(1)),
            memory: ResourcePolicy::new(memory, Quantity::mebi(512)),
            ephemeral_storage: ResourcePolicy::new(ephemeral_storage, Quantity::mebi(1024)),
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
            relaunch,
            security: security.unwrap_or_default(),
            running,
        }
    }
}

// === impl Amount ===

impl ResourcePolicy {
    fn new(resource: ResourceFields, otherwise: Quantity) -> Self {
        let ResourceFields { default, cap, limit } = resource;
        let default = default.unwrap_or(otherwise);
        // A rule may lower the cap alone; then the default must not exceed it.
        Self { default: cap.map_or(default, |cap| default.min(cap)), cap, limit }
    }
}

#[cfg(test)]
mod tests;
