//! The listeners to the states of runs.
//!
//! The mailbox of a listener holds the latest unread state of each run. So a slow listener delays
//! nobody, and a listener that never reads costs only the memory of one state for each run. No
//! listener misses an end, because the end is the last state of a run.

use crate::event::RunId;
use crate::runner::RunState;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// All listeners. When this is dropped, their streams end.
#[derive(Debug, Default)]
pub struct Listeners {
    mailboxes: Vec<Weak<Mailbox>>,
}

/// What one listener has not read.
#[derive(Debug, Default)]
pub struct Mailbox {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    states: BTreeMap<RunId, RunState>,
    /// The order in which they are read, each once.
    order: VecDeque<RunId>,
    closed: bool,
}

// === impl Listeners ===

impl Listeners {
    /// Adds a listener, which gets these states first.
    pub fn add(&mut self, mailbox: &Arc<Mailbox>, states: impl Iterator<Item = RunState>) {
        states.for_each(|state| mailbox.put(state));
        self.mailboxes.push(Arc::downgrade(mailbox));
    }

    /// Publishes a changed state to all listeners.
    pub fn notify(&mut self, state: &RunState) {
        self.each(|mailbox| mailbox.put(state.clone()));
    }

    /// Drops the unread states of a run.
    pub fn forget(&mut self, run: RunId) {
        self.each(|mailbox| {
            let mut pending = mailbox.pending();
            if pending.states.remove(&run).is_some() {
                pending.order.retain(|other| *other != run);
            }
        });
    }

    fn each(&mut self, act: impl Fn(&Mailbox)) {
        self.mailboxes.retain(|mailbox| match mailbox.upgrade() {
            Some(mailbox) => {
                act(&mailbox);
                true
            }
            None => false,
        });
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.each(Mailbox::close);
    }
}

// === impl Mailbox ===

impl Mailbox {
    /// The states as they come, until the runner ends.
    pub fn stream(self: Arc<Self>) -> BoxStream<'static, RunState> {
        unfold(self, async |mailbox| {
            let state = mailbox.next().await?;
            Some((state, mailbox))
        })
        .boxed()
    }

    /// Ends the stream.
    pub fn close(&self) {
        self.pending().closed = true;
        self.changed.notify_one();
    }

    fn put(&self, state: RunState) {
        let mut pending = self.pending();
        let run = state.run;
        if pending.states.insert(run, state).is_none() {
            pending.order.push_back(run);
        }
        drop(pending);
        self.changed.notify_one();
    }

    async fn next(&self) -> Option<RunState> {
        loop {
            {
                let mut pending = self.pending();
                let first = pending.order.pop_front();
                if let Some(state) = first.and_then(|run| pending.states.remove(&run)) {
                    return Some(state);
                }
                if pending.closed {
                    return None;
                }
            }
            // `notify_one` keeps a permit for a change since the check above.
            self.changed.notified().await;
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // A poisoned lock is no problem: no change leaves the mailbox inconsistent when it panics.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;
    use crate::runner::RunPhase;
    use uuid::Uuid;

    fn state(question: u128, since: i64) -> RunState {
        RunState {
            run: RunId { question: Uuid::from_u128(question), retry: 0 },
            attempt: 0,
            attributes: Arc::default(),
            evictions: 0,
            phase: RunPhase::Queued { since: Timestamp(since), why: String::new() },
        }
    }

    fn seen(state: Option<RunState>) -> Option<(u128, i64)> {
        match state? {
            RunState { run, phase: RunPhase::Queued { since, .. }, .. } => {
                Some((run.question.as_u128(), since.0))
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_listener_gets_present_states_then_changes_then_the_end() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, [state(2, 0), state(1, 0)].into_iter());
        let mut stream = mailbox.stream();

        assert_eq!(seen(stream.next().await), Some((2, 0)));
        listeners.notify(&state(2, 1));
        assert_eq!(seen(stream.next().await), Some((1, 0)));
        assert_eq!(seen(stream.next().await), Some((2, 1)));
        drop(listeners);
        assert_eq!(seen(stream.next().await), None);
    }

    #[tokio::test]
    async fn a_slow_listener_gets_the_latest_states_and_none_of_a_forgotten_run() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, std::iter::empty());
        for change in 0..1000 {
            listeners.notify(&state(1, change));
            listeners.notify(&state(2, change));
        }
        listeners.forget(state(2, 0).run);
        assert_eq!(mailbox.pending().order.len(), 1);

        let mut stream = mailbox.stream();
        assert_eq!(seen(stream.next().await), Some((1, 999)));
        drop(listeners);
        assert_eq!(seen(stream.next().await), None);
    }

    #[test]
    fn a_dropped_mailbox_is_removed() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, std::iter::empty());
        drop(mailbox);
        listeners.notify(&state(1, 0));
        assert!(listeners.mailboxes.is_empty());
    }
}
