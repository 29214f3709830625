//! Who listens to the states of runs.
//!
//! A listener has a mailbox that holds, of each run, the latest state that it has not read. So
//! nobody waits for a slow one, one that never reads costs no more than a copy of what is, and
//! none misses an end: it is the last state of a run.

use crate::event::RunId;
use crate::runner::RunState;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// All who listen. When it is dropped, their streams end.
#[derive(Debug, Default)]
pub struct Listeners {
    mailboxes: Vec<Weak<Mailbox>>,
}

/// What one listener has not read yet.
#[derive(Debug, Default)]
pub struct Mailbox {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    states: BTreeMap<RunId, RunState>,
    /// The order in which to read them: each once.
    order: VecDeque<RunId>,
    closed: bool,
}

// === impl Listeners ===

impl Listeners {
    /// Takes in a listener, with what is.
    pub fn add(&mut self, mailbox: &Arc<Mailbox>, states: impl Iterator<Item = RunState>) {
        states.for_each(|state| mailbox.put(state));
        self.mailboxes.push(Arc::downgrade(mailbox));
    }

    /// Tells all of a change.
    pub fn tell(&mut self, state: &RunState) {
        self.each(|mailbox| mailbox.put(state.clone()));
    }

    /// Takes back what is not read yet of a run.
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
    /// What comes in, to the end of the runner.
    pub fn stream(self: Arc<Self>) -> BoxStream<'static, RunState> {
        unfold(self, async |mailbox| {
            let state = mailbox.next().await?;
            Some((state, mailbox))
        })
        .boxed()
    }

    /// Nothing more comes.
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
            // One permit is kept for a change between the look and here.
            self.changed.notified().await;
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nothing is left half done where the lock is held.
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
    async fn a_listener_gets_what_is_then_what_changes_then_the_end() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, [state(2, 0), state(1, 0)].into_iter());
        let mut stream = mailbox.stream();

        assert_eq!(seen(stream.next().await), Some((2, 0)));
        listeners.tell(&state(2, 1));
        assert_eq!(seen(stream.next().await), Some((1, 0)));
        assert_eq!(seen(stream.next().await), Some((2, 1)));
        drop(listeners);
        assert_eq!(seen(stream.next().await), None);
    }

    #[tokio::test]
    async fn a_slow_listener_gets_the_latest_and_nothing_that_is_settled() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, std::iter::empty());
        for change in 0..1000 {
            listeners.tell(&state(1, change));
            listeners.tell(&state(2, change));
        }
        listeners.forget(state(2, 0).run);
        assert_eq!(mailbox.pending().order.len(), 1);

        let mut stream = mailbox.stream();
        assert_eq!(seen(stream.next().await), Some((1, 999)));
        drop(listeners);
        assert_eq!(seen(stream.next().await), None);
    }

    #[test]
    fn nobody_is_kept_for_one_who_has_gone() {
        let mut listeners = Listeners::default();
        let mailbox = Arc::new(Mailbox::default());
        listeners.add(&mailbox, std::iter::empty());
        drop(mailbox);
        listeners.tell(&state(1, 0));
        assert!(listeners.mailboxes.is_empty());
    }
}
