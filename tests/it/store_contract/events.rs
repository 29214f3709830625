//! Events by time, cursor and sender.

use super::*;

pub(super) async fn events_are_bounded_by_time(world: World) {
    let sent: Vec<_> = (0..6).map(|at| Sent::new(1, "log_record").at(at)).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;
    let during = async |since, until, tail| {
        let query = |query: &mut EventQuery| {
            (query.during, query.tail) = (seconds(since, until), tail);
        };
        world.read(EventScope::Question(Uuid::from_u128(1)), query).await
    };

    let between = [2, 3].map(|at: usize| sent[at].stored());
    assert_eq!(during(2, 4, false).await, between);
    assert_eq!(during(2, 4, true).await, between);
    assert_eq!(during(4, 2, false).await, []);
    assert_eq!(during(6, 100, false).await, []);
}

pub(super) async fn events_of_a_tree_come_page_by_page_without_gaps_or_repeats(world: World) {
    // Several questions of one tree, and many events of one moment in another order than of
    // arrival.
    let event = |number: u128| {
        let sent = Sent::new(1 + number % 3, "log_record").at(10 - number as i64 / 10);
        if number.is_multiple_of(3) { sent } else { sent.under(1, 1) }
    };
    let sent: Vec<_> = (0..50).map(event).collect();
    for sent in &sent {
        world.append(&[sent]).await;
    }

    let (found, count) = pages(
        7,
        |event: &StoredEvent| event.cursor,
        async |after| {
            let query = |query: &mut EventQuery| (query.after, query.limit) = (after, 7);
            world.read(EventScope::Originator(Uuid::from_u128(1)), query).await
        },
    )
    .await;

    let mut expected: Vec<_> = sent.iter().map(Sent::stored).collect();
    expected.sort_by_key(|event| event.cursor.datetime);
    assert_eq!(count, 8);
    assert_eq!(found, expected);
}

pub(super) async fn the_last_events_after_a_cursor_are_those_behind_it(world: World) {
    let sent: Vec<_> = (0..6).map(|at| Sent::new(1, "log_record").at(at / 2)).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;
    let last = async |after: &Sent, limit| {
        let after = Some(after.cursor());
        let query = |query: &mut EventQuery| {
            (query.after, query.limit, query.tail) = (after, limit, true);
        };
        world.read(EventScope::Question(Uuid::from_u128(1)), query).await
    };

    assert_eq!(last(&sent[2], 2).await, [sent[4].stored(), sent[5].stored()]);
    assert_eq!(last(&sent[3], 9).await, [sent[4].stored(), sent[5].stored()]);
    assert_eq!(last(&sent[5], 9).await, []);
}

pub(super) async fn events_are_chosen_by_their_sender(world: World) {
    let (question, result) = (Sent::new(1, "question").at(0), Sent::new(1, "result").at(1));
    world.append(&[&question, &result]).await;
    let of = async |sender: &str| {
        let query = |query: &mut EventQuery| query.sender = Some(sender.parse().unwrap());
        world.read(EventScope::Question(Uuid::from_u128(1)), query).await
    };

    assert_eq!(of(PARENT).await, [question.stored()]);
    assert_eq!(of("octue/child:1.2.0").await, [result.stored()]);
    assert_eq!(of("octue/child:1.2.1").await, []);
}

pub(super) async fn an_event_is_found_by_its_question_only(world: World) {
    let first = Sent::new(1, "heartbeat");
    let second = Sent::new(2, "heartbeat").with("uuid", &first.attributes["uuid"]);
    world.append(&[&first, &Sent::new(3, "heartbeat")]).await;
    let has =
        async |question| world.view.has(Uuid::from_u128(question), first.uuid()).await.unwrap();

    assert_eq!(
        [has(1).await, has(2).await, has(3).await, has(4).await],
        [true, false, false, false]
    );

    // The same uuid and data in another question are another event.
    world.append(&[&second]).await;
    assert!(has(2).await);
    assert_eq!(world.events_of(2).await, [second.stored()]);
}
