//! Questions, newest first.

use super::*;

const CHILD: &str = "octue/child";

fn asked(question: u128, at: i64) -> Sent {
    Sent::new(question, "question").at(at)
}

pub(super) async fn questions_to_a_service_are_listed_newest_first(world: World) {
    let old = asked(1, 5).with("recipient", "octue/child:0.9.0");
    let retried = asked(2, 9).with("retry_count", "1").with("a_newer_attribute", "kept");
    let other = asked(3, 7).with("recipient", "octue/child-of-another:1.2.0");
    world.append(&[&retried, &other, &old, &asked(2, 6), &Sent::new(2, "result").at(8)]).await;

    let found = world.history.questions(&to_child(TimeRange::ALL)).await.unwrap();

    let runs: Vec<_> =
        found.iter().map(|found| (found.run.question.as_u128(), found.run.retry)).collect();
    assert_eq!(runs, [(2, 1), (2, 0), (1, 0)]);
    assert_eq!(found[0].attributes, retried.attributes);
    assert_eq!(found[0].cursor, retried.cursor());
    assert_eq!(found[2].recipient.as_str(), "octue/child:0.9.0");
}

pub(super) async fn questions_to_a_service_come_page_by_page_without_gaps_or_repeats(world: World) {
    // Many of one moment, so that a page ends among them, and ten of one event uuid.
    let uuid = Uuid::new_v4().to_string();
    let sent: Vec<_> = (0..50)
        .map(|question| {
            let sent = asked(question, question as i64 / 10);
            if question < 10 { sent.with("uuid", &uuid) } else { sent }
        })
        .collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let (found, count) = pages(
        7,
        |found: &StoredQuestion| found.cursor,
        async |after| {
            let query = ServiceQuery { after, limit: 7, ..to_child(TimeRange::ALL) };
            world.history.questions(&query).await.unwrap()
        },
    )
    .await;

    assert_eq!(count, 8);
    let found: Vec<_> = found.iter().map(|found| found.run.question.as_u128()).collect();
    assert_eq!(found, (0..50).rev().collect::<Vec<_>>());
}

pub(super) async fn questions_to_a_service_are_chosen_by_their_sender(world: World) {
    let other = "octue/other:1.0.0";
    world.append(&[&asked(1, 1), &asked(2, 2).with("sender", other).with("parent", other)]).await;

    let query = ServiceQuery { sender: Some(other.parse().unwrap()), ..to_child(TimeRange::ALL) };
    let found = world.history.questions(&query).await.unwrap();

    assert_eq!(found.len(), 1);
    assert_eq!(found[0].run.question, Uuid::from_u128(2));
}

pub(super) async fn questions_are_bounded_by_time(world: World) {
    let sent: Vec<_> = (1..6).map(|question| asked(question, question as i64)).collect();
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let found = world.history.questions(&to_child(seconds(2, 4))).await.unwrap();
    let found: Vec<_> = found.iter().map(|found| found.run.question.as_u128()).collect();
    assert_eq!(found, [3, 2]);
    assert_eq!(world.viewed(|filter| filter.during = seconds(2, 4)).await, [3, 2]);
    // A cursor from outside the time changes nothing.
    let after = Some(sent[4].cursor());
    assert_eq!(
        world.viewed(|filter| (filter.during, filter.after) = (seconds(2, 4), after)).await,
        [3, 2]
    );
}

pub(super) async fn a_view_lists_the_questions_of_all_services_or_of_one(world: World) {
    let other = asked(2, 2).with("recipient", "octue/other:1.0.0");
    world.append(&[&asked(1, 1), &other, &asked(3, 3)]).await;

    assert_eq!(world.viewed(|_| {}).await, [3, 2, 1]);
    assert_eq!(world.viewed(|filter| filter.service = Some(CHILD.to_owned())).await, [3, 1]);
    assert_eq!(world.viewed(|filter| filter.service = Some("octue/none".to_owned())).await, []);
    let found = world.filtered(|filter| filter.limit = 1).await;
    let expected = RunRecord { question: true, ..RunRecord::default() };
    assert_eq!((found.len(), found[0].record), (1, expected));
}

pub(super) async fn a_view_lists_questions_by_state(world: World) {
    let attempts: [(u128, &[&str]); 7] = [
        (1, &[]),
        (2, &["delivery_acknowledgement"]),
        (3, &["delivery_acknowledgement", "result"]),
        (4, &["exception"]),
        (5, &["cancellation"]),
        (6, &["cancellation", "exception"]),
        (7, &["cancellation", "result"]),
    ];
    for (question, kinds) in attempts {
        world.append(&[&asked(question, question as i64)]).await;
        for kind in kinds {
            world.append(&[&Sent::new(question, kind)]).await;
        }
    }
    // A failed attempt that was made again.
    world.append(&[&asked(4, 8).with("retry_count", "1")]).await;
    let of = async |state| world.viewed(|filter| filter.state = Some(state)).await;

    assert_eq!(of(QuestionState::Waiting).await, [4, 1]);
    assert_eq!(of(QuestionState::Running).await, [2]);
    assert_eq!(of(QuestionState::Answered).await, [7, 3]);
    assert_eq!(of(QuestionState::Failed).await, [4]);
    assert_eq!(of(QuestionState::Cancelled).await, [6, 5]);
}

pub(super) async fn a_view_lists_questions_by_text_to_the_letter(world: World) {
    let texts = ["100% of it", "100 of it", "a_b", "aXb", r"back\slash", "it's; DROP TABLE events"];
    for (question, text) in (1..).zip(texts) {
        world.append(&[&asked(question, question as i64).inputs(text)]).await;
    }
    let of = async |text: &str| world.viewed(|filter| filter.text = Some(text.to_owned())).await;

    assert_eq!(of("100%").await, [1]);
    assert_eq!(of("a_b").await, [3]);
    assert_eq!(of("A_B").await, [3]);
    assert_eq!(of("%").await, [1]);
    assert_eq!(of(r"back\slash").await, [5]);
    assert_eq!(of("it's; drop").await, [6]);
    assert_eq!(of("' OR 1=1 --").await, []);
    assert_eq!(of("").await, [6, 5, 4, 3, 2, 1]);
}

pub(super) async fn a_view_finds_text_as_it_is_written_in_json(world: World) {
    let text = "say \"Zürich\"\n😀";
    let escaped =
        r#"{"kind": "question", "input_values": {"a": "say \"Z\u00fcrich\"\n\ud83d\ude00"}}"#;
    world.append(&[&asked(1, 1).inputs(text), &asked(2, 2).data(escaped)]).await;
    let of = async |text: &str| world.viewed(|filter| filter.text = Some(text.to_owned())).await;

    assert_eq!(of(text).await, [2, 1]);
    assert_eq!(of("Zürich").await, [2, 1]);
    assert_eq!(of("\"Zü").await, [2, 1]);
    assert_eq!(of("😀").await, [2, 1]);
    assert_eq!(of(r#""input_values": {"a""#).await, [2]);
}

pub(super) async fn a_view_finds_names_and_uuids_of_a_tree(world: World) {
    let root = asked(0xabc, 1).with("originator", "octue/root:1.0.0");
    let child = asked(2, 2).under(0xabc, 0xabc).with("recipient", "octue/grandchild:2.0.0");
    world.append(&[&root, &child, &asked(3, 3).with("parent", "octue/third:1.0.0")]).await;
    let of = async |text: &str| world.viewed(|filter| filter.text = Some(text.to_owned())).await;

    assert_eq!(of("000000000abc").await, [2, 0xabc]);
    assert_eq!(of("GRANDCHILD").await, [2]);
    assert_eq!(of("octue/root").await, [0xabc]);
    assert_eq!(of("third").await, [3]);
}

pub(super) async fn a_page_by_text_and_state_goes_on_until_it_is_full(world: World) {
    let mut sent = Vec::new();
    for question in 0..60_u128 {
        let text = if question.is_multiple_of(2) { "wanted" } else { "other" };
        sent.push(asked(question, question as i64 / 10).inputs(text));
        if question.is_multiple_of(3) {
            sent.push(Sent::new(question, "result"));
        }
    }
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let (found, count) = pages(
        3,
        |found: &ViewedQuestion| found.question.cursor,
        async |after| {
            world
                .filtered(|filter| {
                    filter.service = Some(CHILD.to_owned());
                    filter.text = Some("wanted".to_owned());
                    filter.state = Some(QuestionState::Answered);
                    (filter.after, filter.limit) = (after, 3);
                })
                .await
        },
    )
    .await;

    let found: Vec<_> = found.iter().map(|found| found.question.run.question.as_u128()).collect();
    assert_eq!((found, count), ((0..10).rev().map(|sixth| 6 * sixth).collect(), 4));
}

pub(super) async fn a_run_is_listed_once_however_often_its_question_came(world: World) {
    let (first, second) = (asked(1, 101), asked(1, 100));
    world.append(&[&first]).await;
    world.append(&[&second]).await;

    let found = world.history.questions(&to_child(TimeRange::ALL)).await.unwrap();

    assert_eq!(found.len(), 1);
    assert_eq!(found[0].attributes, first.attributes);
    assert_eq!(world.viewed(|_| {}).await, [1]);
}

fn to_child(during: TimeRange) -> ServiceQuery {
    ServiceQuery { service: CHILD.to_owned(), sender: None, during, after: None, limit: 100 }
}

// === impl World ===

impl World {
    async fn filtered(&self, choose: impl FnOnce(&mut QuestionFilter)) -> Vec<ViewedQuestion> {
        let mut filter = QuestionFilter {
            service: None,
            state: None,
            text: None,
            during: TimeRange::ALL,
            after: None,
            limit: 100,
        };
        choose(&mut filter);
        self.view.questions(&filter).await.unwrap()
    }

    async fn viewed(&self, choose: impl FnOnce(&mut QuestionFilter)) -> Vec<u128> {
        let found = self.filtered(choose).await;
        found.iter().map(|found| found.question.run.question.as_u128()).collect()
    }
}

// === impl Sent ===

impl Sent {
    /// As a question with this text among its inputs, every letter as it is.
    fn inputs(self, text: &str) -> Self {
        let text = serde_json::to_string(text).unwrap();
        self.data(&format!(r#"{{"kind": "question", "input_values": [{text}]}}"#))
    }
}
