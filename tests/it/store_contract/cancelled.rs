//! How a view reports cancelled questions.

use super::*;

const STRANGER: &str = "octue/stranger:1.0.0";

pub(super) async fn a_cancellation_is_reported_whichever_of_it_and_its_question_comes_second(
    world: World,
) {
    let (question, cancellation) = (Sent::new(1, "question"), Sent::new(1, "cancellation"));
    world.append(&[&question, &Sent::new(3, "question")]).await;
    let mut position = ViewPosition::default();
    assert_eq!(world.cancelled_after(&mut position).await, []);

    world.append(&[&cancellation]).await;
    assert_eq!(world.cancelled_after(&mut position).await, [1]);
    assert_eq!(world.cancelled_after(&mut position).await, [], "nothing came since");

    world.append(&[&Sent::new(2, "cancellation")]).await;
    assert_eq!(world.cancelled_after(&mut position).await, [2], "as it names its parent itself");
    world.append(&[&Sent::new(2, "heartbeat"), &Sent::new(2, "question")]).await;
    assert_eq!(world.cancelled_after(&mut position).await, [2]);
    assert_eq!(world.cancelled_after(&mut ViewPosition::default()).await, [1, 2]);
}

pub(super) async fn a_cancellation_that_only_the_question_allows_is_reported_when_the_question_comes(
    world: World,
) {
    let mut position = ViewPosition::default();
    world.append(&[&Sent::new(1, "cancellation").with("sender", ORIGINATOR)]).await;
    assert_eq!(world.cancelled_after(&mut position).await, []);

    world.append(&[&Sent::new(1, "question").with("originator", ORIGINATOR)]).await;

    assert_eq!(world.cancelled_after(&mut position).await, [1]);
}

pub(super) async fn a_cancellation_that_is_not_accepted_is_never_reported(world: World) {
    let forged = Sent::new(1, "cancellation").with("sender", STRANGER).with("parent", STRANGER);
    let mut position = ViewPosition::default();

    world.append(&[&Sent::new(1, "question"), &forged]).await;
    assert_eq!(world.cancelled_after(&mut position).await, []);

    world.append(&[&Sent::new(1, "question").with("retry_count", "1")]).await;
    assert_eq!(world.cancelled_after(&mut position).await, []);
}

pub(super) async fn a_cancelled_question_is_reported_again_for_each_attempt(world: World) {
    let mut position = ViewPosition::default();
    world.append(&[&Sent::new(1, "question"), &Sent::new(1, "cancellation")]).await;
    assert_eq!(world.cancelled_after(&mut position).await, [1]);

    world.append(&[&Sent::new(1, "exception")]).await;
    assert_eq!(world.cancelled_after(&mut position).await, []);
    world.append(&[&Sent::new(1, "question").with("retry_count", "1")]).await;

    assert_eq!(world.cancelled_after(&mut position).await, [1]);
}

pub(super) async fn cancelled_questions_come_page_by_page_without_gaps_or_repeats(world: World) {
    let mut sent = Vec::new();
    for question in 0..50 {
        sent.push(Sent::new(question, "cancellation"));
        // Those of strangers do not shorten a page.
        sent.push(Sent::new(100 + question, "cancellation").with("sender", STRANGER));
    }
    world.append(&sent.iter().collect::<Vec<_>>()).await;

    let (mut found, mut pages, mut position) = (Vec::new(), 0, ViewPosition::default());
    loop {
        let page = world.view.cancelled_questions(position, 7).await.unwrap();
        position = page.position;
        pages += 1;
        let last = page.questions.len() < 7;
        found.extend(page.questions.iter().map(Uuid::as_u128));
        if last {
            break;
        }
    }

    assert_eq!((found, pages), ((0..50).collect(), 8));
}

// === impl World ===

impl World {
    /// All that is reported after a position, which moves on.
    async fn cancelled_after(&self, position: &mut ViewPosition) -> Vec<u128> {
        let page = self.view.cancelled_questions(*position, 100).await.unwrap();
        *position = page.position;
        page.questions.iter().map(Uuid::as_u128).collect()
    }
}
