//! What a network's daemon does wherever it is: on a laptop and in a cluster.
//!
//! The root has chosen the adapters; here they are set to work, as tasks of the daemon.

use crate::dependencies::Dependencies;
use crate::http::{self, Router};
use crate::monitor::Monitor;
use crate::pipeline::Pipeline;
use crate::pubsub::emulator::{self, Emulator};
use crate::pubsub::subscriber::{Flow, SubscriberError};
use crate::pubsub::{Admin, CallError, Connection, Publisher, Subscriber};
use crate::registry::ServiceRegistry;
use crate::request_guard::HostName;
use crate::retry::{Backoff, retry};
use crate::routing;
use crate::runner::{Coordinator, Runner};
use crate::store::{EventStore, View};
use crate::tasks::{TaskError, Tasks};
use metrics_exporter_prometheus::PrometheusHandle;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

/// How long Pub/Sub may take to answer when we start. An emulator in Java takes seconds itself.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How soon what did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// What a daemon works with.
pub struct Work<'a> {
    /// The network's Pub/Sub.
    pub connection: &'a Connection,
    /// Its topic.
    pub topic: &'a str,
    /// The subscription by which we receive.
    pub subscription: &'a str,
    /// How much may be in hand at once.
    pub flow: Flow,
    /// Where events go.
    pub store: Arc<dyn EventStore>,
    /// What was said lately.
    pub view: Arc<dyn View>,
    /// What runs questions.
    pub runner: Arc<dyn Runner>,
    /// Who leads, and who reports an end.
    pub coordinator: Arc<dyn Coordinator>,
    /// Which revisions run here.
    pub registry: Arc<dyn ServiceRegistry>,
    /// Whether a service that somebody started by hand answers in the place of ours.
    pub subscriptions_first: bool,
    /// For how long after its end a run that ended without an error is given for its answer to
    /// come.
    pub late_answers: Duration,
}

// === impl Work ===

impl Work<'_> {
    /// Sets it to work. When it returns, messages are received.
    pub async fn spawn(self, tasks: &mut Tasks) -> Result<(), SubscriberError> {
        let Self { connection, topic, subscription, flow, .. } = self;
        let Self { store, view, runner, coordinator, registry, .. } = self;
        let Self { subscriptions_first, late_answers, .. } = self;
        let stop = tasks.stop();
        let admin = Admin::new(connection);
        let publisher = Publisher::new(connection, topic);
        let subscriber = Subscriber::new(connection, subscription, flow).await?;
        let subscriber = subscriber.restoring(admin.clone(), subscription, topic);
        let router = Arc::new(routing::Router::new(registry, admin, subscriptions_first));
        let dependencies = Dependencies {
            runner,
            coordinator,
            view,
            store,
            router,
            cancellations: Arc::default(),
            publisher,
            late_answers,
        };
        let monitor = Monitor::new(dependencies.clone(), stop.clone());
        let pipeline = Pipeline::new(dependencies, flow, stop.clone());
        let (sender, deliveries) = mpsc::channel(1);
        tasks.spawn("subscriber", subscriber.run(sender, stop));
        tasks.spawn("pipeline", pipeline.run(deliveries));
        tasks.spawn("monitor", monitor.run());
        Ok(())
    }
}

/// Serves HTTP, to clients that use an address, `localhost` or one of `allowed_hosts`.
pub fn serve_http(
    tasks: &mut Tasks,
    listener: TcpListener,
    router: Router,
    allowed_hosts: Vec<HostName>,
) {
    let stop = tasks.stop();
    tasks.spawn("http", async move {
        if let Err(error) = http::serve(listener, router, &allowed_hosts, stop).await {
            error!(%error, "the HTTP server failed");
        }
    });
}

/// Keeps the histograms up to date.
pub fn keep_up(tasks: &mut Tasks, metrics: PrometheusHandle) {
    let stop = tasks.stop();
    tasks.spawn("metrics", async move {
        tokio::select! {
            () = crate::telemetry::upkeep(metrics) => {}
            () = stop.cancelled() => {}
        }
    });
}

/// Lives as long as the store's thread does: without it nothing can be kept, so all is to end.
pub fn watch_store(tasks: &mut Tasks, mut appended: watch::Receiver<u64>) {
    let stop = tasks.stop();
    tasks.spawn("store", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { while appended.changed().await.is_ok() {} } => {
                error!("the event store's thread ended");
            }
        }
    });
}

/// An emulator of ours, and its address.
pub fn emulate(
    servers: &mut Tasks,
    listener: TcpListener,
    project: &str,
    allowed_hosts: Vec<HostName>,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let project = Some(project.to_owned());
    let options = emulator::Options { project, allowed_hosts, ..Default::default() };
    let emulator = Emulator::new(options);
    let stop = servers.stop();
    servers.spawn("emulator", async move {
        if let Err(error) = emulator.serve(listener, stop.cancelled()).await {
            error!(%error, "the Pub/Sub emulator failed");
        }
    });
    Ok(address)
}

/// Works until `stopping` is over, or a task of either ends early; then ends `tasks`, does `ending`,
/// and ends `servers`, through which the last is said.
pub async fn run(
    tasks: Tasks,
    servers: Tasks,
    stopping: impl Future<Output = ()>,
    ending: impl Future<Output = ()>,
) -> Result<(), TaskError> {
    let (finish, finished) = oneshot::channel::<()>();
    let stop = tasks.stop();
    let daemon = async {
        let outcome = tasks.run(stopping).await;
        ending.await;
        // The servers may be gone.
        let _ = finish.send(());
        outcome
    };
    let serving = async {
        let served = servers.run(async { drop(finished.await) }).await;
        stop.cancel();
        served
    };
    let (outcome, served) = tokio::join!(daemon, serving);
    outcome.and(served)
}

/// The topic and our subscription of it. What is not there yet may be starting.
pub async fn set_up(admin: &Admin, subscription: &str, topic: &str) -> Result<(), CallError> {
    patiently(async || admin.ensure_subscribed(subscription, topic).await).await
}

/// Calls until it succeeds, or fails for good, or [`START_TIMEOUT`] is over.
pub async fn patiently<T, F>(call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let give_up = tokio::time::Instant::now() + START_TIMEOUT;
    let may_retry =
        |error: &CallError| error.is_transient() && tokio::time::Instant::now() < give_up;
    retry(Backoff::fixed(AGAIN), call, may_retry).await
}
