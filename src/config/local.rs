//! The settings of `twined local`.

use crate::config::{
    DEFAULT_HTTP_PORT, DEFAULT_PROJECT, DEFAULT_PUBSUB_PORT, DEFAULT_TOPIC, HostArgs, ServicesArgs,
    VariablesArgs,
};
use crate::sdk::variables;
use clap::Args;
use std::path::PathBuf;

/// Settings of `twined local`, as given.
#[derive(Args, Clone, Debug)]
pub struct LocalArgs {
    /// Services to run.
    #[command(flatten)]
    pub services: ServicesArgs,

    /// Name of the network's topic
    #[arg(long, env = variables::TOPIC_NAME, default_value = DEFAULT_TOPIC)]
    pub topic: String,

    /// Google Cloud project of the network; any other name reaches the same network
    #[arg(long, env = "TWINED_PROJECT", default_value = DEFAULT_PROJECT)]
    pub project: String,

    /// Folder for the events, the runs and their logs
    #[arg(long, env = "TWINED_DATA", default_value = ".twined", value_name = "DIR")]
    pub data: PathBuf,

    /// Use a temporary folder in place of `--data`, deleted when the network ends
    #[arg(long)]
    pub ephemeral: bool,

    /// Port of the HTTP server on loopback; 0 for any free port
    #[arg(long, env = "TWINED_HTTP_PORT", default_value_t = DEFAULT_HTTP_PORT)]
    pub http_port: u16,

    /// Port of the Pub/Sub emulator on loopback; 0 for any free port
    #[arg(long, env = "TWINED_PUBSUB_PORT", default_value_t = DEFAULT_PUBSUB_PORT)]
    pub pubsub_port: u16,

    /// Pub/Sub emulator to use [default: start one]
    #[arg(long, env = "TWINED_PUBSUB", value_name = "HOST:PORT")]
    pub pubsub: Option<String>,

    /// Names of this host.
    #[command(flatten)]
    pub hosts: HostArgs,

    /// Variables for the services.
    #[command(flatten)]
    pub variables: VariablesArgs,
}
