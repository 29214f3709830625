//! A replica's own view: every event of the topic, by a subscription of its own, into a store of the
//! last days.
//!
//! ```text
//! Delivery -> decode -> append -> ack
//! ```
//!
//! It only looks on. It acts on nothing, and what cannot be decoded is acked and left to the
//! pipeline, which gets it too and rejects it.

use crate::chain::Chain;
use crate::event::{Event, decode};
use crate::pipeline::disposition;
use crate::pubsub::Delivery;
use crate::store::{AppendError, EventStore, Row};
use metrics::{Counter, counter, describe_counter};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How many deliveries are appended together: they share a commit, and none waits long for its ack.
pub const BATCH: usize = 500;

/// Follows the topic.
#[derive(Debug)]
pub struct ViewFeed {
    view: Arc<dyn EventStore>,
    followed: Counter,
    stop: CancellationToken,
}

// === impl ViewFeed ===

impl ViewFeed {
    /// One that follows until `stop`.
    pub fn new(view: Arc<dyn EventStore>, stop: CancellationToken) -> Self {
        describe_counter!("twined_view_events_total", "Events that came to the view");
        let followed = counter!("twined_view_events_total");
        followed.absolute(0);
        Self { view, followed, stop }
    }

    /// Takes every delivery into the view, as many at a time as there are, until there are no more
    /// or until it is stopped. What is in hand then and not in the view is given back.
    pub async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                taken = deliveries.recv_many(&mut batch, BATCH) => if taken == 0 { break },
            }
            if !self.take(&batch).await {
                break;
            }
            for delivery in batch.drain(..) {
                delivery.receipt.ack();
            }
        }
        deliveries.close();
    }

    /// Puts what can be decoded into the view. False where we were stopped first.
    async fn take(&self, batch: &[Delivery]) -> bool {
        let mut events: Vec<_> = batch.iter().filter_map(event).collect();
        for tries in 0.. {
            let rows: Vec<_> = events.iter().map(row).collect();
            let Err(failed) = self.view.append(&rows).await else { break };
            drop(rows);
            warn!(error = %Chain(&failed), "failed to append to the view");
            match failed {
                // It would be again; the network's store has it.
                AppendError::Refused { uuid, .. } => {
                    events.retain(|(event, _)| event.attributes.uuid != uuid);
                }
                AppendError::Unavailable(_) => tokio::select! {
                    () = self.stop.cancelled() => return false,
                    () = tokio::time::sleep(disposition::pause(tries)) => {}
                },
            }
        }
        self.followed.increment(events.len() as u64);
        true
    }
}

fn event(delivery: &Delivery) -> Option<(Event<'_>, &Delivery)> {
    let message = &delivery.message;
    match decode(&message.data, &message.attributes) {
        Ok(event) => Some((event, delivery)),
        Err(error) => {
            debug!(id = message.id, error = %Chain(&error), "not in the view: no event");
            None
        }
    }
}

fn row<'a>((event, delivery): &'a (Event<'a>, &'a Delivery)) -> Row<'a> {
    let message = &delivery.message;
    Row::new(event, &message.attributes, &message.id, &message.ordering_key)
}
