//! The daemon of a network. `serve` and `local` build it, each with the adapters of its settings.
//!
//! ```text
//! listen ─► connection ─► store, view, runner ─► pipeline, monitor ─► ready
//! stop ─► not ready ─► no more messages ─► in-flight messages ─► store, view ─► servers ─► exit
//! ```

mod builder;
mod data_folder;
mod error;
mod replica_directory;
mod runner;
mod stores;
use crate::pubsub::Connection;
use crate::tasks::{TaskError, Tasks};
pub(crate) use builder::{DaemonBuilder, DaemonParts, connect, listen, retry_at_start};
pub(crate) use data_folder::DataFolder;
pub(crate) use error::DaemonError;
pub(crate) use runner::{DaemonRunner, ProcessHost, ProcessSettings, sdk_service};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
pub(crate) use stores::{Stores, ViewSettings};
use tokio::sync::oneshot;
use tracing::{info, warn};

/// How long the parents of interrupted runs may take to be notified. Shutdown must take 5 s at
/// most.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(3);

/// A daemon that works.
#[derive(Debug)]
pub(crate) struct Daemon {
    addresses: Addresses,
    stores: Stores,
    runner: DaemonRunner,
    shutdown: Shutdown,
    /// The data folder, where the daemon holds it.
    data: Option<DataFolder>,
    /// The tasks that end first.
    tasks: Tasks,
    /// The tasks that end last: servers that others need while the daemon drains.
    servers: Tasks,
}

/// Where a daemon and its network can be reached.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// Address of Pub/Sub, `HOST:PORT`, or `Google`.
    pub(crate) pubsub: String,
    /// Address of the HTTP server.
    pub(crate) http: SocketAddr,
    /// The data folder.
    pub(crate) data: PathBuf,
    /// The network's topic.
    pub(crate) topic: String,
    /// A connection to Pub/Sub.
    pub(crate) connection: Connection,
}

/// What a daemon does when it is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shutdown {
    /// Whether runs end with the daemon, because their Pub/Sub or their folder does.
    pub(crate) interrupt_runs: bool,
    /// How long the daemon may take, after the drain, to close the store and delete the
    /// subscription of its view. A subscription that stays expires after a day.
    pub(crate) release_timeout: Duration,
}

// === impl Daemon ===

impl Daemon {
    /// Where it can be reached.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What runs its questions.
    pub(crate) fn runner(&self) -> DaemonRunner {
        self.runner.clone()
    }

    /// Waits for `stop`, or for a task to end early, and shuts the daemon down.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let Self { stores, runner, shutdown, data, tasks, servers, .. } = self;
        let Shutdown { interrupt_runs, release_timeout } = shutdown;
        let stopping = async {
            stop.await;
            info!("daemon stopping");
            if interrupt_runs {
                runner.interrupt().await;
                if tokio::time::timeout(INTERRUPT_TIMEOUT, runner.idle()).await.is_err() {
                    warn!("daemon stopped before the parents of all runs were notified");
                }
            }
        };
        let releasing = async {
            // At the same time, because the shutdown must be short.
            let all = async { tokio::join!(runner.stop(), stores.close()) };
            if tokio::time::timeout(release_timeout, all).await.is_err() {
                warn!(
                    "release timeout reached: store not closed, or view's subscription not deleted"
                );
            }
        };
        let ended = run_tasks(tasks, servers, stopping, releasing).await;
        ended.map_err(DaemonError::Task)?;
        data.map_or(Ok(()), |data| data.close().map_err(DaemonError::Data))
    }
}

/// Runs until `stopping` is over, or a task of either set ends early. Then ends `tasks`, runs
/// `releasing`, and ends `servers`, which `releasing` may need.
async fn run_tasks(
    tasks: Tasks,
    servers: Tasks,
    stopping: impl Future<Output = ()>,
    releasing: impl Future<Output = ()>,
) -> Result<(), TaskError> {
    let (finish, finished) = oneshot::channel::<()>();
    let stop = tasks.stop();
    let daemon = async {
        let outcome = tasks.run(stopping).await;
        releasing.await;
        // The servers may have ended early.
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
