//! Views, which forget old events.

use super::*;

/// Deadline of a condition.
const DEADLINE: Duration = Duration::from_secs(30);

fn keeping(age: Duration, bytes: u64) -> World {
    World::with(Options { synced: false, keep: Some(Keep { age, bytes }), ..Options::default() })
}

/// Waits until the wanted number of rows is left in a table.
async fn left(world: &World, table: &str, wanted: impl Fn(i64) -> bool) -> i64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let count = world.count(table);
        if wanted(count) {
            return count;
        }
        assert!(Instant::now() < deadline, "{count} rows of `{table}` are left");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_view_over_its_bytes_forgets_events_in_the_order_of_arrival() {
    let bytes = 1 << 20;
    let world = keeping(Duration::MAX, bytes);
    for question in 0..3_000 {
        let text = question.to_string().repeat(200);
        append(&world.store, &Sent::new(question, "result").data(&text)).await.unwrap();
    }

    let kept = left(&world, "events", |count| count < 2_000).await;

    assert!(kept > 500, "{kept} are kept");
    let first = 3_000 - u128::try_from(kept).unwrap();
    assert_eq!(world.read(first - 1).await, []);
    for question in first..3_000 {
        assert_eq!(world.read(question).await.len(), 1, "{question}");
    }
    assert_eq!(world.count("questions"), kept, "questions go with their events");
    world.store.close().await;
    let size = std::fs::metadata(&world.path).unwrap().len();
    assert!(size < 2 * bytes, "the file is of {size} bytes");
}

#[tokio::test]
async fn an_event_is_forgotten_by_its_arrival_and_not_by_its_datetime() {
    let world = keeping(Duration::from_millis(50), u64::MAX);
    assert_eq!(world.store.forgotten(), None);
    let before = Timestamp::now();
    let ahead = Sent::new(1, "question").with("datetime", "2926-01-31T12:00:00+00:00");
    append(&world.store, &ahead).await.unwrap();

    // The newest event stays. Each append makes the view forget some of the others.
    let deadline = Instant::now() + DEADLINE;
    let mut question = 2;
    while !world.read(1).await.is_empty() {
        assert!(Instant::now() < deadline);
        append(&world.store, &Sent::new(question, "question")).await.unwrap();
        question += 1;
    }

    let forgotten = world.store.forgotten().unwrap();
    assert!(forgotten >= before && forgotten <= Timestamp::now());
}

#[tokio::test]
async fn a_question_that_other_events_name_stays() {
    let world = keeping(Duration::ZERO, u64::MAX);
    let root = Uuid::from_u128(1).to_string();
    let child = |question| {
        Sent::new(question, "question")
            .with("originator_question_uuid", &root)
            .with("parent_question_uuid", &root)
    };
    append(&world.store, &Sent::new(1, "question")).await.unwrap();
    append(&world.store, &child(2)).await.unwrap();
    append(&world.store, &child(3)).await.unwrap();

    left(&world, "events", |count| count == 1).await;

    let tree = EventQuery::new(EventScope::Originator(Uuid::from_u128(1)), 10);
    assert_eq!(world.store.events(&tree).await.unwrap().len(), 1);
    // Forgotten events may come again, and get new ids.
    append_all(&world.store, &[child(2), Sent::new(1, "question"), child(3)]).await.unwrap();
    assert!(!world.store.events(&tree).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_large_burst_is_forgotten_completely() {
    let world = keeping(Duration::ZERO, u64::MAX);
    let sent: Vec<_> = (0..5_000).map(|question| Sent::new(question, "heartbeat")).collect();
    let lock = world.lock();
    let appends = sent.iter().map(|sent| append(&world.store, sent));
    let mut appends = std::pin::pin!(futures_util::future::join_all(appends));
    assert!(futures_util::poll!(&mut appends).is_pending());
    drop(lock);

    assert!(appends.await.into_iter().all(|result| result.is_ok()));

    left(&world, "events", |count| count == 1).await;
    left(&world, "questions", |count| count == 1).await;
    left(&world, "envelopes", |count| count == 1).await;
}

#[tokio::test]
async fn a_view_is_not_synced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("view.sqlite");
    let options = Options { synced: false, ..Options::default() };

    let connection = schema::writable(&path, &options).unwrap();

    let level: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    assert_eq!(level, 0);
}
