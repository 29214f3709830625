//! One subscription: its settings, its filter, and its queue behind a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::ack_id::AckId;
use super::filter::Filter;
use super::memory::Message;
use super::name::Name;
use super::queue::{Puller, Queue, Rules, Want};
use super::settings::Settings;
use super::wire::ReceivedMessage;

/// A subscription that exists, or that somebody still looks at.
#[derive(Debug)]
pub(super) struct Subscription {
    pub name: Name,
    pub settings: Settings,
    filter: Option<Filter>,
    backlog: Mutex<Backlog>,
    /// Tells all who wait that there may be something for them.
    changed: Notify,
}

/// A published message and what filters look at.
pub(super) struct Published {
    pub message: Arc<Message>,
    pub attributes: HashMap<String, String>,
}

/// Why a subscription gives no messages any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    Deleted,
    Detached,
}

#[derive(Debug)]
enum Backlog {
    Kept(Box<Queue>),
    Gone(Gone),
}

// === impl Subscription ===

impl Subscription {
    pub fn new(name: Name, settings: Settings, filter: Option<Filter>) -> Self {
        let queue = Queue::new(
            // Random, so that ack ids of an emulator that ran before mean nothing here.
            uuid::Uuid::new_v4().as_u64_pair().0,
            Rules {
                ordering: settings.enable_message_ordering,
                retention: settings.retention,
                backoff: settings.backoff,
            },
        );
        let backlog = Mutex::new(Backlog::Kept(Box::new(queue)));
        Self { name, settings, filter, backlog, changed: Notify::new() }
    }

    /// Keeps those of `messages` that the filter wants.
    pub fn publish(&self, messages: &[Published]) {
        let mut wanted = messages.iter().filter(|published| self.wants(published)).peekable();
        // Most subscriptions of a large network want nothing of most messages: no lock for them.
        if wanted.peek().is_none() {
            return;
        }
        let _ = self.with_queue(|queue| {
            wanted.for_each(|published| queue.push(published.message.share()));
        });
    }

    /// Leases messages to `puller`, as many as there are and it wants.
    pub fn take(&self, puller: Puller, want: &Want) -> Result<Vec<ReceivedMessage>, Gone> {
        self.with_queue(|queue| self.take_from(queue, puller, want))
    }

    /// Waits until there is something for `puller`, and leases it.
    ///
    /// May be dropped while it waits: what it leases, it returns.
    pub async fn wait(&self, puller: Puller, want: &Want) -> Result<Vec<ReceivedMessage>, Gone> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listens before it looks, so that no change falls between.
            changed.as_mut().enable();
            let (taken, timer) =
                self.with_queue(|queue| (self.take_from(queue, puller, want), queue.next_timer()))?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            match timer {
                None => changed.await,
                Some(until) => {
                    // Either way there may be something now.
                    let _ = tokio::time::timeout_at(until, changed).await;
                }
            }
        }
    }

    pub fn ack(&self, ids: &[AckId]) -> Result<(), Gone> {
        self.with_queue(|queue| queue.ack(ids, Instant::now()))
    }

    /// Gives these deliveries so much time from now on; none is a nack.
    pub fn extend(&self, ids: &[AckId], lease: Duration) -> Result<(), Gone> {
        self.with_queue(|queue| queue.extend(ids, lease, Instant::now()))
    }

    /// Lets go of what is older than the subscription keeps.
    pub fn forget_outdated(&self) {
        let _ = self.with_queue(|queue| queue.pass(Instant::now()));
    }

    /// Ends it for all who wait, and drops its messages.
    pub fn end(&self, gone: Gone) {
        *self.lock() = Backlog::Gone(gone);
        self.changed.notify_waiters();
    }

    pub fn is_detached(&self) -> bool {
        matches!(*self.lock(), Backlog::Gone(Gone::Detached))
    }

    fn wants(&self, published: &Published) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(&published.attributes))
    }

    fn take_from(&self, queue: &mut Queue, puller: Puller, want: &Want) -> Vec<ReceivedMessage> {
        let deliveries = queue.take(puller, want, Instant::now());
        deliveries
            .into_iter()
            .map(|delivery| ReceivedMessage {
                delivery_attempt: self.attempt(queue, &delivery.ack_id),
                ack_id: delivery.ack_id.to_string(),
                message: delivery.message,
            })
            .collect()
    }

    /// Pub/Sub counts attempts only where there is a dead-letter policy.
    fn attempt(&self, queue: &Queue, id: &AckId) -> i32 {
        if !self.settings.counts_attempts {
            return 0;
        }
        i32::try_from(queue.deliveries(id)).unwrap_or(i32::MAX)
    }

    /// Changes the queue, and wakes those who wait if they may have to look again: when there is
    /// something to take, and when there is an earlier time to wait for.
    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Result<T, Gone> {
        let mut backlog = self.lock();
        let queue = match &mut *backlog {
            Backlog::Kept(queue) => queue,
            Backlog::Gone(gone) => return Err(*gone),
        };
        let before = queue.next_timer();
        let outcome = change(queue);
        let earlier = match (before, queue.next_timer()) {
            (Some(before), Some(after)) => after < before,
            (None, after) => after.is_some(),
            (Some(_), None) => false,
        };
        if queue.take_news() || earlier {
            self.changed.notify_waiters();
        }
        Ok(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().expect("nothing panics while it changes a queue")
    }
}

// === impl Puller ===

impl Puller {
    /// One that nobody else is.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
