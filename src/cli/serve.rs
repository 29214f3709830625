//! `twined serve`: the daemon of a cluster.

use crate::chain::Chain;
use crate::cli::{FAILED, Failure, INTERRUPTED, OK, Signals, UNREACHABLE, USAGE, doctor, terminal};
use crate::config::{self, LogFormat, RunnerSettings, ServeArgs, ServeSettings, own_program};
use crate::local::sdk_service;
use crate::preflight::PreflightCheck;
use crate::sdk::services;
use crate::serve::{Daemon, Host, ServeError, Start};
use crate::telemetry::{self, Shape};
use serde_json::json;
use tracing::{error, info};

/// Run the daemon of a network: the event handler and autoscaler of a cluster
///
/// It subscribes to the network's topic, keeps every event, starts a pod for each question, ends it
/// on cancellation, and tells the asker when it dies in silence. Any number of replicas may run at
/// once. `twined doctor` with the same settings looks at all that it needs, and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined serve --project my-project --images europe-west1-docker.pkg.dev/my-project/services\n  \
    twined serve --pubsub localhost:8085 --runner process ./wind ./elevation\n\n\
    SIGTERM or Ctrl-C ends it within 5 s, and what is not finished is delivered again; what runs, \
    runs on. A second one ends it at once.")]
pub struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

// === impl Args ===

impl Args {
    /// The shape of its logs.
    pub fn shape(&self) -> Shape {
        let format = self.serve.log_format;
        match format.unwrap_or_else(|| LogFormat::default_for(telemetry::on_terminal())) {
            LogFormat::Json => Shape::Json,
            LogFormat::Text => Shape::Text,
        }
    }
}

/// Runs the daemon until it is told to end.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let mut signals = Signals::listen();
    let shape = args.shape();
    let settings = args.serve.into_settings(config::env_variable)?;
    let start = start(settings)?;
    let metrics = telemetry::install_metrics().map_err(Failure::failed)?;
    let replica = start.settings.replica.clone();
    let starting = tokio::select! {
        starting = Daemon::start(start, metrics) => starting,
        () = signals.next() => return Ok(OK),
    };
    let daemon = match starting {
        Ok(daemon) => daemon,
        Err(ServeError::Preflight(checks)) => {
            report(&checks, shape);
            return Err(ServeError::Preflight(checks).into());
        }
        Err(error) => return Err(error.into()),
    };
    let addresses = daemon.addresses();
    info!(replica, pubsub = addresses.pubsub, http = %addresses.http, "started");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let twice = async {
        signals.next().await;
        // It may have ended by itself.
        let _ = stop.send(());
        signals.next().await;
    };
    tokio::select! {
        ended = daemon.run(async { drop(stopped.await) }) => ended?,
        () = twice => {
            error!("told to end twice: ended at once");
            return Ok(INTERRUPTED);
        }
    }
    info!("ended");
    Ok(OK)
}

fn start(settings: ServeSettings) -> Result<Start, Failure> {
    let services = match &settings.runner {
        RunnerSettings::Process(args) => {
            services::find(&args.services, &args.tag).map_err(|error| Failure::new(USAGE, error))?
        }
        RunnerSettings::Kubernetes(_) => Vec::new(),
    };
    let host = Host {
        services: services.into_iter().map(sdk_service).collect(),
        inherited: config::environment(),
        program: own_program().map_err(Failure::failed)?,
    };
    Ok(Start { settings, host })
}

/// Reports failed checks and warnings: as a table for a person, as log lines for a program.
fn report(checks: &[PreflightCheck], shape: Shape) {
    let reported = checks.iter().filter(|check| check.is_failure() || check.is_warning());
    match shape {
        Shape::Text => {
            let reported: Vec<_> = reported.cloned().collect();
            terminal::note(&doctor::table(&reported));
        }
        Shape::Json => {
            for PreflightCheck { name, found, remedy, verdict } in reported {
                error!(
                    check = name,
                    verdict = verdict.mark(),
                    found,
                    remedy,
                    "preflight check failed"
                );
            }
        }
    }
}

// === impl Failure ===

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let code = match &error {
            ServeError::Config(_) | ServeError::Connect(_) => USAGE,
            ServeError::Subscriptions(_) => UNREACHABLE,
            ServeError::Preflight(_)
            | ServeError::Data { .. }
            | ServeError::Store(_)
            | ServeError::Runner(_)
            | ServeError::Subscribe(_)
            | ServeError::Listen(_)
            | ServeError::Thread(_)
            | ServeError::Daemon(_) => FAILED,
        };
        Self::new(code, error)
    }
}

/// Tells of a failure where logs are read by a program, whatever the filter of logs lets through.
pub fn log_failure(failure: &Failure) {
    let Failure { code, error } = failure;
    let message = format!("failed: {}", Chain(&**error));
    let line = json!({ "severity": "ERROR", "message": message, "exit_code": code });
    terminal::note(&telemetry::one_line(&line));
}
