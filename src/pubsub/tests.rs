use super::*;
use crate::pubsub::emulator::Emulator;
use google_cloud_googleapis::pubsub::v1::{GetSubscriptionRequest, Subscription};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[test]
fn an_invalid_address_and_an_endpoint_without_tls_are_refused() {
    let error = Connection::emulator("not an address", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid address of a Pub/Sub emulator `not an address`: expected HOST:PORT"
    );
    let error = Connection::google_at("http://localhost:8085", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid endpoint of Google's Pub/Sub `http://localhost:8085`: expected https://HOST"
    );
}

#[tokio::test]
async fn the_subscription_of_a_view_is_ordered_and_expires_in_a_day() {
    let (connection, _server) = emulator_connection().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    assert!(admin.subscribe(&SubscriptionSpec::for_view("a-topic", "a-view")).await.unwrap());

    let created = get_subscription(&connection, "a-view").await;
    assert!(created.enable_message_ordering);
    assert_eq!(created.ack_deadline_seconds, 10);
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap().seconds;
    assert_eq!(seconds(created.expiration_policy.unwrap().ttl), 86_400);
    assert_eq!(seconds(created.message_retention_duration), 43_200);
    assert!(
        !admin.subscribe(&SubscriptionSpec::for_view("a-topic", "a-view")).await.unwrap(),
        "it exists"
    );
    admin.delete_subscription("a-view").await.unwrap();
    admin.delete_subscription("a-view").await.unwrap();
    assert!(!admin.has_subscription("a-view").await.unwrap());
}

#[tokio::test]
async fn the_shared_subscription_is_ordered() {
    let (connection, _server) = emulator_connection().await;
    let admin = Admin::new(&connection);
    assert!(!admin.has_topic("a-topic").await.unwrap());

    admin.ensure_topic_and_subscription("a-topic", "shared").await.unwrap();

    assert!(admin.has_topic("a-topic").await.unwrap());
    admin.ensure_topic_and_subscription("a-topic", "shared").await.unwrap();

    let created = get_subscription(&connection, "shared").await;
    assert!(created.enable_message_ordering);
    assert_eq!(created.expiration_policy.unwrap().ttl.unwrap().seconds, 31 * 86_400);
}

#[tokio::test]
async fn a_subscription_can_be_created_that_never_expires() {
    let (connection, _server) = emulator_connection().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    let spec =
        SubscriptionSpec { expires: None, ..SubscriptionSpec::all_messages("a-topic", "endless") };
    admin.subscribe(&spec).await.unwrap();

    assert_eq!(get_subscription(&connection, "endless").await.expiration_policy.unwrap().ttl, None);
}

async fn get_subscription(connection: &Connection, name: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription: connection.subscription(name) };
    GrpcSubscriber::new(connection.transport())
        .get_subscription(request)
        .await
        .unwrap()
        .into_inner()
}

/// Starts an emulator, and returns a connection to it.
async fn emulator_connection() -> (Connection, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let emulator = Emulator::new(emulator::EmulatorOptions::default());
        emulator.serve(listener, std::future::pending()).await.unwrap();
    });
    (Connection::emulator(&address, "a-project").unwrap(), server)
}
