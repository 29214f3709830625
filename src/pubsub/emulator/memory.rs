//! Messages as they are kept, and how many bytes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

/// What a message costs beside its bytes: itself, its counts and its ordering key.
const MESSAGE_COST: usize = 160;

/// What a message costs in one subscription: an entry, and its places in the queue's indexes.
const SHARE_COST: usize = 160;

/// Counts the bytes of all messages that an emulator keeps.
#[derive(Debug)]
pub(super) struct Memory {
    used: AtomicUsize,
    limit: usize,
}

/// Bytes set aside for messages that are not yet there. What is left of it is given back.
pub(super) struct Reservation {
    memory: Arc<Memory>,
    bytes: usize,
}

/// A published message. Subscriptions share it; its bytes are free when the last lets go.
#[derive(Debug)]
pub(super) struct Message {
    /// The encoded `PubsubMessage`, id and time of publishing included.
    pub encoded: Bytes,
    pub ordering_key: Option<Arc<str>>,
    pub published: Instant,
    memory: Arc<Memory>,
}

/// One subscription's hold on a message.
#[derive(Debug)]
pub(super) struct Share(Arc<Message>);

// === impl Memory ===

impl Memory {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Sets room aside for messages of these encoded lengths, or for none of them.
    pub fn reserve(self: &Arc<Self>, lengths: impl Iterator<Item = usize>) -> Option<Reservation> {
        let bytes = lengths.map(|length| length + MESSAGE_COST).sum();
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .ok()?;
        Some(Reservation { memory: Arc::clone(self), bytes })
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> usize {
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
    /// Makes a message of what was set aside for it.
    pub fn message(
        &mut self,
        encoded: Bytes,
        ordering_key: Option<Arc<str>>,
        published: Instant,
    ) -> Arc<Message> {
        self.bytes -= encoded.len() + MESSAGE_COST;
        Arc::new(Message { encoded, ordering_key, published, memory: Arc::clone(&self.memory) })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.subtract(self.bytes);
    }
}

// === impl Message ===

impl Message {
    /// Keeps the message for one subscription more. It may go over the limit by what a share
    /// costs: the next publish finds that out.
    pub fn share(self: &Arc<Self>) -> Share {
        self.memory.add(SHARE_COST);
        Share(Arc::clone(self))
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.memory.subtract(self.encoded.len() + MESSAGE_COST);
    }
}

// === impl Share ===

impl std::ops::Deref for Share {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.memory.subtract(SHARE_COST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_when_the_last_share_goes() {
        let memory = Memory::new(1000);
        let mut reservation = memory.reserve([100, 100].into_iter()).unwrap();

        let message = reservation.message(vec![0; 100].into(), None, Instant::now());
        drop(reservation);
        assert_eq!(memory.used(), 100 + MESSAGE_COST);

        let (first, second) = (message.share(), message.share());
        drop(message);
        assert_eq!(memory.used(), 100 + MESSAGE_COST + 2 * SHARE_COST);

        drop(first);
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let memory = Memory::new(1000);
        assert!(memory.reserve([300, 600].into_iter()).is_none());
        assert_eq!(memory.used(), 0);
    }
}
