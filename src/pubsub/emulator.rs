//! Google Pub/Sub in one process: `google.pubsub.v1` over gRPC, everything in memory. Topics and
//! subscriptions can also be made and listed over plain HTTP, on the same port.
//!
//! ```text
//! Publish ─► publisher ─► topic ─► subscription: filter ─► queue ─► stream ──► StreamingPull
//!              limits      fan-out      wanted?       leases, order     └────► Pull
//!                                                          ▲
//!                          Acknowledge, ModifyAckDeadline ─┘
//! ```
//!
//! It answers as Google's service does where the SDK and the official clients look, with the same
//! status codes; what it does not have yet, it refuses with UNIMPLEMENTED. What is different:
//! messages do not outlive the process, there are no access rights, and expiration policies and
//! dead-letter policies are kept without being acted upon (attempts are counted).
//!
//! Nothing here polls. A queue is a state machine that is told the time; who waits for messages
//! sleeps until a change, or until the next lease ends. Where nobody waits, nothing runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use google_cloud_googleapis::pubsub::v1 as google;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::{HeaderMap, Method, Uri};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};

use crate::request_guard::{HostName, RequestGuard};
use directory::Directory;
use memory::Memory;
pub use name::NameError;
use publisher::PublisherService;
use rpc::publisher_server::PublisherServer;
use rpc::subscriber_server::SubscriberServer;
use subscriber::SubscriberService;

// Pure.
pub mod filter;
mod name;
mod ack_id;
mod memory;
mod queue;
// What there is.
mod settings;
mod subscription;
mod topic;
mod page;
mod directory;
// The services.
mod wire;
mod publisher;
mod subscriber;
mod stream;
mod rest;

/// How long open calls may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// The largest request that is read at all. Above Google's limit, so that a request over that is
/// answered with the words that say so.
const LARGEST_REQUEST: usize = 16 * 1024 * 1024;

/// The SDK waits for each of its questions in a call of its own, all on one connection.
const CALLS_OF_A_CONNECTION: u32 = 10_000;

/// How often a quiet connection is asked whether its client is still there. One that vanished
/// without a word would otherwise go on getting messages.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What the paths of gRPC methods begin with. Paths of HTTP without gRPC begin with `/v1/`.
const GRPC_PREFIX: &str = "/google.pubsub.v1.";

/// Why an emulator does not serve, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener has no address.
    #[error("failed to read the listener's address")]
    Address(#[source] io::Error),
    /// The server failed.
    #[error("the gRPC server failed")]
    Transport(#[source] tonic::transport::Error),
}

/// How an emulator differs from another.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every project id is taken for this one, and answers carry the id that was asked with: a
    /// laptop's network is one, whatever project a service's `octue.yaml` names. None: projects
    /// are apart, as in the cloud.
    pub project: Option<String>,
    /// How many bytes of messages are kept at most, over all subscriptions. Beyond it Publish
    /// answers RESOURCE_EXHAUSTED; nothing is ever dropped to make room.
    pub memory_limit: usize,
    /// Names, beside `localhost`, by which HTTP without gRPC may reach an emulator that listens on
    /// loopback.
    pub allowed_hosts: Vec<HostName>,
}

/// An emulator. Clones are the same emulator; it lives as long as one of them.
#[derive(Clone, Debug)]
pub struct Emulator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Directory,
    memory: Arc<Memory>,
    next_message_id: AtomicU64,
    allowed_hosts: Vec<HostName>,
}

/// What `build.rs` made: the services as traits.
mod rpc {
    #![allow(
        missing_docs,
        clippy::allow_attributes_without_reason,
        clippy::clone_on_ref_ptr,
        reason = "generated"
    )]
    include!(concat!(env!("OUT_DIR"), "/google.pubsub.v1.Publisher.rs"));
    include!(concat!(env!("OUT_DIR"), "/google.pubsub.v1.Subscriber.rs"));
}

// === impl Options ===

impl Default for Options {
    /// Projects apart, and 1 GiB of messages.
    fn default() -> Self {
        Self { project: None, memory_limit: 1024 * 1024 * 1024, allowed_hosts: Vec::new() }
    }
}

// === impl Emulator ===

impl Emulator {
    /// Makes an emulator without topics.
    pub fn new(options: Options) -> Self {
        let Options { project, memory_limit, allowed_hosts } = options;
        let inner = Inner {
            directory: Directory::new(project),
            memory: Memory::new(memory_limit),
            next_message_id: AtomicU64::new(first_message_id()),
            allowed_hosts,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Serves clients of `listener` until `stop` is ready; then ends their open calls with
    /// UNAVAILABLE, which clients take for a reason to try again, and returns within a second or so.
    ///
    /// What a web page of another origin could send is refused: see [`RequestGuard`].
    ///
    /// Several listeners may be served at a time.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let address = listener.local_addr().map_err(ServeError::Address)?;
        let guard = RequestGuard::new(address, &self.inner.allowed_hosts).with_grpc(GRPC_PREFIX);
        let ending = CancellationToken::new();
        let routes = guard.protect(self.routes(ending.clone()).into_axum_router());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut serving = std::pin::pin!(
            Server::builder()
                // Google's Rust client makes topics and subscriptions over HTTP/1.
                .accept_http1(true)
                .max_concurrent_streams(CALLS_OF_A_CONNECTION)
                .http2_keepalive_interval(Some(KEEPALIVE))
                .initial_stream_window_size(1024 * 1024)
                .initial_connection_window_size(16 * 1024 * 1024)
                .add_routes(Routes::from(routes))
                .serve_with_incoming_shutdown(incoming, ending.cancelled())
        );
        tokio::select! {
            served = &mut serving => return served.map_err(ServeError::Transport),
            () = stop => ending.cancel(),
        }
        // A client that does not take its end is left behind.
        tokio::time::timeout(GRACE, serving).await.unwrap_or(Ok(())).map_err(ServeError::Transport)
    }

    /// The two services, and beside them HTTP without gRPC, for a server of the caller's own. Nothing
    /// guards them against web pages, as [`Self::serve`] does.
    pub fn routes(&self, stop: CancellationToken) -> Routes {
        let inner = || Arc::clone(&self.inner);
        let publisher = PublisherServer::new(PublisherService(inner()))
            .max_decoding_message_size(LARGEST_REQUEST);
        let subscriber = SubscriberServer::new(SubscriberService { inner: inner(), stop })
            .max_decoding_message_size(LARGEST_REQUEST);
        let services = Routes::new(publisher).add_service(subscriber);
        let inner = inner();
        let rest = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
            rest::answer(&inner, method, &uri, &headers, &body)
        };
        services.into_axum_router().fallback(rest).into()
    }

    /// Makes a topic of this full name (`projects/<project>/topics/<id>`), unless it is there.
    pub fn ensure_topic(&self, name: &str) -> Result<(), NameError> {
        self.inner.directory.asked(name::Kind::Topic, name)?;
        let topic = google::Topic { name: name.to_owned(), ..google::Topic::default() };
        match self.inner.directory.create_topic(topic) {
            Ok(_) => Ok(()),
            Err(status) => {
                debug_assert_eq!(status.code(), Code::AlreadyExists, "nothing else is left");
                Ok(())
            }
        }
    }

    /// Whether there is a subscription of this full name
    /// (`projects/<project>/subscriptions/<id>`).
    pub fn has_subscription(&self, name: &str) -> bool {
        self.inner.directory.has_subscription(name)
    }

    /// How many bytes of messages are kept now, as [`Options::memory_limit`] counts them.
    pub fn memory_used(&self) -> usize {
        self.inner.memory.used()
    }
}

/// Where message ids begin: above those of an emulator that ran before.
fn first_message_id() -> u64 {
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(age.as_micros()).unwrap_or_default()
}

/// The answer to a call that this emulator does not serve yet.
fn not_yet(call: &str) -> Status {
    Status::unimplemented(format!("this emulator does not yet have `{call}`"))
}
