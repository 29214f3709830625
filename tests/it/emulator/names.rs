//! Topics and subscriptions: created, listed, deleted; in one project or in several.

use google_cloud_googleapis::pubsub::v1 as raw;
use tonic::{Code, Status};
use twined::pubsub::emulator::EmulatorOptions;

use super::world::{SUBSCRIPTION, TOPIC, World, pull_request, subscription, texts};

impl World {
    async fn described(&mut self, name: &str) -> raw::Subscription {
        let request = raw::GetSubscriptionRequest { subscription: name.to_owned() };
        self.subscriber.get_subscription(request).await.unwrap().into_inner()
    }

    async fn topic(&mut self, name: &str) -> Result<raw::Topic, Status> {
        let request = raw::GetTopicRequest { topic: name.to_owned() };
        self.publisher.get_topic(request).await.map(tonic::Response::into_inner)
    }

    /// The names of a project's topics.
    async fn topic_names(&mut self, project: &str) -> Vec<String> {
        let request = raw::ListTopicsRequest { project: project.to_owned(), ..Default::default() };
        let listed = self.publisher.list_topics(request).await.unwrap().into_inner();
        listed.topics.into_iter().map(|topic| topic.name).collect()
    }

    /// One page of a topic's subscriptions, and the token of the next.
    async fn page(&mut self, topic: &str, page_size: i32, token: &str) -> (Vec<String>, String) {
        let request = raw::ListTopicSubscriptionsRequest {
            topic: topic.to_owned(),
            page_size,
            page_token: token.to_owned(),
        };
        let listed = self.publisher.list_topic_subscriptions(request).await.unwrap().into_inner();
        (listed.subscriptions, listed.next_page_token)
    }
}

#[tokio::test]
async fn topics_and_subscriptions_can_be_created_read_listed_and_deleted() {
    let mut world = World::new().await;
    let name = |number: i32| format!("projects/test/subscriptions/reader-{number}");
    for number in 1..=5 {
        world.subscribe_with(raw::Subscription { name: name(number), ..subscription() }).await;
    }

    let (first, token) = world.page(TOPIC, 2, "").await;
    let (second, token) = world.page(TOPIC, 2, &token).await;
    let (third, end) = world.page(TOPIC, 2, &token).await;
    assert_eq!(first, [name(1), name(2)]);
    assert_eq!(second, [name(3), name(4)]);
    assert_eq!((third, &*end), (vec![name(5)], ""));

    let request = |page_token: &str| raw::ListSubscriptionsRequest {
        project: "projects/test".to_owned(),
        page_size: 3,
        page_token: page_token.to_owned(),
    };
    let first = world.subscriber.list_subscriptions(request("")).await.unwrap().into_inner();
    let next = request(&first.next_page_token);
    let last = world.subscriber.list_subscriptions(next).await.unwrap().into_inner();
    assert_eq!((first.subscriptions.len(), last.subscriptions.len()), (3, 2));
    assert_eq!(last.next_page_token, "");

    let request = raw::DeleteSubscriptionRequest { subscription: name(1) };
    world.subscriber.delete_subscription(request).await.unwrap();
    assert!(!world.emulator.has_subscription(&name(1)));
    assert_eq!(world.page(TOPIC, 0, "").await.0.len(), 4);
}

#[tokio::test]
async fn settings_are_returned_with_googles_defaults() {
    let mut world = World::new().await;
    world.subscribe().await;

    let found = world.described(SUBSCRIPTION).await;

    assert_eq!(found.ack_deadline_seconds, 10);
    assert_eq!(found.message_retention_duration.unwrap().seconds, 7 * 24 * 3600);
    assert_eq!(found.expiration_policy.unwrap().ttl.unwrap().seconds, 31 * 24 * 3600);
    assert_eq!(found.retry_policy, None);
    assert_eq!((&*found.name, &*found.topic), (SUBSCRIPTION, TOPIC));
}

#[tokio::test]
async fn the_subscriptions_of_a_deleted_topic_keep_their_messages() {
    let mut world = World::new().await;
    world.subscribe().await;
    world.publish(&["a"]).await;

    let request = raw::DeleteTopicRequest { topic: TOPIC.to_owned() };
    world.publisher.delete_topic(request).await.unwrap();

    assert_eq!(world.described(SUBSCRIPTION).await.topic, "_deleted-topic_");
    assert_eq!(texts(&world.pull_now().await), ["a"]);
}

#[tokio::test]
async fn one_project_has_every_project_id() {
    let options =
        EmulatorOptions { project: Some("laptop".to_owned()), ..EmulatorOptions::default() };
    let mut world = World::with(options).await;
    let elsewhere = "projects/cloud/topics/letters";
    assert_eq!(world.topic(elsewhere).await.unwrap().name, elsewhere, "as it was asked for");

    let reader = "projects/another/subscriptions/reader";
    let settings = raw::Subscription {
        name: reader.to_owned(),
        topic: elsewhere.to_owned(),
        ..raw::Subscription::default()
    };
    let created = world.subscriber.create_subscription(settings).await.unwrap().into_inner();
    assert_eq!((&*created.name, &*created.topic), (reader, elsewhere));

    assert!(world.emulator.has_subscription(SUBSCRIPTION));
    let found = world.described(SUBSCRIPTION).await;
    assert_eq!((&*found.name, &*found.topic), (SUBSCRIPTION, TOPIC));
    world.publish(&["a"]).await;
    assert_eq!(texts(&world.pull_now().await), ["a"]);
    let (listed, _) = world.page(elsewhere, 0, "").await;
    assert_eq!(listed, ["projects/cloud/subscriptions/reader"]);
    assert_eq!(world.topic_names("projects/x").await, ["projects/x/topics/letters"]);
}

#[tokio::test]
async fn projects_are_separate_by_default() {
    let mut world = World::new().await;
    let elsewhere = world.topic("projects/cloud/topics/letters").await;
    assert_eq!(elsewhere.unwrap_err().code(), Code::NotFound);
    assert!(world.topic_names("projects/cloud").await.is_empty());
    assert_eq!(world.topic_names("projects/test").await, [TOPIC]);
}

#[tokio::test]
async fn a_detached_subscription_neither_receives_nor_delivers() {
    let mut world = World::new().await;
    world.subscribe().await;
    world.publish(&["a"]).await;

    let request = raw::DetachSubscriptionRequest { subscription: SUBSCRIPTION.to_owned() };
    world.publisher.detach_subscription(request).await.unwrap();

    assert_eq!(world.emulator.memory_used(), 0);
    let status = world.subscriber.pull(pull_request()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(world.described(SUBSCRIPTION).await.detached);
}
