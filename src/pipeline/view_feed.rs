//! Feeds a replica's own view: receives every event of the topic by a subscription of its own, and
//! appends it to a store of recent events.
//!
//! ```text
//! Delivery -> decode -> append -> ack
//! ```
//!
//! It does not act on events. A message that cannot be decoded is acked: the pipeline of some
//! replica receives it too, and rejects it.

use crate::chain::Chain;
use crate::event::{Event, decode};
use crate::pipeline::BACKOFF;
use crate::pubsub::Delivery;
use crate::store::{AppendError, EventLog, Row};
use metrics::{Counter, counter, describe_counter};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How many deliveries are appended together. They share a commit, and none waits long for its ack.
pub const BATCH: usize = 500;

/// Feeds a view.
#[derive(Debug)]
pub struct ViewFeed {
    view: Arc<dyn EventLog>,
    events: Counter,
    stop: CancellationToken,
}

// === impl ViewFeed ===

impl ViewFeed {
    /// A feed that works until `stop`.
    pub fn new(view: Arc<dyn EventLog>, stop: CancellationToken) -> Self {
        describe_counter!("twined_view_events_total", "Events appended to this replica's view");
        let events = counter!("twined_view_events_total");
        events.absolute(0);
        Self { view, events, stop }
    }

    /// Appends every delivery to the view, as many at a time as there are, until there are no more
    /// or until it is stopped. On a stop, deliveries that are not in the view are nacked.
    pub async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                received = deliveries.recv_many(&mut batch, BATCH) => if received == 0 { break },
            }
            if !self.append(&batch).await {
                break;
            }
            for delivery in batch.drain(..) {
                delivery.receipt.ack();
            }
        }
        deliveries.close();
    }

    /// Appends the events that can be decoded. False where we were stopped first.
    async fn append(&self, batch: &[Delivery]) -> bool {
        let mut events: Vec<_> = batch.iter().filter_map(event).collect();
        let mut backoff = BACKOFF;
        loop {
            let rows: Vec<_> = events.iter().map(row).collect();
            let Err(error) = self.view.append(&rows).await else { break };
            drop(rows);
            warn!(error = %Chain(&error), "failed to append to the view");
            match error {
                // The view would refuse it again. The network's store has it.
                AppendError::Refused { uuid, .. } => {
                    events.retain(|(event, _)| event.attributes.uuid != uuid);
                }
                AppendError::Unavailable(_) => {
                    if !backoff.wait_unless(&self.stop).await {
                        return false;
                    }
                }
            }
        }
        self.events.increment(events.len() as u64);
        true
    }
}

fn event(delivery: &Delivery) -> Option<(Event<'_>, &Delivery)> {
    let message = &delivery.message;
    match decode(&message.data, &message.attributes) {
        Ok(event) => Some((event, delivery)),
        Err(error) => {
            debug!(id = message.id, error = %Chain(&error), "message left out of the view");
            None
        }
    }
}

fn row<'a>((event, delivery): &'a (Event<'a>, &'a Delivery)) -> Row<'a> {
    let message = &delivery.message;
    Row::new(event, &message.attributes, &message.id, &message.ordering_key)
}
