//! What Kueue reports of the Jobs that wait for it.
//!
//! ```text
//! discovery -> watch of Workloads -> brief of each, by its Job -> why it waits, why it can never start
//! ```
//!
//! This module only explains: it launches and ends nothing. Kueue may be installed later,
//! restarted, or hidden from us by missing rights; then less is explained.
//!
//! That a queue can never admit a Job is reported when Kueue has reported it for a while without a
//! break. While Kueue tries one flavor after the other, it reports only the last; and when it
//! starts, it does not know all its queues yet. Jobs of a queue that an operator has stopped wait.

mod workload;
mod workload_table;
use crate::chain::Chain;
use crate::runner::Cause;
use crate::runner::kubernetes::api::{self, ApiError};
use futures_util::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::discovery;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};
use metrics::Counter;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use workload_table::{Visibility, WorkloadTable};

/// The group of Kueue's API.
const GROUP: &str = "kueue.x-k8s.io";

/// The versions whose Workloads we can read, the newest first. Kueue 0.10 has only the last.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// How often to check whether Kueue has been installed.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

/// The pause before the next discovery, after the API server gave no answer or Kueue was removed.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What Kueue reports. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Kueue {
    shared: Arc<Shared>,
}

/// What its queue reports of a Job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueStatus {
    /// For the parent's log: why it waits, in a sentence.
    pub why: String,
    /// Why it can never start as it is.
    pub refusal: Option<Cause>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<WorkloadTable>,
    changed: Notify,
    restarts: Counter,
}

// === impl Kueue ===

impl Kueue {
    /// Nothing is reported until it runs.
    pub(super) fn new() -> Self {
        let restarts = api::watch_restarts("workloads");
        let (table, changed) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { table, changed, restarts }) }
    }

    /// What is reported of the Job of this uid, whose label names this queue.
    pub(super) fn queue_status(&self, job: &str, queue: &str) -> QueueStatus {
        self.table().queue_status(job, queue, Instant::now())
    }

    /// Waits until reports have changed, and returns the uids of their Jobs. For one listener. A
    /// position further up in the queue is no change.
    pub(super) async fn changed(&self) -> BTreeSet<String> {
        loop {
            let changed = self.table().take_changed();
            if !changed.is_empty() {
                return changed;
            }
            // The permit of a change since the read above is kept.
            self.shared.changed.notified().await;
        }
    }

    /// Watches the Workloads of a namespace until `stop`.
    pub(super) async fn run(&self, client: Client, namespace: &str, stop: CancellationToken) {
        let mut last_error = None;
        let follow = async {
            loop {
                let pause = match discover(&client).await {
                    Ok(Some(resource)) => {
                        debug!(version = resource.version, "Kueue found");
                        let api = Api::namespaced_with(client.clone(), namespace, &resource);
                        self.watch(api, &mut last_error).await
                    }
                    Ok(None) => {
                        self.set_visibility(Visibility::Absent);
                        DISCOVERY_INTERVAL
                    }
                    Err(error) => {
                        let error = ApiError::from(error);
                        debug!(error = %Chain(&error), "failed to discover Kueue");
                        RETRY_PAUSE
                    }
                };
                sleep(pause).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    }

    /// Returns when Workloads are no longer served, or not to us, with the pause before the next
    /// discovery. An error that repeats the last one is not logged again.
    async fn watch(&self, api: Api<DynamicObject>, last_error: &mut Option<String>) -> Duration {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        loop {
            // A report that has lasted for its grace is a change too.
            let due = self.table().due();
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.change(|table| table.mark_due(Instant::now()));
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => {
                    // It starts again before it has asked the API server.
                    if !matches!(event, watcher::Event::Init) {
                        *last_error = None;
                    }
                    self.change(|table| table.apply(event, Instant::now()));
                }
                Some(Err(error)) => {
                    self.shared.restarts.increment(1);
                    if let Some(pause) = self.on_watch_error(error, last_error) {
                        return pause;
                    }
                }
                // A watcher never ends; if it did, discovery would start again.
                None => return RETRY_PAUSE,
            }
        }
    }

    /// The watch broke. It starts again by itself, unless this returns the pause before a
    /// discovery.
    fn on_watch_error(
        &self,
        error: watcher::Error,
        last_error: &mut Option<String>,
    ) -> Option<Duration> {
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error,
            watcher::Error::WatchError(status) => Error::Api(status),
            watcher::Error::NoResourceVersion => return Some(RETRY_PAUSE),
        };
        let error = ApiError::from(error);
        let text = error.to_string();
        let is_new = last_error.replace(text.clone()) != Some(text);
        match error {
            ApiError::NotFound(_) => Some(RETRY_PAUSE),
            ApiError::Forbidden(_) => {
                self.set_visibility(Visibility::Hidden);
                if is_new {
                    warn!(
                        error = %Chain(&error),
                        "no rights on Workloads of Kueue: parents are not notified why their \
                         questions wait in queues; grant the daemon's service account `list` and `watch` on `workloads` (group \
                         `kueue.x-k8s.io`) in the namespace of the questions"
                    );
                }
                // The watcher would try again at once: its back-off is reset by each list.
                Some(DISCOVERY_INTERVAL)
            }
            ApiError::Invalid(_)
            | ApiError::AlreadyExists(_)
            | ApiError::Conflict(_)
            | ApiError::Unavailable(_) => {
                if is_new {
                    debug!(error = %Chain(&error), "watch of Workloads broke; starting it again");
                }
                None
            }
        }
    }

    fn set_visibility(&self, visibility: Visibility) {
        self.change(|table| table.set_visibility(visibility));
    }

    fn change(&self, change: impl FnOnce(&mut WorkloadTable)) {
        change(&mut self.table());
        self.shared.changed.notify_one();
    }

    fn table(&self) -> MutexGuard<'_, WorkloadTable> {
        // The table is never left half changed, so a poisoned lock is usable.
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Kueue {
    fn default() -> Self {
        Self::new()
    }
}

/// The newest served version of Workloads that we can read.
async fn discover(client: &Client) -> kube::Result<Option<ApiResource>> {
    let group = match discovery::group(client, GROUP).await {
        Ok(group) => group,
        Err(Error::Discovery(_)) => return Ok(None),
        Err(Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error),
    };
    let resources = VERSIONS.iter().flat_map(|version| group.versioned_resources(version));
    Ok(resources.map(|(resource, _)| resource).find(|resource| resource.kind == "Workload"))
}
