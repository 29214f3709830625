//! Each operator of the filter language, end to end.

use google_cloud_googleapis::pubsub::v1 as raw;
use google_cloud_pubsub::model::Message;

use super::world::{World, attributes, message, next, subscription, texts};

/// The published messages: a name, and attributes.
const MESSAGES: [(&str, &[(&str, &str)]); 4] = [
    ("none", &[]),
    ("com", &[("domain", "com"), ("iana.org/language_tag", "en")]),
    ("co", &[("domain", "co"), ("region", "eu")]),
    ("org", &[("domain", "org"), ("region", "us")]),
];

fn filtered(filter: &str) -> raw::Subscription {
    raw::Subscription { filter: filter.to_owned(), ..subscription() }
}

/// The names of the [`MESSAGES`] that a filter lets through.
async fn received(filter: &str) -> Vec<String> {
    let mut world = World::new().await;
    world.subscribe_with(filtered(filter)).await;
    let messages = MESSAGES.map(|(name, pairs)| raw::PubsubMessage {
        attributes: attributes(pairs),
        ..message(name, "")
    });
    world.publish_all(messages.to_vec()).await.unwrap();
    texts(&world.pull_now().await)
}

#[tokio::test]
async fn every_operator_selects_messages() {
    for (filter, wanted) in [
        ("", &["none", "com", "co", "org"][..]),
        ("attributes:domain", &["com", "co", "org"]),
        ("NOT attributes:domain", &["none"]),
        ("-attributes:domain", &["none"]),
        (r#"attributes.domain = "com""#, &["com"]),
        (r#"attributes.domain != "com""#, &["none", "co", "org"]),
        (r#"hasPrefix(attributes.domain, "co")"#, &["com", "co"]),
        (r#"NOT hasPrefix(attributes.domain, "co")"#, &["none", "org"]),
        (r#"attributes:domain AND attributes.domain != "com""#, &["co", "org"]),
        (r#"attributes.domain = "com" OR attributes.region = "us""#, &["com", "org"]),
        (
            r#"attributes:region AND (attributes.domain = "com" OR attributes.domain = "co")"#,
            &["co"],
        ),
        (r#"attributes."iana.org/language_tag" = "\u0065n""#, &["com"]),
    ] {
        assert_eq!(received(filter).await, wanted, "{filter}");
    }
}

#[tokio::test]
async fn a_stream_does_not_receive_filtered_messages() {
    let mut world = World::new().await;
    world.subscribe_with(filtered(r#"attributes.to = "me""#)).await;
    let publisher = world.google_publisher().await;
    for (text, to) in [("1", "you"), ("2", "me"), ("3", ""), ("4", "me")] {
        let message = Message::new().set_data(text.as_bytes().to_vec());
        publisher.publish(message.set_attributes([("to", to)])).await.unwrap();
    }

    let mut stream = world.stream().await;
    for expected in ["2", "4"] {
        let (text, handler) = next(&mut stream).await;
        assert_eq!(text, expected);
        handler.ack();
    }

    stream.shutdown_token().shutdown().await;
    assert!(world.pull_now().await.is_empty());
    assert_eq!(world.emulator.memory_used(), 0, "filtered messages are not stored");
}

#[tokio::test]
async fn one_of_thousands_of_subscriptions_gets_its_answer() {
    let mut world = World::new().await;
    for number in 0..3000 {
        let subscription = raw::Subscription {
            name: format!("projects/test/subscriptions/answers-{number}"),
            topic: super::world::TOPIC.to_owned(),
            filter: format!(r#"attributes.question_uuid = "{number}" AND attributes:sender"#),
            ..raw::Subscription::default()
        };
        world.subscriber.create_subscription(subscription).await.unwrap();
    }
    let pairs = attributes(&[("question_uuid", "1234"), ("sender", "child")]);
    let answer = raw::PubsubMessage { attributes: pairs, ..message("answer", "") };

    world.publish_all(vec![answer]).await.unwrap();

    let request = raw::PullRequest {
        subscription: "projects/test/subscriptions/answers-1234".to_owned(),
        ..super::world::pull_request()
    };
    let pulled = world.subscriber.pull(request).await.unwrap().into_inner();
    assert_eq!(texts(&pulled.received_messages), ["answer"]);
}
