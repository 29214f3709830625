//! Stored messages, and the budget for their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

/// The cost of a message in addition to its encoded bytes: the struct, its counters and its
/// ordering key.
const MESSAGE_COST: usize = 160;

/// The cost of a message in each subscription: an entry of its queue, and of the queue's indexes.
const REFERENCE_COST: usize = 160;

/// The bytes of all messages that an emulator stores.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    used: AtomicUsize,
    limit: usize,
}

/// Bytes reserved for messages that do not exist yet. The rest is freed on drop.
pub(super) struct Reservation {
    memory: Arc<MemoryBudget>,
    bytes: usize,
}

/// A published message, shared by subscriptions. Its bytes are freed with the last reference.
#[derive(Debug)]
pub(super) struct StoredMessage {
    /// The encoded `PubsubMessage`, with its id and publish time.
    pub encoded: Bytes,
    pub ordering_key: Option<Arc<str>>,
    pub published: Instant,
    memory: Arc<MemoryBudget>,
}

/// A reference to a message from one subscription.
#[derive(Debug)]
pub(super) struct MessageRef(Arc<StoredMessage>);

// === impl MemoryBudget ===

impl MemoryBudget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Reserves bytes for messages of these encoded lengths; `None` if not all of them fit.
    pub(super) fn reserve(
        self: &Arc<Self>,
        lengths: impl Iterator<Item = usize>,
    ) -> Option<Reservation> {
        let bytes = lengths.map(|length| length + MESSAGE_COST).sum();
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .ok()?;
        Some(Reservation { memory: Arc::clone(self), bytes })
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Reservation ===

impl Reservation {
    /// Creates a message in the reserved bytes.
    pub(super) fn store(
        &mut self,
        encoded: Bytes,
        ordering_key: Option<Arc<str>>,
        published: Instant,
    ) -> Arc<StoredMessage> {
        self.bytes -= encoded.len() + MESSAGE_COST;
        Arc::new(StoredMessage {
            encoded,
            ordering_key,
            published,
            memory: Arc::clone(&self.memory),
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.subtract(self.bytes);
    }
}

// === impl StoredMessage ===

impl StoredMessage {
    /// Adds a reference from one more subscription. Its cost may exceed the limit, which then holds
    /// back the next publish.
    pub(super) fn reference(self: &Arc<Self>) -> MessageRef {
        self.memory.add(REFERENCE_COST);
        MessageRef(Arc::clone(self))
    }
}

impl Drop for StoredMessage {
    fn drop(&mut self) {
        self.memory.subtract(self.encoded.len() + MESSAGE_COST);
    }
}

// === impl MessageRef ===

impl std::ops::Deref for MessageRef {
    type Target = StoredMessage;

    fn deref(&self) -> &StoredMessage {
        &self.0
    }
}

impl Drop for MessageRef {
    fn drop(&mut self) {
        self.0.memory.subtract(REFERENCE_COST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_freed_with_the_last_reference() {
        let memory = MemoryBudget::new(1000);
        let mut reservation = memory.reserve([100, 100].into_iter()).unwrap();

        let message = reservation.store(vec![0; 100].into(), None, Instant::now());
        drop(reservation);
        assert_eq!(memory.used(), 100 + MESSAGE_COST);

        let (first, second) = (message.reference(), message.reference());
        drop(message);
        assert_eq!(memory.used(), 100 + MESSAGE_COST + 2 * REFERENCE_COST);

        drop(first);
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn messages_that_do_not_all_fit_are_refused() {
        let memory = MemoryBudget::new(1000);
        assert!(memory.reserve([300, 600].into_iter()).is_none());
        assert_eq!(memory.used(), 0);
    }
}
