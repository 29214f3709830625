//! Refused requests: their status and message.

use google_cloud_googleapis::pubsub::v1 as raw;
use tonic::{Code, Status};

use super::world::{SUBSCRIPTION, TOPIC, World, attributes, message, pull_request, subscription};

const NOWHERE: &str = "projects/test/subscriptions/nowhere";

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "`{}` does not contain `{text}`", status.message());
}

#[tokio::test]
async fn a_missing_resource_is_not_found() {
    let mut world = World::new().await;
    let nowhere = || NOWHERE.to_owned();
    let words = "Subscription does not exist (resource=projects/test/subscriptions/nowhere)";

    let request = raw::GetSubscriptionRequest { subscription: nowhere() };
    assert_refused(world.subscriber.get_subscription(request).await, Code::NotFound, words);
    let request = raw::DeleteSubscriptionRequest { subscription: nowhere() };
    assert_refused(world.subscriber.delete_subscription(request).await, Code::NotFound, words);
    let request = raw::PullRequest { subscription: nowhere(), ..pull_request() };
    assert_refused(world.subscriber.pull(request).await, Code::NotFound, words);
    let request = raw::AcknowledgeRequest { subscription: nowhere(), ack_ids: Vec::new() };
    assert_refused(world.subscriber.acknowledge(request).await, Code::NotFound, words);
    let request = raw::StreamingPullRequest { subscription: nowhere(), ..Default::default() };
    let opened = world.subscriber.streaming_pull(tokio_stream::iter([request])).await;
    assert_refused(opened.map(drop), Code::NotFound, words);

    let topic = "projects/test/topics/nowhere".to_owned();
    let words = "Topic does not exist (resource=projects/test/topics/nowhere)";
    let request = raw::PublishRequest { topic: topic.clone(), messages: vec![message("a", "")] };
    assert_refused(world.publisher.publish(request).await, Code::NotFound, words);
    let request = raw::Subscription { topic: topic.clone(), ..subscription() };
    assert_refused(world.subscriber.create_subscription(request).await, Code::NotFound, words);
    let request = raw::DeleteTopicRequest { topic };
    assert_refused(world.publisher.delete_topic(request).await, Code::NotFound, words);
}

#[tokio::test]
async fn an_existing_resource_is_not_created_again() {
    let mut world = World::new().await;
    let topic = raw::Topic { name: TOPIC.to_owned(), ..raw::Topic::default() };
    assert_refused(world.publisher.create_topic(topic).await, Code::AlreadyExists, TOPIC);
    world.subscriber.create_subscription(subscription()).await.unwrap();
    let again = world.subscriber.create_subscription(subscription()).await;
    assert_refused(again, Code::AlreadyExists, SUBSCRIPTION);
}

#[tokio::test]
async fn subscriptions_with_settings_out_of_range_are_refused() {
    let mut world = World::new().await;
    let plain = subscription;
    for (settings, words) in [
        (raw::Subscription { name: "reader".to_owned(), ..plain() }, "(name=reader)"),
        (raw::Subscription { topic: "letters".to_owned(), ..plain() }, "(name=letters)"),
        (raw::Subscription { ack_deadline_seconds: 9, ..plain() }, "10 to 600"),
        (raw::Subscription { ack_deadline_seconds: 601, ..plain() }, "10 to 600"),
        (raw::Subscription { filter: "attributes".to_owned(), ..plain() }, "expected `:` or `.`"),
        (raw::Subscription { filter: "x".repeat(257), ..plain() }, "257 bytes"),
        (
            raw::Subscription { message_retention_duration: seconds(599), ..plain() },
            "message_retention_duration",
        ),
        (
            raw::Subscription {
                retry_policy: Some(raw::RetryPolicy {
                    minimum_backoff: seconds(601),
                    maximum_backoff: None,
                }),
                ..plain()
            },
            "minimum_backoff",
        ),
        (
            raw::Subscription {
                expiration_policy: Some(raw::ExpirationPolicy { ttl: seconds(3600) }),
                ..plain()
            },
            "expiration_policy.ttl",
        ),
    ] {
        let answer = world.subscriber.create_subscription(settings).await;
        assert_refused(answer, Code::InvalidArgument, words);
    }
}

#[tokio::test]
async fn an_unimplemented_call_or_setting_is_named() {
    let mut world = World::new().await;
    let push_config =
        raw::PushConfig { push_endpoint: "http://localhost".to_owned(), ..Default::default() };
    let pushed = raw::Subscription { push_config: Some(push_config), ..subscription() };
    let answer = world.subscriber.create_subscription(pushed).await;
    assert_refused(answer, Code::Unimplemented, "push_config");
    let once = raw::Subscription { enable_exactly_once_delivery: true, ..subscription() };
    let answer = world.subscriber.create_subscription(once).await;
    assert_refused(answer, Code::Unimplemented, "enable_exactly_once_delivery");
    let answer = world.subscriber.seek(raw::SeekRequest::default()).await;
    assert_refused(answer, Code::Unimplemented, "Seek");
}

#[tokio::test]
async fn messages_over_googles_limits_are_refused_with_their_request() {
    let mut world = World::new().await;
    world.subscriber.create_subscription(subscription()).await.unwrap();
    let with = |pairs: &[(&str, &str)]| raw::PubsubMessage {
        attributes: attributes(pairs),
        ..message("", "")
    };
    let many: Vec<_> = (0..101).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(|number| (&**number, "")).collect();
    for (messages, words) in [
        (vec![], "has 0"),
        (vec![message("a", ""); 1001], "has 1001"),
        (vec![message("a", ""), message("", "")], "message 1 of the request"),
        (vec![message("a", "x"), message("b", "y")], "ordering key"),
        (vec![message("a", ""), message("b", "y")], "ordering key"),
        (vec![with(&[("", "a")])], "empty"),
        (vec![with(&[(&"k".repeat(257), "a")])], "257 bytes"),
        (vec![with(&[("key", &"v".repeat(1025))])], "`key` has 1025 bytes"),
        (vec![with(&many)], "101 attributes"),
        (vec![message("a", &"k".repeat(1025))], "1025 bytes"),
        (vec![message(&"a".repeat(10_000_001), "")], "10000001 bytes"),
        (vec![message(&"a".repeat(6_000_000), ""); 2], "10485760 bytes"),
    ] {
        assert_refused(world.publish_all(messages).await, Code::InvalidArgument, words);
    }
    assert!(world.pull_now().await.is_empty(), "none was stored");
    world.publish(&["a".repeat(10_000_000).as_str()]).await;
}

#[tokio::test]
async fn invalid_deadlines_and_ack_ids_are_refused() {
    let mut world = World::new().await;
    world.subscriber.create_subscription(subscription()).await.unwrap();
    let extend = |seconds: i32, ids: &[&str]| raw::ModifyAckDeadlineRequest {
        subscription: SUBSCRIPTION.to_owned(),
        ack_ids: ids.iter().map(|id| id.to_string()).collect(),
        ack_deadline_seconds: seconds,
    };
    for (request, words) in [
        (extend(601, &[]), "0 to 600"),
        (extend(-1, &[]), "0 to 600"),
        (extend(10, &["nonsense"]), "(ack_id=nonsense)"),
    ] {
        let answer = world.subscriber.modify_ack_deadline(request).await;
        assert_refused(answer, Code::InvalidArgument, words);
    }
    let unknown = extend(10, &["1-2-3"]);
    world.subscriber.modify_ack_deadline(unknown).await.expect("an old id is no mistake");
    let none = raw::PullRequest { max_messages: 0, ..pull_request() };
    assert_refused(world.subscriber.pull(none).await, Code::InvalidArgument, "max_messages=0");
    let opening = raw::StreamingPullRequest {
        subscription: SUBSCRIPTION.to_owned(),
        stream_ack_deadline_seconds: 5,
        ..raw::StreamingPullRequest::default()
    };
    let opened = world.subscriber.streaming_pull(tokio_stream::iter([opening])).await;
    assert_refused(opened.map(drop), Code::InvalidArgument, "10 to 600");
}
