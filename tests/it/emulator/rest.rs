//! Google's clients for administration, which use JSON over HTTP.

use google_cloud_auth::credentials::anonymous;
use google_cloud_pubsub::Error;
use google_cloud_pubsub::client::{SubscriptionAdmin, TopicAdmin};

use super::world::{SUBSCRIPTION, TOPIC, World, texts};

async fn topics(world: &World) -> TopicAdmin {
    let builder = TopicAdmin::builder().with_endpoint(&world.endpoint);
    builder.with_credentials(anonymous::Builder::new().build()).build().await.unwrap()
}

async fn subscriptions(world: &World) -> SubscriptionAdmin {
    let builder = SubscriptionAdmin::builder().with_endpoint(&world.endpoint);
    builder.with_credentials(anonymous::Builder::new().build()).build().await.unwrap()
}

#[track_caller]
fn assert_refused(error: &Error, code: &str, text: &str) {
    let status = error.status().expect("the emulator refuses it");
    assert_eq!(status.code.name(), code, "{status:?}");
    assert!(status.message.contains(text), "{status:?}");
}

#[tokio::test]
async fn topics_can_be_created_read_listed_and_deleted() {
    let world = World::new().await;
    let topics = topics(&world).await;
    let name = "projects/test/topics/bills.~+_-1";

    let create = topics.create_topic().set_name(name).set_labels([("colour", "red")]);
    let created = create.clone().send().await.unwrap();

    assert_eq!(created.name, name);
    assert_eq!(created.labels["colour"], "red");
    assert_refused(&create.send().await.unwrap_err(), "ALREADY_EXISTS", name);
    assert_eq!(topics.get_topic().set_topic(name).send().await.unwrap(), created);
    let list = topics.list_topics().set_project("projects/test").set_page_size(1);
    let first = list.clone().send().await.unwrap();
    assert_eq!(first.topics, [created]);
    let second = list.set_page_token(first.next_page_token).send().await.unwrap();
    assert_eq!(second.topics[0].name, TOPIC);
    assert_eq!(second.next_page_token, "");

    topics.delete_topic().set_topic(name).send().await.unwrap();
    let gone = topics.get_topic().set_topic(name).send().await.unwrap_err();
    assert_refused(&gone, "NOT_FOUND", "Topic does not exist");
}

#[tokio::test]
async fn subscriptions_can_be_created_read_listed_and_deleted() {
    let mut world = World::new().await;
    let (topics, subscriptions) = (topics(&world).await, subscriptions(&world).await);
    let create = subscriptions.create_subscription().set_name(SUBSCRIPTION).set_topic(TOPIC);

    let create = create.set_filter("attributes:a OR NOT attributes:a").set_ack_deadline_seconds(20);
    let created = create.set_enable_message_ordering(true).send().await.unwrap();

    assert_eq!((&*created.name, &*created.topic), (SUBSCRIPTION, TOPIC));
    assert_eq!(created.ack_deadline_seconds, 20);
    assert!(created.enable_message_ordering);
    let retention = created.message_retention_duration.unwrap();
    assert_eq!(retention.seconds(), 7 * 24 * 3600);
    let get = subscriptions.get_subscription().set_subscription(SUBSCRIPTION);
    assert_eq!(get.send().await.unwrap(), created);
    let listed = topics.list_topic_subscriptions().set_topic(TOPIC).send().await.unwrap();
    assert_eq!(listed.subscriptions, [SUBSCRIPTION]);
    let list = subscriptions.list_subscriptions().set_project("projects/test");
    assert_eq!(list.send().await.unwrap().subscriptions, [created]);
    world.publish(&["a"]).await;
    assert_eq!(texts(&world.pull_now().await), ["a"]);

    let again = subscriptions.create_subscription().set_name("projects/test/subscriptions/again");
    let again = again.set_topic(TOPIC).set_message_retention_duration(retention);
    assert_eq!(again.send().await.unwrap().message_retention_duration, Some(retention));

    let delete = subscriptions.delete_subscription().set_subscription(SUBSCRIPTION);
    delete.send().await.unwrap();
    assert!(!world.emulator.has_subscription(SUBSCRIPTION));
}

#[tokio::test]
async fn errors_have_googles_codes() {
    let world = World::new().await;
    let subscriptions = subscriptions(&world).await;
    let create = || subscriptions.create_subscription().set_name(SUBSCRIPTION).set_topic(TOPIC);

    let error = create().set_filter("attributes").send().await.unwrap_err();
    assert_refused(&error, "INVALID_ARGUMENT", "expected `:` or `.`");
    let error = create().set_ack_deadline_seconds(5).send().await.unwrap_err();
    assert_refused(&error, "INVALID_ARGUMENT", "10 to 600");
    let error = create().set_enable_exactly_once_delivery(true).send().await.unwrap_err();
    assert_refused(&error, "UNIMPLEMENTED", "enable_exactly_once_delivery");
    let snapshots = subscriptions.list_snapshots().set_project("projects/test");
    assert_refused(&snapshots.send().await.unwrap_err(), "UNIMPLEMENTED", "gRPC");
}
