//! The live runs, and the notifications that are due for each while it waits.
//!
//! One table and one timer, because there may be ten thousand runs. Nothing is queued: each tick
//! finds in the table what is due, so a new leader continues where another stopped. Pure: the time
//! is an argument.

use crate::event::{RunId, Timestamp};
use crate::notifications::{
    HEARTBEAT_INTERVAL, LogLevel, Notification, QuestionAttributes, RunAttempt,
};
use crate::runner::{RunPhase, RunState};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// The least time between two log records of what a run waits for, in seconds: a position in a
/// queue may change all the time.
const LOG_INTERVAL: f64 = 30.0;

/// The same, as a fraction of the time that the run has waited. Where thousands wait for hours,
/// these records must not become most of the network's events.
const LOG_INTERVAL_FRACTION: f64 = 0.1;

/// A run that starts within this many seconds of its launch needs no heartbeat of ours. Its own
/// events come long before its parent gives up, which is after 6 minutes.
const SHORT_WAIT: f64 = 10.0;

/// The live runs.
#[derive(Debug, Default)]
pub(super) struct LiveRuns {
    runs: BTreeMap<RunId, LiveRun>,
}

/// A notification that is due.
#[derive(Debug)]
pub(super) enum DueNotification {
    /// The run waits, or has started after a wait.
    Heartbeat(Notification),
    /// What the run waits for.
    LogRecord(Notification),
    /// Its pod was evicted.
    Eviction(Eviction),
}

/// The eviction of a run's pod, which another pod replaces.
#[derive(Debug)]
pub(super) struct Eviction {
    pub(super) run: RunId,
    /// The number of the runner's attempt.
    pub(super) attempt: u32,
    pub(super) question: Arc<QuestionAttributes>,
    /// How many evictions there were.
    pub(super) times: u32,
}

/// What a state changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StateChange {
    /// Whether the run, or this attempt of it, was seen for the first time.
    pub(super) is_new: bool,
    pub(super) durations: StageDurations,
}

/// How many seconds each finished stage took. None for a stage whose start or end was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StageDurations {
    /// From the launch to the admission.
    pub(super) queue: Option<f64>,
    /// From the admission to the start.
    pub(super) startup: Option<f64>,
}

/// How many runs are in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StageCounts {
    /// Waiting for admission.
    pub(super) queued: u32,
    /// Admitted, and not running yet.
    pub(super) starting: u32,
    /// Running.
    pub(super) running: u32,
}

#[derive(Debug)]
struct LiveRun {
    attempt: u32,
    question: Arc<QuestionAttributes>,
    launched: Timestamp,
    stage: Stage,
    /// What it waits for. Empty where the runner gives no reason.
    why: String,
    evictions: u32,
    notified: PublishedSoFar,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Queued,
    /// Since its admission, where that was seen.
    Starting(Option<Timestamp>),
    Running(Timestamp),
}

/// What this replica has published for a run.
#[derive(Debug, Default)]
struct PublishedSoFar {
    /// The last heartbeat: the number of its interval since the launch.
    slot: i64,
    running: bool,
    evictions: u32,
    log_record: Option<(Timestamp, String)>,
}

// === impl LiveRuns ===

impl LiveRuns {
    /// Updates a live run from its state.
    pub(super) fn observe(&mut self, state: &RunState, now: Timestamp) -> StateChange {
        let Some((launched, stage, why)) = stage_of(&state.phase) else {
            return StateChange { is_new: false, durations: StageDurations::default() };
        };
        let known = self.runs.get_mut(&state.run).filter(|run| run.attempt == state.attempt);
        if let Some(run) = known {
            run.evictions = state.evictions;
            run.why.replace_range(.., why);
            return StateChange { is_new: false, durations: run.advance(stage, now) };
        }
        let run = LiveRun {
            attempt: state.attempt,
            question: Arc::clone(&state.attributes),
            launched,
            stage,
            why: why.to_owned(),
            evictions: state.evictions,
            notified: PublishedSoFar::default(),
        };
        self.runs.insert(state.run, run);
        let durations = match state.phase {
            // A runner that starts a run at once reports no earlier stage.
            RunPhase::Running { launched, since } => {
                StageDurations { queue: Some(since.seconds_since(launched)), startup: None }
            }
            _ => StageDurations::default(),
        };
        StateChange { is_new: true, durations }
    }

    /// Removes a run that is no longer live.
    pub(super) fn remove(&mut self, run: RunId) {
        self.runs.remove(&run);
    }

    /// The live runs of a question, with its attributes.
    pub(super) fn runs_of(
        &self,
        question: Uuid,
    ) -> impl Iterator<Item = (RunId, &QuestionAttributes)> {
        let (first, last) = (RunId { question, retry: 0 }, RunId { question, retry: u32::MAX });
        self.runs.range(first..=last).map(|(run, live)| (*run, &*live.question))
    }

    /// What is due now, about `limit` notifications at most. The rest is returned by the next call.
    pub(super) fn due(&mut self, now: Timestamp, limit: usize) -> Vec<DueNotification> {
        let mut due = Vec::new();
        for (run, live) in &mut self.runs {
            if due.len() >= limit {
                break;
            }
            live.due(*run, now, &mut due);
        }
        due
    }

    /// How many runs are in each stage.
    pub(super) fn counts(&self) -> StageCounts {
        let mut counts = StageCounts::default();
        for run in self.runs.values() {
            let count = match run.stage {
                Stage::Queued => &mut counts.queued,
                Stage::Starting(_) => &mut counts.starting,
                Stage::Running(_) => &mut counts.running,
            };
            *count += 1;
        }
        counts
    }
}

// === impl LiveRun ===

impl LiveRun {
    fn advance(&mut self, stage: Stage, now: Timestamp) -> StageDurations {
        let mut durations = StageDurations::default();
        let stage = match (self.stage, stage) {
            (Stage::Queued, Stage::Queued) | (Stage::Running(_), Stage::Running(_)) => stage,
            (Stage::Starting(since), Stage::Starting(_)) => Stage::Starting(since),
            (from, to) => {
                durations = self.durations(from, to, now);
                match (from, to) {
                    (Stage::Queued, Stage::Starting(_)) => Stage::Starting(Some(now)),
                    _ => to,
                }
            }
        };
        if !matches!(stage, Stage::Running(_)) {
            self.notified.running = false;
        }
        self.stage = stage;
        durations
    }

    fn durations(&self, from: Stage, to: Stage, now: Timestamp) -> StageDurations {
        // After an eviction, the time since the launch is not how long the new pod waited.
        let first = self.evictions == 0;
        match (from, to) {
            (Stage::Queued, Stage::Starting(_)) if first => {
                StageDurations { queue: Some(now.seconds_since(self.launched)), startup: None }
            }
            (Stage::Queued, Stage::Running(since)) if first => {
                StageDurations { queue: Some(since.seconds_since(self.launched)), startup: None }
            }
            (Stage::Starting(Some(admitted)), Stage::Running(since)) => {
                StageDurations { queue: None, startup: Some(since.seconds_since(admitted)) }
            }
            _ => StageDurations::default(),
        }
    }

    fn due(&mut self, run: RunId, now: Timestamp, due: &mut Vec<DueNotification>) {
        let (number, times) = (self.attempt, self.evictions);
        let question = Arc::clone(&self.question);
        let attempt = RunAttempt { run, number, question: &question };
        if times > self.notified.evictions {
            self.notified.evictions = times;
            let question = Arc::clone(&question);
            due.push(DueNotification::Eviction(Eviction { run, attempt: number, question, times }));
        }
        match self.stage {
            Stage::Queued | Stage::Starting(_) => {
                let slot = now.seconds_since(self.launched) as i64 / HEARTBEAT_INTERVAL;
                if slot > self.notified.slot {
                    self.notified.slot = slot;
                    let heartbeat = attempt.waiting_heartbeat(self.launched, slot);
                    due.extend(heartbeat.map(DueNotification::Heartbeat));
                }
                due.extend(self.log_record(&attempt, now).map(DueNotification::LogRecord));
            }
            Stage::Running(since) if !self.notified.running => {
                self.notified.running = true;
                let waited = since.seconds_since(self.launched) >= SHORT_WAIT;
                // A run that started longer ago has published heartbeats of its own.
                if waited && now.seconds_since(since) < HEARTBEAT_INTERVAL as f64 {
                    due.extend(attempt.running_heartbeat(since).map(DueNotification::Heartbeat));
                }
            }
            Stage::Running(_) => {}
        }
    }

    fn log_record(&mut self, attempt: &RunAttempt<'_>, now: Timestamp) -> Option<Notification> {
        if self.why.is_empty() {
            return None;
        }
        if let Some((at, text)) = &self.notified.log_record
            && (*text == self.why || now.seconds_since(*at) < self.log_interval(now))
        {
            return None;
        }
        let record = attempt.log_record(now, LogLevel::Info, &self.why)?;
        self.notified.log_record = Some((now, self.why.clone()));
        Some(record)
    }

    fn log_interval(&self, now: Timestamp) -> f64 {
        LOG_INTERVAL.max(now.seconds_since(self.launched) * LOG_INTERVAL_FRACTION)
    }
}

/// The time of the launch, the stage, and what the run waits for. None for a run that is not live.
fn stage_of(phase: &RunPhase) -> Option<(Timestamp, Stage, &str)> {
    match phase {
        RunPhase::Queued { since, why } => Some((*since, Stage::Queued, why)),
        RunPhase::Starting { since, why } => Some((*since, Stage::Starting(None), why)),
        RunPhase::Running { launched, since } => Some((*launched, Stage::Running(*since), "")),
        RunPhase::Ended(_) | RunPhase::Settled => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::attributes as name;
    use crate::event::encode::NewQuestion;
    use crate::event::{Kind, Sruid, decode};

    const RUN: RunId = RunId { question: Uuid::from_u128(7), retry: 0 };

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    fn state(phase: RunPhase) -> RunState {
        let mut attributes = NewQuestion {
            question_uuid: RUN.question,
            sender: Sruid::parse("local/local:local").unwrap(),
            recipient: Sruid::parse("octue/example:1.2.0").unwrap(),
            datetime: at(0),
            forward_logs: true,
            input_values: None,
            input_manifest: None,
        }
        .encode()
        .attributes;
        attributes.insert(name::RETRY_COUNT.into(), "0".into());
        RunState { run: RUN, attempt: 0, attributes: Arc::new(attributes), evictions: 0, phase }
    }

    fn queued(why: &str) -> RunState {
        state(RunPhase::Queued { since: at(0), why: why.into() })
    }

    fn running(since: i64) -> RunState {
        state(RunPhase::Running { launched: at(0), since: at(since) })
    }

    /// The kinds of the events that are due.
    fn due(live: &mut LiveRuns, seconds: i64) -> Vec<&'static str> {
        let due = live.due(at(seconds), 100).into_iter().filter_map(|due| match due {
            DueNotification::Heartbeat(notification) | DueNotification::LogRecord(notification) => {
                Some(notification.message)
            }
            DueNotification::Eviction(_) => None,
        });
        due.map(|message| match decode(&message.data, &message.attributes).unwrap().kind {
            Kind::Heartbeat => "heartbeat",
            Kind::LogRecord => "log_record",
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn a_waiting_run_has_a_heartbeat_every_two_minutes_and_one_when_it_starts() {
        let mut live = LiveRuns::default();
        live.observe(&queued(""), at(0));
        let heartbeats: Vec<_> = (0..600).filter(|s| !due(&mut live, *s).is_empty()).collect();
        assert_eq!(heartbeats, [120, 240, 360, 480]);

        live.observe(&running(600), at(600));
        assert_eq!(due(&mut live, 600), ["heartbeat"]);
        let heartbeats: Vec<_> = (601..1200).filter(|s| !due(&mut live, *s).is_empty()).collect();
        assert_eq!(heartbeats, [0; 0]);
    }

    #[test]
    fn a_new_leader_publishes_the_heartbeat_of_this_interval_and_none_before() {
        let mut live = LiveRuns::default();
        live.observe(&queued(""), at(0));

        assert_eq!(due(&mut live, 400), ["heartbeat"]);
        assert!(due(&mut live, 401).is_empty());
    }

    #[test]
    fn what_a_run_waits_for_is_logged_but_not_at_every_change() {
        let mut live = LiveRuns::default();
        for second in 0..60 {
            live.observe(&queued(&format!("{second} before it")), at(second));
            let records = due(&mut live, second);
            assert_eq!(!records.is_empty(), second % 30 == 0, "{second}: {records:?}");
        }
        live.observe(&queued("30 before it"), at(119));
        assert!(due(&mut live, 119).is_empty(), "it was logged before");

        // After an hour, every six minutes. Heartbeats come too.
        live.observe(&queued("29 before it"), at(3600));
        assert_eq!(due(&mut live, 3600), ["heartbeat", "log_record"]);
        live.observe(&queued("28 before it"), at(3601));
        assert_eq!(due(&mut live, 3850), ["heartbeat"]);
        assert_eq!(due(&mut live, 4005), ["heartbeat", "log_record"]);
    }

    #[test]
    fn a_run_that_starts_soon_has_no_heartbeat() {
        let mut live = LiveRuns::default();
        live.observe(&queued(""), at(0));
        live.observe(&running(3), at(3));
        assert!(due(&mut live, 4).is_empty());
    }

    #[test]
    fn an_eviction_is_due_once() {
        let mut live = LiveRuns::default();
        live.observe(&running(1), at(1));
        let evictions = |live: &mut LiveRuns| {
            let due = live.due(at(2), 100);
            due.iter().filter(|due| matches!(due, DueNotification::Eviction(_))).count()
        };
        assert_eq!(evictions(&mut live), 0);

        live.observe(&RunState { evictions: 1, ..queued("") }, at(2));

        assert_eq!(evictions(&mut live), 1);
        assert_eq!(evictions(&mut live), 0);
    }

    #[test]
    fn the_stages_of_a_run_are_timed_and_counted() {
        let mut live = LiveRuns::default();
        live.observe(&queued(""), at(0));
        assert_eq!(live.counts(), StageCounts { queued: 1, ..StageCounts::default() });

        let starting = state(RunPhase::Starting { since: at(0), why: String::new() });
        let durations = StageDurations { queue: Some(40.0), startup: None };
        assert_eq!(live.observe(&starting, at(40)).durations, durations);
        assert_eq!(live.observe(&starting, at(41)).durations, StageDurations::default());
        assert_eq!(live.counts(), StageCounts { starting: 1, ..StageCounts::default() });

        let durations = StageDurations { queue: None, startup: Some(10.0) };
        assert_eq!(live.observe(&running(50), at(51)).durations, durations);
        assert_eq!(live.counts(), StageCounts { running: 1, ..StageCounts::default() });
        live.remove(RUN);
        assert_eq!(live.counts(), StageCounts::default());
    }

    #[test]
    fn each_attempt_of_a_run_is_new_once_and_found_by_its_question() {
        let mut live = LiveRuns::default();
        let mut is_new = |state: &RunState| live.observe(state, at(0)).is_new;
        assert!(is_new(&queued("")));
        assert!(!is_new(&running(1)));
        assert!(is_new(&RunState { attempt: 1, ..queued("") }));
        let retry = RunId { retry: 1, ..RUN };
        assert!(is_new(&RunState { run: retry, ..queued("") }));
        let other = RunId { question: Uuid::from_u128(8), retry: 0 };
        assert!(is_new(&RunState { run: other, ..queued("") }));

        let runs: Vec<_> = live.runs_of(RUN.question).map(|(run, _)| run).collect();
        assert_eq!(runs, [RUN, retry]);
    }
}
