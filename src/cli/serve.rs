//! `twined serve`: the daemon of a cluster.

use crate::chain::Chain;
use crate::cli::{Failure, INTERRUPTED, OK, Signals, USAGE, doctor, process_host, terminal};
use crate::config::{self, LogFormat, RunnerSettings, ServeArgs, ServeSettings};
use crate::daemon::{DaemonError, sdk_service};
use crate::preflight::PreflightCheck;
use crate::runner::process::ProcessService;
use crate::sdk::services;
use crate::serve;
use crate::telemetry::{self, LogStyle};
use serde_json::json;
use tracing::{error, info};

/// Run the daemon of a network: the event handler and autoscaler of a cluster
///
/// It subscribes to the network's topic, stores every event, runs each question, ends it on
/// cancellation, and notifies the parent when it ends without an answer. Any number of replicas may
/// run at a time. `twined doctor` with the same settings checks everything that it needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined serve --project my-project --images europe-west1-docker.pkg.dev/my-project/services\n  \
    twined serve --pubsub localhost:8085 --runner process ./wind ./elevation\n\n\
    SIGTERM or Ctrl-C stops it within 5 s: unfinished messages are delivered again, and runs \
    continue. A second signal stops it immediately.")]
pub(super) struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

// === impl Args ===

impl Args {
    /// The format of its logs.
    pub(super) fn log_style(&self) -> LogStyle {
        let format = self.serve.log_format;
        match format.unwrap_or_else(|| LogFormat::default_for(telemetry::on_terminal())) {
            LogFormat::Json => LogStyle::Json,
            LogFormat::Text => LogStyle::Text,
        }
    }
}

/// Runs the daemon until a signal stops it.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let mut signals = Signals::listen();
    let style = args.log_style();
    let settings = args.serve.into_settings(config::env_variable)?;
    let host = process_host(services(&settings)?)?;
    let metrics = telemetry::install_metrics().map_err(Failure::failed)?;
    let replica = settings.replica.clone();
    let starting = tokio::select! {
        starting = serve::start(settings, host, metrics) => starting,
        () = signals.next() => return Ok(OK),
    };
    let daemon = match starting {
        Ok(daemon) => daemon,
        Err(DaemonError::Preflight(checks)) => {
            report(&checks, style);
            return Err(DaemonError::Preflight(checks).into());
        }
        Err(error) => return Err(error.into()),
    };
    let addresses = daemon.addresses();
    info!(replica, pubsub = addresses.pubsub, http = %addresses.http, "daemon started");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let twice = async {
        signals.next().await;
        // The receiver is gone if the daemon has ended.
        let _ = stop.send(());
        signals.next().await;
    };
    tokio::select! {
        ended = daemon.run(async { drop(stopped.await) }) => ended?,
        () = twice => {
            error!("second signal received: daemon stopped immediately");
            return Ok(INTERRUPTED);
        }
    }
    info!("daemon stopped");
    Ok(OK)
}

fn services(settings: &ServeSettings) -> Result<Vec<ProcessService>, Failure> {
    let found = match &settings.runner {
        RunnerSettings::Process(args) => services::find(&args.services, &args.tag),
        RunnerSettings::Kubernetes(_) => Ok(Vec::new()),
    };
    let found = found.map_err(|error| Failure::new(USAGE, error))?;
    Ok(found.into_iter().map(sdk_service).collect())
}

/// Reports failed checks and warnings: as a table for people, or as log lines for programs.
fn report(checks: &[PreflightCheck], style: LogStyle) {
    let reported = checks.iter().filter(|check| check.is_failure() || check.is_warning());
    match style {
        LogStyle::Text => {
            let reported: Vec<_> = reported.cloned().collect();
            terminal::note(&doctor::table(&reported));
        }
        LogStyle::Json => {
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

/// Reports a failure as a JSON log line, which no log filter suppresses.
pub(super) fn log_failure(failure: &Failure) {
    let Failure { code, error } = failure;
    let message = format!("daemon failed: {}", Chain(&**error));
    let line = json!({ "severity": "ERROR", "message": message, "exit_code": code });
    terminal::note(&telemetry::one_line(&line));
}
