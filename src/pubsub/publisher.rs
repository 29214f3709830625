//! Publishes our own events.
//!
//! It makes one call a message with a generated client. The official `Publisher` keeps a task and
//! two channels for every ordering key that it ever saw, and our keys are the uuids of questions.
//! Callers that publish two messages of one question wait for the first before the second, which
//! keeps their order.

use crate::event::OutgoingMessage;
use crate::pubsub::{CallError, Connection, GrpcPublisher, LARGEST_MESSAGE};
use crate::retry::Backoff;
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::{PublishRequest, PubsubMessage};
use metrics::{Counter, counter, describe_counter};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The pauses between tries: the first, and the longest. A parent waits for what we publish, by
/// default at most 6 minutes without a heartbeat.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// Publishes to one topic. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    connection: Connection,
    client: GrpcPublisher,
    topic: String,
    metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Metrics {
    errors: Counter,
}

// === impl Publisher ===

impl Publisher {
    /// A publisher to a topic.
    pub fn new(connection: &Connection, topic: &str) -> Self {
        Self {
            connection: connection.clone(),
            client: PublisherClient::new(connection.transport())
                .max_encoding_message_size(LARGEST_MESSAGE),
            topic: connection.topic(topic),
            metrics: Metrics::new(),
        }
    }

    /// Publishes one message. Pub/Sub has stored it when this returns.
    pub async fn publish(&self, message: OutgoingMessage) -> Result<(), CallError> {
        let OutgoingMessage { data, attributes, ordering_key } = message;
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

    /// Publishes one message, and retries until it succeeds. False if `stop` came first, or if
    /// Pub/Sub will never accept the message, which is logged.
    pub async fn publish_until(&self, message: OutgoingMessage, stop: &CancellationToken) -> bool {
        let mut backoff = BACKOFF;
        loop {
            let Err(error) = self.publish(message.clone()).await else { return true };
            warn!(
                question = message.ordering_key,
                error = error.chain(),
                "failed to publish a message"
            );
            // A missing topic may be created again; a refused message never becomes valid.
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
        describe_counter!("twined_publish_errors_total", "Failed calls that publish a message");
        let errors = counter!("twined_publish_errors_total");
        errors.absolute(0);
        Self { errors }
    }
}
