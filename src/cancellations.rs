//! The cancellations that this replica has put on record, on their way from its pipeline to its
//! monitor.
//!
//! The monitor reads the cancellations of all replicas from its view. But a view has no event that
//! was published before its subscription was created. Only the replica that received such a
//! cancellation knows of it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;
use uuid::Uuid;

/// A queue of cancellations. One reader takes from it.
#[derive(Debug, Default)]
pub struct CancellationQueue {
    queue: Mutex<VecDeque<Cancellation>>,
    pushed: Notify,
}

/// A cancellation on record. Nobody has checked that its sender may cancel the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cancellation {
    pub(crate) question: Uuid,
    /// The SRUID of the sender.
    pub(crate) sender: String,
}

// === impl CancellationQueue ===

impl CancellationQueue {
    pub(crate) fn push(&self, cancellation: Cancellation) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(cancellation);
        self.pushed.notify_one();
    }

    /// Waits for the next cancellation. Cancel safe.
    pub(crate) async fn next(&self) -> Cancellation {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(cancellation) = next {
                return cancellation;
            }
            // A push since the check above has left a permit, so this returns.
            self.pushed.notified().await;
        }
    }
}
