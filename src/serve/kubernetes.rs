//! The settings of questions that run as Kubernetes Jobs.

use crate::config::{ConfigError, DefaultResources, KubernetesSettings, ServeSettings};
use crate::runner::kubernetes::KubernetesOptions;
use crate::runner::kubernetes::job::JobDefaults;
use crate::runner::kubernetes::settings::{
    NetworkSettings, ObjectName, ResourceFields, ServiceFields,
};
use crate::sdk::variables::{COMPUTE_PROVIDER, TOPIC_NAME};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::sync::Arc;

/// Reads the settings by service: those of the file, and flags where the file has none.
pub(super) fn read_settings(
    kubernetes: &KubernetesSettings,
) -> Result<NetworkSettings, ConfigError> {
    let KubernetesSettings { service_account, queue, defaults, settings, .. } = kubernetes;
    let DefaultResources { cpus, memory, ephemeral_storage } = defaults;
    let amount = |amount| ResourceFields { default: Some(amount), ..ResourceFields::default() };
    let base = ServiceFields {
        cpus: amount(*cpus),
        memory: amount(*memory),
        ephemeral_storage: amount(*ephemeral_storage),
        service_account: Some(ObjectName(service_account.clone())),
        queue: queue.clone().map(ObjectName),
        ..ServiceFields::default()
    };
    let invalid = |source: Box<dyn Error + Send + Sync>| ConfigError::Settings {
        path: settings.clone().unwrap_or_default(),
        source,
    };
    let text = match settings {
        Some(path) => fs::read_to_string(path).map_err(|error| invalid(error.into()))?,
        None => String::new(),
    };
    NetworkSettings::read(&text, base).map_err(|error| invalid(error.into()))
}

/// The settings that all Jobs of the network share. `variables` are those of the network.
pub(super) fn job_defaults(
    settings: &ServeSettings,
    kubernetes: &KubernetesSettings,
    variables: Vec<(String, String)>,
) -> JobDefaults {
    // The runner sets these for each Job.
    let of_job = |name: &str| [TOPIC_NAME, COMPUTE_PROVIDER].contains(&name);
    let environment = variables.into_iter().filter(|(name, _)| !of_job(name));
    let passed = settings.variables.clone();
    JobDefaults {
        namespace: kubernetes.namespace.clone(),
        images: kubernetes.images.clone(),
        topic: settings.topic.clone(),
        // The last of several variables with one name wins.
        environment: environment.chain(passed).collect::<BTreeMap<_, _>>().into_iter().collect(),
    }
}

/// The options of the runner.
pub(super) fn options(
    settings: &ServeSettings,
    kubernetes: &KubernetesSettings,
    services: NetworkSettings,
    variables: Vec<(String, String)>,
) -> KubernetesOptions {
    let KubernetesSettings { lease_name, max_concurrent_launches, .. } = kubernetes;
    KubernetesOptions {
        defaults: job_defaults(settings, kubernetes, variables),
        settings: Arc::new(services),
        lease_name: lease_name.clone(),
        identity: settings.replica.clone(),
        max_concurrent_launches: *max_concurrent_launches,
    }
}
