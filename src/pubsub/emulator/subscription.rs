//! One subscription: its settings, its filter, and its queue behind a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::ack_id::AckId;
use super::filter::Filter;
use super::memory::StoredMessage;
use super::name::ResourceName;
use super::queue::{PullLimits, Puller, Queue, QueueRules};
use super::settings::SubscriptionSettings;
use super::wire::ReceivedMessage;

/// A subscription. Calls may still use it after it was deleted.
#[derive(Debug)]
pub(super) struct Subscription {
    pub name: ResourceName,
    pub settings: SubscriptionSettings,
    filter: Option<Filter>,
    backlog: Mutex<Backlog>,
    /// Wakes the pullers that wait.
    changed: Notify,
}

/// A published message, with its attributes for filters.
pub(super) struct PublishedMessage {
    pub message: Arc<StoredMessage>,
    pub attributes: HashMap<String, String>,
}

/// Why a subscription delivers no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionEnd {
    Deleted,
    Detached,
}

#[derive(Debug)]
enum Backlog {
    Open(Box<Queue>),
    Closed(SubscriptionEnd),
}

// === impl Subscription ===

impl Subscription {
    pub(super) fn new(
        name: ResourceName,
        settings: SubscriptionSettings,
        filter: Option<Filter>,
    ) -> Self {
        let queue = Queue::new(
            // Random, so that ack ids of an emulator that ran before are ignored.
            uuid::Uuid::new_v4().as_u64_pair().0,
            QueueRules {
                ordering: settings.enable_message_ordering,
                retention: settings.retention,
                backoff: settings.backoff,
            },
        );
        let backlog = Mutex::new(Backlog::Open(Box::new(queue)));
        Self { name, settings, filter, backlog, changed: Notify::new() }
    }

    /// Stores those of `messages` that match the filter.
    pub(super) fn publish(&self, messages: &[PublishedMessage]) {
        let mut matching = messages.iter().filter(|published| self.matches(published)).peekable();
        // In a large network most messages match few subscriptions: the others are not locked.
        if matching.peek().is_none() {
            return;
        }
        let _ = self.with_queue(|queue| {
            matching.for_each(|published| queue.push(published.message.reference()));
        });
    }

    /// Leases messages to `puller` within its limits.
    pub(super) fn take(
        &self,
        puller: Puller,
        limits: &PullLimits,
    ) -> Result<Vec<ReceivedMessage>, SubscriptionEnd> {
        self.with_queue(|queue| self.take_from(queue, puller, limits))
    }

    /// Waits until there are messages for `puller`, and leases them.
    ///
    /// May be dropped while it waits: a call that leased messages returns without waiting.
    pub(super) async fn wait(
        &self,
        puller: Puller,
        limits: &PullLimits,
    ) -> Result<Vec<ReceivedMessage>, SubscriptionEnd> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Listens before it takes, so that no change is missed in between.
            changed.as_mut().enable();
            let (taken, timer) = self
                .with_queue(|queue| (self.take_from(queue, puller, limits), queue.next_timer()))?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            match timer {
                None => changed.await,
                Some(until) => {
                    // A change and the timer lead to the same: try again.
                    let _ = tokio::time::timeout_at(until, changed).await;
                }
            }
        }
    }

    pub(super) fn ack(&self, ids: &[AckId]) -> Result<(), SubscriptionEnd> {
        self.with_queue(|queue| queue.ack(ids, Instant::now()))
    }

    /// Extends leases to `lease` from now. A lease of zero is a nack.
    pub(super) fn extend(&self, ids: &[AckId], lease: Duration) -> Result<(), SubscriptionEnd> {
        self.with_queue(|queue| queue.extend(ids, lease, Instant::now()))
    }

    /// Drops the messages past the retention.
    pub(super) fn drop_expired(&self) {
        let _ = self.with_queue(|queue| queue.advance(Instant::now()));
    }

    /// Ends all calls that wait, and drops the messages.
    pub(super) fn close(&self, end: SubscriptionEnd) {
        *self.lock() = Backlog::Closed(end);
        self.changed.notify_waiters();
    }

    pub(super) fn is_detached(&self) -> bool {
        matches!(*self.lock(), Backlog::Closed(SubscriptionEnd::Detached))
    }

    fn matches(&self, published: &PublishedMessage) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(&published.attributes))
    }

    fn take_from(
        &self,
        queue: &mut Queue,
        puller: Puller,
        limits: &PullLimits,
    ) -> Vec<ReceivedMessage> {
        let deliveries = queue.take(puller, limits, Instant::now());
        deliveries
            .into_iter()
            .map(|delivery| ReceivedMessage {
                delivery_attempt: self.attempt(queue, &delivery.ack_id),
                ack_id: delivery.ack_id.to_string(),
                message: delivery.message,
            })
            .collect()
    }

    /// Pub/Sub reports attempts only with a dead-letter policy.
    fn attempt(&self, queue: &Queue, id: &AckId) -> i32 {
        if !self.settings.counts_attempts {
            return 0;
        }
        i32::try_from(queue.deliveries(id)).unwrap_or(i32::MAX)
    }

    /// Changes the queue, and wakes the pullers that wait if there may be something to take, or if
    /// a timer is due earlier than they know.
    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Result<T, SubscriptionEnd> {
        let mut backlog = self.lock();
        let queue = match &mut *backlog {
            Backlog::Open(queue) => queue,
            Backlog::Closed(end) => return Err(*end),
        };
        let before = queue.next_timer();
        let outcome = change(queue);
        let earlier = match (before, queue.next_timer()) {
            (Some(before), Some(after)) => after < before,
            (None, after) => after.is_some(),
            (Some(_), None) => false,
        };
        if queue.take_wakeup() || earlier {
            self.changed.notify_waiters();
        }
        Ok(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().expect("no code panics while it holds this lock")
    }
}

// === impl Puller ===

impl Puller {
    /// A puller that equals no other.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
