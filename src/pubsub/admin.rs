//! Topics and subscriptions: made, looked for, deleted.

use crate::pubsub::{CallError, Connection};
use google_cloud_googleapis::pubsub::v1::publisher_client::PublisherClient;
use google_cloud_googleapis::pubsub::v1::subscriber_client::SubscriberClient;
use google_cloud_googleapis::pubsub::v1::{
    DeleteSubscriptionRequest, GetSubscriptionRequest, ListTopicsRequest, Subscription, Topic,
};
use tonic::Code;
use tonic::transport::Channel;

/// The ack deadline of the subscriptions that we make, in seconds. The client extends leases, so
/// it only matters where the daemon dies: its deliveries come back after so long. Ten is the
/// least that Pub/Sub takes.
const ACK_DEADLINE: i32 = 10;

/// Makes and looks for topics and subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    connection: Connection,
    topics: PublisherClient<Channel>,
    subscriptions: SubscriberClient<Channel>,
}

// === impl Admin ===

impl Admin {
    /// A client over a connection.
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            topics: PublisherClient::new(connection.channel.clone()),
            subscriptions: SubscriberClient::new(connection.channel.clone()),
        }
    }

    /// Makes sure that a topic exists.
    pub async fn ensure_topic(&self, topic: &str) -> Result<(), CallError> {
        let name = self.connection.topic(topic);
        let request = Topic { name: name.clone(), ..Topic::default() };
        let made = self.topics.clone().create_topic(request).await;
        self.made("create topic", &name, made)
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
        let name = self.connection.subscription(subscription);
        let request = Subscription {
            name: name.clone(),
            topic: self.connection.topic(topic),
            filter: filter.to_owned(),
            ack_deadline_seconds: ACK_DEADLINE,
            enable_message_ordering: true,
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
        self.ensure_topic(topic).await?;
        self.ensure_subscription(subscription, topic, "").await
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

    fn made<T>(
        &self,
        verb: &'static str,
        name: &str,
        made: Result<T, tonic::Status>,
    ) -> Result<(), CallError> {
        match made {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.connection.error(verb, name, status)),
        }
    }
}
