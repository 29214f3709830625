//! Messages on the wire: Google Pub/Sub, and an emulator of it for a laptop.
//!
//! There is no trait here: the wire is the seam. In local mode the same client talks to the
//! emulator in its own process.

pub mod admin;
pub mod emulator;
pub mod publisher;
pub mod subscriber;
use crate::chain::Chain;
use crate::event::Timestamp;
pub use admin::Admin;
use bytes::Bytes;
use google_cloud_pubsub::subscriber::handler::Handler;
pub use publisher::Publisher;
use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;
pub use subscriber::Subscriber;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// The largest message that we try to publish, in bytes: above the 10 MB that Pub/Sub takes, so
/// that its own words say so. (Pub/Sub's quotas page, "Message size".)
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// How long one call may take. Pub/Sub's own clients give a publish 60 s in all; we try again.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Where a network's Pub/Sub is.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    endpoint: String,
    project: String,
}

/// A message as it was received.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Its bytes.
    pub data: Bytes,
    /// Its attributes.
    pub attributes: HashMap<String, String>,
    /// Pub/Sub's id of it.
    pub id: String,
    /// Its ordering key; empty where it has none.
    pub ordering_key: String,
    /// When Pub/Sub took it; none where it does not say.
    pub published: Option<Timestamp>,
}

/// A message and the duty to answer for it.
#[derive(Debug)]
pub struct Delivery {
    /// What was delivered.
    pub message: Message,
    /// The duty.
    pub receipt: Receipt,
}

/// The duty to answer for one delivery. Dropped unanswered it is a nack, so a panic, a cancelled
/// task and a forgotten branch all end in redelivery, never in loss.
#[derive(Debug)]
#[must_use = "a receipt that is not acked is redelivered"]
pub struct Receipt(Handler);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} `{name}` on Pub/Sub at {endpoint}")]
pub struct CallError {
    verb: &'static str,
    name: String,
    endpoint: String,
    code: Code,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Why there is no connection to be had.
#[derive(Debug, thiserror::Error)]
#[error("`{endpoint}` is no address of a Pub/Sub emulator: expected HOST:PORT")]
pub struct ConnectError {
    endpoint: String,
    #[source]
    source: tonic::transport::Error,
}

// === impl Connection ===

impl Connection {
    /// The emulator at `HOST:PORT`, seen from `project`. Connects when first used.
    pub fn emulator(address: &str, project: &str) -> Result<Self, ConnectError> {
        let endpoint = format!("http://{address}");
        let channel = Endpoint::from_shared(endpoint.clone())
            .map_err(|source| ConnectError { endpoint: address.to_owned(), source })?
            .connect_timeout(CALL_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { channel, endpoint, project: project.to_owned() })
    }

    /// The full name of a topic.
    pub fn topic(&self, name: &str) -> String {
        format!("projects/{}/topics/{name}", self.project)
    }

    /// The full name of a subscription.
    pub fn subscription(&self, name: &str) -> String {
        format!("projects/{}/subscriptions/{name}", self.project)
    }

    fn error(&self, verb: &'static str, name: &str, status: tonic::Status) -> CallError {
        CallError {
            verb,
            name: name.to_owned(),
            endpoint: self.endpoint.clone(),
            code: status.code(),
            source: status.into(),
        }
    }
}

// === impl Receipt ===

impl Receipt {
    /// Tells Pub/Sub that this message is dealt with.
    pub fn ack(self) {
        self.0.ack();
    }
}

// === impl CallError ===

impl CallError {
    /// Whether what was named does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// Whether what was asked is wrong in itself.
    pub fn is_refused(&self) -> bool {
        self.code == Code::InvalidArgument
    }

    /// Whether the call may succeed when it is made again.
    pub fn is_transient(&self) -> bool {
        !matches!(
            self.code,
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::PermissionDenied
        )
    }

    /// The error with its causes, for a log.
    pub fn chain(&self) -> String {
        Chain(self).to_string()
    }
}
