//! The settings of `twined local`.

use crate::config::{
    DEFAULT_HTTP_PORT, DEFAULT_PROJECT, DEFAULT_PUBSUB_PORT, DEFAULT_TOPIC, HostArgs, ServicesArgs,
    VariablesArgs,
};
use crate::sdk::variables;
use clap::Args;
use std::path::PathBuf;

/// Settings of a network on a laptop.
#[derive(Args, Clone, Debug)]
pub struct LocalArgs {
    /// What it runs.
    #[command(flatten)]
    pub services: ServicesArgs,

    /// Name of the network's topic
    #[arg(long, env = variables::TOPIC_NAME, default_value = DEFAULT_TOPIC)]
    pub topic: String,

    /// Google Cloud project that the network pretends to be in
    #[arg(long, env = "TWINED_PROJECT", default_value = DEFAULT_PROJECT)]
    pub project: String,

    /// Folder that keeps the events, the runs and their output
    #[arg(long, env = "TWINED_DATA", default_value = ".twined", value_name = "DIR")]
    pub data: PathBuf,

    /// Keep everything in a folder that goes when the network ends, not in `--data`
    #[arg(long)]
    pub ephemeral: bool,

    /// Port of the HTTP server on loopback; 0 for a free one
    #[arg(long, env = "TWINED_HTTP_PORT", default_value_t = DEFAULT_HTTP_PORT)]
    pub http_port: u16,

    /// Port of the Pub/Sub emulator on loopback; 0 for a free one
    #[arg(long, env = "TWINED_PUBSUB_PORT", default_value_t = DEFAULT_PUBSUB_PORT)]
    pub pubsub_port: u16,

    /// Use the Pub/Sub emulator that runs there, and start none
    #[arg(long, env = "TWINED_PUBSUB", value_name = "HOST:PORT")]
    pub pubsub: Option<String>,

    /// Who may reach it.
    #[command(flatten)]
    pub hosts: HostArgs,

    /// What its services are told.
    #[command(flatten)]
    pub variables: VariablesArgs,
}
