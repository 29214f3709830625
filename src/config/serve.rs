//! The settings of `twined serve` and `twined doctor`.
//!
//! ```text
//! ServeArgs (flags and environment, as given) ─► ServeSettings (checked together, defaults filled)
//! ```
//!
//! Where networks of today have a variable for a setting, the flag reads that variable.

use crate::config::{
    ConfigError, DEFAULT_PROJECT, DEFAULT_SERVE_HTTP, DEFAULT_TOPIC, HostArgs, ServicesArgs,
    VariablesArgs,
};
use crate::request_guard::HostName;
use crate::runner::kubernetes::quantity::Quantity;
use crate::sdk::variables::{GOOGLE_CLOUD_PROJECT, PUBSUB_EMULATOR_HOST, TOPIC_NAME};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The longest name of an object that Kubernetes also accepts as the value of a label.
const LONGEST_NAME: usize = 63;

/// The longest name of a topic or a subscription.
/// (<https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names>)
const LONGEST_PUBSUB_NAME: usize = 255;

/// Variables of networks today that this version does not use, and what it does instead.
const NOT_YET: [(&str, &str); 2] = [
    ("BIGQUERY_EVENTS_TABLE", "events are stored in `--store`"),
    (
        "ARTIFACT_REGISTRY_REPOSITORY_ID",
        "every revision that `--settings` allows is taken to exist",
    ),
];

/// Settings of `twined serve`, as given.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Name of the network's topic
    #[arg(long, env = TOPIC_NAME, default_value = DEFAULT_TOPIC)]
    pub topic: String,

    /// Google Cloud project of the topic [default: GOOGLE_CLOUD_PROJECT]
    #[arg(long, env = "TWINED_PROJECT")]
    pub project: Option<String>,

    /// Subscription that all replicas share [default: twined.daemon.TOPIC]
    ///
    /// Created if it does not exist.
    #[arg(long, env = "TWINED_SUBSCRIPTION", value_name = "NAME")]
    pub subscription: Option<String>,

    /// Pub/Sub emulator to use [default: PUBSUB_EMULATOR_HOST, else Google's Pub/Sub]
    ///
    /// Google's Pub/Sub is used with application default credentials.
    #[arg(long, env = "TWINED_PUBSUB", value_name = "HOST:PORT")]
    pub pubsub: Option<String>,

    /// Address at which to run a Pub/Sub emulator inside the daemon
    ///
    /// It has no authentication, and its messages are lost when the daemon ends: for tests and
    /// trials.
    #[arg(long, env = "TWINED_EMULATE", value_name = "IP:PORT")]
    pub emulate: Option<SocketAddr>,

    /// Event store, `sqlite:PATH` [default: `events.sqlite` in `--data`]
    ///
    /// All replicas that share a SQLite file must run on one host, and the file must be on its
    /// disk.
    #[arg(long, env = "TWINED_STORE", value_name = "STORE")]
    pub store: Option<String>,

    /// Folder for the files of this host: the replica's view of recent events, runs and logs
    #[arg(long, env = "TWINED_DATA", default_value = ".twined", value_name = "DIR")]
    pub data: PathBuf,

    /// How questions are run
    #[arg(long, env = "TWINED_RUNNER", value_enum, default_value_t)]
    pub runner: RunnerKind,

    /// Namespace of the questions' Jobs
    #[arg(long, env = "TWINED_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub namespace: String,

    /// Repository of the services' images; required with `--runner kubernetes`
    ///
    /// The service `<namespace>/<name>:<tag>` runs the image `<URL>/<namespace>/<name>:<tag>`.
    #[arg(long, env = "ARTIFACT_REGISTRY_REPOSITORY_URL", value_name = "URL")]
    pub images: Option<String>,

    /// Service account of the questions' pods, in `--namespace`
    #[arg(
        long,
        env = "KUBERNETES_SERVICE_ACCOUNT_NAME",
        default_value = "default",
        value_name = "NAME"
    )]
    pub service_account: String,

    /// Local queue of Kueue for the questions' Jobs [default: none, Kueue is not used]
    #[arg(long, env = "KUEUE_LOCAL_QUEUE", value_name = "NAME")]
    pub queue: Option<String>,

    /// CPUs of a question that requests none
    #[arg(long, env = "QUESTION_DEFAULT_CPUS", default_value = "1", value_name = "QUANTITY")]
    pub default_cpus: String,

    /// Memory of a question that requests none
    #[arg(long, env = "QUESTION_DEFAULT_MEMORY", default_value = "512Mi", value_name = "QUANTITY")]
    pub default_memory: String,

    /// Ephemeral storage of a question that requests none
    #[arg(
        long,
        env = "QUESTION_DEFAULT_EPHEMERAL_STORAGE",
        default_value = "1Gi",
        value_name = "QUANTITY"
    )]
    pub default_ephemeral_storage: String,

    /// File of settings by service: which may run, their resources, retries and more
    #[arg(long, env = "TWINED_SETTINGS", value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Lease by which the replicas elect a leader [default: twined-TOPIC]
    #[arg(long, env = "TWINED_LEASE_NAME", value_name = "NAME")]
    pub lease_name: Option<String>,

    /// Unique name of this replica [default: the host's name and a random suffix]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub replica: Option<String>,

    /// Number of Jobs that may be in creation at a time
    #[arg(long, env = "TWINED_MAX_CONCURRENT_LAUNCHES", default_value = "64", value_name = "N")]
    pub max_concurrent_launches: NonZeroUsize,

    /// Address of the HTTP server: /live, /ready and /metrics
    #[arg(long, env = "TWINED_HTTP", default_value = DEFAULT_SERVE_HTTP, value_name = "IP:PORT")]
    pub http: SocketAddr,

    /// Names of this host.
    #[command(flatten)]
    pub hosts: HostArgs,

    /// Seconds to finish in-flight messages on shutdown
    ///
    /// Messages that are not finished are delivered again. Shutdown takes up to 1.5 s more, to
    /// close the store and delete the subscription of the replica's view.
    #[arg(long, env = "TWINED_DRAIN_TIMEOUT", default_value = "3", value_name = "SECONDS")]
    pub drain_timeout: u16,

    /// Format of the logs [default: text on a terminal, else json]
    #[arg(long, env = "TWINED_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// Services of `--runner process`.
    #[command(flatten)]
    pub services: ServicesArgs,

    /// Variables for the services.
    #[command(flatten)]
    pub variables: VariablesArgs,
}

/// How questions are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// Each as a Kubernetes Job (cluster of KUBECONFIG, ~/.kube/config or the daemon's own pod)
    #[default]
    Kubernetes,
    /// Each as a process on this host, of the services in the folders DIR
    Process,
}

/// Format of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of JSON each, for Google Cloud Logging
    Json,
    /// [time | LEVEL | module] message
    Text,
}

/// Settings of `twined serve`, checked.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Name of the network's topic.
    pub topic: String,
    /// Google Cloud project of the topic.
    pub project: String,
    /// Subscription that all replicas share.
    pub subscription: String,
    /// Which Pub/Sub to use.
    pub pubsub: PubsubChoice,
    /// File of the event store, absolute.
    pub store: PathBuf,
    /// Folder for the files of this host, absolute.
    pub data: PathBuf,
    /// How questions are run.
    pub runner: RunnerSettings,
    /// Name of this replica.
    pub replica: String,
    /// Address of the HTTP server.
    pub http: SocketAddr,
    /// Names of this host that HTTP clients may use, besides its addresses and `localhost`.
    pub allowed_hosts: Vec<HostName>,
    /// How long in-flight messages may take on shutdown.
    pub drain_timeout: Duration,
    /// Variables for the services, besides those of the network.
    pub variables: BTreeMap<String, String>,
    /// Warnings: given settings that are not used.
    pub unused: Vec<String>,
}

/// Which Pub/Sub to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PubsubChoice {
    /// Google's.
    Google,
    /// The emulator at `HOST:PORT`.
    Emulator(String),
    /// An emulator inside the daemon, at this address.
    OwnEmulator(SocketAddr),
}

/// How questions are run, with the settings for it.
#[derive(Clone, Debug)]
pub enum RunnerSettings {
    /// As Kubernetes Jobs.
    Kubernetes(KubernetesSettings),
    /// As processes of this host.
    Process(ServicesArgs),
}

/// Settings of questions that run as Kubernetes Jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Namespace of the Jobs.
    pub namespace: String,
    /// Repository of the services' images, without a slash at its end.
    pub images: String,
    /// Service account of the pods.
    pub service_account: String,
    /// Local queue of Kueue.
    pub queue: Option<String>,
    /// Resources of a question that requests none.
    pub defaults: DefaultResources,
    /// File of settings by service.
    pub settings: Option<PathBuf>,
    /// Name of the Lease.
    pub lease_name: String,
    /// Number of Jobs that may be in creation at a time.
    pub max_concurrent_launches: usize,
}

/// Resources of a question that requests none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultResources {
    /// CPUs.
    pub cpus: Quantity,
    /// Memory, in bytes.
    pub memory: Quantity,
    /// Ephemeral storage, in bytes.
    pub ephemeral_storage: Quantity,
}

// === impl ServeArgs ===

impl ServeArgs {
    /// Checks the settings together and fills in defaults. `variable` looks up an environment
    /// variable.
    pub fn into_settings(
        self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<ServeSettings, ConfigError> {
        let runner = self.runner_settings()?;
        let mut unused = self.unused();
        let Self { topic, project, subscription, pubsub, emulate, store, data, .. } = self;
        let Self { replica, http, hosts, drain_timeout, variables, .. } = self;
        // A Helm chart gives empty values for what is not set.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let pubsub = given(pubsub);
        if emulate.is_some() && pubsub.is_some() {
            return Err(invalid("`--emulate` and `--pubsub` exclude each other: give one of them"));
        }
        if let Some(address) = &pubsub {
            check_address("--pubsub", address)?;
        }
        let pubsub = match (emulate, pubsub.or_else(|| given(variable(PUBSUB_EMULATOR_HOST)))) {
            (Some(address), _) => PubsubChoice::OwnEmulator(address),
            (None, Some(address)) => PubsubChoice::Emulator(address),
            (None, None) => PubsubChoice::Google,
        };
        let project = given(project).or_else(|| given(variable(GOOGLE_CLOUD_PROJECT)));
        let project = match (project, &pubsub) {
            (Some(project), _) => project,
            (None, PubsubChoice::Emulator(_) | PubsubChoice::OwnEmulator(_)) => {
                DEFAULT_PROJECT.to_owned()
            }
            (None, PubsubChoice::Google) => {
                return Err(invalid(
                    "no project: give `--project` or GOOGLE_CLOUD_PROJECT, or an emulator with \
                     `--pubsub HOST:PORT`",
                ));
            }
        };
        check_pubsub_name("--topic", "topic", &topic)?;
        let data = absolute("--data", &data)?;
        let store = match given(store) {
            None => data.join("events.sqlite"),
            Some(store) => absolute("--store", &sqlite_path(&store)?)?,
        };
        let not_yet = NOT_YET.iter().filter(|(name, _)| given(variable(name)).is_some());
        unused.extend(
            not_yet.map(|(name, instead)| format!("{name} is not used by this version: {instead}")),
        );
        let subscription = given(subscription).unwrap_or_else(|| format!("twined.daemon.{topic}"));
        check_pubsub_name("--subscription", "subscription", &subscription)?;
        let replica = given(replica).unwrap_or_else(|| random_name(given(variable("HOSTNAME"))));
        check_view(&subscription, &replica)?;
        Ok(ServeSettings {
            subscription,
            topic,
            project,
            pubsub,
            store,
            data,
            runner,
            replica,
            http,
            allowed_hosts: hosts.allow_host,
            drain_timeout: Duration::from_secs(drain_timeout.into()),
            variables: variables.variables()?,
            unused,
        })
    }

    fn runner_settings(&self) -> Result<RunnerSettings, ConfigError> {
        let Self { runner, namespace, images, service_account, queue, .. } = self;
        let Self { default_cpus, default_memory, default_ephemeral_storage, .. } = self;
        let Self { settings, lease_name, max_concurrent_launches, services, topic, .. } = self;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if *runner == RunnerKind::Process {
            // An error, not a warning: the file restricts which services may run.
            return match settings {
                None => Ok(RunnerSettings::Process(services.clone())),
                Some(_) => Err(invalid(
                    "`--settings` is for `--runner kubernetes`: `--runner process` runs every \
                     service that is found, without limits of resources",
                )),
            };
        }
        if !services.services.is_empty() {
            return Err(invalid(
                "folders of services are for `--runner process`: `--runner kubernetes` runs images of \
                 `--images`",
            ));
        }
        let Some(images) = given(images) else {
            return Err(invalid(
                "no image repository: give `--images` or ARTIFACT_REGISTRY_REPOSITORY_URL, for example \
                 europe-west1-docker.pkg.dev/my-project/my-repository",
            ));
        };
        let images = images.trim_end_matches('/').to_owned();
        if images.contains("://") || images.contains(char::is_whitespace) {
            return Err(invalid(format!(
                "`--images {images}` is not an image repository: expected HOST/PATH without `https://`"
            )));
        }
        check_name("--namespace", namespace)?;
        check_name("--service-account", service_account)?;
        let lease_name = given(lease_name).unwrap_or_else(|| lease_of_topic(topic));
        check_name("--lease-name", &lease_name)?;
        let queue = given(queue);
        if let Some(queue) = &queue {
            check_name("--queue", queue)?;
        }
        Ok(RunnerSettings::Kubernetes(KubernetesSettings {
            namespace: namespace.clone(),
            images,
            service_account: service_account.clone(),
            queue,
            defaults: DefaultResources {
                cpus: quantity("--default-cpus", default_cpus)?,
                memory: quantity("--default-memory", default_memory)?,
                ephemeral_storage: quantity(
                    "--default-ephemeral-storage",
                    default_ephemeral_storage,
                )?,
            },
            settings: settings.clone(),
            lease_name,
            max_concurrent_launches: max_concurrent_launches.get(),
        }))
    }

    /// Warnings about settings of the runner that was not chosen.
    fn unused(&self) -> Vec<String> {
        let Self { runner, images, queue, lease_name, services, .. } = self;
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let (with, instead, flags) = match runner {
            RunnerKind::Kubernetes => (
                "kubernetes",
                "it is for services in folders",
                vec![
                    ("--tag", services.tag != ServicesArgs::default().tag),
                    ("--max-runs", services.max_runs.is_some()),
                ],
            ),
            RunnerKind::Process => (
                "process",
                "it is for services in images",
                vec![
                    ("--images", given(images)),
                    ("--queue", given(queue)),
                    ("--lease-name", given(lease_name)),
                ],
            ),
        };
        let flags = flags.into_iter().filter(|(_, given)| *given);
        flags
            .map(|(flag, _)| format!("`{flag}` is not used with `--runner {with}`: {instead}"))
            .collect()
    }
}

// === impl ServeSettings ===

impl ServeSettings {
    /// Subscription of this replica's view.
    pub fn view_subscription(&self) -> String {
        view_name(&self.subscription, &self.replica)
    }
}

// === impl LogFormat ===

impl LogFormat {
    /// The default format.
    pub fn default_for(terminal: bool) -> Self {
        if terminal { Self::Text } else { Self::Json }
    }
}

fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::Setting(message.into())
}

fn absolute(flag: &str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map_err(|error| invalid(format!("`{flag} {}`: {error}", path.display())))
}

/// The file of a SQLite store.
fn sqlite_path(store: &str) -> Result<PathBuf, ConfigError> {
    match store.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(invalid(format!("`--store {store}` is not a store: expected sqlite:PATH"))),
    }
}

fn quantity(flag: &str, text: &str) -> Result<Quantity, ConfigError> {
    text.parse().map_err(|error| {
        invalid(format!(
            "`{flag} {text}`: {error}: expected a Kubernetes quantity, for example 1 or 512Mi"
        ))
    })
}

/// Checks the name of a topic or subscription within its project. A full path of another project
/// would fail much later.
fn check_pubsub_name(flag: &str, kind: &str, name: &str) -> Result<(), ConfigError> {
    let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    // Google reserves the prefix.
    let free = !name.starts_with("goog");
    let long_enough = (3..=LONGEST_PUBSUB_NAME).contains(&name.len());
    if letter && free && long_enough && name.chars().all(is_pubsub_name_character) {
        return Ok(());
    }
    Err(invalid(format!(
        "`{flag} {name}` is not a name of a {kind}: expected 3 to {LONGEST_PUBSUB_NAME} letters, \
         digits and `-_.~+%`, a letter first and not `goog`, without `projects/…/{kind}s/`"
    )))
}

fn is_pubsub_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~+%".contains(c)
}

/// The name of a view's subscription contains those of the shared subscription and of the replica.
fn check_view(subscription: &str, replica: &str) -> Result<(), ConfigError> {
    if !replica.chars().all(is_pubsub_name_character) {
        return Err(invalid(format!(
            "`--replica {replica}` cannot be part of the name of a subscription: expected letters, \
             digits and `-_.~+%`"
        )));
    }
    let length = view_name(subscription, replica).len();
    if length > LONGEST_PUBSUB_NAME {
        return Err(invalid(format!(
            "`--subscription {subscription}` and `--replica {replica}` are too long: with `.view.` \
             between them they have {length} characters, and the name of a subscription has \
             {LONGEST_PUBSUB_NAME} at most"
        )));
    }
    Ok(())
}

fn view_name(subscription: &str, replica: &str) -> String {
    format!("{subscription}.view.{replica}")
}

fn check_address(flag: &str, address: &str) -> Result<(), ConfigError> {
    let host_fits =
        |host: &str| !host.is_empty() && !host.contains(char::is_whitespace) && !host.contains('/');
    match address.rsplit_once(':') {
        Some((host, port)) if host_fits(host) && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(invalid(format!("`{flag} {address}` is not an address: expected HOST:PORT"))),
    }
}

/// Checks the name of a Kubernetes object: a DNS subdomain.
fn check_name(flag: &str, name: &str) -> Result<(), ConfigError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = !name.is_empty() && name.len() <= 253 && name.chars().all(inner);
    if fits && name.starts_with(edge) && name.ends_with(edge) {
        return Ok(());
    }
    Err(invalid(format!(
        "`{flag} {name}` is not a Kubernetes name: expected lower case letters, digits, `-` and `.`"
    )))
}

/// The default name of the Lease. Networks of one namespace must not share a Lease, so its name
/// contains the topic, or a hash of a topic that no name can contain.
fn lease_of_topic(topic: &str) -> String {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
    let name = format!("twined-{topic}");
    if name.len() <= LONGEST_NAME && name.chars().all(fit) && !name.ends_with(['.', '-']) {
        return name;
    }
    let digest = blake3::hash(topic.as_bytes()).to_hex();
    format!("twined-{}", &digest[..16])
}

fn random_name(host: Option<String>) -> String {
    let random = Uuid::new_v4().simple().to_string();
    let host = host.unwrap_or_else(|| "host".to_owned());
    let host: String = host.chars().filter(|&c| is_pubsub_name_character(c)).take(40).collect();
    format!("{host}-{}", &random[..8])
}

#[cfg(test)]
mod tests;
