//! Unary pull, deadlines and redelivery.

use std::time::Duration;

use google_cloud_googleapis::pubsub::v1 as raw;
use tokio::time::Instant;

use super::world::{SOON, SUBSCRIPTION, TOPIC, World, pull_request, subscription, texts};

#[tokio::test]
async fn an_unacked_message_is_redelivered_after_its_deadline() {
    let mut world = World::new().await;
    world.subscribe().await;
    let ids = world.publish(&["acked", "left", "extended"]).await;
    let first = world.pull().await;
    world.ack(&first[..1]).await;
    world.extend(&first[2..], 60).await;
    let start = Instant::now();

    let again = world.pull().await;

    assert!(start.elapsed() >= Duration::from_secs(9), "not before its deadline");
    assert_eq!(texts(&again), ["left"]);
    assert_eq!(again[0].message.as_ref().unwrap().message_id, ids[1]);
    assert_ne!(again[0].ack_id, first[1].ack_id);
    world.ack(&first[1..2]).await;
    assert_ne!(world.emulator.memory_used(), 0, "an ack that came too late counts for nothing");
}

#[tokio::test]
async fn a_nacked_message_is_redelivered_at_once() {
    let mut world = World::new().await;
    let policy =
        raw::DeadLetterPolicy { dead_letter_topic: TOPIC.to_owned(), ..Default::default() };
    let settings = raw::Subscription { dead_letter_policy: Some(policy), ..subscription() };
    world.subscribe_with(settings).await;
    world.publish(&["a"]).await;

    for attempt in 1..4 {
        let pulled = world.pull_now().await;
        assert_eq!(texts(&pulled), ["a"]);
        assert_eq!(pulled[0].delivery_attempt, attempt);
        world.extend(&pulled, 0).await;
    }
}

#[tokio::test]
async fn a_retry_policy_delays_a_nacked_message() {
    let mut world = World::new().await;
    let second = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let policy = raw::RetryPolicy { minimum_backoff: second, maximum_backoff: second };
    let settings = raw::Subscription { retry_policy: Some(policy), ..subscription() };
    world.subscribe_with(settings).await;
    world.publish(&["a"]).await;
    let pulled = world.pull().await;
    assert_eq!(pulled[0].delivery_attempt, 0, "attempts are for dead letters");
    let start = Instant::now();
    world.extend(&pulled, 0).await;

    assert!(world.pull_now().await.is_empty());
    assert_eq!(texts(&world.pull().await), ["a"]);
    assert!(start.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn a_pull_waits_for_the_first_message() {
    let mut world = World::new().await;
    world.subscribe().await;
    let mut puller = world.subscriber.clone();

    let (pulled, _) = tokio::join!(puller.pull(pull_request()), world.publish(&["a"]));

    assert_eq!(texts(&pulled.unwrap().into_inner().received_messages), ["a"]);
}

#[tokio::test]
async fn an_empty_pull_answers_before_the_deadline_of_the_client() {
    let mut world = World::new().await;
    world.subscribe().await;
    let mut request = tonic::Request::new(pull_request());
    request.set_timeout(Duration::from_secs(1));

    let start = Instant::now();
    let pulled = world.subscriber.pull(request).await.unwrap();

    assert!(pulled.into_inner().received_messages.is_empty());
    assert!(start.elapsed() >= Duration::from_millis(800), "it does wait");
}

#[tokio::test]
async fn a_pull_receives_no_more_than_it_requested() {
    let mut world = World::new().await;
    world.subscribe().await;
    world.publish(&["a", "b", "c"]).await;

    let request = raw::PullRequest { max_messages: 2, ..pull_request() };
    let pulled = world.subscriber.pull(request).await.unwrap().into_inner();

    assert_eq!(texts(&pulled.received_messages), ["a", "b"]);
    assert_eq!(texts(&world.pull_now().await), ["c"]);
}

#[tokio::test]
async fn a_client_that_dies_while_it_waits_leases_no_message() {
    let mut world = World::new().await;
    world.subscribe().await;
    for _ in 0..20 {
        let mut puller = world.subscriber.clone();
        let gone = tokio::time::timeout(Duration::from_millis(10), puller.pull(pull_request()));
        assert!(gone.await.is_err(), "there is nothing to pull");
    }
    // On the same connection, so the emulator knows by now that those calls are gone.
    let request = raw::GetSubscriptionRequest { subscription: SUBSCRIPTION.to_owned() };
    world.subscriber.get_subscription(request).await.unwrap();

    world.publish(&["a"]).await;

    let pulled = tokio::time::timeout(SOON, world.pull()).await;
    assert_eq!(texts(&pulled.expect("nobody else has it")), ["a"]);
}
