//! One `StreamingPull`: messages go out as they come and as the client has room; acks come in.
//!
//! The two directions do not wait for each other. A client that does not read for a while can
//! still ack, and messages are leased only when the connection takes them: what a slow client has
//! not read is mostly still free for another.

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

use super::queue::{Puller, Want};
use super::settings;
use super::subscriber::{ack_ids, gone_status, stopping};
use super::subscription::Subscription;
use super::wire::{ReceivedMessage, StreamingPullRequest, StreamingPullResponse};

/// What goes to the client.
pub(super) type Deliveries =
    Pin<Box<dyn Stream<Item = Result<StreamingPullResponse, Status>> + Send>>;

/// How much goes into one response: enough that its own cost is nothing beside its messages.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 512 * 1024;

/// How often a client that asked for it sees that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What the client's side of the stream leads to in the end.
type Ending = Result<(), Status>;

/// The sending half, and the task of the receiving half.
struct Outgoing {
    subscription: Arc<Subscription>,
    /// The subscription's name as the client wrote it.
    name: String,
    puller: Puller,
    want: Want,
    /// The lease that new deliveries get: the client may change it on its way.
    lease: watch::Receiver<Duration>,
    ending: oneshot::Receiver<Ending>,
    stop: CancellationToken,
    heartbeat: Option<Duration>,
    /// Aborted when the stream goes.
    _incoming: JoinSet<()>,
    is_over: bool,
}

/// The receiving half.
struct Incoming {
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
        return Err(gone_status(super::subscription::Gone::Detached, &first.subscription));
    }
    let lease = settings::ack_deadline(first.stream_ack_deadline_seconds)?;
    apply(&subscription, &first)?;
    let want = Want {
        messages: BATCH_MESSAGES,
        bytes: BATCH_BYTES,
        outstanding_messages: no_limit_at_zero(first.max_outstanding_messages),
        outstanding_bytes: no_limit_at_zero(first.max_outstanding_bytes),
        lease,
    };
    let name = first.subscription;
    let (lease_sender, lease) = watch::channel(lease);
    let (end, ending) = oneshot::channel();
    let incoming = Incoming {
        subscription: Arc::clone(&subscription),
        name: name.clone(),
        requests,
        lease: lease_sender,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // Nobody is told only if the sending half is gone already.
        let _ = end.send(incoming.run().await);
    });
    let outgoing = Outgoing {
        subscription,
        name,
        puller: Puller::new(),
        want,
        lease,
        ending,
        stop,
        heartbeat: (first.protocol_version > 0).then_some(HEARTBEAT),
        _incoming: tasks,
        is_over: false,
    };
    Ok(outgoing.into_stream())
}

// === impl Outgoing ===

impl Outgoing {
    fn into_stream(self) -> Deliveries {
        // The first response comes at once: some clients take the stream for open only then.
        let hello = Ok(self.response(Vec::new()));
        let rest = stream::unfold(self, async |mut outgoing| {
            if outgoing.is_over {
                return None;
            }
            let next = outgoing.next().await?;
            outgoing.is_over = next.is_err();
            Some((next, outgoing))
        });
        Box::pin(stream::StreamExt::chain(stream::iter([hello]), rest))
    }

    /// The next response; none when the client is done.
    async fn next(&mut self) -> Option<Result<StreamingPullResponse, Status>> {
        self.want.lease = *self.lease.borrow();
        let heartbeat = self.heartbeat.map(|pause| Instant::now() + pause);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Some(Err(stopping())),
            ended = &mut self.ending => match ended {
                Ok(Ok(())) | Err(_) => None,
                Ok(Err(status)) => Some(Err(status)),
            },
            taken = self.subscription.wait(self.puller, &self.want) => Some(match taken {
                Ok(messages) => Ok(self.response(messages)),
                Err(gone) => Err(gone_status(gone, &self.name)),
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

// === impl Incoming ===

impl Incoming {
    /// Takes requests until the client has no more.
    async fn run(mut self) -> Ending {
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

    /// What only the first request may say.
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
    // A subscription that has gone ends the stream from its other half.
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
