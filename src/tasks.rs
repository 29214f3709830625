//! Supervises the tasks that live as long as the daemon.
//!
//! Every long-lived task is spawned here, with a name. When one ends early, all end, and the
//! process with them: a daemon without one of its tasks would seem alive and do nothing.

use std::future::Future;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

/// How long tasks may take to end by default. Messages that are not finished by then are
/// redelivered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The tasks of a daemon, and the token that stops them.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    stop: CancellationToken,
    drain_timeout: Duration,
}

/// Why tasks ended although nothing stopped them.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
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
        Self { set: JoinSet::new(), stop: CancellationToken::new(), drain_timeout: DRAIN_TIMEOUT }
    }

    /// Limits the time in which tasks may end after [`Self::stop`].
    pub fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Cancelled when the tasks must end.
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
            .instrument(info_span!("task", task = name)),
        );
    }

    /// Spawns a task that never ends by itself, and may be dropped at any await when
    /// [`Self::stop`] is cancelled.
    pub fn spawn_endless(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop = self.stop();
        self.spawn(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Waits for `stop`, or for the first task to end, and then for all of them.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let outcome = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = self.set.join_next() => match ended {
                Ok(name) => Err(TaskError::EndedEarly(name)),
                Err(error) => Err(TaskError::Panicked(error)),
            },
        };
        self.stop.cancel();
        let drained = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
            warn!("drain timeout reached: remaining tasks aborted");
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
    async fn all_tasks_end_when_one_ends_early() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("lives", async move { stop.cancelled().await });
        tasks.spawn("dies", async {});

        let error = tasks.run(pending()).await.unwrap_err();

        assert_eq!(error.to_string(), "task `dies` ended early");
    }

    #[tokio::test]
    async fn a_panic_ends_all_tasks() {
        let mut tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        assert!(matches!(tasks.run(pending()).await, Err(TaskError::Panicked(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_aborted_at_the_drain_timeout() {
        let mut tasks = Tasks::new().drain_timeout(Duration::from_secs(3));
        tasks.spawn("hangs", pending());
        let start = tokio::time::Instant::now();

        assert!(tasks.run(async {}).await.is_ok());

        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_is_no_error_and_ends_endless_tasks_at_once() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("lives", async move { stop.cancelled().await });
        tasks.spawn_endless("endless", pending());
        let start = tokio::time::Instant::now();

        assert!(tasks.run(async {}).await.is_ok());

        assert!(start.elapsed().is_zero());
    }
}
