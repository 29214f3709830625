//! A whole network in one process: the same pipeline as in a cluster, over our own Pub/Sub
//! emulator, SQLite, and child processes.

mod data;
use crate::chain::Chain;
use crate::config::{ConfigError, LocalArgs, bind_loopback};
use crate::google::ServiceAccount;
use crate::http;
use crate::http::admin::{Hold, Readiness};
use crate::network::{self, Work};
use crate::pubsub::subscriber::{Flow, SubscriberError};
use crate::pubsub::{Admin, CallError, ConnectError, Connection};
use crate::registry::{Listed, ServiceRegistry};
use crate::runner::process::{self, ProcessRunner, Service};
use crate::runner::{Coordinator, Runner};
use crate::sdk::ASK_LOCAL;
use crate::sdk::services::LocalService;
use crate::sdk::variables::{COMPUTE_PROVIDER, GOOGLE_KUEUE, LocalNetwork};
use crate::store::sqlite::{self, OpenError, SqliteStore};
use crate::store::{EventStore, View};
use crate::tasks::{TaskError, Tasks};
use data::{DataError, DataFolder};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinError;
use tracing::{error, info, warn};

/// The subscription by which the daemon receives the network's events.
const SUBSCRIPTION: &str = "twined.daemon";

/// How long the askers of runs that were interrupted are given to be told, when we end. The whole
/// end is to take 5 s at most.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings, checked.
#[derive(Debug)]
pub struct Settings {
    /// The services, and how each is run.
    pub services: Vec<Service>,
    /// Variables that they get beside the network's own.
    pub environment: BTreeMap<String, String>,
    /// Our own environment, of which they get what every process needs.
    pub inherited: Vec<(OsString, OsString)>,
    /// Our own program.
    pub program: PathBuf,
    /// Everything else, as it was given.
    pub args: LocalArgs,
}

/// A network that runs.
#[derive(Debug)]
pub struct Network {
    addresses: Addresses,
    data: DataFolder,
    runner: Arc<ProcessRunner>,
    store: Arc<SqliteStore>,
    /// The daemon's.
    tasks: Tasks,
    /// The emulator's, where it is ours: it ends last.
    servers: Tasks,
    /// Whether what runs is to end with us: where its Pub/Sub does, or its folder.
    interrupts: bool,
}

/// Where a network can be found.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Its Pub/Sub, `HOST:PORT`.
    pub pubsub: String,
    /// Its HTTP server.
    pub http: SocketAddr,
    /// Its data.
    pub data: PathBuf,
    /// What makes Google's clients and the SDK use it.
    pub variables: BTreeMap<String, String>,
    /// Its topic.
    pub topic: String,
    /// A connection to its Pub/Sub.
    pub connection: Connection,
}

/// Why a network did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A setting.
    #[error("wrong settings")]
    Config(#[source] ConfigError),
    /// The data folder.
    #[error("failed to open the network's data")]
    Data(#[source] DataError),
    /// The event store.
    #[error("failed to open the event store")]
    Store(#[source] OpenError),
    /// The runs.
    #[error("failed to open the runs")]
    Runs(#[source] process::StartError),
    /// The address of Pub/Sub.
    #[error("wrong address of Pub/Sub")]
    Connect(#[source] ConnectError),
    /// Pub/Sub does not answer, or not as it should.
    #[error("failed to set up the network's topic")]
    Topic(#[source] CallError),
    /// No subscriber.
    #[error("failed to subscribe")]
    Subscribe(#[source] SubscriberError),
    /// A listener that cannot be used.
    #[error("failed to listen")]
    Listen(#[source] io::Error),
    /// A thread that died.
    #[error("a thread panicked while starting")]
    Thread(#[source] JoinError),
    /// A task of the network ended.
    #[error("the network failed")]
    Daemon(#[source] TaskError),
}

// === impl Network ===

impl Network {
    /// Starts a network. When it returns, questions can be asked.
    pub async fn start(settings: Settings, metrics: PrometheusHandle) -> Result<Self, LocalError> {
        let Settings { services, environment, inherited, program, args } = settings;
        let http_listener = listen(args.http_port, "the HTTP server", "--http-port")?;
        let http = http_listener.local_addr().map_err(LocalError::Listen)?;
        let mut servers = Tasks::new();
        let allowed_hosts = args.hosts.allow_host;
        let pubsub = match &args.pubsub {
            Some(address) => address.clone(),
            None => {
                let listener = listen(args.pubsub_port, "the Pub/Sub emulator", "--pubsub-port")?;
                network::emulate(&mut servers, listener, &args.project, allowed_hosts.clone())
                    .map_err(LocalError::Listen)?
                    .to_string()
            }
        };
        let data = match args.ephemeral {
            true => DataFolder::ephemeral(),
            false => DataFolder::open(&args.data),
        };
        let data = data.map_err(LocalError::Data)?;
        let connection =
            Connection::emulator(&pubsub, &args.project).map_err(LocalError::Connect)?;
        let credentials = data.credentials();
        let described = LocalNetwork {
            pubsub: &pubsub,
            http,
            project: &args.project,
            topic: &args.topic,
            credentials: &credentials,
        };
        let variables = described.variables();
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        let readiness = Readiness::new(stop.clone());
        let (starting, unbelieved) = (readiness.hold("the network"), readiness.hold("its account"));
        let token_uri = format!("http://{http}{}", http::google::TOKEN_PATH);
        let file = (credentials.clone(), args.project.clone(), token_uri);
        let account = make_account(&mut tasks, file, unbelieved);

        let events = data.events();
        let opening = tokio::task::spawn_blocking(move || {
            SqliteStore::open(&events, sqlite::Options::default())
        });
        let admin = Admin::new(&connection);
        network::set_up(&admin, SUBSCRIPTION, &args.topic).await.map_err(LocalError::Topic)?;
        let store = opening.await.map_err(LocalError::Thread)?.map_err(LocalError::Store)?;
        let store = Arc::new(store);

        let registry: Arc<dyn ServiceRegistry> =
            Arc::new(services.iter().map(|service| service.sruid.clone()).collect::<Listed>());
        let options = process::Options {
            runs: data.runs(),
            logs: data.logs(),
            max_runs: args.services.max_runs(),
            supervisor: program,
            inherited,
            environment: child_environment(&variables),
            passed: environment.into_iter().collect(),
            shim: Some(data.shim()),
        };
        let runner = ProcessRunner::start(options, services).await.map_err(LocalError::Runs)?;
        let runner = Arc::new(runner);

        let router = router(readiness, &metrics, &registry, account, &variables);
        network::serve_http(&mut tasks, http_listener, router, allowed_hosts);
        let work = Work {
            connection: &connection,
            topic: &args.topic,
            subscription: SUBSCRIPTION,
            flow: Flow::default(),
            store: Arc::clone(&store) as Arc<dyn EventStore>,
            view: Arc::clone(&store) as Arc<dyn View>,
            runner: Arc::clone(&runner) as Arc<dyn Runner>,
            coordinator: Arc::clone(&runner) as Arc<dyn Coordinator>,
            registry,
            subscriptions_first: true,
            // All publish to one emulator, which keeps their order.
            late_answers: Duration::ZERO,
        };
        work.spawn(&mut tasks).await.map_err(LocalError::Subscribe)?;
        network::watch_store(&mut tasks, store.appended());
        network::keep_up(&mut tasks, metrics);
        drop(starting);
        let data_path = data.path().to_owned();
        let topic = args.topic;
        let addresses = Addresses { pubsub, http, data: data_path, variables, topic, connection };
        let interrupts = args.pubsub.is_none() || args.ephemeral;
        Ok(Self { addresses, data, runner, store, tasks, servers, interrupts })
    }

    /// Where it is.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What runs its questions.
    pub fn runner(&self) -> Arc<ProcessRunner> {
        Arc::clone(&self.runner)
    }

    /// Waits for `stop`, or for a part of it to fail, and ends it. Where the emulator is ours, what
    /// runs could no longer be heard: it is ended too, and its askers are told.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), LocalError> {
        let Self { data, runner, store, tasks, servers, interrupts, .. } = self;
        let stopping = async {
            stop.await;
            info!("ending");
            if interrupts {
                runner.interrupt().await;
                if tokio::time::timeout(END_TIMEOUT, runner.idle()).await.is_err() {
                    warn!("ended before the askers of all runs were told");
                }
            }
        };
        let stopped = Arc::clone(&runner);
        let ending = async move {
            stopped.stop().await;
            store.close().await;
        };
        let outcome = network::run(tasks, servers, stopping, ending).await;
        outcome.map_err(LocalError::Daemon)?;
        data.close().map_err(LocalError::Data)
    }
}

/// How a question to a service of the SDK is answered.
pub fn sdk_service(found: LocalService) -> Service {
    let LocalService { sruid, folder } = found;
    let command = ASK_LOCAL.map(OsString::from).into();
    Service { sruid, folder, command }
}

fn listen(port: u16, what: &'static str, flag: &'static str) -> Result<TcpListener, LocalError> {
    let listener = bind_loopback(port, what, flag).map_err(LocalError::Config)?;
    TcpListener::from_std(listener).map_err(LocalError::Listen)
}

/// Makes the service account, of this file, project and token endpoint, beside everything else,
/// for a new key takes a while. Whoever asks the network what to use is told when it is there.
fn make_account(
    tasks: &mut Tasks,
    (file, project, token_uri): (PathBuf, String, String),
    unbelieved: Hold,
) -> http::google::Account {
    let (sender, receiver) = watch::channel(None);
    let stop = tasks.stop();
    let making = move || ServiceAccount::ensure(&file, &project, &token_uri);
    let making = tokio::task::spawn_blocking(making);
    tasks.spawn("account", async move {
        match making.await {
            Ok(Ok(account)) => drop(sender.send_replace(Some(Arc::new(account)))),
            Ok(Err(error)) => {
                return error!(error = %Chain(&error), "failed to make a service account");
            }
            Err(error) => return error!(%error, "failed to make a service account"),
        }
        drop(unbelieved);
        stop.cancelled().await;
    });
    receiver
}

/// What every child gets: the network's variables, and that it is run as in a cluster.
fn child_environment(variables: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let provider = (COMPUTE_PROVIDER.to_owned(), GOOGLE_KUEUE.to_owned());
    variables.clone().into_iter().chain([provider]).collect()
}

fn router(
    readiness: Readiness,
    metrics: &PrometheusHandle,
    registry: &Arc<dyn ServiceRegistry>,
    account: http::google::Account,
    variables: &BTreeMap<String, String>,
) -> http::Router {
    let described = json!({ "variables": variables });
    http::admin::router(readiness, metrics.clone())
        .merge(http::google::router(account.clone()))
        .nest("/registry", http::registry::router(Arc::clone(registry)))
        .merge(http::google::document("/env", described, account))
}
