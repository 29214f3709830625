//! An emulator on a port of its own, and clients of it.

use std::collections::HashMap;
use std::time::Duration;

use google_cloud_auth::credentials::anonymous;
use google_cloud_googleapis::pubsub::v1 as raw;
use google_cloud_pubsub::client::{Publisher, Subscriber};
use google_cloud_pubsub::model::Message;
use google_cloud_pubsub::subscriber::MessageStream;
use google_cloud_pubsub::subscriber::handler::Handler;
use raw::publisher_client::PublisherClient;
use raw::subscriber_client::SubscriberClient;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use twined::pubsub::emulator::{Emulator, EmulatorOptions};

pub(super) const TOPIC: &str = "projects/test/topics/letters";
pub(super) const SUBSCRIPTION: &str = "projects/test/subscriptions/reader";

/// Longer than any step takes, and shorter than a lease, which is ten seconds.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// A running emulator with the topic [`TOPIC`].
pub(super) struct World {
    pub emulator: Emulator,
    pub endpoint: String,
    pub stop: CancellationToken,
    pub server: JoinSet<()>,
    pub publisher: PublisherClient<Channel>,
    pub subscriber: SubscriberClient<Channel>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(EmulatorOptions::default()).await
    }

    pub(super) async fn with(options: EmulatorOptions) -> Self {
        let emulator = Emulator::new(options);
        emulator.ensure_topic(TOPIC).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        let (serving, stopped) = (emulator.clone(), stop.clone());
        server.spawn(async move {
            serving.serve(listener, stopped.cancelled()).await.unwrap();
        });
        let publisher = PublisherClient::connect(endpoint.clone()).await.unwrap();
        let subscriber = SubscriberClient::connect(endpoint.clone()).await.unwrap();
        Self { emulator, endpoint, stop, server, publisher, subscriber }
    }

    // Google's client.

    pub(super) async fn google_publisher(&self) -> Publisher {
        let credentials = anonymous::Builder::new().build();
        let builder = Publisher::builder(TOPIC).with_endpoint(&self.endpoint);
        builder.with_credentials(credentials).build().await.unwrap()
    }

    pub(super) async fn google_subscriber(&self) -> Subscriber {
        let credentials = anonymous::Builder::new().build();
        let builder = Subscriber::builder().with_endpoint(&self.endpoint);
        builder.with_credentials(credentials).build().await.unwrap()
    }

    pub(super) async fn stream(&self) -> MessageStream {
        self.google_subscriber().await.subscribe(SUBSCRIPTION).build()
    }

    // The generated client.

    /// Creates [`SUBSCRIPTION`] with default settings.
    pub(super) async fn subscribe(&mut self) {
        self.subscribe_with(subscription()).await;
    }

    pub(super) async fn subscribe_with(&mut self, settings: raw::Subscription) {
        self.subscriber.create_subscription(settings).await.unwrap();
    }

    pub(super) async fn publish(&mut self, texts: &[&str]) -> Vec<String> {
        self.publish_with("", texts).await
    }

    pub(super) async fn publish_with(&mut self, ordering_key: &str, texts: &[&str]) -> Vec<String> {
        let messages = texts.iter().map(|text| message(text, ordering_key)).collect();
        self.publish_all(messages).await.unwrap()
    }

    pub(super) async fn publish_all(
        &mut self,
        messages: Vec<raw::PubsubMessage>,
    ) -> Result<Vec<String>, tonic::Status> {
        let request = raw::PublishRequest { topic: TOPIC.to_owned(), messages };
        let response = self.publisher.publish(request).await?;
        Ok(response.into_inner().message_ids)
    }

    /// Pulls the messages that are available now.
    pub(super) async fn pull_now(&mut self) -> Vec<raw::ReceivedMessage> {
        let mut request = pull_request();
        #[expect(deprecated, reason = "no other request returns at once")]
        {
            request.return_immediately = true;
        }
        self.subscriber.pull(request).await.unwrap().into_inner().received_messages
    }

    /// Pulls, and waits for a message.
    pub(super) async fn pull(&mut self) -> Vec<raw::ReceivedMessage> {
        let response = self.subscriber.pull(pull_request()).await.unwrap();
        response.into_inner().received_messages
    }

    pub(super) async fn ack(&mut self, messages: &[raw::ReceivedMessage]) {
        let request = raw::AcknowledgeRequest {
            subscription: SUBSCRIPTION.to_owned(),
            ack_ids: ack_ids(messages),
        };
        self.subscriber.acknowledge(request).await.unwrap();
    }

    pub(super) async fn extend(
        &mut self,
        messages: &[raw::ReceivedMessage],
        ack_deadline_seconds: i32,
    ) {
        let request = raw::ModifyAckDeadlineRequest {
            subscription: SUBSCRIPTION.to_owned(),
            ack_ids: ack_ids(messages),
            ack_deadline_seconds,
        };
        self.subscriber.modify_ack_deadline(request).await.unwrap();
    }
}

/// [`SUBSCRIPTION`] with default settings.
pub(super) fn subscription() -> raw::Subscription {
    raw::Subscription {
        name: SUBSCRIPTION.to_owned(),
        topic: TOPIC.to_owned(),
        ..raw::Subscription::default()
    }
}

/// [`SUBSCRIPTION`] with message ordering.
pub(super) fn ordered() -> raw::Subscription {
    raw::Subscription { enable_message_ordering: true, ..subscription() }
}

pub(super) fn pull_request() -> raw::PullRequest {
    raw::PullRequest {
        subscription: SUBSCRIPTION.to_owned(),
        max_messages: 100,
        ..raw::PullRequest::default()
    }
}

pub(super) fn message(text: &str, ordering_key: &str) -> raw::PubsubMessage {
    raw::PubsubMessage {
        data: text.as_bytes().to_vec(),
        ordering_key: ordering_key.to_owned(),
        ..raw::PubsubMessage::default()
    }
}

pub(super) fn attributes(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub(super) fn ack_ids(messages: &[raw::ReceivedMessage]) -> Vec<String> {
    messages.iter().map(|message| message.ack_id.clone()).collect()
}

pub(super) fn texts(messages: &[raw::ReceivedMessage]) -> Vec<String> {
    let data = messages.iter().map(|received| received.message.clone().unwrap().data);
    data.map(|data| String::from_utf8(data).unwrap()).collect()
}

/// The next message of a stream, which must come soon.
pub(super) async fn next(stream: &mut MessageStream) -> (String, Handler) {
    let (message, handler) = next_message(stream).await;
    (String::from_utf8(message.data.to_vec()).unwrap(), handler)
}

pub(super) async fn next_message(stream: &mut MessageStream) -> (Message, Handler) {
    let next = tokio::time::timeout(SOON, stream.next()).await;
    next.expect("a message comes soon").expect("the stream is open").unwrap()
}
