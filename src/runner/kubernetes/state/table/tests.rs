use super::*;
use crate::event::SruidBuf;
use crate::runner::kubernetes::failure::PodState;
use crate::runner::kubernetes::job::{JobIdentity, StopRecord};
use crate::runner::{EndReason, RunEnd, RunPhase};
use std::sync::Arc;

const LIMIT: Duration = Duration::from_secs(3600);
const JOB: Uuid = Uuid::from_u128(1);
const RUN: RunId = RunId { question: Uuid::from_u128(7), retry: 0 };

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000)
}

fn job(uid: Uuid, attempt: u32) -> ObservedJob {
    let recipient: SruidBuf = "octue/example:1.2.0".parse().unwrap();
    ObservedJob {
        uid,
        name: RUN.to_string(),
        resource_version: "1".into(),
        identity: JobIdentity {
            run: RUN,
            attempt,
            recipient,
            parent_question: None,
            originator_question: RUN.question,
            depth: 0,
            launched: at(0),
            attributes: Arc::default(),
        },
        suspended: false,
        gated: false,
        queue: None,
        has_deadline: false,
        stopped: None,
        evicted_pods: Vec::new(),
        end: None,
    }
}

fn end(seconds: i64, reason: EndReason) -> RunEnd {
    let message = format!("reported by {}", reason.label());
    RunEnd { at: at(seconds), started: None, cause: Cause::new(reason, message), tail: Vec::new() }
}

fn pod(number: u128, state: PodState) -> ObservedPod {
    let created = at(i64::try_from(number).unwrap());
    let uid = Uuid::from_u128(number);
    let (name, resource_version) = (format!("pod-{number}"), "1".into());
    ObservedPod { uid, name, created, deletion: None, resource_version, state }
}

fn waiting(stall: Option<Stall>) -> PodState {
    PodState::Waiting { why: "It waits.".into(), scheduled: true, stall }
}

fn running(seconds: i64) -> PodState {
    PodState::Running { since: at(seconds), stall: None }
}

fn ended(seconds: i64, reason: EndReason, disrupted: bool) -> PodState {
    PodState::Ended { end: end(seconds, reason), disrupted }
}

fn table() -> RunTable {
    RunTable::new(LIMIT)
}

/// The only state that changed.
fn published(table: &mut RunTable) -> Option<RunPhase> {
    let mut changes = table.take_changes(at(100));
    assert!(changes.len() < 2, "{changes:?}");
    changes.pop().map(|state| state.phase)
}

fn published_reason(table: &mut RunTable) -> EndReason {
    match published(table) {
        Some(RunPhase::Ended(end)) => end.cause.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_is_queued_starts_runs_and_ends() {
    let mut table = table();
    table.update_job(ObservedJob { suspended: true, ..job(JOB, 0) });
    assert!(matches!(published(&mut table), Some(RunPhase::Queued { .. })));
    table.update_job(job(JOB, 0));
    assert!(matches!(published(&mut table), Some(RunPhase::Starting { .. })));
    table.update_pod(JOB, pod(1, running(5)), at(5));
    assert_eq!(published(&mut table), Some(RunPhase::Running { launched: at(0), since: at(5) }));
    table.update_pod(JOB, pod(1, ended(9, EndReason::Memory, false)), at(9));
    assert!(
        matches!(published(&mut table), Some(RunPhase::Starting { .. })),
        "until the Job reports its end"
    );
    table.update_job(ObservedJob { end: Some(end(10, EndReason::Failed)), ..job(JOB, 0) });
    assert_eq!(published_reason(&mut table), EndReason::Memory, "the pod knows more than the Job");
}

#[test]
fn an_end_is_published_once_though_its_pod_is_deleted_later() {
    let mut table = table();
    table.update_job(ObservedJob { end: Some(end(10, EndReason::Failed)), ..job(JOB, 0) });
    table.update_pod(JOB, pod(1, ended(9, EndReason::Storage, false)), at(9));
    assert_eq!(published_reason(&mut table), EndReason::Storage);
    table.mark_pod_gone(JOB, Uuid::from_u128(1));
    table.pods_listed(&HashSet::new());
    assert_eq!(published(&mut table), None);
}

#[test]
fn a_complete_job_exited_though_its_pod_was_deleted_before_its_end_was_seen() {
    for (reported, published) in
        [(EndReason::Exited, EndReason::Exited), (EndReason::Failed, EndReason::Deleted)]
    {
        let mut table = table();
        table.update_job(job(JOB, 0));
        table.update_pod(JOB, pod(1, running(5)), at(5));
        table.pods_listed(&HashSet::new());
        table.update_job(ObservedJob { end: Some(end(10, reported)), ..job(JOB, 0) });
        assert_eq!(published_reason(&mut table), published);
    }
}

#[test]
fn the_pods_of_a_finished_job_are_looked_up_before_its_end_is_published() {
    let mut table = table();
    table.update_job(ObservedJob { end: Some(end(10, EndReason::Deadline)), ..job(JOB, 0) });
    assert_eq!(published(&mut table), None);
    assert_eq!(table.actions(at(11)), [JobAction::FindPods { job: JOB }]);
    table.pods_looked_up(JOB);
    assert_eq!(published_reason(&mut table), EndReason::Deadline);
}

#[test]
fn an_orphaned_pod_is_remembered_for_a_minute() {
    let mut table = table();
    table.update_pod(JOB, pod(1, running(1)), at(1));
    table.update_pod(Uuid::from_u128(2), pod(2, running(1)), at(1));
    table.update_job(job(JOB, 0));
    assert!(matches!(published(&mut table), Some(RunPhase::Running { .. })));
    table.actions(at(100));
    assert!(table.orphaned_pods.is_empty());
}

#[test]
fn a_pod_that_outlives_its_job_is_found_by_its_uid_and_followed_to_its_end() {
    let (mut table, uid) = (table(), Uuid::from_u128(1));
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, running(5)), at(5));
    table.mark_job_gone(JOB);
    assert!(matches!(published(&mut table), Some(RunPhase::Running { .. })), "it may answer");
    assert_eq!((table.job_of_pod(uid), table.job_of_pod(Uuid::from_u128(2))), (Some(JOB), None));
    table.mark_pod_gone(JOB, uid);
    assert_eq!(published_reason(&mut table), EndReason::Deleted);
}

#[test]
fn a_stall_stops_the_run_when_its_grace_is_over() {
    let grace = Duration::from_secs(30);
    let (reason, message) = (EndReason::Image, "no image".to_owned());
    let stuck = Stall::new(reason, grace, message);
    let vague = Stall { vague: true, ..Stall::new(EndReason::Image, grace, "?".into()) };
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, waiting(Some(stuck))), at(1));
    assert_eq!(table.actions(at(1)), []);
    table.update_pod(JOB, pod(1, waiting(Some(vague))), at(20));
    assert_eq!(table.actions(at(30)), []);
    let stop = JobAction::Stop { job: JOB, cause: Cause::new(EndReason::Image, "no image") };
    assert_eq!(table.actions(at(31)), [stop], "for the cause that was seen");
    // Until the Job shows that it was done.
    assert_eq!(table.actions(at(32)).len(), 1);
    let stopped = StopRecord { reason: "image".into(), message: "no image".into(), at: 33 };
    table.update_job(ObservedJob { stopped: Some(stopped), has_deadline: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(33)), []);
}

#[test]
fn a_run_that_makes_progress_in_time_is_not_stopped() {
    let grace = Duration::from_secs(30);
    let stuck = Stall::new(EndReason::Unschedulable, grace, "no node".into());
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, waiting(Some(stuck.clone()))), at(1));
    table.actions(at(1));
    table.update_pod(JOB, pod(1, waiting(None)), at(20));
    table.actions(at(20));
    table.update_pod(JOB, pod(1, waiting(Some(stuck))), at(21));
    assert_eq!(table.actions(at(40)), []);
    assert!(!table.must_stop(JOB, at(69)));
    assert!(table.must_stop(JOB, at(70)));
    table.update_pod(JOB, pod(1, running(70)), at(70));
    assert!(!table.must_stop(JOB, at(70)), "it runs since that was decided");
    assert_eq!(table.actions(at(4000)), []);
}

#[test]
fn the_cause_of_a_stop_wins_over_the_end_of_the_pod() {
    let mut table = table();
    let stopped = StopRecord { reason: "no_image".into(), message: "no image".into(), at: 3 };
    table.update_pod(JOB, pod(1, ended(9, EndReason::Deadline, false)), at(9));
    let end = Some(end(10, EndReason::Deadline));
    table.update_job(ObservedJob {
        stopped: Some(stopped),
        has_deadline: true,
        end,
        ..job(JOB, 0)
    });
    assert_eq!(published_reason(&mut table), EndReason::NoImage);
}

#[test]
fn a_job_that_is_stopped_while_suspended_has_ended_unless_it_is_admitted() {
    let stopped = Some(StopRecord { reason: "cancelled".into(), message: "c".into(), at: 3 });
    let mut table = table();
    table.update_job(ObservedJob { suspended: true, stopped: stopped.clone(), ..job(JOB, 0) });
    assert_eq!(published_reason(&mut table), EndReason::Cancelled);
    assert_eq!(table.actions(at(4)), []);
    table.update_job(ObservedJob { stopped, ..job(JOB, 0) });
    assert_eq!(table.actions(at(5)), [JobAction::EnforceStop { job: JOB }]);
}

#[test]
fn evictions_are_recorded_and_the_fourth_ends_the_run() {
    let mut table = table();
    table.update_job(job(JOB, 0));
    let mut evicted = Vec::new();
    for number in 1..=4 {
        let uid = Uuid::from_u128(number);
        table.update_pod(JOB, pod(number, ended(9, EndReason::Evicted, true)), at(9));
        assert_eq!(table.actions(at(10)), [JobAction::RecordEviction { job: JOB, pod: uid }]);
        evicted.push(uid);
        table.update_job(ObservedJob { evicted_pods: evicted.clone(), ..job(JOB, 0) });
        let state = table.take_changes(at(10)).pop().unwrap();
        // Three restarts are reported to the parent.
        assert_eq!(u128::from(state.evictions), number.min(3));
        assert!(matches!(state.phase, RunPhase::Starting { .. }));
    }
    let actions = table.actions(at(11));
    assert!(
        matches!(
            &actions[..],
            [JobAction::Stop { cause: Cause { reason: EndReason::Evicted, .. }, .. }]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_pod_that_its_queue_takes_back_is_evicted() {
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, running(1)), at(1));
    table.update_job(ObservedJob { suspended: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(2)), []);
    table.update_pod(JOB, ObservedPod { deletion: Some(at(2)), ..pod(1, running(1)) }, at(2));
    assert_eq!(
        table.actions(at(3)),
        [JobAction::RecordEviction { job: JOB, pod: Uuid::from_u128(1) }]
    );
}

#[test]
fn a_run_that_waits_for_longer_than_the_queue_timeout_is_stopped() {
    let mut table = table();
    table.update_job(ObservedJob { suspended: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(3600)), []);
    let actions = table.actions(at(3601));
    assert!(
        matches!(
            &actions[..],
            [JobAction::Stop { cause: Cause { reason: EndReason::Waited, .. }, .. }]
        ),
        "{actions:?}"
    );
}

#[test]
fn the_queue_timeout_of_an_evicted_run_starts_at_its_eviction() {
    let evicted = vec![Uuid::from_u128(1)];
    let waits = ObservedJob { suspended: true, evicted_pods: evicted, ..job(JOB, 0) };
    let is_over = |actions: &[JobAction]| {
        matches!(actions, [JobAction::Stop { cause: Cause { reason: EndReason::Waited, .. }, .. }])
    };
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, running(5)), at(5));
    assert_eq!(table.actions(at(4000)), []);
    let end = RunEnd { started: Some(at(5)), ..end(4001, EndReason::Evicted) };
    table.update_pod(JOB, pod(1, PodState::Ended { end, disrupted: true }), at(4001));
    assert!(!table.actions(at(4002)).iter().any(|action| matches!(action, JobAction::Stop { .. })));
    table.update_job(waits.clone());
    assert_eq!(table.actions(at(7601)), []);
    assert!(is_over(&table.actions(at(7602))));

    // After a restart, where its pod is no more.
    let mut table = self::table();
    table.update_job(waits);
    assert_eq!(table.actions(at(5000)), []);
    assert_eq!(table.actions(at(8600)), []);
    assert!(is_over(&table.actions(at(8601))));
}

#[test]
fn events_are_read_first_for_the_jobs_whose_last_read_is_oldest() {
    let many = u128::try_from(3 * MAX_EVENT_READS).unwrap();
    let mut table = table();
    for number in 0..many {
        table.update_job(job(Uuid::from_u128(number), 0));
    }
    let mut looked = HashSet::new();
    for second in 20..23 {
        let actions = table.actions(at(second));
        assert_eq!(actions.len(), MAX_EVENT_READS);
        looked.extend(actions.into_iter().map(|action| match action {
            JobAction::ReadEvents { job: uid } => uid,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(looked.len(), 3 * MAX_EVENT_READS);
    assert_eq!(table.actions(at(23)), []);
}

#[test]
fn a_pod_whose_deletion_is_overdue_does_not_delay_the_end_of_its_run() {
    let leaves = |by| ObservedPod { deletion: Some(at(by)), ..pod(1, running(5)) };
    let stopped = Some(StopRecord { reason: "cancelled".into(), message: "c".into(), at: 10 });
    let ended_at = |table: &mut RunTable, now| {
        assert_eq!(table.actions(at(now)), []);
        let phase = table.take_changes(at(now)).pop().map(|state| state.phase);
        match phase {
            Some(RunPhase::Ended(end)) => Some((end.cause.reason, end.at)),
            _ => None,
        }
    };
    let mut table = table();
    table.update_job(ObservedJob { stopped, has_deadline: true, ..job(JOB, 0) });
    table.update_pod(JOB, leaves(13), at(10));
    assert_eq!(ended_at(&mut table, 72), None);
    assert_eq!(
        ended_at(&mut table, 73),
        Some((EndReason::Cancelled, at(13))),
        "nothing else changed"
    );
    assert_eq!(ended_at(&mut table, 74), None, "once");

    // Another client deleted its Job.
    let mut table = self::table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, leaves(13), at(10));
    table.mark_job_gone(JOB);
    assert_eq!(ended_at(&mut table, 72), None);
    assert_eq!(ended_at(&mut table, 73), Some((EndReason::Deleted, at(13))));

    // A pod that is just being deleted may still end by itself.
    let mut table = self::table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, leaves(13), at(10));
    assert_eq!(ended_at(&mut table, 600), None);
}

#[test]
fn the_run_of_a_deleted_job_ends_with_its_pods() {
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.update_pod(JOB, pod(1, running(1)), at(1));
    table.mark_job_gone(JOB);
    assert!(matches!(published(&mut table), Some(RunPhase::Running { .. })));
    table.mark_pod_gone(JOB, Uuid::from_u128(1));
    assert_eq!(published_reason(&mut table), EndReason::Deleted);
    assert_eq!(table.actions(at(2)), []);
}

#[test]
fn the_last_attempt_gives_the_state_of_a_run_and_settles_it() {
    let second = Uuid::from_u128(2);
    let mut table = table();
    table.update_job(ObservedJob { end: Some(end(3, EndReason::Memory)), ..job(JOB, 0) });
    table.pods_looked_up(JOB);
    table.update_job(job(second, 1));
    let state = table.take_changes(at(4)).pop().unwrap();
    assert_eq!((state.attempt, table.states().len()), (1, 1));
    assert!(matches!(state.phase, RunPhase::Starting { .. }));
    assert!(table.remove_settled(JOB, at(100)).is_none());
    assert_eq!(table.remove_settled(second, at(100)).unwrap().phase, RunPhase::Settled);
    assert!(table.states().is_empty());
}

#[test]
fn an_older_version_does_not_replace_a_newer() {
    let mut table = table();
    table.update_job(ObservedJob { resource_version: "10".into(), suspended: true, ..job(JOB, 0) });
    table.update_job(ObservedJob { resource_version: "9".into(), ..job(JOB, 0) });
    assert!(table.get(JOB).unwrap().job.suspended);
}

#[test]
fn a_job_that_a_list_left_out_is_looked_for_until_it_is_found() {
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.jobs_listed(&HashSet::new(), at(1));
    assert_eq!(table.actions(at(1)), [JobAction::FindJob { job: JOB }]);
    // The call failed.
    assert_eq!(table.actions(at(2)), []);
    assert_eq!(table.actions(at(3)), [JobAction::FindJob { job: JOB }]);
    table.update_job(job(JOB, 0));
    assert_eq!(table.actions(at(6)), []);
    assert!(matches!(published(&mut table), Some(RunPhase::Starting { .. })));
}

#[test]
fn an_object_that_is_seen_again_exists_unless_the_version_is_older() {
    let mut table = table();
    let seen = |version: &str| ObservedJob { resource_version: version.into(), ..job(JOB, 0) };
    let exists = |table: &RunTable| table.get(JOB).unwrap().exists;
    table.update_job(seen("10"));
    table.mark_job_gone(JOB);
    table.update_job(seen("9"));
    assert!(!exists(&table));
    table.update_job(seen("10"));
    assert!(exists(&table));

    // A pod that was created after the list of all pods.
    let uid = Uuid::from_u128(1);
    let seen =
        |version: &str| ObservedPod { resource_version: version.into(), ..pod(1, running(1)) };
    table.update_pod(JOB, seen("10"), at(1));
    table.pods_listed(&HashSet::new());
    table.update_pod(JOB, seen("9"), at(1));
    assert!(!matches!(published(&mut table), Some(RunPhase::Running { .. })));
    table.update_pod(JOB, seen("10"), at(1));
    assert!(matches!(published(&mut table), Some(RunPhase::Running { .. })));
    table.mark_pod_gone(JOB, uid);
    assert!(!matches!(published(&mut table), Some(RunPhase::Running { .. })));
}

#[test]
fn a_settled_job_stays_removed_whatever_the_watch_still_shows() {
    let mut table = table();
    let seen = |version: &str| ObservedJob { resource_version: version.into(), ..job(JOB, 0) };
    table.update_job(seen("10"));
    published(&mut table).unwrap();
    assert!(table.remove_settled(JOB, at(10)).is_some());

    // The watch is behind, for hours. Not even a later version brings the Job back.
    for (seconds, version) in [(11, "8"), (5_000, "9"), (10_000, "11")] {
        table.update_job(seen(version));
        assert_eq!(table.actions(at(seconds)), []);
        assert!(table.take_changes(at(seconds)).is_empty() && table.states().is_empty());
        assert!(table.remove_settled(JOB, at(seconds)).is_none(), "it is settled once");
    }

    // The watch has caught up. The answer to a call of ours still has not been used.
    table.job_left_watch(JOB, at(10_001));
    assert_eq!(table.actions(at(10_300)), []);
    table.update_job(seen("9"));
    assert!(table.get(JOB).is_none());
    assert_eq!(table.actions(at(10_302)), []);
    assert!(table.removed.is_empty(), "nothing older can arrive: it need not be remembered");
}

#[test]
fn a_list_that_began_after_the_settling_shows_that_a_watch_has_caught_up() {
    let others = HashSet::from([Uuid::from_u128(2)]);
    let is_remembered = |listed: &HashSet<Uuid>, starts_later: bool| {
        let mut table = table();
        table.update_job(job(JOB, 0));
        if !starts_later {
            table.job_list_started();
        }
        table.remove_settled(JOB, at(10));
        if starts_later {
            table.job_list_started();
        }
        table.jobs_listed(listed, at(20));
        table.actions(at(1_000));
        !table.removed.is_empty()
    };
    assert!(!is_remembered(&others, true));
    assert!(is_remembered(&others, false), "the list may be older than the settling");
    assert!(is_remembered(&HashSet::from([JOB]), true), "the list itself shows an old version");
}

#[test]
fn a_job_that_the_watch_showed_deleted_is_remembered_for_late_answers_only() {
    let mut table = table();
    table.update_job(job(JOB, 0));
    table.job_left_watch(JOB, at(5));
    table.mark_job_gone(JOB);
    table.remove_settled(JOB, at(10));
    table.update_job(job(JOB, 0));
    assert!(table.get(JOB).is_none());
    table.actions(at(311));
    assert!(table.removed.is_empty());
}

#[test]
fn jobs_of_kueue_are_not_gated_and_admitted_jobs_count_as_running() {
    let mut table = table();
    table.update_job(ObservedJob { suspended: true, gated: true, ..job(JOB, 0) });
    let kueues = Uuid::from_u128(2);
    table.update_job(ObservedJob { suspended: true, ..job(kueues, 0) });
    let gated = table.gated();
    assert_eq!((gated.waiting.len(), gated.running.len()), (1, 0));
    table.update_job(ObservedJob { gated: true, ..job(JOB, 0) });
    let gated = table.gated();
    assert_eq!((gated.waiting.len(), gated.running.len()), (0, 1));
}

/// The processor time of one pass over so many queued Jobs, in nanoseconds.
fn pass_time(count: u128) -> u64 {
    let mut table = table();
    for number in 0..count {
        let uid = Uuid::from_u128(number);
        let mut job = job(uid, 0);
        job.name = format!("question-{number}");
        job.identity.run = RunId { question: uid, retry: 0 };
        table.update_job(ObservedJob { suspended: true, gated: true, ..job });
    }
    let names: Vec<_> = (0..count).map(|number| format!("question-{number}")).collect();
    let start = processor_time();
    let words = names.iter().map(|name| (name.as_str(), "It waits.".to_owned())).collect();
    table.set_holding_limits(&words);
    assert_eq!(table.take_changes(at(1)).len(), names.len());
    assert_eq!(table.gated().waiting.len(), names.len());
    assert_eq!(table.actions(at(2)), []);
    table.set_holding_limits(&words);
    assert!(table.take_changes(at(3)).is_empty());
    processor_time() - start
}

/// How long this thread has run on a processor, in nanoseconds: other tests run meanwhile.
fn processor_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_pass_over_all_queued_jobs_takes_linear_time() {
    // About 100 ms without optimisation; a pass that is quadratic takes many seconds.
    let took = pass_time(20_000);
    assert!(took < 1_000_000_000, "{took} ns");
}

#[test]
fn the_queue_timeout_is_reported_in_readable_units() {
    for (seconds, words) in [(20, "20 seconds"), (600, "10 minutes"), (86_400, "24 hours")] {
        let mut table = RunTable::new(Duration::from_secs(seconds));
        table.update_job(ObservedJob { suspended: true, ..job(JOB, 0) });
        let late = i64::try_from(seconds).unwrap() + 1;
        let actions = table.actions(at(late));
        let [JobAction::Stop { cause: Cause { reason: EndReason::Waited, message }, .. }] =
            &*actions
        else {
            panic!("{actions:?}")
        };
        assert!(message.starts_with(&format!("The question waited for {words}, which")));
    }
}
