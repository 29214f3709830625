//! The service `Subscriber`.

use std::sync::Arc;
use std::time::Duration;

use google_cloud_googleapis::pubsub::v1 as google;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::Inner;
use super::ack_id::AckId;
use super::queue::{Puller, Want};
use super::rpc::subscriber_server::Subscriber;
use super::stream::{self, Deliveries};
use super::subscription::Gone;
use super::{not_yet, settings, wire};

/// How long a pull waits at most for a first message.
const LONGEST_PULL: Duration = Duration::from_secs(90);

/// How much of a client's own deadline is kept back, so that an empty answer comes before it.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// Google's limit on the messages of one pull.
const PULL_MESSAGES: usize = 1000;

/// Clients take messages of 4 MiB by default; one message may be larger by itself.
const PULL_BYTES: usize = 3_500_000;

/// The service, over an emulator's state.
pub(super) struct SubscriberService {
    pub inner: Arc<Inner>,
    /// Ends what would wait for ever, when the server stops.
    pub stop: CancellationToken,
}

// === impl SubscriberService ===

impl SubscriberService {
    async fn take(
        &self,
        request: google::PullRequest,
        patience: Duration,
    ) -> Result<Vec<wire::ReceivedMessage>, Status> {
        let subscription = self.inner.directory.subscription(&request.subscription)?;
        let want = Want {
            messages: at_least_one(request.max_messages)?.min(PULL_MESSAGES),
            bytes: PULL_BYTES,
            outstanding_messages: usize::MAX,
            outstanding_bytes: usize::MAX,
            lease: subscription.settings.ack_deadline,
        };
        #[expect(deprecated, reason = "clients still set it")]
        let at_once = request.return_immediately;
        let puller = Puller::new();
        let taken = if at_once {
            subscription.take(puller, &want)
        } else {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(stopping()),
                taken = subscription.wait(puller, &want) => taken,
                () = tokio::time::sleep(patience) => Ok(Vec::new()),
            }
        };
        taken.map_err(|gone| gone_status(gone, &request.subscription))
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
        Err(not_yet("UpdateSubscription"))
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
            next_page_token: page.next,
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
        extended.map_err(|gone| gone_status(gone, &request.subscription))?;
        Ok(Response::new(()))
    }

    async fn acknowledge(
        &self,
        request: Request<google::AcknowledgeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let subscription = self.inner.directory.subscription(&request.subscription)?;
        let acked = subscription.ack(&ack_ids(&request.ack_ids)?);
        acked.map_err(|gone| gone_status(gone, &request.subscription))?;
        Ok(Response::new(()))
    }

    async fn pull(
        &self,
        request: Request<google::PullRequest>,
    ) -> Result<Response<wire::PullResponse>, Status> {
        let patience = patience(request.metadata());
        let received_messages = self.take(request.into_inner(), patience).await?;
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
        Err(not_yet("ModifyPushConfig"))
    }

    async fn get_snapshot(
        &self,
        _: Request<google::GetSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(not_yet("GetSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _: Request<google::ListSnapshotsRequest>,
    ) -> Result<Response<google::ListSnapshotsResponse>, Status> {
        Err(not_yet("ListSnapshots"))
    }

    async fn create_snapshot(
        &self,
        _: Request<google::CreateSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(not_yet("CreateSnapshot"))
    }

    async fn update_snapshot(
        &self,
        _: Request<google::UpdateSnapshotRequest>,
    ) -> Result<Response<google::Snapshot>, Status> {
        Err(not_yet("UpdateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<google::DeleteSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        Err(not_yet("DeleteSnapshot"))
    }

    async fn seek(
        &self,
        _: Request<google::SeekRequest>,
    ) -> Result<Response<google::SeekResponse>, Status> {
        Err(not_yet("Seek"))
    }
}

/// Reads ack ids. One that is no ack id at all is the client's mistake; an old one is not.
pub(super) fn ack_ids(texts: &[String]) -> Result<Vec<AckId>, Status> {
    let read = texts.iter().map(|text| text.parse());
    read.collect::<Result<_, _>>()
        .map_err(|error: super::ack_id::AckIdError| Status::invalid_argument(error.to_string()))
}

pub(super) fn gone_status(gone: Gone, subscription: &str) -> Status {
    match gone {
        Gone::Deleted => {
            Status::not_found(format!("Subscription does not exist (resource={subscription})"))
        }
        Gone::Detached => Status::failed_precondition(format!(
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
            "invalid number of messages asked for (max_messages={max_messages}): expected 1 or more"
        ))),
    }
}

/// How long a pull may wait, by the deadline that the client sent along.
fn patience(metadata: &MetadataMap) -> Duration {
    let sent = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let Some(timeout) = sent.and_then(timeout) else { return LONGEST_PULL };
    (timeout - ANSWER_TIME.min(timeout / 10)).min(LONGEST_PULL)
}

/// Reads a time as gRPC writes it: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
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
    fn a_pull_answers_before_the_client_gives_up() {
        let patience = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            super::patience(&metadata)
        };
        assert_eq!(patience("60S"), Duration::from_millis(59_500));
        assert_eq!(patience("1000m"), Duration::from_millis(900));
        assert_eq!(patience("3H"), LONGEST_PULL);
        assert_eq!(patience("soon"), LONGEST_PULL);
        assert_eq!(super::patience(&MetadataMap::new()), LONGEST_PULL);
    }
}
