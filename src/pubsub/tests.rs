use super::*;
use crate::pubsub::emulator::Emulator;
use google_cloud_googleapis::pubsub::v1::{GetSubscriptionRequest, Subscription};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[test]
fn an_address_without_a_host_and_an_endpoint_without_tls_are_refused() {
    let error = Connection::emulator("not an address", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`not an address` is no address of a Pub/Sub emulator: expected HOST:PORT"
    );
    let error = Connection::google_at("http://localhost:8085", "a-project").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`http://localhost:8085` is no endpoint of Google's Pub/Sub: expected https://HOST"
    );
}

#[tokio::test]
async fn a_views_subscription_keeps_the_order_and_is_gone_in_a_day() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    assert!(admin.subscribe(&Wanted::view_of("a-topic", "a-view")).await.unwrap());

    let made = found(&connection, "a-view").await;
    assert!(made.enable_message_ordering);
    assert_eq!(made.ack_deadline_seconds, 10);
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap().seconds;
    assert_eq!(seconds(made.expiration_policy.unwrap().ttl), 86_400);
    assert_eq!(seconds(made.message_retention_duration), 43_200);
    assert!(!admin.subscribe(&Wanted::view_of("a-topic", "a-view")).await.unwrap(), "it is there");
    admin.delete_subscription("a-view").await.unwrap();
    admin.delete_subscription("a-view").await.unwrap();
    assert!(!admin.has_subscription("a-view").await.unwrap());
}

#[tokio::test]
async fn the_shared_subscription_keeps_the_order() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    assert!(!admin.has_topic("a-topic").await.unwrap());

    admin.ensure_subscribed("shared", "a-topic").await.unwrap();

    assert!(admin.has_topic("a-topic").await.unwrap());
    admin.ensure_subscribed("shared", "a-topic").await.unwrap();

    let made = found(&connection, "shared").await;
    assert!(made.enable_message_ordering);
    assert_eq!(made.expiration_policy.unwrap().ttl.unwrap().seconds, 31 * 86_400);
}

#[tokio::test]
async fn a_subscription_that_never_expires_can_be_had() {
    let (connection, _server) = emulated().await;
    let admin = Admin::new(&connection);
    admin.ensure_topic("a-topic").await.unwrap();

    let wanted = Wanted { expires: None, ..Wanted::all_of("a-topic", "for-ever") };
    admin.subscribe(&wanted).await.unwrap();

    assert_eq!(found(&connection, "for-ever").await.expiration_policy.unwrap().ttl, None);
}

async fn found(connection: &Connection, name: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription: connection.subscription(name) };
    Subscribing::new(connection.transport()).get_subscription(request).await.unwrap().into_inner()
}

/// An emulator, and a connection to it.
async fn emulated() -> (Connection, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let emulator = Emulator::new(emulator::Options::default());
        emulator.serve(listener, std::future::pending()).await.unwrap();
    });
    (Connection::emulator(&address, "a-project").unwrap(), server)
}
