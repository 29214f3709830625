//! The daemon of a cluster, with the adapters that its settings choose.
//!
//! Any number of replicas work at the same time. They share a subscription, a store and the runs.
//! Each has a view of its own, because the shared subscription gives it only a part of the events.
//!
//! Memory is bounded: at most 10,000 messages or 64 MiB are in flight, the store's queue holds 64
//! MiB more, and the view's subscription 16 MiB.

mod kubernetes;
mod preflight;
mod question_rights;
use crate::config::{
    ConfigError, KubernetesSettings, PubsubChoice, RunnerSettings, ServeSettings, ServicesArgs,
};
use crate::daemon::{
    Addresses, Daemon, DaemonBuilder, DaemonError, DaemonParts, DaemonRunner, ProcessHost,
    ProcessSettings, Shutdown, ViewSettings, connect, listen, retry_at_start,
};
use crate::http;
use crate::preflight::PreflightCheck;
use crate::pubsub::{Admin, Connection};
use crate::registry::{AllowAllRegistry, ListedRegistry, ServiceRegistry};
use crate::runner::kubernetes::settings::NetworkSettings;
use crate::sdk::variables::{
    COMPUTE_PROVIDER, GOOGLE_CLOUD_PROJECT, GOOGLE_KUEUE, PUBSUB_EMULATOR_HOST, TOPIC_NAME,
};
use crate::tasks::Tasks;
use metrics_exporter_prometheus::PrometheusHandle;
use preflight::{CheckedBy, PreflightFindings};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// The flag with the address of the daemon's own emulator.
const EMULATE_FLAG: &str = "--emulate";

/// Shutdown takes 5 s at most, of which the drain takes 3 s by default.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Events that were published in another region may arrive seconds after the fence.
const LATE_ANSWERS: Duration = Duration::from_secs(10);

/// The chosen runner, with its settings.
enum RunnerChoice<'a> {
    Pods(&'a KubernetesSettings, NetworkSettings),
    Processes(&'a ServicesArgs),
}

/// Starts the daemon. When it returns, questions are received.
pub(crate) async fn start(
    settings: ServeSettings,
    host: ProcessHost,
    metrics: PrometheusHandle,
) -> Result<Daemon, DaemonError> {
    let choice = RunnerChoice::read(&settings.runner)?;
    let tasks = Tasks::new().drain_timeout(settings.drain_timeout);
    let mut builder = DaemonBuilder::new(tasks, metrics, settings.allowed_hosts.clone());
    let readiness = builder.readiness.clone();
    let [store, view] = ["the store", "the view"].map(|part| readiness.hold(part));
    let [runner_hold, subscription] =
        ["the runner", "the subscription"].map(|part| readiness.hold(part));
    // First, so that liveness probes are answered while the daemon waits for other services.
    let listener = listen(settings.http, "the HTTP server", "--http")?;
    let http = listener.local_addr().map_err(DaemonError::Listen)?;
    let router = http::admin::router(readiness, builder.metrics.clone());
    builder.serve_http_last(listener, router);
    let (connection, pubsub) =
        builder.connect(&settings.pubsub, &settings.project, EMULATE_FLAG)?;
    pass_preflight(&settings, &choice, &connection).await?;
    subscribe(&connection, &settings).await?;
    let view_settings = ViewSettings {
        connection: &connection,
        topic: &settings.topic,
        subscription: settings.view_subscription(),
        data: settings.data.clone(),
    };
    let stores = builder.open_stores(&settings.store, Some(view_settings)).await?;
    drop((store, view));
    let (runner, registry) = start_runner(&mut builder, &settings, choice, host, &pubsub).await?;
    drop(runner_hold);
    let ServeSettings { topic, data, subscription: name, .. } = settings;
    let parts = DaemonParts {
        addresses: Addresses { pubsub, http, data, topic, connection },
        subscription: name,
        stores,
        runner,
        registry,
        late_answer_timeout: LATE_ANSWERS,
        // Runs continue without the daemon.
        shutdown: Shutdown { interrupt_runs: false, release_timeout: RELEASE_TIMEOUT },
        data: None,
    };
    let daemon = builder.build(parts).await?;
    drop(subscription);
    Ok(daemon)
}

/// Runs the preflight checks, and those of the rights of questions. `question_account` is the
/// Google service account of questions, if it is not the one that the cluster gives.
pub(crate) async fn check(
    settings: &ServeSettings,
    question_account: Option<String>,
) -> Result<Vec<PreflightCheck>, DaemonError> {
    // An invalid file of settings is a usage error, not the result of a check.
    let choice = RunnerChoice::read(&settings.runner)?;
    let ServeSettings { pubsub, project, allowed_hosts, .. } = settings;
    let mut servers = Tasks::new();
    let connected = connect(&mut servers, pubsub, project, allowed_hosts, EMULATE_FLAG);
    let connection = match (connected, pubsub) {
        // The port is in use, probably by the emulator of a running daemon: the checks will show.
        (
            Err(DaemonError::Config(ConfigError::Port { .. })),
            PubsubChoice::OwnEmulator(address),
        ) => Connection::emulator(&address.to_string(), project).map_err(DaemonError::Connect)?,
        (connected, _) => connected?.0,
    };
    let findings = preflight::check(settings, &choice, &connection, CheckedBy::Doctor).await;
    let PreflightFindings { mut checks, google_account } = findings;
    let account = question_account.or(google_account);
    checks.extend(question_rights::check(settings, &connection, account.as_deref()).await);
    Ok(checks)
}

/// Runs the preflight checks. A failure ends the start, a warning is logged.
async fn pass_preflight(
    settings: &ServeSettings,
    choice: &RunnerChoice<'_>,
    connection: &Connection,
) -> Result<(), DaemonError> {
    let findings = preflight::check(settings, choice, connection, CheckedBy::Daemon).await;
    let PreflightFindings { checks, .. } = findings;
    if checks.iter().any(PreflightCheck::is_failure) {
        return Err(DaemonError::Preflight(checks));
    }
    for check in checks.iter().filter(|check| check.is_warning()) {
        let PreflightCheck { name, found, remedy, .. } = check;
        warn!(check = name, found, remedy, "preflight check returned a warning");
    }
    Ok(())
}

/// Creates the subscription that all replicas share, if it is missing; on an emulator also the
/// topic. (At Google, a preflight check fails without the topic.)
async fn subscribe(connection: &Connection, settings: &ServeSettings) -> Result<(), DaemonError> {
    let ServeSettings { topic, subscription, pubsub, .. } = settings;
    let admin = Admin::new(connection);
    let subscribed = retry_at_start(async || match pubsub {
        PubsubChoice::Google => admin.ensure_subscription(subscription, topic, "").await,
        PubsubChoice::Emulator(_) | PubsubChoice::OwnEmulator(_) => {
            admin.ensure_topic_and_subscription(topic, subscription).await
        }
    });
    subscribed.await.map_err(DaemonError::Subscriptions)
}

/// Starts the runner, and returns it with its registry.
async fn start_runner(
    builder: &mut DaemonBuilder,
    settings: &ServeSettings,
    choice: RunnerChoice<'_>,
    host: ProcessHost,
    pubsub: &str,
) -> Result<(DaemonRunner, Arc<dyn ServiceRegistry>), DaemonError> {
    let variables = network_variables(settings, pubsub);
    match choice {
        RunnerChoice::Pods(kubernetes, services) => {
            let options = kubernetes::options(settings, kubernetes, services, variables);
            let runner = DaemonRunner::kubernetes(&mut builder.tasks, options).await?;
            Ok((runner, Arc::new(AllowAllRegistry)))
        }
        RunnerChoice::Processes(args) => {
            let listed: ListedRegistry =
                host.services.iter().map(|service| service.sruid.clone()).collect();
            let processes = ProcessSettings {
                runs: settings.data.join("runs"),
                logs: settings.data.join("logs"),
                max_runs: args.max_runs(),
                environment: variables,
                passed: settings.variables.clone().into_iter().collect(),
                shim: None,
            };
            let runner = DaemonRunner::process(processes, host).await?;
            Ok((runner, Arc::new(listed)))
        }
    }
}

/// The variables of the network for every question.
fn network_variables(settings: &ServeSettings, pubsub: &str) -> Vec<(String, String)> {
    let ServeSettings { topic, project, pubsub: choice, .. } = settings;
    let emulator = (*choice != PubsubChoice::Google).then_some((PUBSUB_EMULATOR_HOST, pubsub));
    let all = [
        (TOPIC_NAME, &**topic),
        (GOOGLE_CLOUD_PROJECT, &**project),
        (COMPUTE_PROVIDER, GOOGLE_KUEUE),
    ];
    let all = all.into_iter().chain(emulator);
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

// === impl Choice ===

impl<'a> RunnerChoice<'a> {
    fn read(runner: &'a RunnerSettings) -> Result<Self, DaemonError> {
        Ok(match runner {
            RunnerSettings::Kubernetes(settings) => {
                let services = kubernetes::read_settings(settings).map_err(DaemonError::Config)?;
                Self::Pods(settings, services)
            }
            RunnerSettings::Process(args) => Self::Processes(args),
        })
    }
}
