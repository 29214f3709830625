//! The service `Subscriber`.

use std::sync::Arc;
use std::time::Duration;

use google_cloud_googleapis::pubsub::v1 as google;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::Inner;
use super::ack_id::AckId;
use super::queue::{PullLimits, Puller};
use super::rpc::subscriber_server::Subscriber;
use super::stream::{self, Deliveries};
use super::subscription::SubscriptionEnd;
use super::{settings, unimplemented, wire};

/// The longest wait of a pull for a first message.
const LONGEST_PULL: Duration = Duration::from_secs(90);

/// A pull ends so long before the client's deadline, so that its answer arrives in time.
const DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// Google's limit on the messages of one pull.
const MAX_PULL_MESSAGES: usize = 1000;

/// Clients accept answers of 4 MiB by default. A single message may be larger.
const MAX_PULL_BYTES: usize = 3_500_000;

/// The service, over an emulator's state.
pub(super) struct SubscriberService {
    pub inner: Arc<Inner>,
    /// Ends calls that wait, when the server stops.
    pub stop: CancellationToken,
}

// === impl SubscriberService ===

impl SubscriberService {
    async fn pull_messages(
        &self,
        request: google::PullRequest,
        wait_limit: Duration,
    ) -> Result<Vec<wire::ReceivedMessage>, Status> {
        let subscription = self.inner.directory.subscription(&request.subscription)?;
        let limits = PullLimits {
            messages: at_least_one(request.max_messages)?.min(MAX_PULL_MESSAGES),
            bytes: MAX_PULL_BYTES,
            outstanding_messages: usize::MAX,
            outstanding_bytes: usize::MAX,
            lease: subscription.settings.ack_deadline,
        };
        #[expect(deprecated, reason = "clients still set it")]
        let at_once = request.return_immediately;
        let puller = Puller::new();
        let taken = if at_once {
            subscription.take(puller, &limits)
        } else {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(stopping()),
                taken = subscription.wait(puller, &limits) => taken,
                () = tokio::time::sleep(wait_limit) => Ok(Vec::new()),
            }
        };
        taken.map_err(|end| end_status(end, &request.subscription))
    }
}

#[tonic::async_trait]
impl Subscriber for SubscriberService {
    type StreamingPullStream = Deliveries;

    async fn create_subscription(
        &self,
        request: Request<google::Subscription>,
    ) -> Result<Response<google::Subscription>, Status> {
        self.inner.directory.create_subscription(request.into_inner()).map(Response::new)
    }

    async fn get_subscription(
        &self,
        request: Request<google::GetSubscriptionRequest>,
    ) -> Result<Response<google::Subscription>, Status> {
        let name = &request.get_ref().subscription;
        self.inner.directory.describe_subscription(name).map(Response::new)
    }

    async fn update_subscription(
        &self,
        _: Request<google::UpdateSubscriptionRequest>,
    ) -> Result<Response<google::Subscription>, Status> {
        Err(unimplemented("UpdateSubscription"))
    }

    async fn list_subscriptions(
        &self,
        request: Request<google::ListSubscriptionsRequest>,
    ) -> Result<Response<google::ListSubscriptionsResponse>, Status> {
        let google::ListSubscriptionsRequest { project, page_size, page_token } =
            request.into_inner();
        let page = self.inner.directory.list_subscriptions(&project, page_size, &page_token)?;
        Ok(Response::new(google::ListSubscriptionsResponse {
            subscriptions: page.items,
            next_page_token: page.next_token,
        }))
    }

    async fn delete_subscription(
        &self,
        request: Request<google::DeleteSubscriptionRequest>,
    ) -> Result<Response<()>, Status> {
        let name = &request.get_ref().subscription;
        self.inner.directory.delete_subscription(name).map(Response::new)
    }

    async fn modify_ack_deadline(
        &self,
        request: Request<google::ModifyAckDeadlineRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let subscription = self.inner.directory.subscription(&request.subscription)?;
        let lease = settings::new_ack_deadline(request.ack_deadline_seconds)?;
        let extended = subscription.extend(&ack_ids(&request.ack_ids)?, lease);
        extended.map_err(|end| end_status(end, &request.subscription))?;
        Ok(Response::new(()))
    }

    async fn acknowledge(
        &self,
        request: Request<google::AcknowledgeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let subscription = self.inner.directory.subscription(&request.subscription)?;
        let acked = subscription.ack(&ack_ids(&request.ack_ids)?);
        acked.map_err(|end| end_status(end, &request.subscription))?;
        Ok(Response::new(()))
    }

    async fn pull(
        &self,
        request: Request<google::PullRequest>,
    ) -> Result<Response<wire::PullResponse>, Status> {
        let wait_limit = wait_limit(request.metadata());
        let received_messages = self.pull_messages(request.into_inner(), wait_limit).await?;
        Ok(Response::new(wire::PullResponse { received_messages }))
    }

    async fn streaming_pull(
        &self,
        request: Request<Streaming<wire::StreamingPullRequest>>,
    ) -> Result<Response<Deliveries>, Status> {
        let mut requests = request.into_inner();
        let first = tokio::select! {
            () = self.stop.cancelled() => return Err(stopping()),
            first = requests.message() => first?,
        };
        let Some(first) = first else {
            return Err(Status::invalid_argument("the stream ended before its first request"));
        };
        let subscription = self.inner.directory.subscription(&first.subscription)?;
        stream::open(subscription, first, requests, self.stop.clone()).map(Response::new)
    }

    async fn modify_push_config(
        &self,
        _: Request<google::ModifyPushConfigRequest>,
    ) -> Result<Response<()>, Status> {
        Err(unimplemented("ModifyPushConfig"))
    }

    async fn get_snapshot(
        &self,
        _: Request<google::GetSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(unimplemented("GetSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _: Request<google::ListSnapshotsRequest>,
    ) -> Result<Response<google::ListSnapshotsResponse>, Status> {
        Err(unimplemented("ListSnapshots"))
    }

    async fn create_snapshot(
        &self,
        _: Request<google::CreateSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(unimplemented("CreateSnapshot"))
    }

    async fn update_snapshot(
        &self,
        _: Request<google::UpdateSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(unimplemented("UpdateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<google::DeleteSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        Err(unimplemented("DeleteSnapshot"))
    }

    async fn seek(
        &self,
        _: Request<google::SeekRequest>,
    ) -> Result<Response<google::SeekResponse>, Status> {
        Err(unimplemented("Seek"))
    }
}

/// Parses ack ids. An invalid one is an error of the client; an outdated one is not.
pub(super) fn ack_ids(texts: &[String]) -> Result<Vec<AckId>, Status> {
    let ids = texts.iter().map(|text| text.parse());
    ids.collect::<Result<_, _>>()
        .map_err(|error: super::ack_id::AckIdError| Status::invalid_argument(error.to_string()))
}

pub(super) fn end_status(end: SubscriptionEnd, subscription: &str) -> Status {
    match end {
        SubscriptionEnd::Deleted => {
            Status::not_found(format!("Subscription does not exist (resource={subscription})"))
        }
        SubscriptionEnd::Detached => Status::failed_precondition(format!(
            "Subscription is detached from its topic (resource={subscription})"
        )),
    }
}

pub(super) fn stopping() -> Status {
    Status::unavailable("the emulator is stopping")
}

fn at_least_one(max_messages: i32) -> Result<usize, Status> {
    match usize::try_from(max_messages) {
        Ok(messages) if messages > 0 => Ok(messages),
        Ok(_) | Err(_) => Err(Status::invalid_argument(format!(
            "invalid number of messages (max_messages={max_messages}): expected 1 or more"
        ))),
    }
}

/// How long a pull may wait, by the deadline in the client's request.
fn wait_limit(metadata: &MetadataMap) -> Duration {
    let sent = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let Some(timeout) = sent.and_then(parse_timeout) else { return LONGEST_PULL };
    (timeout - DEADLINE_MARGIN.min(timeout / 10)).min(LONGEST_PULL)
}

/// Parses a timeout of gRPC: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
    let unit = match unit {
        'H' => Duration::from_secs(60 * 60),
        'M' => Duration::from_secs(60),
        'S' => Duration::from_secs(1),
        'm' => Duration::from_millis(1),
        'u' => Duration::from_micros(1),
        'n' => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_answers_before_the_deadline_of_the_client() {
        let wait_limit = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            super::wait_limit(&metadata)
        };
        assert_eq!(wait_limit("60S"), Duration::from_millis(59_500));
        assert_eq!(wait_limit("1000m"), Duration::from_millis(900));
        assert_eq!(wait_limit("3H"), LONGEST_PULL);
        assert_eq!(wait_limit("soon"), LONGEST_PULL);
        assert_eq!(super::wait_limit(&MetadataMap::new()), LONGEST_PULL);
    }
}
