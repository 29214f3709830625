//! The runs without a terminal event.

use super::*;

pub(super) async fn unanswered_questions_are_those_without_a_terminal_event(world: World) {
    let asked = |question, at| Sent::new(question, "question").at(at);
    let silent = asked(1, 100).with("memory", "1Gi").with("a_newer_attribute", "kept");
    let retried = asked(4, 101).with("retry_count", "1");
    let sent = [
        silent.clone(),
        Sent::new(1, "delivery_acknowledgement"),
        Sent::new(1, "heartbeat"),
        asked(2, 100),
        Sent::new(2, "result"),
        asked(3, 100),
        Sent::new(3, "exception"),
        asked(4, 100),
        Sent::new(4, "exception"),
        retried.clone(),
        asked(5, 99),
        asked(6, 200),
    ];
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let found = world.unanswered(None, 100).await;

    let expected =
        [(silent, 1, 0), (retried, 4, 1)].map(|(sent, question, retry)| UnansweredQuestion {
            run: RunId { question: Uuid::from_u128(question), retry },
            attributes: sent.attributes.clone(),
            recipient: "octue/child:1.2.0".parse().unwrap(),
            cancelled: false,
            cursor: sent.cursor(),
        });
    assert_eq!(found, expected);
}

pub(super) async fn unanswered_questions_show_which_were_cancelled(world: World) {
    let cancelled = |question, by| {
        let asked = Sent::new(question, "question").at(100 + question as i64);
        [asked, Sent::new(question, "cancellation").with("sender", by)]
    };
    let sent = [cancelled(1, PARENT), cancelled(2, "octue/stranger:1.0.0")].concat();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let found = world.unanswered(None, 100).await;

    assert_eq!(found.iter().map(|found| found.cancelled).collect::<Vec<_>>(), [true, false]);
}

pub(super) async fn unanswered_questions_come_page_by_page_without_gaps_or_repeats(world: World) {
    // Many of one moment, so that a page ends among them.
    let asked = |question: u128| Sent::new(question, "question").at(100 + question as i64 / 10);
    let sent: Vec<_> = (0..50).map(asked).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let (found, count) = pages(
        7,
        |found: &UnansweredQuestion| found.cursor,
        async |after| world.unanswered(after, 7).await,
    )
    .await;

    let found: Vec<_> = found.iter().map(|found| found.run.question.as_u128()).collect();
    assert_eq!((found, count), ((0..50).collect(), 8));
}

pub(super) async fn an_unanswered_run_is_listed_once_however_often_its_question_came(world: World) {
    let first = Sent::new(1, "question").at(101);
    let second = Sent::new(1, "question").at(100);
    world.append(&[&first]).await;
    world.append(&[&second]).await;

    let found = world.unanswered(None, 100).await;

    assert_eq!(found.len(), 1);
    assert_eq!(found[0].attributes, first.attributes);
}

// === impl World ===

impl World {
    /// A page of what was asked from second 100 until before second 200.
    async fn unanswered(&self, after: Option<EventCursor>, limit: u32) -> Vec<UnansweredQuestion> {
        let query = UnansweredQuery { during: seconds(100, 200), after, limit };
        self.history.unanswered(&query).await.unwrap()
    }
}
