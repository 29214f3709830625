//! Why a daemon did not start, or ended.

use super::data_folder::DataError;
use crate::config::ConfigError;
use crate::preflight::PreflightCheck;
use crate::pubsub::subscriber::SubscriberError;
use crate::pubsub::{CallError, ConnectError};
use crate::store::sqlite::OpenError;
use crate::tasks::TaskError;
use std::error::Error;
use std::io;
use tokio::task::JoinError;

/// Why a daemon did not start, or ended although nothing stopped it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// A setting.
    #[error("invalid settings")]
    Config(#[source] ConfigError),
    /// The address or the credentials of Pub/Sub.
    #[error("failed to connect to Pub/Sub")]
    Connect(#[source] ConnectError),
    /// Preflight checks failed.
    #[error("{} preflight checks failed", .0.iter().filter(|check| check.is_failure()).count())]
    Preflight(Vec<PreflightCheck>),
    /// The topic of a network that creates it.
    #[error("failed to set up the network's topic")]
    Topic(#[source] CallError),
    /// The subscriptions of a network whose topic exists.
    #[error("failed to set up the subscriptions")]
    Subscriptions(#[source] CallError),
    /// The data folder.
    #[error("failed to open the data folder")]
    Data(#[source] DataError),
    /// The event store, or the view.
    #[error("failed to open the event store")]
    Store(#[source] OpenError),
    /// The runner.
    #[error("failed to start the runner")]
    Runner(#[source] Box<dyn Error + Send + Sync>),
    /// The client of a subscription.
    #[error("failed to subscribe")]
    Subscribe(#[source] SubscriberError),
    /// A listener.
    #[error("failed to listen")]
    Listen(#[source] io::Error),
    /// A thread that opens the store.
    #[error("a thread panicked at the start")]
    Thread(#[source] JoinError),
    /// A task of the daemon.
    #[error("the daemon failed")]
    Task(#[source] TaskError),
}
