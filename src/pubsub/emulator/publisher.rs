//! The service `Publisher`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use google_cloud_googleapis::pubsub::v1 as google;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Inner;
use super::memory::Reservation;
use super::rpc::publisher_server::Publisher;
use super::subscription::PublishedMessage;

/// Google's limits on a request and on a message.
mod limit {
    pub(super) const REQUEST_BYTES: usize = 10 * 1024 * 1024;
    pub(super) const DATA_BYTES: usize = 10_000_000;
    pub(super) const MESSAGES: usize = 1000;
    pub(super) const ATTRIBUTES: usize = 100;
    pub(super) const KEY_BYTES: usize = 256;
    pub(super) const VALUE_BYTES: usize = 1024;
    pub(super) const ORDERING_KEY_BYTES: usize = 1024;
}

/// The service, over an emulator's state.
pub(super) struct PublisherService(pub Arc<Inner>);

// === impl PublisherService ===

impl PublisherService {
    /// Publishes all messages of a request, or none.
    fn publish_all(&self, request: google::PublishRequest) -> Result<Vec<String>, Status> {
        let (topic, _) = self.0.directory.topic(&request.topic)?;
        check(&request)?;

        let mut messages = request.messages;
        let published = SystemTime::now();
        for message in &mut messages {
            message.message_id = self.0.next_message_id.fetch_add(1, Ordering::Relaxed).to_string();
            message.publish_time = Some(published.into());
        }
        let mut reservation = self.reserve(&messages)?;
        let ids = messages.iter().map(|message| message.message_id.clone()).collect();
        let now = Instant::now();
        let messages: Vec<_> =
            messages.into_iter().map(|message| store(message, &mut reservation, now)).collect();
        topic.publish(&messages);
        Ok(ids)
    }

    fn reserve(&self, messages: &[google::PubsubMessage]) -> Result<Reservation, Status> {
        let Inner { memory, directory, .. } = &*self.0;
        let lengths = || messages.iter().map(google::PubsubMessage::encoded_len);
        if let Some(reservation) = memory.reserve(lengths()) {
            return Ok(reservation);
        }
        // Messages past their retention are dropped only when their queue is used.
        directory.drop_expired();
        memory.reserve(lengths()).ok_or_else(|| {
            let (used, limit) = (memory.used(), memory.limit());
            Status::resource_exhausted(format!(
                "the emulator's limit of {limit} bytes is reached: {used} bytes of messages are not \
                 acked; ack messages, or delete a subscription that no client reads"
            ))
        })
    }
}

#[tonic::async_trait]
impl Publisher for PublisherService {
    async fn create_topic(
        &self,
        request: Request<google::Topic>,
    ) -> Result<Response<google::Topic>, Status> {
        self.0.directory.create_topic(request.into_inner()).map(Response::new)
    }

    async fn update_topic(
        &self,
        _: Request<google::UpdateTopicRequest>,
    ) -> Result<Response<google::Topic>, Status> {
        Err(super::unimplemented("UpdateTopic"))
    }

    async fn publish(
        &self,
        request: Request<google::PublishRequest>,
    ) -> Result<Response<google::PublishResponse>, Status> {
        let message_ids = self.publish_all(request.into_inner())?;
        Ok(Response::new(google::PublishResponse { message_ids }))
    }

    async fn get_topic(
        &self,
        request: Request<google::GetTopicRequest>,
    ) -> Result<Response<google::Topic>, Status> {
        self.0.directory.describe_topic(&request.get_ref().topic).map(Response::new)
    }

    async fn list_topics(
        &self,
        request: Request<google::ListTopicsRequest>,
    ) -> Result<Response<google::ListTopicsResponse>, Status> {
        let google::ListTopicsRequest { project, page_size, page_token } = request.into_inner();
        let page = self.0.directory.list_topics(&project, page_size, &page_token)?;
        Ok(Response::new(google::ListTopicsResponse {
            topics: page.items,
            next_page_token: page.next_token,
        }))
    }

    async fn list_topic_subscriptions(
        &self,
        request: Request<google::ListTopicSubscriptionsRequest>,
    ) -> Result<Response<google::ListTopicSubscriptionsResponse>, Status> {
        let google::ListTopicSubscriptionsRequest { topic, page_size, page_token } =
            request.into_inner();
        let page = self.0.directory.list_topic_subscriptions(&topic, page_size, &page_token)?;
        Ok(Response::new(google::ListTopicSubscriptionsResponse {
            subscriptions: page.items,
            next_page_token: page.next_token,
        }))
    }

    async fn list_topic_snapshots(
        &self,
        _: Request<google::ListTopicSnapshotsRequest>,
    ) -> Result<Response<google::ListTopicSnapshotsResponse>, Status> {
        Err(super::unimplemented("ListTopicSnapshots"))
    }

    async fn delete_topic(
        &self,
        request: Request<google::DeleteTopicRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.directory.delete_topic(&request.get_ref().topic).map(Response::new)
    }

    async fn detach_subscription(
        &self,
        request: Request<google::DetachSubscriptionRequest>,
    ) -> Result<Response<google::DetachSubscriptionResponse>, Status> {
        self.0.directory.detach_subscription(&request.get_ref().subscription)?;
        Ok(Response::new(google::DetachSubscriptionResponse {}))
    }
}

fn store(
    message: google::PubsubMessage,
    reservation: &mut Reservation,
    now: Instant,
) -> PublishedMessage {
    let encoded = message.encode_to_vec().into();
    let google::PubsubMessage { attributes, ordering_key, .. } = message;
    let ordering_key = (!ordering_key.is_empty()).then(|| ordering_key.into());
    PublishedMessage { message: reservation.store(encoded, ordering_key, now), attributes }
}

fn check(request: &google::PublishRequest) -> Result<(), Status> {
    let messages = &request.messages;
    if messages.is_empty() || messages.len() > limit::MESSAGES {
        return Err(Status::invalid_argument(format!(
            "a publish request must have 1 to {} messages, and has {}",
            limit::MESSAGES,
            messages.len()
        )));
    }
    if request.encoded_len() > limit::REQUEST_BYTES {
        return Err(Status::invalid_argument(format!(
            "request payload size exceeds the limit: {} bytes",
            limit::REQUEST_BYTES
        )));
    }
    if messages.iter().any(|message| message.ordering_key != messages[0].ordering_key) {
        return Err(Status::invalid_argument(
            "all messages of a publish request must have the same ordering key, or none",
        ));
    }
    messages.iter().enumerate().try_for_each(|(index, message)| {
        check_message(message).map_err(|reason| {
            Status::invalid_argument(format!("message {index} of the request is invalid: {reason}"))
        })
    })
}

fn check_message(message: &google::PubsubMessage) -> Result<(), String> {
    let google::PubsubMessage { data, attributes, ordering_key, .. } = message;
    if data.is_empty() && attributes.is_empty() {
        return Err("it has neither data nor attributes".to_owned());
    }
    check_limit("its data", data.len(), limit::DATA_BYTES, "bytes")?;
    check_limit("it", attributes.len(), limit::ATTRIBUTES, "attributes")?;
    check_limit("its ordering key", ordering_key.len(), limit::ORDERING_KEY_BYTES, "bytes")?;
    for (key, value) in attributes {
        if key.is_empty() {
            return Err("the key of an attribute is empty".to_owned());
        }
        check_limit("the key of an attribute", key.len(), limit::KEY_BYTES, "bytes")?;
        check_limit(&format!("its attribute `{key}`"), value.len(), limit::VALUE_BYTES, "bytes")?;
    }
    Ok(())
}

fn check_limit(subject: &str, count: usize, limit: usize, unit: &str) -> Result<(), String> {
    if count > limit {
        return Err(format!("{subject} has {count} {unit}, over the limit of {limit}"));
    }
    Ok(())
}
