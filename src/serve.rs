//! The daemon of a cluster: the same pipeline as on a laptop, over the adapters that were chosen.
//!
//! ```text
//! settings ─► HTTP (live) ─► connection ─► checks ─► store, view, runner ─► work ─► ready
//! SIGTERM  ─► not ready ─► no more messages ─► what is in hand ─► the Lease, the view ─► exit
//! ```
//!
//! Any number of replicas work at once: they share a subscription, a store and the runs. Each has
//! a view of its own, for the shared subscription gives it a part of the events only.
//!
//! Memory is bounded by flow control: at most [`Flow::default`] of messages are in hand (10,000, or
//! 64 MiB), the store's queue holds 64 MiB more, and the view's subscription [`VIEW_FLOW`].

pub mod parts;
mod preflight;
mod question_rights;
mod replica_directory;
use crate::config::{
    ConfigError, KubernetesSettings, PubsubChoice, RunnerSettings, ServeSettings, ServicesArgs,
    bind,
};
use crate::http;
use crate::http::admin::{Hold, Readiness};
use crate::network::{self, Work};
use crate::preflight::PreflightCheck;
use crate::pubsub::subscriber::{Flow, SubscriberError};
use crate::pubsub::{Admin, CallError, ConnectError, Connection};
use crate::runner::kubernetes::settings::NetworkSettings;
use crate::runner::process::Service;
use crate::store::sqlite::OpenError;
use crate::tasks::{TaskError, Tasks};
use metrics_exporter_prometheus::PrometheusHandle;
use parts::{Running, Stores};
use preflight::{CheckedBy, PreflightFindings};
use std::error::Error;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinError;
use tracing::{info, warn};

/// How much may be in hand on its way into the view: it only has to be kept, and fast.
pub const VIEW_FLOW: Flow = Flow { messages: 1_000, bytes: 16 * 1024 * 1024 };

/// How long the last words may take: the Lease is given back, the store writes what waits, and the
/// subscription of the view goes. What is not said runs out by itself, at the latest in a day.
const GOODBYE: Duration = Duration::from_millis(1500);

/// For how long after its end a run that ended without an error is given for its answer to come.
/// What was published in another region than ours may come behind our fence, by seconds.
const LATE_ANSWERS: Duration = Duration::from_secs(10);

/// What a start needs beside the settings.
#[derive(Debug)]
pub struct Start {
    /// The settings.
    pub settings: ServeSettings,
    /// What this host has for questions that are processes.
    pub host: Host,
}

/// What questions need that are processes.
#[derive(Debug)]
pub struct Host {
    /// The services, and how each is run.
    pub services: Vec<Service>,
    /// Our own environment, of which processes get what every process needs.
    pub inherited: Vec<(OsString, OsString)>,
    /// Our own program.
    pub program: PathBuf,
}

/// A daemon that works.
#[derive(Debug)]
pub struct Daemon {
    addresses: Addresses,
    stores: Stores,
    runner: Running,
    admin: Admin,
    view_subscription: String,
    /// The daemon's.
    tasks: Tasks,
    /// The emulator's, where it is ours: it ends last.
    servers: Tasks,
}

/// Where a daemon can be found.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Its Pub/Sub.
    pub pubsub: String,
    /// Its HTTP server.
    pub http: SocketAddr,
}

/// Why a daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting.
    #[error("wrong settings")]
    Config(#[source] ConfigError),
    /// The address of Pub/Sub.
    #[error("no connection to Pub/Sub")]
    Connect(#[source] ConnectError),
    /// Preflight checks failed.
    #[error("{} preflight checks failed", .0.iter().filter(|check| check.is_failure()).count())]
    Preflight(Vec<PreflightCheck>),
    /// Pub/Sub does not do what it should.
    #[error("failed to set up the subscriptions")]
    Subscriptions(#[source] CallError),
    /// The folder of this host's files.
    #[error("failed to use `--data {}`", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The event store, or the view.
    #[error("failed to open the event store")]
    Store(#[source] OpenError),
    /// The runner.
    #[error("failed to start the runner")]
    Runner(#[source] Box<dyn Error + Send + Sync>),
    /// No subscriber.
    #[error("failed to subscribe")]
    Subscribe(#[source] SubscriberError),
    /// A listener that cannot be used.
    #[error("failed to listen")]
    Listen(#[source] io::Error),
    /// A thread that died.
    #[error("a thread panicked while starting")]
    Thread(#[source] JoinError),
    /// A task of the daemon ended.
    #[error("the daemon failed")]
    Daemon(#[source] TaskError),
}

/// What runs questions, with all that is read before anything is opened.
enum Choice<'a> {
    Pods(&'a KubernetesSettings, NetworkSettings),
    Processes(&'a ServicesArgs),
}

/// What holds readiness back, each until it is there.
struct Holds {
    store: Hold,
    view: Hold,
    runner: Hold,
    subscription: Hold,
}

// === impl Daemon ===

impl Daemon {
    /// Starts the daemon. When it returns, questions can be asked.
    pub async fn start(start: Start, metrics: PrometheusHandle) -> Result<Self, ServeError> {
        let Start { settings, host } = start;
        let choice = Choice::read(&settings.runner)?;
        let mut servers = Tasks::new();
        let mut tasks = Tasks::new().drain_timeout(settings.drain_timeout);
        let readiness = Readiness::new(tasks.stop());
        let holds = Holds::new(&readiness);
        // First of all, so that whoever watches us sees that we live while we wait for others.
        let listener = listen(settings.http, "HTTP", "--http")?;
        let http = listener.local_addr().map_err(ServeError::Listen)?;
        // Of the servers, which end last: whoever asks while we drain is told so.
        network::serve_http(
            &mut servers,
            listener,
            http::admin::router(readiness, metrics.clone()),
            settings.allowed_hosts.clone(),
        );
        let (connection, pubsub) = connect(&settings, &mut servers).await?;
        pass_preflight(&settings, &choice, &connection).await?;

        let admin = Admin::new(&connection);
        subscribe(&admin, &settings).await?;
        let stores = parts::open(&settings, &connection, &mut tasks).await?;
        drop((holds.store, holds.view));
        let variables = parts::variables(&settings, &pubsub);
        let (runner, registry) = match choice {
            Choice::Pods(kubernetes, services) => {
                parts::pods(&settings, kubernetes, services, variables, &mut tasks).await?
            }
            Choice::Processes(args) => parts::processes(&settings, args, host, variables).await?,
        };
        drop(holds.runner);
        let work = Work {
            connection: &connection,
            topic: &settings.topic,
            subscription: &settings.subscription,
            flow: Flow::default(),
            store: stores.store(),
            view: stores.view(),
            runner: runner.runner(),
            coordinator: runner.coordinator(),
            registry,
            // The registry takes every allowed revision for existing, so that a service which
            // somebody runs by hand must win over it.
            subscriptions_first: true,
            late_answers: LATE_ANSWERS,
        };
        work.spawn(&mut tasks).await.map_err(ServeError::Subscribe)?;
        network::keep_up(&mut tasks, metrics);
        drop(holds.subscription);
        let view_subscription = settings.view_subscription();
        let addresses = Addresses { pubsub, http };
        Ok(Self { addresses, stores, runner, admin, view_subscription, tasks, servers })
    }

    /// Where it is.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits for `stop`, or for a part of it to fail, and ends it. What runs runs on.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { stores, runner, admin, view_subscription, tasks, servers, .. } = self;
        let stopping = async {
            stop.await;
            info!("draining");
        };
        let goodbye = async {
            if let Err(error) = admin.delete_subscription(&view_subscription).await {
                warn!(error = error.chain(), "the view's subscription stays for a day");
            }
        };
        // All at once, for all of it together must be short.
        let ending = async {
            let all = async { tokio::join!(runner.stop(), stores.close(), goodbye) };
            if tokio::time::timeout(GOODBYE, all).await.is_err() {
                warn!("ended before all was given back: the Lease runs out, the view expires");
            }
        };
        network::run(tasks, servers, stopping, ending).await.map_err(ServeError::Daemon)
    }
}

/// Makes the preflight checks, and those of what questions may do. `question_account` is the account of
/// Google that they run as, in place of the one that the cluster gives.
pub async fn check(
    settings: &ServeSettings,
    question_account: Option<String>,
) -> Result<Vec<PreflightCheck>, ServeError> {
    // An invalid file of settings is a usage error, not the result of a check.
    let choice = Choice::read(&settings.runner)?;
    let mut servers = Tasks::new();
    let connection = match (connect(settings, &mut servers).await, &settings.pubsub) {
        // The port is in use: by the emulator of a running daemon, as its answers will show.
        (Err(ServeError::Config(ConfigError::Port { .. })), PubsubChoice::OwnEmulator(address)) => {
            Connection::emulator(&address.to_string(), &settings.project)
                .map_err(ServeError::Connect)?
        }
        (connected, _) => connected?.0,
    };
    let findings = preflight::check(settings, &choice, &connection, CheckedBy::Doctor).await;
    let PreflightFindings { mut checks, google_account } = findings;
    let account = question_account.or(google_account);
    checks.extend(question_rights::check(settings, &connection, account.as_deref()).await);
    Ok(checks)
}

async fn connect(
    settings: &ServeSettings,
    servers: &mut Tasks,
) -> Result<(Connection, String), ServeError> {
    let ServeSettings { pubsub, project, .. } = settings;
    let address = match pubsub {
        PubsubChoice::Google => {
            let connection = Connection::google(project).map_err(ServeError::Connect)?;
            return Ok((connection, "Google".to_owned()));
        }
        PubsubChoice::Emulator(address) => address.clone(),
        PubsubChoice::OwnEmulator(address) => {
            let listener = listen(*address, "the Pub/Sub emulator", "--emulate")?;
            let allowed_hosts = settings.allowed_hosts.clone();
            let address = network::emulate(servers, listener, project, allowed_hosts);
            address.map_err(ServeError::Listen)?.to_string()
        }
    };
    let connection = Connection::emulator(&address, project).map_err(ServeError::Connect)?;
    Ok((connection, address))
}

/// Makes the preflight checks. A failure ends the start, a warning is logged.
async fn pass_preflight(
    settings: &ServeSettings,
    choice: &Choice<'_>,
    connection: &Connection,
) -> Result<(), ServeError> {
    let findings = preflight::check(settings, choice, connection, CheckedBy::Daemon).await;
    let PreflightFindings { checks, .. } = findings;
    if checks.iter().any(PreflightCheck::is_failure) {
        return Err(ServeError::Preflight(checks));
    }
    for check in checks.iter().filter(|check| check.is_warning()) {
        let PreflightCheck { name, found, remedy, .. } = check;
        warn!(check = name, found, remedy, "preflight check gave a warning");
    }
    Ok(())
}

/// The subscription that all replicas share. (At Google's the topic is there: we looked.)
async fn subscribe(admin: &Admin, settings: &ServeSettings) -> Result<(), ServeError> {
    let ServeSettings { topic, subscription, pubsub, .. } = settings;
    let made = match pubsub {
        PubsubChoice::Google => {
            network::patiently(async || admin.ensure_subscription(subscription, topic, "").await)
                .await
        }
        PubsubChoice::Emulator(_) | PubsubChoice::OwnEmulator(_) => {
            network::set_up(admin, subscription, topic).await
        }
    };
    made.map_err(ServeError::Subscriptions)
}

fn listen(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, ServeError> {
    let listener = bind(address, what, flag).map_err(ServeError::Config)?;
    TcpListener::from_std(listener).map_err(ServeError::Listen)
}

// === impl Choice ===

impl<'a> Choice<'a> {
    fn read(runner: &'a RunnerSettings) -> Result<Self, ServeError> {
        Ok(match runner {
            RunnerSettings::Kubernetes(kubernetes) => {
                let services = parts::read(kubernetes).map_err(ServeError::Config)?;
                Self::Pods(kubernetes, services)
            }
            RunnerSettings::Process(args) => Self::Processes(args),
        })
    }
}

// === impl Holds ===

impl Holds {
    fn new(readiness: &Readiness) -> Self {
        Self {
            store: readiness.hold("the store"),
            view: readiness.hold("the view"),
            runner: readiness.hold("the runner"),
            subscription: readiness.hold("the subscription"),
        }
    }
}
