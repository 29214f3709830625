//! Receives messages with the official client.
//!
//! A stream that brings nothing for a while is replaced by a new one, of a new client: it may be
//! dead without an error. (Observed: a half-open connection; and the client itself, which after an
//! outage sometimes never opened its stream again.) The messages of a replaced stream are still
//! answered through it.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::pubsub::{Admin, Connection, Delivery, Message, Receipt, SubscriptionSpec};
use crate::retry::Backoff;
use google_cloud_pubsub::client::Subscriber as Client;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownBehavior};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// The longest time for which the lease of a delivery is extended. After that it is redelivered.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// The time after which a delivery is redelivered when this daemon dies. While it lives the client
/// extends leases, so this is the minimum of Pub/Sub.
const LEASE: Duration = Duration::from_secs(10);

/// The pauses before an ended stream is replaced.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// A stream that is silent for so long is replaced. On a quiet topic that costs one call each time.
const SILENCE: Duration = Duration::from_secs(30);

/// How much may be in flight at once, which bounds the daemon's memory.
#[derive(Clone, Copy, Debug)]
pub struct FlowControl {
    /// Messages.
    pub messages: i64,
    /// Bytes of messages.
    pub bytes: i64,
}

/// Receives the messages of one subscription.
#[derive(Debug)]
pub struct Subscriber {
    connection: Connection,
    subscription: String,
    flow: FlowControl,
    recreation: Option<Recreation>,
}

/// How to create the subscription and its topic again.
#[derive(Debug)]
struct Recreation {
    admin: Admin,
    spec: SubscriptionSpec,
    /// Set to the time when a subscription was created: it lacks the messages published before.
    created: Option<watch::Sender<Timestamp>>,
}

/// How a stream ended.
enum StreamEnd {
    /// It was silent for [`SILENCE`].
    Silent,
    /// The stream failed, or its deliveries are no longer received.
    Lost {
        /// Whether it brought any message.
        any: bool,
    },
}

/// Why a subscriber could not be created.
#[derive(Debug, thiserror::Error)]
#[error("failed to create a Pub/Sub client for {endpoint}")]
pub struct SubscriberError {
    endpoint: String,
    #[source]
    source: google_cloud_gax::client_builder::Error,
}

// === impl FlowControl ===

impl Default for FlowControl {
    /// 10,000 messages, with which it is 1.5 times as fast as with the client's default of 1,000,
    /// and 64 MiB.
    fn default() -> Self {
        Self { messages: 10_000, bytes: 64 * 1024 * 1024 }
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// A subscriber of a subscription. It receives nothing before [`Self::run`].
    pub async fn new(
        connection: &Connection,
        subscription: &str,
        flow: FlowControl,
    ) -> Result<Self, SubscriberError> {
        let subscription = connection.subscription(subscription);
        let connection = connection.clone();
        let subscriber = Self { connection, subscription, flow, recreation: None };
        // A faulty configuration fails here, and not in each stream.
        Box::pin(subscriber.client()).await?;
        Ok(subscriber)
    }

    async fn client(&self) -> Result<Client, SubscriberError> {
        let Connection { endpoint, credentials, .. } = &self.connection;
        Client::builder()
            .with_endpoint(endpoint)
            .with_credentials(credentials.clone())
            .with_grpc_subchannel_count(1)
            .build()
            .await
            .map_err(|source| SubscriberError { endpoint: endpoint.clone(), source })
    }

    /// Creates the subscription and its topic again when they are missing: somebody deleted them,
    /// or an emulator was restarted.
    ///
    /// `created` is set to the time of each creation: messages that were published while there was
    /// no subscription are not received. Without it their loss is logged as an error.
    pub fn recreating(
        mut self,
        admin: Admin,
        spec: SubscriptionSpec,
        created: Option<watch::Sender<Timestamp>>,
    ) -> Self {
        self.recreation = Some(Recreation { admin, spec, created });
        self
    }

    /// Sends every delivery to `deliveries`, until `stop`, or until the receiver is closed. When it
    /// returns, all acknowledgements have been sent.
    pub async fn run(self, deliveries: mpsc::Sender<Delivery>, stop: CancellationToken) {
        let mut backoff = BACKOFF;
        // Streams that have ended, until all their deliveries are answered.
        let mut ended = JoinSet::new();
        while !stop.is_cancelled() && !deliveries.is_closed() {
            while ended.try_join_next().is_some() {}
            match self.stream(&deliveries, &stop, &mut ended).await {
                StreamEnd::Silent => continue,
                StreamEnd::Lost { any: true } => backoff.reset(),
                StreamEnd::Lost { any: false } => {}
            }
            // After a stop the loop ends.
            backoff.wait_unless(&stop).await;
        }
        while ended.join_next().await.is_some() {}
    }

    /// Runs one stream to its end.
    async fn stream(
        &self,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        ended: &mut JoinSet<()>,
    ) -> StreamEnd {
        let subscription = &self.subscription;
        let client = match Box::pin(self.client()).await {
            Ok(client) => client,
            Err(error) => {
                warn!(subscription, error = %Chain(&error), "failed to open a message stream");
                return StreamEnd::Lost { any: false };
            }
        };
        let stream = client
            .subscribe(subscription)
            .set_max_lease(LONGEST_LEASE)
            .set_max_lease_extension(LEASE)
            .set_max_outstanding_messages(self.flow.messages)
            .set_max_outstanding_bytes(self.flow.bytes)
            .set_shutdown_behavior(ShutdownBehavior::WaitForProcessing)
            .build();
        let shutdown = stream.shutdown_token();
        // The stream is dropped before its shutdown is complete. Otherwise Pub/Sub could redeliver
        // messages to it, which would be stuck there for the time of a lease.
        let receiving = Box::pin(self.receive(stream, deliveries));
        let end = stop.run_until_cancelled(receiving).await;
        ended.spawn(async move { shutdown.shutdown().await });
        end.unwrap_or(StreamEnd::Lost { any: true })
    }

    async fn receive(
        &self,
        mut stream: MessageStream,
        deliveries: &mpsc::Sender<Delivery>,
    ) -> StreamEnd {
        let subscription = &self.subscription;
        let mut any = false;
        loop {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok((message, handler)))) => {
                    any = true;
                    if deliveries.send(delivery(message, handler)).await.is_err() {
                        return StreamEnd::Lost { any };
                    }
                }
                Ok(Some(Err(error))) => {
                    warn!(subscription, error = %Chain(&error), "message stream failed");
                    if let Some(recreation) = &self.recreation {
                        recreation.recreate_if_missing().await;
                    }
                }
                Ok(None) => return StreamEnd::Lost { any },
                Err(_) => return StreamEnd::Silent,
            }
        }
    }
}

// === impl Recreation ===

impl Recreation {
    async fn recreate_if_missing(&self) {
        let Self { admin, spec, created } = self;
        let subscription = &spec.name;
        match (admin.subscribe_with_topic(spec).await, created) {
            (Ok(true), Some(created)) => {
                warn!(subscription, "subscription was missing: created again");
                created.send_replace(Timestamp::now());
            }
            (Ok(true), None) => error!(
                subscription,
                "subscription was missing: created again, without the messages published meanwhile"
            ),
            (Ok(false), _) => {}
            (Err(error), _) => {
                let error = error.chain();
                warn!(subscription, error, "failed to create the subscription again");
            }
        }
    }
}

fn delivery(message: google_cloud_pubsub::model::Message, handler: Handler) -> Delivery {
    let micros =
        |at: google_cloud_wkt::Timestamp| at.seconds() * 1_000_000 + i64::from(at.nanos()) / 1_000;
    let message = Message {
        data: message.data,
        attributes: message.attributes,
        id: message.message_id,
        ordering_key: message.ordering_key,
        published: message.publish_time.map(|at| Timestamp(micros(at))),
    };
    Delivery { message, receipt: Receipt(handler) }
}
