//! Receives messages: the official client, with its stream in a task of its own.
//!
//! A stream that says nothing for a while is given up for a new one, of a client of its own: it may
//! be dead, and nobody would tell. (Seen: a connection that is half open; and the client itself,
//! which after an outage sometimes never opened its stream again.) What a stream brought is answered
//! through it all the same, also after it was given up.

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::pubsub::{Admin, Connection, Delivery, Message, Receipt, Wanted};
use crate::retry::Backoff;
use google_cloud_pubsub::client::Subscriber as Client;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownBehavior};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// The longest that a delivery is held and its lease extended. What cannot be handled for so long
/// is given back.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// How soon a delivery comes again to the next daemon when this one dies. The client extends
/// leases while we live, so the least that Pub/Sub takes serves best.
const LEASE: Duration = Duration::from_secs(10);

/// The pauses before a stream that has ended for good is opened again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// After how long of silence a stream is given up. Where nothing is published that costs one call
/// each time.
const SILENCE: Duration = Duration::from_secs(30);

/// How much may be in hand at once: the bound of the daemon's memory.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
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
    flow: Flow,
    restores: Option<Restores>,
}

/// What makes a subscription, and its topic, that are gone.
#[derive(Debug)]
struct Restores {
    admin: Admin,
    wanted: Wanted,
    /// Told when a subscription was made: messages that were published before are not in it.
    made: Option<watch::Sender<Timestamp>>,
}

/// How a stream ended.
enum Ended {
    /// It said nothing for a while.
    Silent,
    /// It is gone, or nobody wants it any more.
    Lost {
        /// Whether anything came.
        any: bool,
    },
}

/// Why there is no subscriber.
#[derive(Debug, thiserror::Error)]
#[error("failed to make a Pub/Sub client for {endpoint}")]
pub struct SubscriberError {
    endpoint: String,
    #[source]
    source: google_cloud_gax::client_builder::Error,
}

// === impl Flow ===

impl Default for Flow {
    /// 10,000 messages, which is 1.5 times as fast as the client's own 1,000, and 64 MiB.
    fn default() -> Self {
        Self { messages: 10_000, bytes: 64 * 1024 * 1024 }
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// A subscriber to the subscription of this name. Nothing is received before [`Self::run`].
    pub async fn new(
        connection: &Connection,
        subscription: &str,
        flow: Flow,
    ) -> Result<Self, SubscriberError> {
        let subscription = connection.subscription(subscription);
        let connection = connection.clone();
        let subscriber = Self { connection, subscription, flow, restores: None };
        // What is wrong with how it is made is told at once.
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

    /// Has it make the subscription and its topic anew where they are gone: somebody deleted them,
    /// or an emulator was restarted, which knows neither.
    pub fn restoring(mut self, admin: Admin, subscription: &str, topic: &str) -> Self {
        let wanted = Wanted::all_of(topic, subscription);
        self.restores = Some(Restores { admin, wanted, made: None });
        self
    }

    /// As [`Self::restoring`], with a subscription of another kind; and tells `made` when one is
    /// made anew, for what was published while there was none is lost to it.
    pub fn restoring_as(
        mut self,
        admin: Admin,
        wanted: Wanted,
        made: watch::Sender<Timestamp>,
    ) -> Self {
        self.restores = Some(Restores { admin, wanted, made: Some(made) });
        self
    }

    /// Sends every delivery to `deliveries`, until `stop`, or until nobody takes them. When it
    /// returns, the acks of all receipts that were answered have been sent.
    pub async fn run(self, deliveries: mpsc::Sender<Delivery>, stop: CancellationToken) {
        let mut backoff = BACKOFF;
        // Streams that are over, until all that they brought is answered.
        let mut over = JoinSet::new();
        while !stop.is_cancelled() && !deliveries.is_closed() {
            while over.try_join_next().is_some() {}
            match self.stream(&deliveries, &stop, &mut over).await {
                Ended::Silent => continue,
                Ended::Lost { any: true } => backoff.reset(),
                Ended::Lost { any: false } => {}
            }
            // Where it is stopped, the loop ends.
            backoff.wait_unless(&stop).await;
        }
        while over.join_next().await.is_some() {}
    }

    /// One stream, to its end.
    async fn stream(
        &self,
        deliveries: &mpsc::Sender<Delivery>,
        stop: &CancellationToken,
        over: &mut JoinSet<()>,
    ) -> Ended {
        let subscription = &self.subscription;
        let client = match Box::pin(self.client()).await {
            Ok(client) => client,
            Err(error) => {
                warn!(subscription, error = %Chain(&error), "failed to open a stream of messages");
                return Ended::Lost { any: false };
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
        // The stream goes at the end of this, before its shutdown is over: what is given back
        // would otherwise come again to it, and stay there for the time of a lease.
        let receiving = Box::pin(self.receive(stream, deliveries));
        let ended = stop.run_until_cancelled(receiving).await;
        over.spawn(async move { shutdown.shutdown().await });
        ended.unwrap_or(Ended::Lost { any: true })
    }

    async fn receive(
        &self,
        mut stream: MessageStream,
        deliveries: &mpsc::Sender<Delivery>,
    ) -> Ended {
        let subscription = &self.subscription;
        let mut any = false;
        loop {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok((message, handler)))) => {
                    any = true;
                    if deliveries.send(delivery(message, handler)).await.is_err() {
                        return Ended::Lost { any };
                    }
                }
                Ok(Some(Err(error))) => {
                    warn!(subscription, error = %Chain(&error), "lost the stream of messages");
                    if let Some(restores) = &self.restores {
                        restores.restore().await;
                    }
                }
                Ok(None) => return Ended::Lost { any },
                Err(_) => return Ended::Silent,
            }
        }
    }
}

// === impl Restores ===

impl Restores {
    async fn restore(&self) {
        let Self { admin, wanted, made } = self;
        match admin.ensure(wanted).await {
            Ok(true) => {
                let Some(made) = made else {
                    error!(
                        subscription = wanted.name,
                        "the subscription was gone, and is made anew: what was published meanwhile \
                         is not kept"
                    );
                    return;
                };
                warn!(subscription = wanted.name, "subscribed anew");
                made.send_replace(Timestamp::now());
            }
            Ok(false) => {}
            Err(error) => {
                warn!(
                    subscription = wanted.name,
                    error = error.chain(),
                    "failed to subscribe anew"
                );
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
