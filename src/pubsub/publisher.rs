//! Publishes what we say ourselves.
//!
//! A generated client and one call a message, not the official `Publisher`: that keeps a task and
//! two channels for every ordering key it ever saw, and our keys are the uuids of questions. Who
//! publishes two messages of one question waits for the first before the second, which keeps their
//! order.

use crate::event::Outgoing;
use crate::pubsub::{CallError, Connection, LARGEST_MESSAGE, Publishing};
use crate::retry::Backoff;
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::{PublishRequest, PubsubMessage};
use metrics::{Counter, counter, describe_counter};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The pauses between tries: the first, and the longest. An asker waits for what we publish, so
/// the longest is short beside his patience of 6 minutes.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// Publishes to one topic. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    connection: Connection,
    client: Publishing,
    topic: String,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Metrics {
    errors: Counter,
}

// === impl Publisher ===

impl Publisher {
    /// A publisher to the topic of this name.
    pub fn new(connection: &Connection, topic: &str) -> Self {
        Self {
            connection: connection.clone(),
            client: PublisherClient::new(connection.transport())
                .max_encoding_message_size(LARGEST_MESSAGE),
            topic: connection.topic(topic),
            metrics: Metrics::new(),
        }
    }

    /// Publishes one message. On record with Pub/Sub when it returns.
    pub async fn publish(&self, message: Outgoing) -> Result<(), CallError> {
        let Outgoing { data, attributes, ordering_key } = message;
        let message = PubsubMessage { data, attributes, ordering_key, ..Default::default() };
        let request = PublishRequest { topic: self.topic.clone(), messages: vec![message] };
        match self.client.clone().publish(request).await {
            Ok(_) => Ok(()),
            Err(status) => {
                self.metrics.errors.increment(1);
                Err(self.connection.error("publish to", &self.topic, status))
            }
        }
    }

    /// Publishes one message, and tries again for as long as it takes. False where `stop` came
    /// first, or where Pub/Sub will never take it, which is logged.
    pub async fn publish_until(&self, message: Outgoing, stop: &CancellationToken) -> bool {
        let mut backoff = BACKOFF;
        loop {
            let Err(error) = self.publish(message.clone()).await else { return true };
            warn!(question = message.ordering_key, error = error.chain(), "failed to publish");
            // A topic that is not there may come back; a message that is refused never fits.
            if !error.is_transient() && !error.is_not_found() {
                return false;
            }
            if !backoff.wait_unless(stop).await {
                return false;
            }
        }
    }
}

// === impl Metrics ===

impl Metrics {
    fn new() -> Self {
        describe_counter!("twined_publish_errors_total", "Messages that could not be published");
        let errors = counter!("twined_publish_errors_total");
        errors.absolute(0);
        Self { errors }
    }
}
