//! A limit on the deliveries in flight.
//!
//! Pub/Sub has a limit too, but counts the messages of each stream. A new stream starts at zero,
//! while the messages of the previous one are still in flight here.

use crate::pubsub::Message;
use crate::pubsub::subscriber::FlowControl;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many messages, and how many bytes of them, may be in flight.
#[derive(Debug)]
pub(super) struct InFlightLimit {
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all_bytes: u32,
}

/// One message's share of the limit, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlightPermit {
    _messages: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

// === impl InFlightLimit ===

impl InFlightLimit {
    /// The limit that a flow sets.
    pub(super) fn new(flow: FlowControl) -> Self {
        let all_bytes = u32::try_from(flow.bytes).unwrap_or(u32::MAX);
        let messages = usize::try_from(flow.messages).unwrap_or_default().max(1);
        Self {
            messages: Arc::new(Semaphore::new(messages)),
            bytes: Arc::new(Semaphore::new(all_bytes as usize)),
            all_bytes,
        }
    }

    /// Waits until the limit allows a message. One that is larger than the limit is in flight
    /// alone.
    pub(super) async fn acquire(&self, message: &Message) -> InFlightPermit {
        let bytes = u32::try_from(size(message)).unwrap_or(u32::MAX).min(self.all_bytes);
        let messages = Arc::clone(&self.messages).acquire_owned().await;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
        InFlightPermit {
            _messages: messages.expect("never closed"),
            _bytes: bytes.expect("never closed"),
        }
    }
}

fn size(message: &Message) -> usize {
    let attributes = message.attributes.iter().map(|(name, value)| name.len() + value.len());
    message.data.len() + attributes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn message(bytes: usize) -> Message {
        Message { data: vec![0; bytes].into(), ..Message::default() }
    }

    #[tokio::test]
    async fn a_message_over_the_limit_waits_until_another_is_done() {
        let limit = InFlightLimit::new(FlowControl { messages: 2, bytes: 100 });
        let first = limit.acquire(&message(60)).await;
        assert!(limit.acquire(&message(60)).now_or_never().is_none(), "too many bytes");
        let second = limit.acquire(&message(40)).await;
        assert!(limit.acquire(&message(0)).now_or_never().is_none(), "too many messages");

        drop((first, second));

        assert!(limit.acquire(&message(1_000)).now_or_never().is_some(), "alone");
    }
}
