//! Messages on the wire: Google Pub/Sub, and an emulator of it for a laptop.
//!
//! There is no trait here: the wire is the seam. In local mode the same client talks to the
//! emulator in its own process.

pub mod admin;
pub mod emulator;
pub mod look;
pub mod publisher;
pub mod subscriber;
mod transport;
use crate::chain::Chain;
use crate::event::Timestamp;
pub use admin::{Admin, Wanted};
use bytes::Bytes;
use google_cloud_auth::credentials::{
    Builder as DefaultCredentials, Credentials, anonymous, impersonated,
};
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use google_cloud_pubsub::subscriber::handler::Handler;
pub use publisher::Publisher;
use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;
pub use subscriber::Subscriber;
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use transport::Transport;

/// The largest message that we try to publish, in bytes: above the 10 MB that Pub/Sub takes, so
/// that its own words say so. (Pub/Sub's quotas page, "Message size".)
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// How long one call may take. Pub/Sub's own clients give a publish 60 s in all; we try again.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Google's Pub/Sub, wherever in the world its topics are kept.
const GOOGLE: &str = "https://pubsub.googleapis.com";

/// Where a network's Pub/Sub is, and as whom we speak to it.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    credentials: Credentials,
    endpoint: String,
    project: String,
}

/// The generated clients, over what adds our credentials to each call.
type Publishing = PublisherClient<Transport>;
type Subscribing = SubscriberClient<Transport>;

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
pub enum ConnectError {
    /// It is no address.
    #[error("`{address}` is no address of a Pub/Sub emulator: expected HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// Our token would go there for all to read.
    #[error("`{endpoint}` is no endpoint of Google's Pub/Sub: expected https://HOST")]
    Plain {
        /// What was given.
        endpoint: String,
    },
    /// It is no endpoint, or this host trusts nobody.
    #[error(
        "failed to prepare for TLS with Pub/Sub at `{endpoint}`: it must be https://HOST, and \
         this host must have the certificates of authorities (where they are elsewhere, \
         `SSL_CERT_FILE` names them)"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// There is a file of credentials, and it is of no use.
    #[error(
        "failed to read Google's application default credentials: see that \
         `GOOGLE_APPLICATION_CREDENTIALS` names a file of them, or run `gcloud auth \
         application-default login`"
    )]
    Credentials(#[source] google_cloud_auth::build_errors::Error),
}

// === impl Connection ===

impl Connection {
    /// The emulator at `HOST:PORT`, seen from `project`. Connects when first used.
    pub fn emulator(address: &str, project: &str) -> Result<Self, ConnectError> {
        let endpoint = format!("http://{address}");
        let to = Endpoint::from_shared(endpoint.clone())
            .map_err(|source| ConnectError::Address { address: address.to_owned(), source })?;
        Ok(Self::over(to, anonymous::Builder::new().build(), endpoint, project))
    }

    /// Google's own Pub/Sub, as whom the application default credentials say. Connects when first
    /// used, and is to be made in a tokio runtime: a task of the credentials keeps their token
    /// fresh.
    ///
    /// Where no file of credentials is found they are asked of Google's metadata server, so that
    /// nobody has any is told by the first call: [`Admin::check`].
    pub fn google(project: &str) -> Result<Self, ConnectError> {
        Self::google_at(GOOGLE, project)
    }

    /// As [`Self::google`], by another door than the usual: a region's
    /// (`https://europe-west1-pubsub.googleapis.com`) or one of a private network.
    pub fn google_at(endpoint: &str, project: &str) -> Result<Self, ConnectError> {
        if !endpoint.starts_with("https://") {
            return Err(ConnectError::Plain { endpoint: endpoint.to_owned() });
        }
        let wrong = |source| ConnectError::Endpoint { endpoint: endpoint.to_owned(), source };
        let to = Endpoint::from_shared(endpoint.to_owned())
            .and_then(|to| to.tls_config(ClientTlsConfig::new().with_enabled_roots()))
            .map_err(wrong)?;
        let credentials =
            DefaultCredentials::default().build().map_err(ConnectError::Credentials)?;
        Ok(Self::over(to, credentials, endpoint.to_owned(), project))
    }

    /// The same, in the name of a service account. That we may not speak in it is told by the first
    /// call.
    pub fn as_account(&self, account: &str) -> Result<Self, ConnectError> {
        let ours = self.credentials.clone();
        let theirs = impersonated::Builder::from_source_credentials(ours)
            .with_target_principal(account)
            .build()
            .map_err(ConnectError::Credentials)?;
        Ok(Self { credentials: theirs, ..self.clone() })
    }

    fn over(to: Endpoint, credentials: Credentials, endpoint: String, project: &str) -> Self {
        let channel = to
            .connect_timeout(CALL_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true)
            // Of a call that is not answered: a connection that died without a word is found out
            // before the call is made again.
            .http2_keep_alive_interval(CALL_TIMEOUT / 2)
            .keep_alive_timeout(CALL_TIMEOUT / 2)
            .connect_lazy();
        Self { channel, credentials, endpoint, project: project.to_owned() }
    }

    fn transport(&self) -> Transport {
        Transport::new(self.channel.clone(), self.credentials.clone())
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

    /// Whether we lack the right to it, or the credentials to prove it.
    pub fn is_denied(&self) -> bool {
        matches!(self.code, Code::PermissionDenied | Code::Unauthenticated)
    }

    /// Whether the call may succeed when it is made again. A right that is missing may be granted
    /// meanwhile, and no event is to be given up for it.
    pub fn is_transient(&self) -> bool {
        !matches!(self.code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists)
    }

    /// The error with its causes, for a log.
    pub fn chain(&self) -> String {
        Chain(self).to_string()
    }
}

#[cfg(test)]
mod tests;
