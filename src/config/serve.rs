//! The settings of `twined serve` and `twined doctor`.
//!
//! ```text
//! ServeArgs (flags and environment, as given) ─► ServeSettings (checked together, defaults filled)
//! ```
//!
//! The names that networks have today are read too: the flag's own variable is then the old one.

use crate::config::{
    ConfigError, DEFAULT_PROJECT, DEFAULT_SERVE_HTTP, DEFAULT_TOPIC, HostArgs, ServicesArgs,
    VariablesArgs,
};
use crate::request_guard::HostName;
use crate::runner::kubernetes::quantity::Quantity;
use crate::sdk::variables;
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The longest name that an object of Kubernetes may have without trouble.
const LONGEST_NAME: usize = 63;

/// The longest name that a topic or a subscription may have.
/// (<https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names>)
const LONGEST_PUBSUB_NAME: usize = 255;

/// Names that networks have today, for what this version does not do, and what it does instead.
const NOT_YET: [(&str, &str); 2] = [
    ("BIGQUERY_EVENTS_TABLE", "events are kept where `--store` says"),
    (
        "ARTIFACT_REGISTRY_REPOSITORY_ID",
        "every revision that `--settings` allows is taken to exist",
    ),
];

/// Settings of the daemon of a cluster.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Name of the network's topic
    #[arg(long, env = variables::TOPIC_NAME, default_value = DEFAULT_TOPIC)]
    pub topic: String,

    /// Google Cloud project of the topic [default: that of GOOGLE_CLOUD_PROJECT]
    #[arg(long, env = "TWINED_PROJECT")]
    pub project: Option<String>,

    /// Name of the subscription that all replicas share [default: `twined.daemon.` and the topic]
    ///
    /// It is made where it does not exist.
    #[arg(long, env = "TWINED_SUBSCRIPTION", value_name = "NAME")]
    pub subscription: Option<String>,

    /// Use a Pub/Sub emulator that runs there [default: PUBSUB_EMULATOR_HOST, else Google's Pub/Sub]
    ///
    /// Google's is used with application default credentials.
    #[arg(long, env = "TWINED_PUBSUB", value_name = "HOST:PORT")]
    pub pubsub: Option<String>,

    /// Run a Pub/Sub emulator inside, and listen for its clients there
    ///
    /// It has no authentication and keeps nothing when it ends: for tests and trials.
    #[arg(long, env = "TWINED_EMULATE", value_name = "IP:PORT")]
    pub emulate: Option<SocketAddr>,

    /// Where events are kept: sqlite:PATH [default: events.sqlite in `--data`]
    ///
    /// A SQLite file is for the replicas of one host, on one of its own disks.
    #[arg(long, env = "TWINED_STORE", value_name = "STORE")]
    pub store: Option<String>,

    /// Folder for this host's files: the view of lately seen events, and what has no other place
    #[arg(long, env = "TWINED_DATA", default_value = ".twined", value_name = "DIR")]
    pub data: PathBuf,

    /// What runs questions
    #[arg(long, env = "TWINED_RUNNER", value_enum, default_value_t)]
    pub runner: RunnerKind,

    /// Namespace in which questions run
    #[arg(long, env = "TWINED_NAMESPACE", default_value = "default", value_name = "NAME")]
    pub namespace: String,

    /// Repository of the services' images; needed with `--runner kubernetes`
    ///
    /// The image of a question to `<namespace>/<name>:<tag>` is `<URL>/<namespace>/<name>:<tag>`.
    #[arg(long, env = "ARTIFACT_REGISTRY_REPOSITORY_URL", value_name = "URL")]
    pub images: Option<String>,

    /// Service account of questions' pods, in `--namespace`
    #[arg(
        long,
        env = "KUBERNETES_SERVICE_ACCOUNT_NAME",
        default_value = "default",
        value_name = "NAME"
    )]
    pub service_account: String,

    /// Local queue of Kueue that questions wait in [default: none, no Kueue]
    #[arg(long, env = "KUEUE_LOCAL_QUEUE", value_name = "NAME")]
    pub queue: Option<String>,

    /// CPUs of a question that asks for none
    #[arg(long, env = "QUESTION_DEFAULT_CPUS", default_value = "1", value_name = "QUANTITY")]
    pub default_cpus: String,

    /// Memory of a question that asks for none
    #[arg(long, env = "QUESTION_DEFAULT_MEMORY", default_value = "512Mi", value_name = "QUANTITY")]
    pub default_memory: String,

    /// Ephemeral storage of a question that asks for none
    #[arg(
        long,
        env = "QUESTION_DEFAULT_EPHEMERAL_STORAGE",
        default_value = "1Gi",
        value_name = "QUANTITY"
    )]
    pub default_ephemeral_storage: String,

    /// File of settings by service: who may run, with what, and what happens when it fails
    #[arg(long, env = "TWINED_SETTINGS", value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Name of the Lease by which one replica does what need be done once [default: of the topic]
    #[arg(long = "name", env = "TWINED_NAME", value_name = "NAME")]
    pub lease: Option<String>,

    /// Name of this replica; no two may have one [default: the host's, and something random]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub replica: Option<String>,

    /// Jobs that are being made at once
    #[arg(long, env = "TWINED_LAUNCHES", default_value = "64", value_name = "N")]
    pub launches: NonZeroUsize,

    /// Address of /live, /ready and /metrics
    #[arg(long, env = "TWINED_HTTP", default_value = DEFAULT_SERVE_HTTP, value_name = "IP:PORT")]
    pub http: SocketAddr,

    /// Who may reach its HTTP servers.
    #[command(flatten)]
    pub hosts: HostArgs,

    /// Seconds in which what is in hand is finished when the daemon is told to end
    ///
    /// What is not finished then is delivered again. A second and a half more go into saying goodbye,
    /// so that the whole end takes less than 5 s.
    #[arg(long, env = "TWINED_DRAIN", default_value = "3", value_name = "SECONDS")]
    pub drain: u16,

    /// Shape of the logs [default: text on a terminal, else json]
    #[arg(long, env = "TWINED_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// With `--runner process`, what it runs.
    #[command(flatten)]
    pub services: ServicesArgs,

    /// What services are told.
    #[command(flatten)]
    pub variables: VariablesArgs,
}

/// What runs questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// A pod for each, in Kubernetes (by KUBECONFIG, ~/.kube/config, or the pod we are in)
    #[default]
    Kubernetes,
    /// A process for each on this host, of the services in the folders DIR
    Process,
}

/// Shape of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of JSON, as Google Cloud Logging reads it
    Json,
    /// [time | LEVEL | module] message
    Text,
}

/// The settings of the daemon, checked.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Name of the network's topic.
    pub topic: String,
    /// Its project.
    pub project: String,
    /// The subscription that all replicas share.
    pub subscription: String,
    /// Which Pub/Sub.
    pub bus: Bus,
    /// The file of the event store. Absolute.
    pub store: PathBuf,
    /// The folder of this host's files. Absolute.
    pub data: PathBuf,
    /// What runs questions.
    pub runner: Runs,
    /// This replica.
    pub replica: String,
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// Names by which HTTP clients may reach it, besides its addresses and `localhost`.
    pub allowed_hosts: Vec<HostName>,
    /// How long what is in hand may take when we end.
    pub drain: Duration,
    /// Variables for the services, beside the network's own.
    pub variables: BTreeMap<String, String>,
    /// For a person: what was given and is not used.
    pub unused: Vec<String>,
}

/// Which Pub/Sub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Google's.
    Google,
    /// An emulator at `HOST:PORT`.
    Emulator(String),
    /// One of our own, which listens there.
    Own(SocketAddr),
}

/// What runs questions, and how.
#[derive(Clone, Debug)]
pub enum Runs {
    /// Pods.
    Kubernetes(KubernetesSettings),
    /// Processes.
    Process(ServicesArgs),
}

/// How questions run as pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Where.
    pub namespace: String,
    /// Repository of the services' images, without a slash at its end.
    pub images: String,
    /// As whom.
    pub service_account: String,
    /// The local queue of Kueue.
    pub queue: Option<String>,
    /// What a question gets that asks for nothing.
    pub defaults: Defaults,
    /// The file of settings by service.
    pub settings: Option<PathBuf>,
    /// Name of the Lease.
    pub lease: String,
    /// Jobs that are being made at once.
    pub launches: usize,
}

/// What a question gets that asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// CPUs.
    pub cpus: Quantity,
    /// Memory, in bytes.
    pub memory: Quantity,
    /// Ephemeral storage, in bytes.
    pub ephemeral_storage: Quantity,
}

// === impl ServeArgs ===

impl ServeArgs {
    /// Checks the settings together, and fills in what is not given; `ours` looks up a variable of
    /// our environment.
    pub fn checked(
        self,
        ours: impl Fn(&str) -> Option<String>,
    ) -> Result<ServeSettings, ConfigError> {
        let runner = self.runs()?;
        let mut unused = self.unused();
        let Self { topic, project, subscription, pubsub, emulate, store, data, .. } = self;
        let Self { replica, http, hosts, drain, variables, .. } = self;
        // An empty flag says no more than an empty variable: so it is in a chart.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let pubsub = given(pubsub);
        if emulate.is_some() && pubsub.is_some() {
            return Err(wrong("`--emulate` and `--pubsub` are two Pub/Subs: give one of them"));
        }
        if let Some(address) = &pubsub {
            check_address("--pubsub", address)?;
        }
        let bus = match (emulate, pubsub.or_else(|| given(ours(variables::PUBSUB_EMULATOR_HOST)))) {
            (Some(address), _) => Bus::Own(address),
            (None, Some(address)) => Bus::Emulator(address),
            (None, None) => Bus::Google,
        };
        let project = given(project).or_else(|| given(ours(variables::GOOGLE_CLOUD_PROJECT)));
        let project = match (project, &bus) {
            (Some(project), _) => project,
            (None, Bus::Emulator(_) | Bus::Own(_)) => DEFAULT_PROJECT.to_owned(),
            (None, Bus::Google) => {
                return Err(wrong(
                    "no project: give `--project` or GOOGLE_CLOUD_PROJECT; or, for an emulator, \
                     `--pubsub HOST:PORT`",
                ));
            }
        };
        check_pubsub_name("--topic", "topic", &topic)?;
        let data = absolute("--data", &data)?;
        let store = match given(store) {
            None => data.join("events.sqlite"),
            Some(store) => absolute("--store", &sqlite(&store)?)?,
        };
        let not_yet = NOT_YET.iter().filter(|(name, _)| given(ours(name)).is_some());
        unused.extend(
            not_yet.map(|(name, instead)| format!("{name} is not used by this version: {instead}")),
        );
        let subscription = given(subscription).unwrap_or_else(|| format!("twined.daemon.{topic}"));
        check_pubsub_name("--subscription", "subscription", &subscription)?;
        let replica = given(replica).unwrap_or_else(|| random_name(given(ours("HOSTNAME"))));
        check_view(&subscription, &replica)?;
        Ok(ServeSettings {
            subscription,
            topic,
            project,
            bus,
            store,
            data,
            runner,
            replica,
            http,
            allowed_hosts: hosts.allow_host,
            drain: Duration::from_secs(drain.into()),
            variables: variables.variables()?,
            unused,
        })
    }

    /// What runs questions, of what was given.
    fn runs(&self) -> Result<Runs, ConfigError> {
        let Self { runner, namespace, images, service_account, queue, .. } = self;
        let Self { default_cpus, default_memory, default_ephemeral_storage, .. } = self;
        let Self { settings, lease, launches, services, topic, .. } = self;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if *runner == RunnerKind::Process {
            // It says who may run, and is not to be passed over.
            return match settings {
                None => Ok(Runs::Process(services.clone())),
                Some(_) => Err(wrong(
                    "`--settings` is for `--runner kubernetes`: of processes all that are found run, \
                     each with what the host has",
                )),
            };
        }
        if !services.services.is_empty() {
            return Err(wrong(
                "folders of services are for `--runner process`: pods run what `--images` has",
            ));
        }
        let Some(images) = given(images) else {
            return Err(wrong(
                "no image repository: give `--images` or ARTIFACT_REGISTRY_REPOSITORY_URL, such as \
                 europe-west1-docker.pkg.dev/my-project/my-repository",
            ));
        };
        let images = images.trim_end_matches('/').to_owned();
        if images.contains("://") || images.contains(char::is_whitespace) {
            return Err(wrong(format!(
                "`{images}` is no image repository: expected HOST/PATH without `https://`"
            )));
        }
        check_name("--namespace", namespace)?;
        check_name("--service-account", service_account)?;
        let lease = given(lease).unwrap_or_else(|| lease_name(topic));
        check_name("--name", &lease)?;
        let queue = given(queue);
        if let Some(queue) = &queue {
            check_name("--queue", queue)?;
        }
        Ok(Runs::Kubernetes(KubernetesSettings {
            namespace: namespace.clone(),
            images,
            service_account: service_account.clone(),
            queue,
            defaults: Defaults {
                cpus: quantity("--default-cpus", default_cpus)?,
                memory: quantity("--default-memory", default_memory)?,
                ephemeral_storage: quantity(
                    "--default-ephemeral-storage",
                    default_ephemeral_storage,
                )?,
            },
            settings: settings.clone(),
            lease,
            launches: launches.get(),
        }))
    }

    /// What was given for another runner than the one that was chosen.
    fn unused(&self) -> Vec<String> {
        let Self { runner, images, queue, lease, services, .. } = self;
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let (with, instead, flags) = match runner {
            RunnerKind::Kubernetes => (
                "kubernetes",
                "it is for services that are folders",
                vec![
                    ("--tag", services.tag != ServicesArgs::default().tag),
                    ("--max-runs", services.max_runs.is_some()),
                ],
            ),
            RunnerKind::Process => (
                "process",
                "it is for services that are images",
                vec![
                    ("--images", given(images)),
                    ("--queue", given(queue)),
                    ("--name", given(lease)),
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
    /// The subscription of this replica's own view.
    pub fn view_subscription(&self) -> String {
        view_name(&self.subscription, &self.replica)
    }
}

// === impl LogFormat ===

impl LogFormat {
    /// The shape that fits who reads it.
    pub fn for_reader(terminal: bool) -> Self {
        if terminal { Self::Text } else { Self::Json }
    }
}

fn wrong(words: impl Into<String>) -> ConfigError {
    ConfigError::Setting(words.into())
}

fn absolute(flag: &str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path)
        .map_err(|error| wrong(format!("`{flag} {}`: {error}", path.display())))
}

/// The file of a store. Other stores come later.
fn sqlite(store: &str) -> Result<PathBuf, ConfigError> {
    match store.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(wrong(format!("`--store {store}` is not known: expected sqlite:PATH"))),
    }
}

fn quantity(flag: &str, text: &str) -> Result<Quantity, ConfigError> {
    text.parse().map_err(|error| {
        wrong(format!(
            "`{flag} {text}`: {error}: expected a quantity of Kubernetes, such as 1, 512Mi"
        ))
    })
}

/// Topics and subscriptions are given by their names in their project: with another project's path
/// all else would fail far from here.
fn check_pubsub_name(flag: &str, kind: &str, name: &str) -> Result<(), ConfigError> {
    let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    // What begins so is Google's own.
    let free = !name.starts_with("goog");
    let long_enough = (3..=LONGEST_PUBSUB_NAME).contains(&name.len());
    if letter && free && long_enough && name.chars().all(is_of_pubsub_name) {
        return Ok(());
    }
    Err(wrong(format!(
        "`{flag} {name}` is no name of a {kind}: expected 3 to {LONGEST_PUBSUB_NAME} letters, \
         digits and `-_.~+%`, a letter first and not `goog`, without `projects/…/{kind}s/`"
    )))
}

fn is_of_pubsub_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~+%".contains(c)
}

/// The subscription of a replica's view has the names of both in its own.
fn check_view(subscription: &str, replica: &str) -> Result<(), ConfigError> {
    if !replica.chars().all(is_of_pubsub_name) {
        return Err(wrong(format!(
            "`--replica {replica}` does not fit into the name of a subscription: expected letters, \
             digits and `-_.~+%`"
        )));
    }
    let length = view_name(subscription, replica).len();
    if length > LONGEST_PUBSUB_NAME {
        return Err(wrong(format!(
            "`--subscription {subscription}` and `--replica {replica}` are too long: with `.view.` \
             between them they have {length} characters, and a subscription's name at most \
             {LONGEST_PUBSUB_NAME}"
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
        _ => Err(wrong(format!("`{flag} {address}` is no address: expected HOST:PORT"))),
    }
}

/// A DNS label with dots: what objects of Kubernetes can be called.
fn check_name(flag: &str, name: &str) -> Result<(), ConfigError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = !name.is_empty() && name.len() <= 253 && name.chars().all(inner);
    if fits && name.starts_with(edge) && name.ends_with(edge) {
        return Ok(());
    }
    Err(wrong(format!(
        "`{flag} {name}` is no name in Kubernetes: expected lower case letters, digits, `-` and `.`"
    )))
}

/// Two networks of one namespace must not share a Lease, so the topic is in its name; what does not
/// fit there is told apart by a number made from the whole.
fn lease_name(topic: &str) -> String {
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
    let host: String = host.chars().filter(|&c| is_of_pubsub_name(c)).take(40).collect();
    format!("{host}-{}", &random[..8])
}

#[cfg(test)]
mod tests;
