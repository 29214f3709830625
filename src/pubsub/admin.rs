//! Topics and subscriptions: made, looked for, deleted.

use crate::pubsub::{CallError, Connection, Publishing, Subscribing};
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use google_cloud_googleapis::pubsub::v1::{
    DeleteSubscriptionRequest, ExpirationPolicy, GetSubscriptionRequest, GetTopicRequest,
    ListTopicsRequest, Subscription, Topic,
};
use std::time::Duration;
use tonic::Code;

/// How a subscription is to be, where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The name of its topic.
    pub topic: String,
    /// Which messages it gets; empty: all.
    pub filter: String,
    /// When what was not acked comes again. The client extends leases, so it only matters where the
    /// daemon dies.
    pub ack_deadline: Duration,
    /// How long it may go unused before Pub/Sub deletes it, at least a day; none: for ever.
    pub expires: Option<Duration>,
    /// For how long messages wait in it; none: Pub/Sub's own seven days. It must be shorter than
    /// the time after which it expires.
    pub retention: Option<Duration>,
}

/// Makes and looks for topics and subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    connection: Connection,
    topics: Publishing,
    subscriptions: Subscribing,
}

// === impl Wanted ===

impl Wanted {
    /// The least that Pub/Sub takes.
    const ACK_DEADLINE: Duration = Duration::from_secs(10);
    /// The least that Pub/Sub takes.
    const A_DAY: Duration = Duration::from_secs(24 * 3600);
    /// A replica that was away for so long is better started anew.
    const HALF_A_DAY: Duration = Duration::from_secs(12 * 3600);

    /// All of a topic, and for as long as Pub/Sub keeps a subscription by itself, 31 days.
    pub fn all_of(topic: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            topic: topic.to_owned(),
            filter: String::new(),
            ack_deadline: Self::ACK_DEADLINE,
            expires: Some(31 * Self::A_DAY),
            retention: None,
        }
    }

    /// All of a topic for one replica's view, which may die without a word: gone in a day.
    pub fn view_of(topic: &str, name: &str) -> Self {
        Self {
            expires: Some(Self::A_DAY),
            retention: Some(Self::HALF_A_DAY),
            ..Self::all_of(topic, name)
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

    /// Makes sure that a topic exists.
    pub async fn ensure_topic(&self, topic: &str) -> Result<(), CallError> {
        let name = self.connection.topic(topic);
        let request = Topic { name: name.clone(), ..Topic::default() };
        let made = self.topics.clone().create_topic(request).await;
        self.made("create topic", &name, made).map(drop)
    }

    /// Makes sure that an ordered subscription of a topic exists.
    ///
    /// One that exists is left as it is, whatever its filter.
    pub async fn ensure_subscription(
        &self,
        subscription: &str,
        topic: &str,
        filter: &str,
    ) -> Result<(), CallError> {
        let filter = filter.to_owned();
        let wanted = Wanted { filter, ..Wanted::all_of(topic, subscription) };
        self.subscribe(&wanted).await.map(drop)
    }

    /// Makes sure that a subscription exists; true where it did not. It keeps the order of messages
    /// of one key, and gets what is published from then on. One that exists is left as it is.
    pub async fn subscribe(&self, wanted: &Wanted) -> Result<bool, CallError> {
        let Wanted { name, topic, filter, ack_deadline, expires, retention } = wanted;
        let name = self.connection.subscription(name);
        let request = Subscription {
            name: name.clone(),
            topic: self.connection.topic(topic),
            filter: filter.clone(),
            ack_deadline_seconds: i32::try_from(ack_deadline.as_secs()).unwrap_or(i32::MAX),
            enable_message_ordering: true,
            // Without a time it never expires; without a policy Pub/Sub has its own.
            expiration_policy: Some(ExpirationPolicy { ttl: expires.map(duration) }),
            message_retention_duration: retention.map(duration),
            ..Subscription::default()
        };
        let made = self.subscriptions.clone().create_subscription(request).await;
        self.made("create subscription", &name, made)
    }

    /// Makes sure that a topic and a subscription to all of it exist.
    pub async fn ensure_subscribed(
        &self,
        subscription: &str,
        topic: &str,
    ) -> Result<(), CallError> {
        self.ensure(&Wanted::all_of(topic, subscription)).await.map(drop)
    }

    /// Makes sure that a subscription and its topic exist; true where the subscription did not.
    ///
    /// Asks for no right that it does not need: a topic is made only where it is missing, and a
    /// subscription that is there will do for who may not make one.
    pub async fn ensure(&self, wanted: &Wanted) -> Result<bool, CallError> {
        match self.subscribe(wanted).await {
            Err(error) if error.is_not_found() => {
                self.ensure_topic(&wanted.topic).await?;
                self.subscribe(wanted).await
            }
            Err(error) if error.is_denied() => match self.has_subscription(&wanted.name).await {
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

    /// Whether a subscription exists. One whose name Pub/Sub does not take cannot.
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

    /// Deletes a subscription; one that is gone is success.
    pub async fn delete_subscription(&self, subscription: &str) -> Result<(), CallError> {
        let name = self.connection.subscription(subscription);
        let request = DeleteSubscriptionRequest { subscription: name.clone() };
        match self.subscriptions.clone().delete_subscription(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.connection.error("delete subscription", &name, status)),
        }
    }

    /// Succeeds if Pub/Sub answers at all.
    pub async fn check(&self) -> Result<(), CallError> {
        let project = format!("projects/{}", self.connection.project);
        let request =
            ListTopicsRequest { project: project.clone(), page_size: 1, ..Default::default() };
        match self.topics.clone().list_topics(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.connection.error("list topics of", &project, status)),
        }
    }

    /// Whether it was not there.
    fn made<T>(
        &self,
        verb: &'static str,
        name: &str,
        made: Result<T, tonic::Status>,
    ) -> Result<bool, CallError> {
        match made {
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
