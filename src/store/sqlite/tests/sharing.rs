//! Several stores on one file.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_share_a_file_see_each_others_events() {
    let world = World::new();
    let other = SqliteStore::open(&world.path, Options::default()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for store in [world.store.clone(), other.clone()] {
        for task in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                for number in 0..25 {
                    // The same questions from both, so that both write each first.
                    append(&store, &Sent::new(task * 100 + number, "heartbeat")).await.unwrap();
                }
            });
        }
    }
    tasks.join_all().await;

    let same = Sent::new(7_000, "heartbeat");
    append(&world.store, &same).await.unwrap();
    append(&other, &same).await.unwrap();

    for store in [&world.store, &other] {
        for task in 0..4 {
            for number in 0..25 {
                assert_eq!(read(store, task * 100 + number).await.len(), 2);
            }
        }
        assert_eq!(read(store, 7_000).await.len(), 1);
    }
    assert_eq!(world.count("questions"), 101);
    assert_eq!(world.count("envelopes"), 1);
}

#[test]
fn many_stores_can_open_a_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let path = folder.path().join(format!("{round}.sqlite"));
        let stores: Vec<_> = thread::scope(|scope| {
            let open = || SqliteStore::open(&path, Options::default());
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            opening.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for store in stores {
            store.unwrap();
        }
    }
}
