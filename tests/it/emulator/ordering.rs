//! Ordering keys, under nack and expiry.

use google_cloud_pubsub::model::Message;

use super::world::{World, next, ordered, texts};

#[tokio::test]
async fn a_nack_redelivers_a_message_and_all_after_it_in_order() {
    let mut world = World::new().await;
    world.subscribe_with(ordered()).await;
    let publisher = world.google_publisher().await;
    for text in ["1", "2", "3", "4", "5"] {
        let message = Message::new().set_data(text.as_bytes().to_vec());
        publisher.publish(message.set_ordering_key("key")).await.unwrap();
    }
    let mut stream = world.stream().await;

    let mut seen = Vec::new();
    let mut nacked = false;
    while seen.len() < 9 {
        let (text, handler) = next(&mut stream).await;
        seen.push(text.clone());
        if text == "2" && !nacked {
            nacked = true;
            handler.nack();
        } else {
            handler.ack();
        }
    }

    assert_eq!(seen, ["1", "2", "3", "4", "5", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn messages_of_one_key_are_never_leased_to_two_clients() {
    let mut world = World::new().await;
    world.subscribe_with(ordered()).await;
    world.publish_with("a", &["a1"]).await;
    let first = world.pull_now().await;
    world.publish_with("a", &["a2", "a3"]).await;
    world.publish_with("b", &["b1"]).await;

    assert_eq!(texts(&first), ["a1"]);
    assert_eq!(texts(&world.pull_now().await), ["b1"], "`a` is out");
    world.ack(&first).await;
    assert_eq!(
        texts(&world.pull_now().await),
        ["a2", "a3"],
        "one client may have several of a key"
    );
}

#[tokio::test]
async fn a_deadline_redelivers_a_message_and_all_after_it_in_order() {
    let mut world = World::new().await;
    world.subscribe_with(ordered()).await;
    world.publish_with("key", &["1", "2", "3"]).await;
    let first = world.pull().await;
    world.extend(&first[1..], 600).await;
    world.publish_with("key", &["4"]).await;

    let again = world.pull().await;

    assert_eq!(texts(&again), ["1", "2", "3", "4"]);
    world.ack(&first).await;
    world.ack(&again).await;
    assert_eq!(world.emulator.memory_used(), 0);
}
