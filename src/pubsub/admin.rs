//! Creates, finds and deletes topics and subscriptions.

use crate::pubsub::{CallError, Connection, GrpcPublisher, GrpcSubscriber};
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use google_cloud_googleapis::pubsub::v1::{
    DeleteSubscriptionRequest, ExpirationPolicy, GetSubscriptionRequest, GetTopicRequest,
    ListTopicsRequest, Subscription, Topic,
};
use std::time::Duration;
use tonic::Code;

/// A subscription to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSpec {
    /// Its name.
    pub name: String,
    /// The name of its topic.
    pub topic: String,
    /// The filter of its messages; all messages if it is empty.
    pub filter: String,
    /// The time after which an unacknowledged message is redelivered. The client extends leases, so
    /// it matters only if the daemon dies.
    pub ack_deadline: Duration,
    /// The time without use after which Pub/Sub deletes it, at least a day. `None`: never.
    pub expires: Option<Duration>,
    /// How long it keeps messages; must be shorter than `expires`. `None`: Pub/Sub's default, seven
    /// days.
    pub retention: Option<Duration>,
}

/// Manages topics and subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    connection: Connection,
    topics: GrpcPublisher,
    subscriptions: GrpcSubscriber,
}

// === impl SubscriptionSpec ===

impl SubscriptionSpec {
    /// The minimum of Pub/Sub.
    const ACK_DEADLINE: Duration = Duration::from_secs(10);
    /// The minimum of Pub/Sub for expiration.
    const A_DAY: Duration = Duration::from_secs(24 * 3600);
    /// A replica that was away for longer is better started again.
    const HALF_A_DAY: Duration = Duration::from_secs(12 * 3600);

    /// All messages of a topic. It expires after Pub/Sub's default, 31 days.
    pub fn all_messages(topic: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            topic: topic.to_owned(),
            filter: String::new(),
            ack_deadline: Self::ACK_DEADLINE,
            expires: Some(31 * Self::A_DAY),
            retention: None,
        }
    }

    /// All messages of a topic, for the view of one replica. It expires in a day, because a replica
    /// that is killed cannot delete it.
    pub fn for_view(topic: &str, name: &str) -> Self {
        Self {
            expires: Some(Self::A_DAY),
            retention: Some(Self::HALF_A_DAY),
            ..Self::all_messages(topic, name)
        }
    }
}

// === impl Admin ===

impl Admin {
    /// A client over a connection.
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            topics: PublisherClient::new(connection.transport()),
            subscriptions: SubscriberClient::new(connection.transport()),
        }
    }

    /// Creates a topic if it does not exist.
    pub async fn ensure_topic(&self, topic: &str) -> Result<(), CallError> {
        let name = self.connection.topic(topic);
        let request = Topic { name: name.clone(), ..Topic::default() };
        let result = self.topics.clone().create_topic(request).await;
        self.created("create topic", &name, result).map(drop)
    }

    /// Creates a subscription if none of its name exists. One that exists is left as it is,
    /// whatever its filter.
    pub async fn ensure_subscription(
        &self,
        subscription: &str,
        topic: &str,
        filter: &str,
    ) -> Result<(), CallError> {
        let filter = filter.to_owned();
        let spec =
            SubscriptionSpec { filter, ..SubscriptionSpec::all_messages(topic, subscription) };
        self.subscribe(&spec).await.map(drop)
    }

    /// Creates a subscription if none of its name exists, and returns whether it did. It keeps the
    /// order of messages with one key, and receives what is published from then on. One that exists
    /// is left as it is.
    pub async fn subscribe(&self, spec: &SubscriptionSpec) -> Result<bool, CallError> {
        let SubscriptionSpec { name, topic, filter, ack_deadline, expires, retention } = spec;
        let name = self.connection.subscription(name);
        let request = Subscription {
            name: name.clone(),
            topic: self.connection.topic(topic),
            filter: filter.clone(),
            ack_deadline_seconds: i32::try_from(ack_deadline.as_secs()).unwrap_or(i32::MAX),
            enable_message_ordering: true,
            // A policy without a time means never; no policy means the default of Pub/Sub.
            expiration_policy: Some(ExpirationPolicy { ttl: expires.map(duration) }),
            message_retention_duration: retention.map(duration),
            ..Subscription::default()
        };
        let result = self.subscriptions.clone().create_subscription(request).await;
        self.created("create subscription", &name, result)
    }

    /// Creates a topic and a subscription to all its messages, unless they exist.
    pub async fn ensure_topic_and_subscription(
        &self,
        topic: &str,
        subscription: &str,
    ) -> Result<(), CallError> {
        let spec = SubscriptionSpec::all_messages(topic, subscription);
        self.subscribe_with_topic(&spec).await.map(drop)
    }

    /// Creates a subscription and its topic, unless they exist, and returns whether it created the
    /// subscription.
    ///
    /// Needs no more rights than necessary: it creates the topic only if it is missing, and an
    /// existing subscription suffices without the right to create one.
    pub async fn subscribe_with_topic(&self, spec: &SubscriptionSpec) -> Result<bool, CallError> {
        match self.subscribe(spec).await {
            Err(error) if error.is_not_found() => {
                self.ensure_topic(&spec.topic).await?;
                self.subscribe(spec).await
            }
            Err(error) if error.is_denied() => match self.has_subscription(&spec.name).await {
                Ok(true) => Ok(false),
                Ok(false) | Err(_) => Err(error),
            },
            subscribed => subscribed,
        }
    }

    /// Whether a topic exists.
    pub async fn has_topic(&self, topic: &str) -> Result<bool, CallError> {
        let name = self.connection.topic(topic);
        let request = GetTopicRequest { topic: name.clone() };
        match self.topics.clone().get_topic(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.connection.error("get topic", &name, status)),
        }
    }

    /// Whether a subscription exists. One with an invalid name cannot.
    pub async fn has_subscription(&self, subscription: &str) -> Result<bool, CallError> {
        let name = self.connection.subscription(subscription);
        let request = GetSubscriptionRequest { subscription: name.clone() };
        match self.subscriptions.clone().get_subscription(request).await {
            Ok(_) => Ok(true),
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
                Ok(false)
            }
            Err(status) => Err(self.connection.error("get subscription", &name, status)),
        }
    }

    /// Deletes a subscription. Succeeds if it does not exist.
    pub async fn delete_subscription(&self, subscription: &str) -> Result<(), CallError> {
        let name = self.connection.subscription(subscription);
        let request = DeleteSubscriptionRequest { subscription: name.clone() };
        match self.subscriptions.clone().delete_subscription(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.connection.error("delete subscription", &name, status)),
        }
    }

    /// Succeeds if Pub/Sub answers.
    pub async fn check(&self) -> Result<(), CallError> {
        let project = format!("projects/{}", self.connection.project);
        let request =
            ListTopicsRequest { project: project.clone(), page_size: 1, ..Default::default() };
        match self.topics.clone().list_topics(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.connection.error("list topics of", &project, status)),
        }
    }

    /// Whether a call created something that did not exist before.
    fn created<T>(
        &self,
        verb: &'static str,
        name: &str,
        result: Result<T, tonic::Status>,
    ) -> Result<bool, CallError> {
        match result {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.connection.error(verb, name, status)),
        }
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
