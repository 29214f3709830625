//! The server: its memory limit, and its shutdown.

use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use google_cloud_googleapis::pubsub::v1 as raw;
use tonic::Code;
use twined::pubsub::emulator::EmulatorOptions;

use super::world::{SOON, SUBSCRIPTION, World, message, pull_request};

#[tokio::test]
async fn a_full_emulator_refuses_messages_and_loses_none() {
    let mut world =
        World::with(EmulatorOptions { memory_limit: 100_000, ..EmulatorOptions::default() }).await;
    world.subscribe().await;
    let text = "a".repeat(10_000);
    let mut published = 0;
    let refused = loop {
        match world.publish_all(vec![message(&text, "")]).await {
            Ok(_) => published += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("100000"), "{}", refused.message());
    assert_eq!(published, 9);

    let stored = world.pull_now().await;
    assert_eq!(stored.len(), 9);
    world.ack(&stored).await;
    assert_eq!(world.emulator.memory_used(), 0);
    world.publish(&[&text]).await;
}

#[tokio::test]
async fn a_shutdown_ends_all_waiting_calls() {
    let mut world = World::new().await;
    world.subscribe().await;
    let requests = only_the_first_request();
    let mut stream = world.subscriber.streaming_pull(requests).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("it is open");
    let mut puller = world.subscriber.clone();
    let mut pull = std::pin::pin!(puller.pull(pull_request()));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut pull).await;
    assert!(early.is_err(), "there is nothing to pull");

    world.stop.cancel();

    let ended = tokio::time::timeout(SOON, world.server.join_next()).await;
    ended.expect("serving ends soon").unwrap().unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(pull.await.unwrap_err().code(), Code::Unavailable);
}

fn only_the_first_request() -> impl Stream<Item = raw::StreamingPullRequest> {
    let first = raw::StreamingPullRequest {
        subscription: SUBSCRIPTION.to_owned(),
        stream_ack_deadline_seconds: 10,
        ..raw::StreamingPullRequest::default()
    };
    stream::iter([first]).chain(stream::pending())
}
