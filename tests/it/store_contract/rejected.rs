//! Rejected messages.

use super::*;

fn message(number: i64) -> StoredRejectedMessage {
    StoredRejectedMessage {
        message_id: (100 - number).to_string(),
        ordering_key: if number % 2 == 0 { String::new() } else { "q".to_owned() },
        data: if number % 2 == 0 { b"\xff\x00".to_vec() } else { "{\"kïnd\"".into() },
        attributes: BTreeMap::from([("kind".to_owned(), "\"odd\"".to_owned())]),
        reason: format!("data is not JSON: {number}"),
        at: Timestamp(number / 10 * 1_000_000),
    }
}

pub(super) async fn rejected_messages_are_read_as_they_came(world: World) {
    let messages: Vec<_> = [10, 21, 32].map(message).into();
    world.reject(&messages).await;

    assert_eq!(world.rejected(TimeRange::ALL).await, reversed(messages));
}

pub(super) async fn a_message_that_is_rejected_again_is_on_record_once(world: World) {
    let first = message(10);
    let again =
        StoredRejectedMessage { reason: "another".to_owned(), at: Timestamp(7), ..first.clone() };
    let other = StoredRejectedMessage { data: b"other".to_vec(), ..first.clone() };

    world.reject(&[first.clone(), again, other.clone()]).await;

    assert_eq!(world.rejected(TimeRange::ALL).await, [other, first]);
}

pub(super) async fn rejected_messages_come_page_by_page_without_gaps_or_repeats(world: World) {
    let messages: Vec<_> = (0..50).map(message).collect();
    world.reject(&messages).await;

    let (found, count) = pages(7, StoredRejectedMessage::cursor, async |after| {
        let query = RejectedQuery { during: TimeRange::ALL, after, limit: 7 };
        world.history.rejected(&query).await.unwrap()
    })
    .await;

    assert_eq!(count, 8);
    assert_eq!(found, reversed(messages));
}

pub(super) async fn rejected_messages_are_bounded_by_time(world: World) {
    let messages: Vec<_> = [10, 20, 29, 30].map(message).into();
    world.reject(&messages).await;

    assert_eq!(world.rejected(seconds(2, 3)).await, [message(29), message(20)]);
    // A cursor from outside the time changes nothing.
    let query =
        RejectedQuery { during: seconds(2, 3), after: Some(message(30).cursor()), limit: 1 };
    assert_eq!(world.history.rejected(&query).await.unwrap(), [message(29)]);
}

fn reversed(mut messages: Vec<StoredRejectedMessage>) -> Vec<StoredRejectedMessage> {
    messages.reverse();
    messages
}

// === impl World ===

impl World {
    async fn reject(&self, messages: &[StoredRejectedMessage]) {
        for message in messages {
            let StoredRejectedMessage { message_id, ordering_key, data, attributes, reason, at } =
                message;
            let attributes = attributes.clone().into_iter().collect();
            let message = RejectedMessage {
                message_id,
                ordering_key,
                data,
                attributes: &attributes,
                reason,
                at: *at,
            };
            self.log.reject(&message).await.unwrap();
        }
    }

    async fn rejected(&self, during: TimeRange) -> Vec<StoredRejectedMessage> {
        let query = RejectedQuery { during, after: None, limit: 100 };
        self.history.rejected(&query).await.unwrap()
    }
}
