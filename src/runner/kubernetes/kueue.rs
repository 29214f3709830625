//! What Kueue says of the Jobs that wait for it.
//!
//! ```text
//! discovery -> watch of Workloads -> brief of each, by its Job -> why it waits, what it can never have
//! ```
//!
//! Only words come from here, and the news that a Job can never start: nothing is launched or ended
//! by it. Kueue may be installed later, restarted, or hidden from us; then there are fewer words.
//!
//! That a queue can never take a Job is told when Kueue has said so for a while without a break:
//! while it tries one flavor after the other it speaks only of the last, and when it starts it does
//! not know all its queues yet. A queue that an operator has stopped is only waited for.

mod table;
mod workload;
use crate::chain::Chain;
use crate::runner::EndReason;
use crate::runner::kubernetes::call::CallError;
use futures_util::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::discovery;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error};
use metrics::{Counter, counter, describe_counter};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use table::{Served, Table};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The group of Kueue's API.
const GROUP: &str = "kueue.x-k8s.io";

/// The versions whose Workloads we can read, the newest first. Kueue 0.10 has only the last.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// How often to look whether Kueue has come.
const LOOK: Duration = Duration::from_secs(60);

/// How soon to look again where the API server gave no answer, or Kueue went.
const AGAIN: Duration = Duration::from_secs(5);

/// Knows what Kueue says. Clones know the same.
#[derive(Clone, Debug)]
pub struct Kueue {
    shared: Arc<Shared>,
}

/// Why a Job waits in its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// For the asker's log: a sentence.
    pub why: String,
    /// Where it will never start as it is: why, and in words for the asker.
    pub stuck: Option<(EndReason, String)>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
    restarts: Counter,
}

// === impl Kueue ===

impl Kueue {
    /// Knows nothing until it runs.
    pub fn new() -> Self {
        describe_counter!("twined_watch_restarts_total", "Watches that broke and began anew");
        let restarts = counter!("twined_watch_restarts_total", "resource" => "workloads");
        restarts.absolute(0);
        let (table, changed) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { table, changed, restarts }) }
    }

    /// Why the Job of this uid waits, that has this queue by its label.
    pub fn waits(&self, job: &str, queue: &str) -> Waits {
        self.table().waits(job, queue, Instant::now())
    }

    /// Waits until what is said of some Jobs has changed, and says of which: their uids. For one
    /// who listens. A place further up in the queue is no change: whoever asks is told.
    pub async fn changed(&self) -> BTreeSet<String> {
        loop {
            let changed = self.table().take_changed();
            if !changed.is_empty() {
                return changed;
            }
            // One permit is kept for a change between the look and here.
            self.shared.changed.notified().await;
        }
    }

    /// Follows the Workloads of a namespace, until `stop`.
    pub async fn run(&self, client: Client, namespace: &str, stop: CancellationToken) {
        let mut said = None;
        let follow = async {
            loop {
                let pause = match find(&client).await {
                    Ok(Some(resource)) => {
                        debug!(version = resource.version, "Kueue is there");
                        let api = Api::namespaced_with(client.clone(), namespace, &resource);
                        self.watch(api, &mut said).await
                    }
                    Ok(None) => {
                        self.see(Served::Absent);
                        LOOK
                    }
                    Err(error) => {
                        let error = CallError::from(error);
                        debug!(error = %Chain(&error), "failed to look for Kueue");
                        AGAIN
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

    /// Returns where Workloads are served no more, or not to us: how soon to look again. What was
    /// said of the last error is not said again.
    async fn watch(&self, api: Api<DynamicObject>, said: &mut Option<String>) -> Duration {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        loop {
            // What is said long enough is a change too.
            let due = self.table().due();
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.change(|table| table.ripen(Instant::now()));
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => {
                    // It begins anew before it has asked: that says nothing yet.
                    if !matches!(event, watcher::Event::Init) {
                        *said = None;
                    }
                    self.change(|table| table.apply(event, Instant::now()));
                }
                Some(Err(error)) => {
                    self.shared.restarts.increment(1);
                    if let Some(pause) = self.broken(error, said) {
                        return pause;
                    }
                }
                // A watcher has no end; if it had, we would begin anew.
                None => return AGAIN,
            }
        }
    }

    /// The watch broke. It begins anew by itself, unless this says when to look for Kueue instead.
    fn broken(&self, error: watcher::Error, said: &mut Option<String>) -> Option<Duration> {
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error,
            watcher::Error::WatchError(status) => Error::Api(status),
            watcher::Error::NoResourceVersion => return Some(AGAIN),
        };
        let error = CallError::from(error);
        let words = error.to_string();
        let news = said.replace(words.clone()) != Some(words);
        match error {
            CallError::Gone(_) => Some(AGAIN),
            CallError::Forbidden(_) => {
                self.see(Served::Hidden);
                if news {
                    warn!(
                        error = %Chain(&error),
                        "askers are not told why their questions wait in queues: grant the \
                         daemon's service account `list` and `watch` on `workloads` (group \
                         `kueue.x-k8s.io`) in the namespace of the questions"
                    );
                }
                // Not by the watcher: its own pause starts anew with each try.
                Some(LOOK)
            }
            CallError::Refused(_)
            | CallError::Exists(_)
            | CallError::Conflict(_)
            | CallError::Unavailable(_) => {
                if news {
                    debug!(error = %Chain(&error), "the watch of workloads begins anew");
                }
                None
            }
        }
    }

    fn see(&self, served: Served) {
        self.change(|table| table.see(served));
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.table());
        self.shared.changed.notify_one();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half done where the lock is held.
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Kueue {
    fn default() -> Self {
        Self::new()
    }
}

/// The newest served version of Workloads that we can read.
async fn find(client: &Client) -> kube::Result<Option<ApiResource>> {
    let group = match discovery::group(client, GROUP).await {
        Ok(group) => group,
        Err(Error::Discovery(_)) => return Ok(None),
        Err(Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error),
    };
    let resources = VERSIONS.iter().flat_map(|version| group.versioned_resources(version));
    Ok(resources.map(|(resource, _)| resource).find(|resource| resource.kind == "Workload"))
}
