//! Messages on the wire: clients of Google Pub/Sub, and an emulator of it for a laptop.
//!
//! There is no trait here, because the wire is the interface: in local mode the same clients use
//! the emulator in their own process.

pub mod admin;
pub mod emulator;
pub mod preflight;
pub mod publisher;
pub mod subscriber;
mod transport;
use crate::chain::Chain;
use crate::event::Timestamp;
pub use admin::{Admin, SubscriptionSpec};
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

/// The largest message that we try to publish, in bytes. It is above Pub/Sub's limit of 10 MB, so
/// that the error is Pub/Sub's own. (Pub/Sub's quotas page, "Message size".)
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// The timeout of one call. Pub/Sub's own clients allow 60 s for a publish with all retries; we
/// retry ourselves.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The global endpoint of Google's Pub/Sub.
const GOOGLE_ENDPOINT: &str = "https://pubsub.googleapis.com";

/// The endpoint of a network's Pub/Sub, and the credentials for it.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    credentials: Credentials,
    endpoint: String,
    project: String,
}

// The generated clients.
type GrpcPublisher = PublisherClient<Transport>;
type GrpcSubscriber = SubscriberClient<Transport>;

/// A received message.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The payload.
    pub data: Bytes,
    /// The attributes.
    pub attributes: HashMap<String, String>,
    /// The id that Pub/Sub gave it.
    pub id: String,
    /// The ordering key; empty if it has none.
    pub ordering_key: String,
    /// When it was published; `None` if Pub/Sub does not report that.
    pub published: Option<Timestamp>,
}

/// A message with its receipt.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The duty to acknowledge it.
    pub receipt: Receipt,
}

/// The duty to acknowledge one delivery. A receipt that is dropped is a nack, so a panic, a
/// cancelled task and a forgotten branch end in redelivery, never in loss.
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

/// Why a connection could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address of the emulator is invalid.
    #[error("invalid address of a Pub/Sub emulator `{address}`: expected HOST:PORT")]
    Address {
        /// The address.
        address: String,
        /// Why it is invalid.
        #[source]
        source: tonic::transport::Error,
    },
    /// The endpoint has no TLS: anybody could read our token.
    #[error("invalid endpoint of Google's Pub/Sub `{endpoint}`: expected https://HOST")]
    NoTls {
        /// The endpoint.
        endpoint: String,
    },
    /// The endpoint is invalid, or this host has no certificates of authorities.
    #[error(
        "failed to configure TLS for Pub/Sub at `{endpoint}`: it must be https://HOST, and \
         this host must have the certificates of authorities (`SSL_CERT_FILE` names another file)"
    )]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What failed.
        #[source]
        source: tonic::transport::Error,
    },
    /// The file of credentials is missing or invalid.
    #[error(
        "failed to read Google's application default credentials: see that \
         `GOOGLE_APPLICATION_CREDENTIALS` names their file, or run `gcloud auth \
         application-default login`"
    )]
    Credentials(#[source] google_cloud_auth::build_errors::Error),
}

// === impl Connection ===

impl Connection {
    /// The emulator at `HOST:PORT`, with the topics of `project`. Connects when first used.
    pub fn emulator(address: &str, project: &str) -> Result<Self, ConnectError> {
        let endpoint = format!("http://{address}");
        let to = Endpoint::from_shared(endpoint.clone())
            .map_err(|source| ConnectError::Address { address: address.to_owned(), source })?;
        Ok(Self::over(to, anonymous::Builder::new().build(), endpoint, project))
    }

    /// Google's Pub/Sub, with application default credentials. Connects when first used. Call this
    /// in a tokio runtime: a task of the credentials renews their token.
    ///
    /// Without a file of credentials, tokens come from Google's metadata server. If there is none,
    /// the first call fails: [`Admin::check`].
    pub fn google(project: &str) -> Result<Self, ConnectError> {
        Self::google_at(GOOGLE_ENDPOINT, project)
    }

    /// As [`Self::google`], at another endpoint: that of a region
    /// (`https://europe-west1-pubsub.googleapis.com`) or of a private network.
    pub fn google_at(endpoint: &str, project: &str) -> Result<Self, ConnectError> {
        if !endpoint.starts_with("https://") {
            return Err(ConnectError::NoTls { endpoint: endpoint.to_owned() });
        }
        let failed = |source| ConnectError::Endpoint { endpoint: endpoint.to_owned(), source };
        let to = Endpoint::from_shared(endpoint.to_owned())
            .and_then(|to| to.tls_config(ClientTlsConfig::new().with_enabled_roots()))
            .map_err(failed)?;
        let credentials =
            DefaultCredentials::default().build().map_err(ConnectError::Credentials)?;
        Ok(Self::over(to, credentials, endpoint.to_owned(), project))
    }

    /// This connection, with tokens of a service account. If we may not impersonate it, the first
    /// call fails.
    pub(crate) fn as_account(&self, account: &str) -> Result<Self, ConnectError> {
        let ours = self.credentials.clone();
        let impersonated = impersonated::Builder::from_source_credentials(ours)
            .with_target_principal(account)
            .build()
            .map_err(ConnectError::Credentials)?;
        Ok(Self { credentials: impersonated, ..self.clone() })
    }

    fn over(to: Endpoint, credentials: Credentials, endpoint: String, project: &str) -> Self {
        let channel = to
            .connect_timeout(CALL_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_nodelay(true)
            // A dead connection is found within the timeout of a call, so a retry uses a new one.
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
    /// Acknowledges the message.
    pub fn ack(self) {
        self.0.ack();
    }
}

// === impl CallError ===

impl CallError {
    /// Whether the topic or subscription does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// Whether the request is invalid.
    pub(crate) fn is_refused(&self) -> bool {
        self.code == Code::InvalidArgument
    }

    /// Whether we lack the right, or valid credentials.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.code, Code::PermissionDenied | Code::Unauthenticated)
    }

    /// Whether a retry may succeed. A missing right may be granted meanwhile, so it costs no event.
    pub fn is_transient(&self) -> bool {
        !matches!(self.code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists)
    }

    /// The error with its causes.
    pub fn chain(&self) -> String {
        Chain(self).to_string()
    }
}

#[cfg(test)]
mod tests;
