//! The pod of a question.

use super::requests::{RequestAndLimit, ResourceRequests};
use super::{CONTAINER, JobDefaults, JobRequest, image};
use crate::event::Inputs;
use crate::runner::kubernetes::inputs::{self, QuestionMount};
use crate::runner::kubernetes::settings::{
    InputDelivery, PodSecurity, SecretKey, ServiceSettings, Toleration, Volume, VolumeSource,
};
use crate::sdk::arguments::{ATTRIBUTES_OPTION, MANIFEST_OPTION, VALUES_OPTION};
use crate::sdk::variables;
use k8s_openapi::api::core::v1::{
    self as core, Capabilities, Container, EnvVar, EnvVarSource, LocalObjectReference, PodSpec,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use std::collections::BTreeMap;

/// The time between SIGTERM and SIGKILL. Python as the first process of a container ignores
/// SIGTERM, so all of it passes.
const GRACE_SECONDS: i64 = 3;

/// The pod of a question: from its settings, with what must hold on top.
pub(super) fn spec(
    request: &JobRequest<'_>,
    job: &str,
    requests: &ResourceRequests,
    attributes: String,
    mount: Option<QuestionMount>,
) -> PodSpec {
    let JobRequest { service, .. } = *request;
    let (mut volumes, mut mounts) = own_volumes(&service.volumes);
    if let Some(mount) = mount {
        volumes.push(mount.volume(job, service.inputs));
        mounts.push(inputs::volume_mount());
    }
    let mut command = escaped_all(&service.command);
    if mount.is_some() && service.inputs == InputDelivery::Python {
        command.splice(0..0, inputs::command_prefix());
    }
    let container = Container {
        name: CONTAINER.into(),
        image: Some(image(request.network, request.launch.recipient.as_sruid())),
        command: Some(command),
        args: Some(arguments(request.launch.inputs, attributes, mount.is_some())),
        env: Some(environment(request, mount)),
        resources: Some(resources(requests, service)),
        volume_mounts: non_empty(mounts),
        // Its last lines become the traceback of the parent's exception.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    };
    let mut spec = PodSpec {
        containers: vec![container],
        volumes: non_empty(volumes),
        node_selector: node_selector(service),
        tolerations: non_empty(tolerations(service)),
        service_account_name: service.service_account.as_ref().map(|name| name.0.clone()),
        priority_class_name: service.priority.as_ref().map(|name| name.0.clone()),
        image_pull_secrets: non_empty(
            service
                .image_pull_secrets
                .iter()
                .map(|name| LocalObjectReference { name: name.0.clone() })
                .collect(),
        ),
        active_deadline_seconds: i64::try_from(service.deadline.as_secs()).ok(),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    };
    enforce(&mut spec, service.security);
    spec
}

/// Sets what must hold whatever the settings are. Applied last, so that nothing overrides it.
pub(super) fn enforce(spec: &mut PodSpec, security: PodSecurity) {
    spec.restart_policy = Some("Never".into());
    // A question must not reach the API server.
    spec.automount_service_account_token = Some(false);
    spec.enable_service_links = Some(false);
    spec.host_network = None;
    spec.host_pid = None;
    spec.host_ipc = None;
    spec.share_process_namespace = None;
    spec.security_context = None;
    for volume in spec.volumes.iter_mut().flatten() {
        volume.host_path = None;
    }
    for container in &mut spec.containers {
        let restricted = security == PodSecurity::Restricted;
        let none = || Capabilities { add: None, drop: Some(vec!["ALL".into()]) };
        container.security_context = Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            run_as_non_root: restricted.then_some(true),
            capabilities: restricted.then(none),
            // No read-only root: the SDK and the services write to any folder.
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        });
    }
}

/// The arguments of `ask-local`. A question that is mounted has only its attributes as an argument.
fn arguments(inputs: Inputs<'_>, attributes: String, mounted: bool) -> Vec<String> {
    let mut arguments = vec![ATTRIBUTES_OPTION.to_owned(), escaped_owned(attributes)];
    if mounted {
        return arguments;
    }
    let Inputs { input_values, input_manifest, children: _ } = inputs;
    for (option, text) in [(VALUES_OPTION, input_values), (MANIFEST_OPTION, input_manifest)] {
        if let Some(text) = text {
            arguments.extend([option.to_owned(), escaped(text)]);
        }
    }
    arguments
}

fn environment(request: &JobRequest<'_>, mount: Option<QuestionMount>) -> Vec<EnvVar> {
    let JobRequest { service, network, .. } = *request;
    let own = |name: &str| {
        service.environment.keys().chain(service.secrets.keys()).any(|own| own.0 == name)
    };
    let JobDefaults { environment, topic, .. } = network;
    let mut all: Vec<_> = environment
        .iter()
        .filter(|(name, _)| !own(name))
        .map(|(name, value)| variable(name, value))
        .collect();
    all.extend(service.environment.iter().map(|(name, value)| variable(&name.0, &value.0)));
    all.extend(service.secrets.iter().map(|(name, key)| secret_variable(&name.0, key)));
    if let Some(mount) = mount {
        all.extend(mount.variables().map(|(name, value)| variable(name, &value)));
    }
    // Those that the SDK needs come last: of two with one name the last one counts.
    all.push(variable(variables::TOPIC_NAME, topic));
    all.push(variable(variables::COMPUTE_PROVIDER, variables::GOOGLE_KUEUE));
    let tag = request.launch.recipient.as_sruid().tag();
    all.push(variable(variables::SERVICE_REVISION_TAG, tag));
    all
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(escaped(value)), value_from: None }
}

fn secret_variable(name: &str, key: &SecretKey) -> EnvVar {
    let selector =
        SecretKeySelector { name: key.secret.0.clone(), key: key.key.0.clone(), optional: None };
    let value_from = EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() };
    EnvVar { name: name.into(), value: None, value_from: Some(value_from) }
}

fn resources(requests: &ResourceRequests, service: &ServiceSettings) -> ResourceRequirements {
    let ResourceRequests { cpus, memory, ephemeral_storage } = requests;
    let mut requested = BTreeMap::new();
    let mut limits = BTreeMap::new();
    for (name, RequestAndLimit { request, limit }) in
        [("cpu", cpus), ("memory", memory), ("ephemeral-storage", ephemeral_storage)]
    {
        requested.insert(name.to_owned(), Written(request.to_string()));
        limits.extend(limit.map(|limit| (name.to_owned(), Written(limit.to_string()))));
    }
    if let Some(gpus) = &service.gpus {
        // For extended resources the request must equal the limit.
        let number = Written(gpus.number.to_string());
        requested.insert(gpus.resource.0.clone(), number.clone());
        limits.insert(gpus.resource.0.clone(), number);
    }
    let limits = (!limits.is_empty()).then_some(limits);
    ResourceRequirements { requests: Some(requested), limits, claims: None }
}

fn own_volumes(own: &[Volume]) -> (Vec<core::Volume>, Vec<VolumeMount>) {
    let mut volumes = Vec::with_capacity(own.len() + 1);
    let mut mounts = Vec::with_capacity(own.len() + 1);
    for (at, Volume { path, source }) in own.iter().enumerate() {
        let name = format!("volume-{at}");
        let mut volume = core::Volume { name: name.clone(), ..core::Volume::default() };
        let mut read_only = true;
        match source {
            VolumeSource::Secret(secret) => {
                volume.secret = Some(core::SecretVolumeSource {
                    secret_name: Some(secret.0.clone()),
                    ..core::SecretVolumeSource::default()
                });
            }
            VolumeSource::ConfigMap(map) => {
                volume.config_map = Some(core::ConfigMapVolumeSource {
                    name: map.0.clone(),
                    ..core::ConfigMapVolumeSource::default()
                });
            }
            VolumeSource::Claim { name, read_only: claimed } => {
                read_only = *claimed;
                volume.persistent_volume_claim = Some(core::PersistentVolumeClaimVolumeSource {
                    claim_name: name.0.clone(),
                    read_only: Some(read_only),
                });
            }
            VolumeSource::EmptyDir(size) => {
                read_only = false;
                volume.empty_dir = Some(core::EmptyDirVolumeSource {
                    medium: None,
                    size_limit: Some(Written(size.to_string())),
                });
            }
        }
        volumes.push(volume);
        mounts.push(VolumeMount {
            name,
            mount_path: path.0.clone(),
            read_only: Some(read_only),
            ..VolumeMount::default()
        });
    }
    (volumes, mounts)
}

/// The node selector of the settings.
fn node_selector(service: &ServiceSettings) -> Option<BTreeMap<String, String>> {
    let labels = service.node_selector.iter().map(|(key, value)| (key.0.clone(), value.0.clone()));
    (!service.node_selector.is_empty()).then(|| labels.collect())
}

/// The tolerations of the settings.
fn tolerations(service: &ServiceSettings) -> Vec<core::Toleration> {
    let toleration = |Toleration { key, value, effect, seconds }: &Toleration| core::Toleration {
        key: key.as_ref().map(|key| key.0.clone()),
        operator: Some(if value.is_some() { "Equal" } else { "Exists" }.into()),
        value: value.as_ref().map(|value| value.0.clone()),
        effect: effect.map(|effect| effect.as_str().to_owned()),
        toleration_seconds: seconds.map(i64::from),
    };
    service.tolerations.iter().map(toleration).collect()
}

/// A list, or `None` if it is empty.
fn non_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// A text that Kubernetes expands to the original.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

/// The text that Kubernetes expands this one to, if nothing in it names a variable.
pub(super) fn unescaped(text: &str) -> String {
    text.replace("$$", "$")
}

fn escaped_owned(text: String) -> String {
    if text.contains('$') { escaped(&text) } else { text }
}

fn escaped_all(words: &[String]) -> Vec<String> {
    words.iter().map(|word| escaped(word)).collect()
}
