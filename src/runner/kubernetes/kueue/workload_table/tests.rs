use super::super::workload::{CLUSTER_QUEUE_GRACE, GRACE};
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

fn began(objects: impl IntoIterator<Item = DynamicObject>, now: Instant) -> WorkloadTable {
    let mut table = WorkloadTable::default();
    list(&mut table, objects, now);
    table.take_changed();
    table
}

fn list(table: &mut WorkloadTable, objects: impl IntoIterator<Item = DynamicObject>, now: Instant) {
    table.apply(Event::Init, now);
    objects.into_iter().for_each(|object| table.apply(Event::InitApply(object), now));
    table.apply(Event::InitDone, now);
}

fn changed(table: &mut WorkloadTable) -> Vec<String> {
    table.take_changed().into_iter().collect()
}

#[test]
fn the_position_is_by_priority_and_then_by_age() {
    let now = Instant::now();
    let mut table = began([object(1, 1, 0, ""), object(2, 0, 0, ""), object(3, 9, 7, "")], now);
    let why = |table: &mut WorkloadTable, job, now| table.queue_status(job, "questions", now).why;
    assert_eq!(why(&mut table, "j3", now), "It is the first in queue `questions`.");
    assert_eq!(why(&mut table, "j2", now), "It waits in queue `questions` behind 1 other.");
    assert_eq!(why(&mut table, "j1", now), "It waits in queue `questions` behind 2 others.");

    table.apply(Event::Delete(object(3, 9, 7, "")), now);
    assert_eq!(changed(&mut table), ["j3"]);
    let later = now + POSITIONS_MAX_AGE;
    assert_eq!(why(&mut table, "j2", later), "It is the first in queue `questions`.");
    table.apply(Event::Apply(object(4, 2, 0, "")), later);
    assert_eq!(why(&mut table, "j4", later), "It waits in queue `questions` behind 2 others.");
}

#[test]
fn a_workload_that_can_never_start_delays_no_other() {
    let now = Instant::now();
    let never = "LocalQueue questions doesn't exist";
    let mut table = began([object(1, 0, 9, never), object(2, 1, 0, "")], now);
    let why = table.queue_status("j2", "questions", now).why;
    assert_eq!(why, "It is the first in queue `questions`.");
    let why = table.queue_status("j1", "questions", now).why;
    assert_eq!(why, "It waits in queue `questions`: LocalQueue questions doesn't exist.");
}

#[test]
fn a_refusal_is_reported_when_it_has_lasted_for_its_grace() {
    let start = Instant::now();
    let never = "LocalQueue questions doesn't exist";
    let mut table = began([object(1, 0, 0, never)], start);
    assert_eq!(table.due(), Some(start + GRACE));

    // Kueue reports something else meanwhile: the grace starts again.
    let middle = start + GRACE / 2;
    table.apply(Event::Apply(object(1, 0, 0, "")), middle);
    assert_eq!(table.due(), None);
    table.apply(Event::Apply(object(1, 0, 0, never)), middle);
    table.take_changed();
    table.mark_due(start + GRACE);
    assert_eq!(changed(&mut table), [""; 0]);
    assert_eq!(table.queue_status("j1", "questions", start + GRACE).refusal, None);

    table.mark_due(middle + GRACE);
    assert_eq!(changed(&mut table), ["j1"]);
    let refusal = table.queue_status("j1", "questions", middle + GRACE).refusal.unwrap();
    assert_eq!(refusal.reason, EndReason::Queue);
    assert!(refusal.message.starts_with("There is no queue `questions`"));
    assert_eq!(table.due(), None);
}

#[test]
fn a_cluster_queue_that_kueue_does_not_know_yet_has_more_time() {
    let now = Instant::now();
    let table = began([object(1, 0, 0, "ClusterQueue all doesn't exist")], now);
    assert_eq!(table.due(), Some(now + CLUSTER_QUEUE_GRACE));
}

#[test]
fn a_watch_that_starts_again_forgets_deleted_workloads_and_repeats_nothing() {
    let now = Instant::now();
    let mut table = began([object(1, 0, 0, ""), object(2, 1, 0, "")], now);
    list(&mut table, [object(2, 1, 0, "")], now);
    assert_eq!(changed(&mut table), ["j1"]);
    assert_eq!(
        table.queue_status("j1", "questions", now).why,
        "It waits for Kueue to put it into queue `questions`."
    );
}

#[test]
fn the_workload_that_kueue_creates_again_belongs_to_the_job() {
    let now = Instant::now();
    let mut table = began([object(1, 0, 0, "")], now);
    let mut newer = object(1, 5, 0, "insufficient unused quota");
    newer.metadata.name = Some("w1-again".to_owned());
    table.apply(Event::Apply(newer), now);
    table.apply(Event::Delete(object(1, 0, 0, "")), now);
    assert_eq!(
        table.queue_status("j1", "questions", now + POSITIONS_MAX_AGE).why,
        "It is the first in queue `questions`: insufficient unused quota."
    );
}

#[test]
fn without_sight_of_kueue_less_is_explained() {
    let now = Instant::now();
    let mut table = WorkloadTable::default();
    let why = |table: &mut WorkloadTable| table.queue_status("j1", "questions", now).why;
    assert_eq!(why(&mut table), "It waits in queue `questions`.");
    list(&mut table, [object(1, 0, 0, "LocalQueue questions doesn't exist")], now);
    table.take_changed();

    table.set_visibility(Visibility::Absent);
    assert_eq!(changed(&mut table), ["j1"]);
    assert_eq!(table.due(), None);
    assert!(why(&mut table).ends_with("is not installed in the cluster."));
    table.set_visibility(Visibility::Hidden);
    assert_eq!(why(&mut table), "It waits in queue `questions`.");
}

/// Of so many that wait, each asks for its place at once, and so does each that comes meanwhile.
fn time_for(count: u32) -> u64 {
    let now = Instant::now();
    let mut table = began((0..count).map(|n| object(n, 0, 0, "insufficient unused quota")), now);
    let start = on_processor();
    for n in 0..count {
        assert!(table.queue_status(&format!("j{n}"), "questions", now).refusal.is_none());
        table.apply(Event::Apply(object(count + n, 1, 0, "")), now);
        let why = table.queue_status(&format!("j{}", count + n), "questions", now).why;
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
fn the_cost_for_each_waiting_job_does_not_grow_with_the_queue() {
    // In a build without optimisation about a second; where each looks at all others, minutes.
    let took = time_for(10_000);
    assert!(took < 5_000_000_000, "{took} ns");
}
