//! The steps in which a daemon starts. `serve` and `local` take them in their own order.

use super::{
    Addresses, Daemon, DaemonError, DaemonRunner, DataFolder, Shutdown, Stores, ViewSettings,
};
use crate::config::{PubsubChoice, bind};
use crate::dependencies::Dependencies;
use crate::http::admin::Readiness;
use crate::http::{self, Router};
use crate::monitor::Monitor;
use crate::pipeline::Pipeline;
use crate::pubsub::emulator::{self, Emulator};
use crate::pubsub::subscriber::FlowControl;
use crate::pubsub::{Admin, CallError, Connection, Publisher, Subscriber, SubscriptionSpec};
use crate::registry::ServiceRegistry;
use crate::request_guard::HostName;
use crate::retry::{Backoff, retry};
use crate::routing;
use crate::tasks::Tasks;
use metrics_exporter_prometheus::PrometheusHandle;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tracing::error;

/// How long Pub/Sub may take to answer at the start. An emulator in Java takes seconds to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The wait before a failed call is repeated at the start.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A daemon that starts.
pub(crate) struct DaemonBuilder {
    /// The tasks that end first.
    pub(crate) tasks: Tasks,
    /// The tasks that end last.
    pub(crate) servers: Tasks,
    /// Whether the daemon is ready.
    pub(crate) readiness: Readiness,
    /// The recorder of metrics.
    pub(crate) metrics: PrometheusHandle,
    /// Names of this host that HTTP clients may use.
    allowed_hosts: Vec<HostName>,
}

/// What a daemon works with: the last step of its start.
pub(crate) struct DaemonParts {
    /// Where it can be reached.
    pub(crate) addresses: Addresses,
    /// The subscription by which it receives messages.
    pub(crate) subscription: String,
    /// The event store and the view.
    pub(crate) stores: Stores,
    /// What runs questions.
    pub(crate) runner: DaemonRunner,
    /// The revisions that exist.
    pub(crate) registry: Arc<dyn ServiceRegistry>,
    /// How late an answer may be after the end of a run that ended without an error.
    pub(crate) late_answer_timeout: Duration,
    /// What it does when it is stopped.
    pub(crate) shutdown: Shutdown,
    /// The data folder, where the daemon holds it.
    pub(crate) data: Option<DataFolder>,
}

// === impl DaemonBuilder ===

impl DaemonBuilder {
    /// Begins a start. `tasks` are the daemon's, with its drain timeout.
    pub(crate) fn new(
        tasks: Tasks,
        metrics: PrometheusHandle,
        allowed_hosts: Vec<HostName>,
    ) -> Self {
        let readiness = Readiness::new(tasks.stop());
        Self { tasks, servers: Tasks::new(), readiness, metrics, allowed_hosts }
    }

    /// Serves HTTP from now on until all else has ended, so that probes are answered during a
    /// drain.
    pub(crate) fn serve_http_last(&mut self, listener: TcpListener, router: Router) {
        serve_http(&mut self.servers, listener, router, self.allowed_hosts.clone());
    }

    /// Serves HTTP from now on until the daemon drains.
    pub(crate) fn serve_http(&mut self, listener: TcpListener, router: Router) {
        serve_http(&mut self.tasks, listener, router, self.allowed_hosts.clone());
    }

    /// Connects to Pub/Sub, and starts an emulator where the choice is our own; `flag` chooses its
    /// address.
    pub(crate) fn connect(
        &mut self,
        choice: &PubsubChoice,
        project: &str,
        flag: &'static str,
    ) -> Result<(Connection, String), DaemonError> {
        connect(&mut self.servers, choice, project, &self.allowed_hosts, flag)
    }

    /// Opens the store at `path`, and a view with it where there are settings for one.
    pub(crate) async fn open_stores(
        &mut self,
        path: &Path,
        view: Option<ViewSettings<'_>>,
    ) -> Result<Stores, DaemonError> {
        Stores::open(&mut self.tasks, path, view).await
    }

    /// Starts the pipeline and the monitor. When it returns, messages are received.
    pub(crate) async fn build(self, parts: DaemonParts) -> Result<Daemon, DaemonError> {
        let Self { mut tasks, servers, metrics, .. } = self;
        let DaemonParts { addresses, subscription, stores, runner, registry, .. } = parts;
        let Addresses { connection, topic, .. } = &addresses;
        let stop = tasks.stop();
        let flow = FlowControl::default();
        let admin = Admin::new(connection);
        let subscriber = Subscriber::new(connection, &subscription, flow).await;
        let subscriber = subscriber.map_err(DaemonError::Subscribe)?;
        let spec = SubscriptionSpec::all_messages(topic, &subscription);
        let subscriber = subscriber.recreating(admin.clone(), spec, None);
        // A person who starts a service by hand creates its subscription. It must win over a
        // service of ours: in a cluster every revision is taken to exist.
        let router = routing::Router::new(registry, admin, true);
        let dependencies = Dependencies {
            runner: runner.runner(),
            coordinator: runner.coordinator(),
            view: stores.view(),
            log: stores.log(),
            history: stores.history(),
            router: Arc::new(router),
            cancellations: Arc::default(),
            publisher: Publisher::new(connection, topic),
            late_answer_timeout: parts.late_answer_timeout,
        };
        let monitor = Monitor::new(dependencies.clone(), stop.clone());
        let pipeline = Pipeline::new(dependencies, flow, stop.clone());
        let (sender, deliveries) = mpsc::channel(1);
        tasks.spawn("subscriber", subscriber.run(sender, stop));
        tasks.spawn("pipeline", pipeline.run(deliveries));
        tasks.spawn("monitor", monitor.run());
        tasks.spawn_endless("metrics", crate::telemetry::upkeep(metrics));
        let DaemonParts { shutdown, data, .. } = parts;
        Ok(Daemon { addresses, stores, runner, shutdown, data, tasks, servers })
    }
}

/// Listens at an address for a server; `flag` chooses another.
pub(crate) fn listen(
    address: SocketAddr,
    server: &'static str,
    flag: &'static str,
) -> Result<TcpListener, DaemonError> {
    let listener = bind(address, server, flag).map_err(DaemonError::Config)?;
    TcpListener::from_std(listener).map_err(DaemonError::Listen)
}

/// Connects to Pub/Sub and gives its address. The emulator of our own runs as one of `servers`.
pub(crate) fn connect(
    servers: &mut Tasks,
    choice: &PubsubChoice,
    project: &str,
    allowed_hosts: &[HostName],
    flag: &'static str,
) -> Result<(Connection, String), DaemonError> {
    let address = match choice {
        PubsubChoice::Google => {
            let connection = Connection::google(project).map_err(DaemonError::Connect)?;
            return Ok((connection, "Google".to_owned()));
        }
        PubsubChoice::Emulator(address) => address.clone(),
        PubsubChoice::OwnEmulator(address) => {
            let listener = listen(*address, "the Pub/Sub emulator", flag)?;
            let address = listener.local_addr().map_err(DaemonError::Listen)?;
            emulate(servers, listener, project, allowed_hosts);
            address.to_string()
        }
    };
    let connection = Connection::emulator(&address, project).map_err(DaemonError::Connect)?;
    Ok((connection, address))
}

/// Calls until the call succeeds, fails permanently, or [`START_TIMEOUT`] is over.
pub(crate) async fn retry_at_start<T, F>(call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let give_up = tokio::time::Instant::now() + START_TIMEOUT;
    let may_retry =
        |error: &CallError| error.is_transient() && tokio::time::Instant::now() < give_up;
    retry(Backoff::fixed(RETRY_DELAY), call, may_retry).await
}

fn emulate(servers: &mut Tasks, listener: TcpListener, project: &str, allowed_hosts: &[HostName]) {
    let (project, allowed_hosts) = (Some(project.to_owned()), allowed_hosts.to_vec());
    let options = emulator::EmulatorOptions { project, allowed_hosts, ..Default::default() };
    let emulator = Emulator::new(options);
    let stop = servers.stop();
    servers.spawn("emulator", async move {
        if let Err(error) = emulator.serve(listener, stop.cancelled()).await {
            error!(%error, "Pub/Sub emulator failed");
        }
    });
}

fn serve_http(
    tasks: &mut Tasks,
    listener: TcpListener,
    router: Router,
    allowed_hosts: Vec<HostName>,
) {
    let stop = tasks.stop();
    tasks.spawn("http", async move {
        if let Err(error) = http::serve(listener, router, &allowed_hosts, stop).await {
            error!(%error, "HTTP server failed");
        }
    });
}
