//! The tasks that live as long as the daemon.
//!
//! Nobody spawns and walks away: the tasks of the daemon are spawned here, under their names. If
//! one ends before its time, all end, and the process with them: a daemon half of whose tasks are
//! dead looks alive, and does nothing.

use std::future::Future;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

/// How long tasks may take to end where nothing else is said. What they leave is a redelivery.
const DRAIN: Duration = Duration::from_secs(5);

/// The tasks of a daemon, and what stops them.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    stop: CancellationToken,
    drain: Duration,
}

/// Why the daemon ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A task returned.
    #[error("task `{0}` ended early")]
    EndedEarly(&'static str),
    /// A task panicked.
    #[error("a task panicked")]
    Panicked(#[source] JoinError),
}

// === impl Tasks ===

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self { set: JoinSet::new(), stop: CancellationToken::new(), drain: DRAIN }
    }

    /// Gives the tasks so long to end.
    pub fn draining(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Cancelled when the tasks are to end.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Spawns a task that ends soon after [`Self::stop`], and not before.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(
            async move {
                task.await;
                name
            }
            .instrument(info_span!("task", name)),
        );
    }

    /// Waits for `stop`, or for the first task to end, and then for all of them.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let outcome = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = self.set.join_next() => match ended {
                Ok(name) => Err(DaemonError::EndedEarly(name)),
                Err(error) => Err(DaemonError::Panicked(error)),
            },
        };
        self.stop.cancel();
        let drained = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain, drained).await.is_err() {
            warn!("ended before all tasks did");
            self.set.shutdown().await;
        }
        outcome
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test]
    async fn all_tasks_end_when_one_does() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("lives", async move { stop.cancelled().await });
        tasks.spawn("dies", async {});

        let error = tasks.run(pending()).await.unwrap_err();

        assert_eq!(error.to_string(), "task `dies` ended early");
    }

    #[tokio::test]
    async fn a_panic_ends_the_daemon() {
        let mut tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert!(matches!(tasks.run(pending()).await, Err(DaemonError::Panicked(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_ended() {
        let mut tasks = Tasks::new().draining(Duration::from_secs(3));
        tasks.spawn("hangs", pending());
        let start = tokio::time::Instant::now();

        assert!(tasks.run(async {}).await.is_ok());

        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test]
    async fn a_stop_is_no_error() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("lives", async move { stop.cancelled().await });
        assert!(tasks.run(async {}).await.is_ok());
    }
}
