//! Streaming pull, mostly with Google's client.

use std::collections::BTreeSet;

use google_cloud_googleapis::pubsub::v1 as raw;
use google_cloud_pubsub::model::Message;
use tonic::Code;

use super::world::{SOON, SUBSCRIPTION, World, next, next_message, ordered, texts};

#[tokio::test]
async fn messages_are_received_complete_and_acks_remove_them() {
    let mut world = World::new().await;
    world.subscribe().await;
    let publisher = world.google_publisher().await;
    let message = Message::new().set_data(vec![0, 255, 1]).set_ordering_key("key");
    let id = publisher.publish(message.set_attributes([("ä", "ö"), ("b", "")])).await.unwrap();

    let mut stream = world.stream().await;
    let (message, handler) = next_message(&mut stream).await;

    assert_eq!(message.data.as_ref(), [0, 255, 1]);
    assert_eq!(message.attributes["ä"], "ö");
    assert_eq!(message.attributes["b"], "");
    assert_eq!(message.ordering_key, "key");
    assert_eq!(message.message_id, id);
    assert!(message.publish_time.is_some());
    handler.ack();
    stream.shutdown_token().shutdown().await;
    assert!(world.pull_now().await.is_empty());
    assert_eq!(world.emulator.memory_used(), 0);
}

#[tokio::test]
async fn two_streams_receive_each_of_ten_thousand_messages_once() {
    const COUNT: usize = 10_000;
    let mut world = World::new().await;
    world.subscribe().await;
    let (seen, mut all) = tokio::sync::mpsc::unbounded_channel();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut stream, seen) = (world.stream().await, seen.clone());
        readers.spawn(async move {
            while let Some((message, handler)) = stream.next().await.transpose().unwrap() {
                handler.ack();
                if seen.send(message.message_id).is_err() {
                    break;
                }
            }
        });
    }
    let mut published = BTreeSet::new();
    for _ in 0..COUNT / 1000 {
        let batch = vec!["some text"; 1000];
        published.extend(world.publish(&batch).await);
    }

    let mut received = Vec::new();
    while received.len() < COUNT {
        let next = tokio::time::timeout(SOON, all.recv()).await;
        received.push(next.expect("messages go on coming").unwrap());
    }

    assert_eq!(published.len(), COUNT, "ids are unique");
    assert_eq!(received.into_iter().collect::<BTreeSet<_>>(), published);
}

#[tokio::test]
async fn a_stream_has_no_more_leases_than_its_flow_control_allows() {
    let mut world = World::new().await;
    world.subscribe().await;
    world.publish(&["a", "b", "c", "d"]).await;
    let client = world.google_subscriber().await;
    let mut stream = client.subscribe(SUBSCRIPTION).set_max_outstanding_messages(2).build();

    let (first, first_handler) = next(&mut stream).await;
    let (second, _second_handler) = next(&mut stream).await;
    assert_eq!([&*first, &*second], ["a", "b"]);
    let rest = world.pull_now().await;
    assert_eq!(texts(&rest), ["c", "d"], "the others are available to other clients");

    world.extend(&rest, 0).await;
    first_handler.ack();
    let (third, _third_handler) = next(&mut stream).await;
    assert_eq!(third, "c", "an ack makes room");
    assert_eq!(texts(&world.pull_now().await), ["d"]);
}

#[tokio::test]
async fn a_stream_fails_when_its_subscription_is_deleted() {
    let mut world = World::new().await;
    world.subscribe().await;
    let publisher = world.google_publisher().await;
    publisher.publish(Message::new().set_data("a")).await.unwrap();
    let mut stream = world.stream().await;
    let (_, handler) = next(&mut stream).await;
    handler.ack();

    let request = raw::DeleteSubscriptionRequest { subscription: SUBSCRIPTION.to_owned() };
    world.subscriber.delete_subscription(request).await.unwrap();

    let ended = tokio::time::timeout(SOON, stream.next()).await.expect("it ends");
    let error = ended.expect("with an error").unwrap_err();
    let status = error.status().expect("of the emulator");
    assert_eq!(status.code.name(), "NOT_FOUND");
    assert!(status.message.contains(SUBSCRIPTION), "{}", status.message);
}

#[tokio::test]
async fn a_dropped_stream_nacks_its_messages() {
    let mut world = World::new().await;
    world.subscribe().await;
    world.publish(&["a"]).await;
    let mut stream = world.stream().await;
    let (_, handler) = next(&mut stream).await;

    let shutdown = stream.shutdown_token();
    drop(stream);
    drop(handler);
    shutdown.shutdown().await;

    let again = tokio::time::timeout(SOON, world.pull()).await.expect("it is free at once");
    assert_eq!(texts(&again), ["a"]);
}

#[tokio::test]
async fn a_stream_accepts_acks_and_deadlines() {
    let mut world = World::new().await;
    world.subscribe_with(ordered()).await;
    world.publish(&["acked", "nacked"]).await;
    let (requests, outgoing) = tokio::sync::mpsc::channel(4);
    requests.send(opening()).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut stream = world.subscriber.streaming_pull(outgoing).await.unwrap().into_inner();

    let hello = stream.message().await.unwrap().unwrap();
    assert!(hello.received_messages.is_empty());
    assert!(hello.subscription_properties.unwrap().message_ordering_enabled);
    let messages = stream.message().await.unwrap().unwrap().received_messages;
    assert_eq!(texts(&messages), ["acked", "nacked"], "several in one response");
    let answer = raw::StreamingPullRequest {
        ack_ids: vec![messages[0].ack_id.clone()],
        modify_deadline_ack_ids: vec![messages[1].ack_id.clone()],
        modify_deadline_seconds: vec![0],
        ..raw::StreamingPullRequest::default()
    };
    requests.send(answer).await.unwrap();
    let again = stream.message().await.unwrap().unwrap().received_messages;
    assert_eq!(texts(&again), ["nacked"]);

    drop(requests);
    assert!(stream.message().await.unwrap().is_none(), "a client that is done ends it");
}

#[tokio::test]
async fn a_stream_refuses_invalid_requests() {
    let mut world = World::new().await;
    world.subscribe().await;
    let lopsided = raw::StreamingPullRequest {
        modify_deadline_seconds: vec![10],
        ..raw::StreamingPullRequest::default()
    };
    let malformed = raw::StreamingPullRequest {
        ack_ids: vec!["nonsense".to_owned()],
        ..raw::StreamingPullRequest::default()
    };
    let late = raw::StreamingPullRequest {
        max_outstanding_messages: 7,
        ..raw::StreamingPullRequest::default()
    };
    for second in [lopsided, malformed, late] {
        let requests = tokio_stream::iter([opening(), second.clone()]);
        let mut stream = world.subscriber.streaming_pull(requests).await.unwrap().into_inner();
        stream.message().await.unwrap();
        let status = stream.message().await.expect_err("it ends");
        assert_eq!(status.code(), Code::InvalidArgument, "{second:?}");
    }
}

fn opening() -> raw::StreamingPullRequest {
    raw::StreamingPullRequest {
        subscription: SUBSCRIPTION.to_owned(),
        stream_ack_deadline_seconds: 10,
        ..raw::StreamingPullRequest::default()
    }
}
