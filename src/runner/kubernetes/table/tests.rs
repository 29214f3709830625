use super::*;
use crate::event::SruidBuf;
use crate::runner::{EndReason, RunEnd, RunPhase};
use std::sync::Arc;

const LIMIT: Duration = Duration::from_secs(3600);
const JOB: Uuid = Uuid::from_u128(1);
const RUN: RunId = RunId { question: Uuid::from_u128(7), retry: 0 };

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000)
}

fn job(uid: Uuid, attempt: u32) -> JobBrief {
    let recipient: SruidBuf = "octue/example:1.2.0".parse().unwrap();
    JobBrief {
        uid,
        name: RUN.to_string(),
        version: "1".into(),
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
        deadline: false,
        stopped: None,
        evicted: Vec::new(),
        end: None,
    }
}

fn end(seconds: i64, reason: EndReason) -> RunEnd {
    let message = format!("told by {}", reason.label());
    RunEnd { at: at(seconds), started: None, reason, message, tail: Vec::new() }
}

fn pod(number: u128, state: PodState) -> PodBrief {
    let created = at(i64::try_from(number).unwrap());
    let uid = Uuid::from_u128(number);
    let version = "1".into();
    PodBrief { uid, name: format!("pod-{number}"), created, deleting: None, version, state }
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

fn table() -> Table {
    Table::new(LIMIT)
}

/// The only state that is told.
fn told(table: &mut Table) -> Option<RunPhase> {
    let mut changes = table.changes(at(100));
    assert!(changes.len() < 2, "{changes:?}");
    changes.pop().map(|state| state.phase)
}

fn reason_told(table: &mut Table) -> EndReason {
    match told(table) {
        Some(RunPhase::Ended(end)) => end.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_waits_starts_runs_and_ends() {
    let mut table = table();
    table.job(JobBrief { suspended: true, ..job(JOB, 0) });
    assert!(matches!(told(&mut table), Some(RunPhase::Queued { .. })));
    table.job(job(JOB, 0));
    assert!(matches!(told(&mut table), Some(RunPhase::Starting { .. })));
    table.pod(JOB, pod(1, running(5)), at(5));
    assert_eq!(told(&mut table), Some(RunPhase::Running { launched: at(0), since: at(5) }));
    table.pod(JOB, pod(1, ended(9, EndReason::Memory, false)), at(9));
    assert!(matches!(told(&mut table), Some(RunPhase::Starting { .. })), "until the Job says so");
    table.job(JobBrief { end: Some(end(10, EndReason::Failed)), ..job(JOB, 0) });
    assert_eq!(reason_told(&mut table), EndReason::Memory, "the pod knows more than the Job");
}

#[test]
fn an_end_is_told_once_though_its_pod_goes_later() {
    let mut table = table();
    table.job(JobBrief { end: Some(end(10, EndReason::Failed)), ..job(JOB, 0) });
    table.pod(JOB, pod(1, ended(9, EndReason::Storage, false)), at(9));
    assert_eq!(reason_told(&mut table), EndReason::Storage);
    table.pod_gone(JOB, Uuid::from_u128(1));
    table.pods_are(&HashSet::new());
    assert_eq!(told(&mut table), None);
}

#[test]
fn a_job_that_is_complete_has_ended_so_though_its_pod_was_seen_to_run_and_went() {
    for (said, told) in
        [(EndReason::Exited, EndReason::Exited), (EndReason::Failed, EndReason::Deleted)]
    {
        let mut table = table();
        table.job(job(JOB, 0));
        table.pod(JOB, pod(1, running(5)), at(5));
        table.pods_are(&HashSet::new());
        table.job(JobBrief { end: Some(end(10, said)), ..job(JOB, 0) });
        assert_eq!(reason_told(&mut table), told);
    }
}

#[test]
fn a_finished_job_whose_pod_was_not_seen_is_looked_into_first() {
    let mut table = table();
    table.job(JobBrief { end: Some(end(10, EndReason::Deadline)), ..job(JOB, 0) });
    assert_eq!(told(&mut table), None);
    assert_eq!(table.actions(at(11)), [Action::Pods(JOB)]);
    table.pods_looked_for(JOB);
    assert_eq!(reason_told(&mut table), EndReason::Deadline);
}

#[test]
fn a_pod_that_came_before_its_job_is_remembered_for_a_while() {
    let mut table = table();
    table.pod(JOB, pod(1, running(1)), at(1));
    table.pod(Uuid::from_u128(2), pod(2, running(1)), at(1));
    table.job(job(JOB, 0));
    assert!(matches!(told(&mut table), Some(RunPhase::Running { .. })));
    table.actions(at(100));
    assert!(table.strays.is_empty());
}

#[test]
fn a_pod_that_outlives_its_job_is_known_by_its_own_uid_and_heard_to_its_end() {
    let (mut table, uid) = (table(), Uuid::from_u128(1));
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, running(5)), at(5));
    table.job_gone(JOB);
    assert!(matches!(told(&mut table), Some(RunPhase::Running { .. })), "it may answer");
    assert_eq!((table.job_of(uid), table.job_of(Uuid::from_u128(2))), (Some(JOB), None));
    table.pod_gone(JOB, uid);
    assert_eq!(reason_told(&mut table), EndReason::Deleted);
}

#[test]
fn what_is_stuck_is_ended_when_its_patience_is_over() {
    let patience = Duration::from_secs(30);
    let (reason, message) = (EndReason::Image, "no image".to_owned());
    let stuck = Stall::new(reason, patience, message);
    let vague = Stall { vague: true, ..Stall::new(EndReason::Image, patience, "?".into()) };
    let mut table = table();
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, waiting(Some(stuck))), at(1));
    assert_eq!(table.actions(at(1)), []);
    table.pod(JOB, pod(1, waiting(Some(vague))), at(20));
    assert_eq!(table.actions(at(30)), []);
    let stop = Action::Stop(JOB, Cause::new(EndReason::Image, "no image"));
    assert_eq!(table.actions(at(31)), [stop], "for the cause that was seen");
    // Until it shows that it was done.
    assert_eq!(table.actions(at(32)).len(), 1);
    let stopped = StopRecord { reason: "image".into(), message: "no image".into(), at: 33 };
    table.job(JobBrief { stopped: Some(stopped), deadline: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(33)), []);
}

#[test]
fn what_got_going_in_time_is_not_ended() {
    let grace = Duration::from_secs(30);
    let stuck = Stall::new(EndReason::Unschedulable, grace, "no node".into());
    let mut table = table();
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, waiting(Some(stuck.clone()))), at(1));
    table.actions(at(1));
    table.pod(JOB, pod(1, waiting(None)), at(20));
    table.actions(at(20));
    table.pod(JOB, pod(1, waiting(Some(stuck))), at(21));
    assert_eq!(table.actions(at(40)), []);
    assert!(!table.is_hopeless(JOB, at(69)));
    assert!(table.is_hopeless(JOB, at(70)));
    table.pod(JOB, pod(1, running(70)), at(70));
    assert!(!table.is_hopeless(JOB, at(70)), "since that was decided");
    assert_eq!(table.actions(at(4000)), []);
}

#[test]
fn a_job_that_we_ended_says_why_whatever_its_pod_says() {
    let mut table = table();
    let stopped = StopRecord { reason: "no_image".into(), message: "no image".into(), at: 3 };
    table.pod(JOB, pod(1, ended(9, EndReason::Deadline, false)), at(9));
    let end = Some(end(10, EndReason::Deadline));
    table.job(JobBrief { stopped: Some(stopped), deadline: true, end, ..job(JOB, 0) });
    assert_eq!(reason_told(&mut table), EndReason::NoImage);
}

#[test]
fn a_job_that_is_ended_while_it_waits_is_at_its_end_unless_it_gets_its_turn() {
    let stopped = Some(StopRecord { reason: "cancelled".into(), message: "c".into(), at: 3 });
    let mut table = table();
    table.job(JobBrief { suspended: true, stopped: stopped.clone(), ..job(JOB, 0) });
    assert_eq!(reason_told(&mut table), EndReason::Cancelled);
    assert_eq!(table.actions(at(4)), []);
    table.job(JobBrief { stopped, ..job(JOB, 0) });
    assert_eq!(table.actions(at(5)), [Action::Enforce(JOB)]);
}

#[test]
fn evictions_are_put_on_record_and_the_fourth_ends_it() {
    let mut table = table();
    table.job(job(JOB, 0));
    let mut evicted = Vec::new();
    for number in 1..=4 {
        let uid = Uuid::from_u128(number);
        table.pod(JOB, pod(number, ended(9, EndReason::Evicted, true)), at(9));
        assert_eq!(table.actions(at(10)), [Action::Evicted(JOB, uid)]);
        evicted.push(uid);
        table.job(JobBrief { evicted: evicted.clone(), ..job(JOB, 0) });
        let state = table.changes(at(10)).pop().unwrap();
        // The asker is told that it starts anew three times.
        assert_eq!(u128::from(state.evictions), number.min(3));
        assert!(matches!(state.phase, RunPhase::Starting { .. }));
    }
    let actions = table.actions(at(11));
    assert!(
        matches!(&actions[..], [Action::Stop(_, Cause { reason: EndReason::Evicted, .. })]),
        "{actions:?}"
    );
}

#[test]
fn a_queue_that_wants_its_room_back_evicts() {
    let mut table = table();
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, running(1)), at(1));
    table.job(JobBrief { suspended: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(2)), []);
    table.pod(JOB, PodBrief { deleting: Some(at(2)), ..pod(1, running(1)) }, at(2));
    assert_eq!(table.actions(at(3)), [Action::Evicted(JOB, Uuid::from_u128(1))]);
}

#[test]
fn a_question_waits_no_longer_than_it_may() {
    let mut table = table();
    table.job(JobBrief { suspended: true, ..job(JOB, 0) });
    assert_eq!(table.actions(at(3600)), []);
    let actions = table.actions(at(3601));
    assert!(
        matches!(&actions[..], [Action::Stop(_, Cause { reason: EndReason::Waited, .. })]),
        "{actions:?}"
    );
}

#[test]
fn what_ran_for_long_and_was_taken_away_may_wait_anew() {
    let evicted = vec![Uuid::from_u128(1)];
    let waits = JobBrief { suspended: true, evicted, ..job(JOB, 0) };
    let is_over = |actions: &[Action]| {
        matches!(actions, [Action::Stop(_, Cause { reason: EndReason::Waited, .. })])
    };
    let mut table = table();
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, running(5)), at(5));
    assert_eq!(table.actions(at(4000)), []);
    let end = RunEnd { started: Some(at(5)), ..end(4001, EndReason::Evicted) };
    table.pod(JOB, pod(1, PodState::Ended { end, disrupted: true }), at(4001));
    assert!(!table.actions(at(4002)).iter().any(|action| matches!(action, Action::Stop(..))));
    table.job(waits.clone());
    assert_eq!(table.actions(at(7601)), []);
    assert!(is_over(&table.actions(at(7602))));

    // After a restart, where its pod is no more.
    let mut table = self::table();
    table.job(waits);
    assert_eq!(table.actions(at(5000)), []);
    assert_eq!(table.actions(at(8600)), []);
    assert!(is_over(&table.actions(at(8601))));
}

#[test]
fn of_many_that_want_a_look_those_have_it_that_were_not_looked_at_for_longest() {
    let many = u128::try_from(3 * LOOKS).unwrap();
    let mut table = table();
    for number in 0..many {
        table.job(job(Uuid::from_u128(number), 0));
    }
    let mut looked = HashSet::new();
    for second in 20..23 {
        let actions = table.actions(at(second));
        assert_eq!(actions.len(), LOOKS);
        looked.extend(actions.into_iter().map(|action| match action {
            Action::Events(uid) => uid,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(looked.len(), 3 * LOOKS);
    assert_eq!(table.actions(at(23)), []);
}

#[test]
fn a_pod_that_never_goes_does_not_keep_its_run_from_its_end() {
    let leaves = |by| PodBrief { deleting: Some(at(by)), ..pod(1, running(5)) };
    let stopped = Some(StopRecord { reason: "cancelled".into(), message: "c".into(), at: 10 });
    let ended_at = |table: &mut Table, now| {
        assert_eq!(table.actions(at(now)), []);
        let phase = table.changes(at(now)).pop().map(|state| state.phase);
        match phase {
            Some(RunPhase::Ended(end)) => Some((end.reason, end.at)),
            _ => None,
        }
    };
    let mut table = table();
    table.job(JobBrief { stopped, deadline: true, ..job(JOB, 0) });
    table.pod(JOB, leaves(13), at(10));
    assert_eq!(ended_at(&mut table, 72), None);
    assert_eq!(
        ended_at(&mut table, 73),
        Some((EndReason::Cancelled, at(13))),
        "nothing else changed"
    );
    assert_eq!(ended_at(&mut table, 74), None, "once");

    // Its Job was deleted by somebody.
    let mut table = self::table();
    table.job(job(JOB, 0));
    table.pod(JOB, leaves(13), at(10));
    table.job_gone(JOB);
    assert_eq!(ended_at(&mut table, 72), None);
    assert_eq!(ended_at(&mut table, 73), Some((EndReason::Deleted, at(13))));

    // What is only to go may still end by itself.
    let mut table = self::table();
    table.job(job(JOB, 0));
    table.pod(JOB, leaves(13), at(10));
    assert_eq!(ended_at(&mut table, 600), None);
}

#[test]
fn a_deleted_job_has_ended_when_its_pods_have() {
    let mut table = table();
    table.job(job(JOB, 0));
    table.pod(JOB, pod(1, running(1)), at(1));
    table.job_gone(JOB);
    assert!(matches!(told(&mut table), Some(RunPhase::Running { .. })));
    table.pod_gone(JOB, Uuid::from_u128(1));
    assert_eq!(reason_told(&mut table), EndReason::Deleted);
    assert_eq!(table.actions(at(2)), []);
}

#[test]
fn of_several_attempts_the_last_speaks_and_the_run_is_settled_with_it() {
    let second = Uuid::from_u128(2);
    let mut table = table();
    table.job(JobBrief { end: Some(end(3, EndReason::Memory)), ..job(JOB, 0) });
    table.pods_looked_for(JOB);
    table.job(job(second, 1));
    let state = table.changes(at(4)).pop().unwrap();
    assert_eq!((state.attempt, table.states().len()), (1, 1));
    assert!(matches!(state.phase, RunPhase::Starting { .. }));
    assert!(table.settled(JOB).is_none());
    assert_eq!(table.settled(second).unwrap().phase, RunPhase::Settled);
    assert!(table.states().is_empty());
}

#[test]
fn an_older_word_does_not_undo_a_newer() {
    let mut table = table();
    table.job(JobBrief { version: "10".into(), suspended: true, ..job(JOB, 0) });
    table.job(JobBrief { version: "9".into(), ..job(JOB, 0) });
    assert!(table.get(JOB).unwrap().0.suspended);
}

#[test]
fn a_job_that_a_list_left_out_is_looked_for_until_it_is_known() {
    let mut table = table();
    table.job(job(JOB, 0));
    table.jobs_are(&HashSet::new());
    assert_eq!(table.actions(at(1)), [Action::Job(JOB)]);
    // The call failed.
    assert_eq!(table.actions(at(2)), []);
    assert_eq!(table.actions(at(3)), [Action::Job(JOB)]);
    table.job(job(JOB, 0));
    assert_eq!(table.actions(at(6)), []);
    assert!(matches!(told(&mut table), Some(RunPhase::Starting { .. })));
}

#[test]
fn what_is_seen_again_is_not_gone_and_an_older_word_does_not_bring_it_back() {
    let mut table = table();
    let seen = |version: &str| JobBrief { version: version.into(), ..job(JOB, 0) };
    let there = |table: &Table| table.get(JOB).unwrap().1;
    table.job(seen("10"));
    table.job_gone(JOB);
    table.job(seen("9"));
    assert!(!there(&table));
    table.job(seen("10"));
    assert!(there(&table));

    // A pod that was made after the list of all pods.
    let uid = Uuid::from_u128(1);
    let seen = |version: &str| PodBrief { version: version.into(), ..pod(1, running(1)) };
    table.pod(JOB, seen("10"), at(1));
    table.pods_are(&HashSet::new());
    table.pod(JOB, seen("9"), at(1));
    assert!(!matches!(told(&mut table), Some(RunPhase::Running { .. })));
    table.pod(JOB, seen("10"), at(1));
    assert!(matches!(told(&mut table), Some(RunPhase::Running { .. })));
    table.pod_gone(JOB, uid);
    assert!(!matches!(told(&mut table), Some(RunPhase::Running { .. })));
}

#[test]
fn only_what_waits_for_us_is_gated_and_what_was_released_counts() {
    let mut table = table();
    table.job(JobBrief { suspended: true, gated: true, ..job(JOB, 0) });
    let kueues = Uuid::from_u128(2);
    table.job(JobBrief { suspended: true, ..job(kueues, 0) });
    let (waiting, running) = table.gated();
    assert_eq!((waiting.len(), running.len()), (1, 0));
    table.job(JobBrief { gated: true, ..job(JOB, 0) });
    let (waiting, running) = table.gated();
    assert_eq!((waiting.len(), running.len()), (0, 1));
}

/// What a tick costs where so many wait, and each is told what for.
fn time_for(count: u128) -> u64 {
    let mut table = table();
    for number in 0..count {
        let uid = Uuid::from_u128(number);
        let mut job = job(uid, 0);
        job.name = format!("question-{number}");
        job.identity.run = RunId { question: uid, retry: 0 };
        table.job(JobBrief { suspended: true, gated: true, ..job });
    }
    let names: Vec<_> = (0..count).map(|number| format!("question-{number}")).collect();
    let start = on_processor();
    let words = names.iter().map(|name| (name.as_str(), "It waits.".to_owned())).collect();
    table.hold(&words);
    assert_eq!(table.changes(at(1)).len(), names.len());
    assert_eq!(table.gated().0.len(), names.len());
    assert_eq!(table.actions(at(2)), []);
    table.hold(&words);
    assert!(table.changes(at(3)).is_empty());
    on_processor() - start
}

/// Nanoseconds that this thread has been on a processor: others may want it too meanwhile.
fn on_processor() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_is_done_for_all_that_wait_costs_each_of_them_the_same() {
    // In a build without optimisation some 100 ms; where each looks at all others, many seconds.
    let took = time_for(20_000);
    assert!(took < 1_000_000_000, "{took} ns");
}

#[test]
fn the_time_that_a_question_may_wait_is_told_in_words() {
    for (seconds, words) in [(20, "20 seconds"), (600, "10 minutes"), (86_400, "24 hours")] {
        let mut table = Table::new(Duration::from_secs(seconds));
        table.job(JobBrief { suspended: true, ..job(JOB, 0) });
        let late = i64::try_from(seconds).unwrap() + 1;
        let actions = table.actions(at(late));
        let [Action::Stop(_, Cause { reason: EndReason::Waited, message })] = &*actions else {
            panic!("{actions:?}")
        };
        assert!(message.starts_with(&format!("The question waited for {words}, which")));
    }
}
