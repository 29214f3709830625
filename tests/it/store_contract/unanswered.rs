//! The runs that nobody answered.

use super::*;

pub async fn a_sweep_finds_what_nobody_answered(world: World) {
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
        [(silent, 1, 0, 100), (retried, 4, 1, 101)].map(|(sent, question, retry, at)| {
            UnansweredQuestion {
                run: RunId { question: Uuid::from_u128(question), retry },
                attributes: sent.attributes.clone(),
                recipient: "octue/child:1.2.0".parse().unwrap(),
                cancelled: false,
                cursor: QuestionCursor { datetime: Timestamp(at * 1_000_000), event: sent.uuid() },
            }
        });
    assert_eq!(found, expected);
}

pub async fn a_sweep_says_what_was_cancelled(world: World) {
    let cancelled = |question, by| {
        let asked = Sent::new(question, "question").at(100 + question as i64);
        [asked, Sent::new(question, "cancellation").with("sender", by)]
    };
    let sent = [cancelled(1, PARENT), cancelled(2, "octue/stranger:1.0.0")].concat();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let found = world.unanswered(None, 100).await;

    assert_eq!(found.iter().map(|found| found.cancelled).collect::<Vec<_>>(), [true, false]);
}

pub async fn a_sweep_goes_page_by_page(world: World) {
    // Many of one moment, so that a page ends among them.
    let asked = |question: u128| Sent::new(question, "question").at(100 + question as i64 / 10);
    let sent: Vec<_> = (0..50).map(asked).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let page =
            world.unanswered(found.last().map(|last: &UnansweredQuestion| last.cursor), 7).await;
        pages += 1;
        let last = page.len() < 7;
        found.extend(page);
        if last {
            break;
        }
    }

    assert_eq!((found.len(), pages), (50, 8));
    assert!(found.is_sorted_by_key(|found| found.cursor));
    let runs: std::collections::HashSet<_> = found.iter().map(|found| found.run).collect();
    assert_eq!(runs.len(), 50);
}

pub async fn a_sweep_has_a_run_once_however_often_its_question_came(world: World) {
    let first = Sent::new(1, "question").at(101);
    let second = Sent::new(1, "question").at(100);
    world.append(&[&first]).await;
    world.append(&[&second]).await;

    let found = world.unanswered(None, 100).await;

    assert_eq!(found.len(), 1);
    assert_eq!(found[0].attributes, first.attributes);
}
