//! A network on one machine: the daemon with an emulator, SQLite and the process runner, and with
//! what Google's clients and the SDK need to work offline.

use crate::chain::Chain;
use crate::config::{LocalArgs, PubsubChoice};
use crate::daemon::{
    Addresses, Daemon, DaemonBuilder, DaemonError, DaemonParts, DaemonRunner, DataFolder,
    ProcessHost, ProcessSettings, Shutdown, listen, retry_at_start,
};
use crate::google::ServiceAccount;
use crate::http;
use crate::http::admin::{Readiness, ReadinessHold};
use crate::pubsub::Admin;
use crate::registry::{ListedRegistry, ServiceRegistry};
use crate::sdk::variables::{COMPUTE_PROVIDER, GOOGLE_KUEUE, LocalNetwork};
use crate::tasks::Tasks;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::error;

/// The subscription by which the daemon receives the network's events.
const SUBSCRIPTION: &str = "twined.daemon";

/// Settings of a network on this machine, checked.
#[derive(Debug)]
pub(crate) struct LocalSettings {
    /// What this host provides for questions.
    pub(crate) host: ProcessHost,
    /// Variables for the services, besides those of the network.
    pub(crate) environment: BTreeMap<String, String>,
    /// All other settings, as given.
    pub(crate) args: LocalArgs,
}

/// Starts a network. When it returns, questions can be asked.
pub(crate) async fn start(
    settings: LocalSettings,
    metrics: PrometheusHandle,
) -> Result<Daemon, DaemonError> {
    let LocalSettings { host, environment, args } = settings;
    let LocalArgs { topic, project, .. } = args;
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = listen(loopback(args.http_port), "the HTTP server", "--http-port")?;
    let http = listener.local_addr().map_err(DaemonError::Listen)?;
    let mut builder = DaemonBuilder::new(Tasks::new(), metrics, args.hosts.allow_host);
    // Runs end with the emulator that they use, and with the folder that they are in.
    let interrupt_runs = args.pubsub.is_none() || args.ephemeral;
    let choice = match args.pubsub {
        Some(address) => PubsubChoice::Emulator(address),
        None => PubsubChoice::OwnEmulator(loopback(args.pubsub_port)),
    };
    let (connection, pubsub) = builder.connect(&choice, &project, "--pubsub-port")?;
    let data = match args.ephemeral {
        true => DataFolder::ephemeral(),
        false => DataFolder::open(&args.data),
    };
    let data = data.map_err(DaemonError::Data)?;
    let credentials = data.credentials();
    let network = LocalNetwork {
        pubsub: &pubsub,
        http,
        project: &project,
        topic: &topic,
        credentials: &credentials,
    };
    let variables = network.variables();
    let readiness = builder.readiness.clone();
    let (starting, no_account) =
        (readiness.hold("the network"), readiness.hold("the service account"));
    let token_uri = format!("http://{http}{}", http::google::TOKEN_PATH);
    let account = (credentials, project, token_uri);
    let account = create_account(&mut builder.tasks, account, no_account);

    let admin = Admin::new(&connection);
    // The emulator of `--pubsub` may still be starting.
    let set_up =
        retry_at_start(async || admin.ensure_topic_and_subscription(&topic, SUBSCRIPTION).await);
    let events = data.events();
    let (set_up, stores) = tokio::join!(set_up, builder.open_stores(&events, None));
    set_up.map_err(DaemonError::Topic)?;
    let stores = stores?;

    let services = host.services.iter().map(|service| service.sruid.clone());
    let registry: Arc<dyn ServiceRegistry> = Arc::new(services.collect::<ListedRegistry>());
    let processes = ProcessSettings {
        runs: data.runs(),
        logs: data.logs(),
        max_runs: args.services.max_runs(),
        environment: child_environment(&variables),
        passed: environment.into_iter().collect(),
        shim: Some(data.shim()),
    };
    let runner = DaemonRunner::process(processes, host).await?;

    let metrics = builder.metrics.clone();
    let router = router(readiness, metrics, &registry, account, &variables);
    builder.serve_http(listener, router);
    let path = data.path().to_owned();
    let parts = DaemonParts {
        addresses: Addresses { pubsub, http, data: path, topic, connection },
        subscription: SUBSCRIPTION.to_owned(),
        stores,
        runner,
        registry,
        // One emulator keeps the order of all events.
        late_answer_timeout: Duration::ZERO,
        // No lease elsewhere can expire meanwhile, so the store may take as long as it needs.
        shutdown: Shutdown { interrupt_runs, release_timeout: Duration::MAX },
        data: Some(data),
    };
    let daemon = builder.build(parts).await?;
    drop(starting);
    Ok(daemon)
}

/// Creates the service account with this file, project and token endpoint. The start does not wait
/// for it, because a new key takes time; requests that need it do.
fn create_account(
    tasks: &mut Tasks,
    (file, project, token_uri): (PathBuf, String, String),
    no_account: ReadinessHold,
) -> http::google::Account {
    let (sender, receiver) = watch::channel(None);
    let stop = tasks.stop();
    let create = move || ServiceAccount::ensure(&file, &project, &token_uri);
    let creation = tokio::task::spawn_blocking(create);
    tasks.spawn("account", async move {
        match creation.await {
            Ok(Ok(account)) => drop(sender.send_replace(Some(Arc::new(account)))),
            Ok(Err(error)) => {
                return error!(error = %Chain(&error), "failed to create service account");
            }
            Err(error) => return error!(%error, "failed to create service account"),
        }
        drop(no_account);
        stop.cancelled().await;
    });
    receiver
}

/// The network's variables for every child, and the compute provider of a cluster.
fn child_environment(variables: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let provider = (COMPUTE_PROVIDER.to_owned(), GOOGLE_KUEUE.to_owned());
    variables.clone().into_iter().chain([provider]).collect()
}

fn router(
    readiness: Readiness,
    metrics: PrometheusHandle,
    registry: &Arc<dyn ServiceRegistry>,
    account: http::google::Account,
    variables: &BTreeMap<String, String>,
) -> http::Router {
    let description = json!({ "variables": variables });
    http::admin::router(readiness, metrics)
        .merge(http::google::router(account.clone()))
        .nest("/registry", http::registry::router(Arc::clone(registry)))
        .merge(http::google::document("/env", description, account))
}
