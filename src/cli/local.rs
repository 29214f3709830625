//! `twined local`, a network on this machine; and `twined emulator`, its Pub/Sub alone.

use crate::cli::{Failure, OK, USAGE, interrupted, process_host, terminal};
use crate::config::{DEFAULT_PUBSUB_PORT, HostArgs, LocalArgs, bind_loopback};
use crate::daemon::sdk_service;
use crate::local::{self, LocalSettings};
use crate::pubsub::emulator::{Emulator, EmulatorOptions};
use crate::sdk::services;
use crate::telemetry;
use tokio::net::TcpListener;

/// Run a network on this machine, with the services in the given folders
///
/// Child processes answer questions to them: `octue twined question ask-local`, with the `octue` of
/// the service's `.venv`, or else of the PATH. A change of a service's code takes effect with its
/// next question.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined local                      # the services in this folder\n  \
    twined local ./wind ./elevation --env API_KEY --max-runs 4\n  \
    eval \"$(twined env --shim)\"       # in another shell: use it")]
pub(super) struct Args {
    #[command(flatten)]
    local: LocalArgs,
}

/// Run the Pub/Sub emulator alone
#[derive(Debug, clap::Args)]
pub(super) struct EmulatorArgs {
    /// Port on loopback; 0 for a free one
    #[arg(long, env = "TWINED_PUBSUB_PORT", default_value_t = DEFAULT_PUBSUB_PORT)]
    pubsub_port: u16,

    /// Treat every project as this one, like the emulator of `twined local`
    ///
    /// Services whose `octue.yaml` names a project of their own need it. Without it projects are
    /// separate, as in the cloud.
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,

    #[command(flatten)]
    hosts: HostArgs,
}

/// Runs a network until it is interrupted.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let settings = settings(args.local)?;
    let names: Vec<_> =
        settings.host.services.iter().map(|service| service.sruid.to_string()).collect();
    let metrics = telemetry::install_metrics().map_err(Failure::failed)?;
    let network = local::start(settings, metrics).await?;
    let addresses = network.addresses();
    let listed = match names.is_empty() {
        true => "none: no `octue.yaml` found".to_owned(),
        false => names.join(", "),
    };
    terminal::note(&terminal::block(&[
        ("pubsub", addresses.pubsub.clone()),
        ("http", format!("http://{}", addresses.http)),
        ("data", addresses.data.display().to_string()),
        ("topic", addresses.topic.clone()),
        ("services", listed),
    ]));
    let url = format!("--url http://{}", addresses.http);
    terminal::note(&format!("to use it from another shell: eval \"$(twined env --shim {url})\""));
    // Boxed, because the shutdown is a large future.
    Box::pin(network.run(interrupted())).await?;
    Ok(OK)
}

/// Runs the emulator until it is interrupted.
pub(super) async fn emulator(args: EmulatorArgs) -> Result<u8, Failure> {
    let EmulatorArgs { pubsub_port, project, hosts } = args;
    let listener = bind_loopback(pubsub_port, "the Pub/Sub emulator", "--pubsub-port")?;
    let listener = TcpListener::from_std(listener).map_err(Failure::failed)?;
    let address = listener.local_addr().map_err(Failure::failed)?;
    terminal::note(&terminal::block(&[("pubsub", address.to_string())]));
    terminal::note(&format!("to use it from another shell: export PUBSUB_EMULATOR_HOST={address}"));
    let emulator = Emulator::new(EmulatorOptions {
        project,
        allowed_hosts: hosts.allow_host,
        ..EmulatorOptions::default()
    });
    emulator.serve(listener, interrupted()).await.map_err(Failure::failed)?;
    Ok(OK)
}

fn settings(args: LocalArgs) -> Result<LocalSettings, Failure> {
    let environment = args.variables.variables()?;
    let found = services::find(&args.services.services, &args.services.tag)
        .map_err(|error| Failure::new(USAGE, error))?;
    let host = process_host(found.into_iter().map(sdk_service).collect())?;
    Ok(LocalSettings { host, environment, args })
}
