//! One `StreamingPull`: sends messages within the limits of the client, and receives acks.
//!
//! The two directions do not wait for each other: a client that does not read can still ack.
//! Messages are leased only when the connection accepts them, so most messages that a slow client
//! has not read are still available to others.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use google_cloud_googleapis::pubsub::v1::streaming_pull_response::SubscriptionProperties;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::queue::{PullLimits, Puller};
use super::settings;
use super::subscriber::{ack_ids, end_status, stopping};
use super::subscription::Subscription;
use super::wire::{ReceivedMessage, StreamingPullRequest, StreamingPullResponse};

/// The responses to the client.
pub(super) type Deliveries =
    Pin<Box<dyn Stream<Item = Result<StreamingPullResponse, Status>> + Send>>;

/// The size of one response: large enough that its overhead does not matter.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 512 * 1024;

/// How often a client that supports it gets an empty response, as a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How the client's half of a stream ended.
type RequestsEnd = Result<(), Status>;

/// The sending half, with the task of the receiving half.
struct StreamSender {
    subscription: Arc<Subscription>,
    /// The subscription's name as the client wrote it.
    name: String,
    puller: Puller,
    limits: PullLimits,
    /// The lease of new deliveries, which the client may change.
    lease: watch::Receiver<Duration>,
    requests_end: oneshot::Receiver<RequestsEnd>,
    stop: CancellationToken,
    heartbeat: Option<Duration>,
    /// Aborted when the stream is dropped.
    _receiver: JoinSet<()>,
    is_over: bool,
}

/// The receiving half.
struct StreamReceiver {
    subscription: Arc<Subscription>,
    name: String,
    requests: Streaming<StreamingPullRequest>,
    lease: watch::Sender<Duration>,
}

/// Opens a stream on the client's first request.
pub(super) fn open(
    subscription: Arc<Subscription>,
    first: StreamingPullRequest,
    requests: Streaming<StreamingPullRequest>,
    stop: CancellationToken,
) -> Result<Deliveries, Status> {
    if subscription.is_detached() {
        return Err(end_status(
            super::subscription::SubscriptionEnd::Detached,
            &first.subscription,
        ));
    }
    let lease = settings::ack_deadline(first.stream_ack_deadline_seconds)?;
    apply(&subscription, &first)?;
    let limits = PullLimits {
        messages: BATCH_MESSAGES,
        bytes: BATCH_BYTES,
        outstanding_messages: no_limit_at_zero(first.max_outstanding_messages),
        outstanding_bytes: no_limit_at_zero(first.max_outstanding_bytes),
        lease,
    };
    let name = first.subscription;
    let (lease_sender, lease) = watch::channel(lease);
    let (end, requests_end) = oneshot::channel();
    let receiver = StreamReceiver {
        subscription: Arc::clone(&subscription),
        name: name.clone(),
        requests,
        lease: lease_sender,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // Fails if the sending half was dropped.
        let _ = end.send(receiver.run().await);
    });
    let sender = StreamSender {
        subscription,
        name,
        puller: Puller::new(),
        limits,
        lease,
        requests_end,
        stop,
        heartbeat: (first.protocol_version > 0).then_some(HEARTBEAT),
        _receiver: tasks,
        is_over: false,
    };
    Ok(sender.into_stream())
}

// === impl StreamSender ===

impl StreamSender {
    fn into_stream(self) -> Deliveries {
        // The first response is sent at once: some clients wait for it before they use the stream.
        let first = Ok(self.response(Vec::new()));
        let rest = stream::unfold(self, async |mut sender| {
            if sender.is_over {
                return None;
            }
            let next = sender.next().await?;
            sender.is_over = next.is_err();
            Some((next, sender))
        });
        Box::pin(stream::StreamExt::chain(stream::iter([first]), rest))
    }

    /// The next response; `None` when the client has ended the stream.
    async fn next(&mut self) -> Option<Result<StreamingPullResponse, Status>> {
        self.limits.lease = *self.lease.borrow();
        let heartbeat = self.heartbeat.map(|pause| Instant::now() + pause);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Some(Err(stopping())),
            end = &mut self.requests_end => match end {
                Ok(Ok(())) | Err(_) => None,
                Ok(Err(status)) => Some(Err(status)),
            },
            taken = self.subscription.wait(self.puller, &self.limits) => Some(match taken {
                Ok(messages) => Ok(self.response(messages)),
                Err(end) => Err(end_status(end, &self.name)),
            }),
            () = sleep_until(heartbeat) => Some(Ok(self.response(Vec::new()))),
        }
    }

    fn response(&self, received_messages: Vec<ReceivedMessage>) -> StreamingPullResponse {
        StreamingPullResponse {
            received_messages,
            subscription_properties: Some(SubscriptionProperties {
                exactly_once_delivery_enabled: false,
                message_ordering_enabled: self.subscription.settings.enable_message_ordering,
            }),
        }
    }
}

// === impl StreamReceiver ===

impl StreamReceiver {
    /// Receives requests until the client ends them.
    async fn run(mut self) -> RequestsEnd {
        while let Some(request) = self.requests.message().await? {
            self.check(&request)?;
            if request.stream_ack_deadline_seconds != 0 {
                let lease = settings::ack_deadline(request.stream_ack_deadline_seconds)?;
                self.lease.send_replace(lease);
            }
            apply(&self.subscription, &request)?;
        }
        Ok(())
    }

    /// Refuses what only the first request may set.
    fn check(&self, request: &StreamingPullRequest) -> Result<(), Status> {
        if !request.subscription.is_empty() && request.subscription != self.name {
            return Err(Status::invalid_argument(
                "`subscription` can only be set in the first request of a stream",
            ));
        }
        if request.max_outstanding_messages != 0 || request.max_outstanding_bytes != 0 {
            return Err(Status::invalid_argument(
                "flow control can only be set in the first request of a stream",
            ));
        }
        Ok(())
    }
}

/// Acks, nacks and extends what a request names.
fn apply(subscription: &Subscription, request: &StreamingPullRequest) -> Result<(), Status> {
    let StreamingPullRequest { ack_ids: acks, modify_deadline_ack_ids: extended, .. } = request;
    let seconds = &request.modify_deadline_seconds;
    if extended.len() != seconds.len() {
        return Err(Status::invalid_argument(format!(
            "the request has {} `modify_deadline_ack_ids` and {} `modify_deadline_seconds`",
            extended.len(),
            seconds.len()
        )));
    }
    // The sending half ends the stream of a deleted subscription.
    if !acks.is_empty() {
        let _ = subscription.ack(&ack_ids(acks)?);
    }
    let ids = ack_ids(extended)?;
    for (id, seconds) in ids.iter().zip(seconds) {
        let lease = settings::new_ack_deadline(*seconds)?;
        let _ = subscription.extend(std::slice::from_ref(id), lease);
    }
    Ok(())
}

fn no_limit_at_zero(limit: i64) -> usize {
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 => limit,
        Ok(_) | Err(_) => usize::MAX,
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
