use super::super::workload::{QUEUES_COME, SETTLES};
use super::*;
use crate::runner::EndReason;
use serde_json::json;

/// A Workload that waits for quota, made `second` seconds after the hour, for the Job `j<n>`.
fn object(n: u32, second: u32, priority: i32, message: &str) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {
            "name": format!("w{n}"),
            "creationTimestamp": format!("2026-11-25T20:00:{second:02}Z"),
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": "q", "uid": format!("j{n}")},
            ],
        },
        "spec": {"queueName": "questions", "priority": priority},
        "status": {"conditions": [{
            "type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message,
            "lastTransitionTime": "2026-11-25T20:00:00Z",
        }]},
    }))
    .unwrap()
}

fn began(objects: impl IntoIterator<Item = DynamicObject>, now: Instant) -> Table {
    let mut table = Table::default();
    list(&mut table, objects, now);
    table.take_changed();
    table
}

fn list(table: &mut Table, objects: impl IntoIterator<Item = DynamicObject>, now: Instant) {
    table.apply(Event::Init, now);
    objects.into_iter().for_each(|object| table.apply(Event::InitApply(object), now));
    table.apply(Event::InitDone, now);
}

fn changed(table: &mut Table) -> Vec<String> {
    table.take_changed().into_iter().collect()
}

#[test]
fn the_place_is_by_priority_and_then_by_age() {
    let now = Instant::now();
    let mut table = began([object(1, 1, 0, ""), object(2, 0, 0, ""), object(3, 9, 7, "")], now);
    let why = |table: &mut Table, job, now| table.waits(job, "questions", now).why;
    assert_eq!(why(&mut table, "j3", now), "It is the first in queue `questions`.");
    assert_eq!(why(&mut table, "j2", now), "It waits in queue `questions` behind 1 other.");
    assert_eq!(why(&mut table, "j1", now), "It waits in queue `questions` behind 2 others.");

    table.apply(Event::Delete(object(3, 9, 7, "")), now);
    assert_eq!(changed(&mut table), ["j3"]);
    let later = now + PLACES;
    assert_eq!(why(&mut table, "j2", later), "It is the first in queue `questions`.");
    table.apply(Event::Apply(object(4, 2, 0, "")), later);
    assert_eq!(why(&mut table, "j4", later), "It waits in queue `questions` behind 2 others.");
}

#[test]
fn what_can_never_start_is_in_nobodys_way() {
    let now = Instant::now();
    let never = "LocalQueue questions doesn't exist";
    let mut table = began([object(1, 0, 9, never), object(2, 1, 0, "")], now);
    let why = table.waits("j2", "questions", now).why;
    assert_eq!(why, "It is the first in queue `questions`.");
    let why = table.waits("j1", "questions", now).why;
    assert_eq!(why, "It waits in queue `questions`: LocalQueue questions doesn't exist.");
}

#[test]
fn what_can_never_start_is_told_when_it_was_said_for_long_enough() {
    let start = Instant::now();
    let never = "LocalQueue questions doesn't exist";
    let mut table = began([object(1, 0, 0, never)], start);
    assert_eq!(table.due(), Some(start + SETTLES));

    // Kueue says something else meanwhile, and then the same again: the time counts anew.
    let middle = start + SETTLES / 2;
    table.apply(Event::Apply(object(1, 0, 0, "")), middle);
    assert_eq!(table.due(), None);
    table.apply(Event::Apply(object(1, 0, 0, never)), middle);
    table.take_changed();
    table.ripen(start + SETTLES);
    assert_eq!(changed(&mut table), [""; 0]);
    assert_eq!(table.waits("j1", "questions", start + SETTLES).stuck, None);

    table.ripen(middle + SETTLES);
    assert_eq!(changed(&mut table), ["j1"]);
    let stuck = table.waits("j1", "questions", middle + SETTLES).stuck.unwrap();
    assert_eq!(stuck.0, EndReason::Queue);
    assert!(stuck.1.starts_with("There is no queue `questions`"));
    assert_eq!(table.due(), None);
}

#[test]
fn a_cluster_queue_that_kueue_does_not_know_yet_has_more_time() {
    let now = Instant::now();
    let table = began([object(1, 0, 0, "ClusterQueue all doesn't exist")], now);
    assert_eq!(table.due(), Some(now + QUEUES_COME));
}

#[test]
fn a_watch_that_begins_anew_forgets_what_is_gone_and_repeats_nothing() {
    let now = Instant::now();
    let mut table = began([object(1, 0, 0, ""), object(2, 1, 0, "")], now);
    list(&mut table, [object(2, 1, 0, "")], now);
    assert_eq!(changed(&mut table), ["j1"]);
    assert_eq!(
        table.waits("j1", "questions", now).why,
        "It waits for Kueue to put it into queue `questions`."
    );
}

#[test]
fn the_workload_that_kueue_makes_anew_is_the_jobs() {
    let now = Instant::now();
    let mut table = began([object(1, 0, 0, "")], now);
    let mut newer = object(1, 5, 0, "insufficient unused quota");
    newer.metadata.name = Some("w1-again".to_owned());
    table.apply(Event::Apply(newer), now);
    table.apply(Event::Delete(object(1, 0, 0, "")), now);
    assert_eq!(
        table.waits("j1", "questions", now + PLACES).why,
        "It is the first in queue `questions`: insufficient unused quota."
    );
}

#[test]
fn where_kueue_is_not_seen_there_are_fewer_words() {
    let now = Instant::now();
    let mut table = Table::default();
    let why = |table: &mut Table| table.waits("j1", "questions", now).why;
    assert_eq!(why(&mut table), "It waits in queue `questions`.");
    list(&mut table, [object(1, 0, 0, "LocalQueue questions doesn't exist")], now);
    table.take_changed();

    table.see(Served::Absent);
    assert_eq!(changed(&mut table), ["j1"]);
    assert_eq!(table.due(), None);
    assert!(why(&mut table).ends_with("is not installed in the cluster."));
    table.see(Served::Hidden);
    assert_eq!(why(&mut table), "It waits in queue `questions`.");
}

/// Of so many that wait, each asks for its place at once, and so does each that comes meanwhile.
fn time_for(count: u32) -> u64 {
    let now = Instant::now();
    let mut table = began((0..count).map(|n| object(n, 0, 0, "insufficient unused quota")), now);
    let start = on_processor();
    for n in 0..count {
        assert!(table.waits(&format!("j{n}"), "questions", now).stuck.is_none());
        table.apply(Event::Apply(object(count + n, 1, 0, "")), now);
        let why = table.waits(&format!("j{}", count + n), "questions", now).why;
        assert_eq!(why, format!("It waits in queue `questions` behind {count} others."));
    }
    on_processor() - start
}

/// Nanoseconds that this thread has been on a processor: others may want it too meanwhile.
fn on_processor() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_is_done_for_all_that_wait_costs_each_of_them_the_same() {
    // In a build without optimisation about a second; where each looks at all others, minutes.
    let took = time_for(10_000);
    assert!(took < 5_000_000_000, "{took} ns");
}
