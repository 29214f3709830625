//! The runs that live, and what is due for each while it waits.
//!
//! One table and one timer, for there may be ten thousand of them. Nothing is queued: what is due
//! is seen from the table at every tick, so whoever begins to lead goes on where another stopped.
//! Pure: the time is given.

use crate::event::{RunId, Timestamp};
use crate::notifications::{
    Attempt, HEARTBEAT_INTERVAL, LogLevel, Notification, QuestionAttributes,
};
use crate::runner::{RunPhase, RunState};
use std::collections::HashMap;
use std::sync::Arc;

/// How often at most an asker is told what his question waits for, in seconds: a place in a queue
/// may change all the time.
const NOTE_INTERVAL: f64 = 30.0;

/// The same, as a part of the time that the question has waited: where thousands wait for hours,
/// what their askers are told is not to become most of the network's events.
const NOTE_SHARE: f64 = 0.1;

/// Who runs within so many seconds of its launch needs no heartbeat to say so: its own words come
/// long before its asker's patience of 6 minutes is over.
const AT_ONCE: f64 = 10.0;

/// The runs that live.
#[derive(Debug, Default)]
pub struct Waiting {
    runs: HashMap<RunId, Run>,
}

/// What is to be done for a run.
#[derive(Debug)]
pub enum Due {
    /// Its asker is to be told that it lives.
    Heartbeat(Notification),
    /// Its asker is to be told what it waits for.
    Note(Notification),
    /// What it ran on was taken away.
    Evicted(Evicted),
    /// It may be cancelled already.
    Look(RunId),
}

/// That what a run ran on was taken away.
#[derive(Debug)]
pub struct Evicted {
    /// The run.
    pub run: RunId,
    /// Which attempt of the runner's own.
    pub attempt: u32,
    /// The attributes of its question.
    pub question: Arc<QuestionAttributes>,
    /// How often that has happened.
    pub times: u32,
}

/// How long the stages of a run took that has come to the next one: seconds, of what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Took {
    /// From its launch until it had its turn.
    pub queue: Option<f64>,
    /// From then until it ran.
    pub startup: Option<f64>,
}

/// How many runs there are of each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That wait for their turn.
    pub queued: u32,
    /// That have their turn, and do not run yet.
    pub starting: u32,
    /// That run.
    pub running: u32,
}

#[derive(Debug)]
struct Run {
    attempt: u32,
    question: Arc<QuestionAttributes>,
    launched: Timestamp,
    stage: Stage,
    why: String,
    evictions: u32,
    said: Said,
    /// Whether to look for a cancellation of it.
    look: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Queued,
    /// Since when, where its turn was seen to come.
    Starting(Option<Timestamp>),
    Running(Timestamp),
}

/// What this daemon has told the asker.
#[derive(Debug, Default)]
struct Said {
    /// Of which interval since the launch there was a heartbeat.
    slot: i64,
    running: bool,
    evictions: u32,
    note: Option<(Timestamp, String)>,
}

// === impl Waiting ===

impl Waiting {
    /// Takes in the state of a run that lives.
    pub fn hear(&mut self, state: &RunState, now: Timestamp) -> Took {
        let Some((launched, stage, why)) = read(&state.phase) else { return Took::default() };
        let known = self.runs.get_mut(&state.run).filter(|run| run.attempt == state.attempt);
        if let Some(run) = known {
            run.evictions = state.evictions;
            run.why.replace_range(.., why);
            return run.advance(stage, now);
        }
        let run = Run {
            attempt: state.attempt,
            question: Arc::clone(&state.attributes),
            launched,
            stage,
            why: why.to_owned(),
            evictions: state.evictions,
            said: Said::default(),
            look: true,
        };
        self.runs.insert(state.run, run);
        match state.phase {
            // A runner whose runs are there at once tells nothing before.
            RunPhase::Running { launched, since } => {
                Took { queue: Some(since.seconds_since(launched)), startup: None }
            }
            _ => Took::default(),
        }
    }

    /// Takes out a run that lives no more.
    pub fn remove(&mut self, run: RunId) {
        self.runs.remove(&run);
    }

    /// What is due now, at most about so many: what is left is due the next time. Who does not
    /// lead only looks.
    pub fn due(&mut self, now: Timestamp, leads: bool, most: usize) -> Vec<Due> {
        let mut due = Vec::new();
        for (id, run) in &mut self.runs {
            if due.len() >= most {
                break;
            }
            if std::mem::take(&mut run.look) {
                due.push(Due::Look(*id));
            }
            if leads {
                run.due(*id, now, &mut due);
            }
        }
        due
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
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

// === impl Run ===

impl Run {
    fn advance(&mut self, stage: Stage, now: Timestamp) -> Took {
        let mut took = Took::default();
        let stage = match (self.stage, stage) {
            (Stage::Queued, Stage::Queued) | (Stage::Running(_), Stage::Running(_)) => stage,
            (Stage::Starting(since), Stage::Starting(_)) => Stage::Starting(since),
            (from, to) => {
                self.look = true;
                took = self.took(from, to, now);
                match (from, to) {
                    (Stage::Queued, Stage::Starting(_)) => Stage::Starting(Some(now)),
                    _ => to,
                }
            }
        };
        if !matches!(stage, Stage::Running(_)) {
            self.said.running = false;
        }
        self.stage = stage;
        took
    }

    fn took(&self, from: Stage, to: Stage, now: Timestamp) -> Took {
        // What is started anew was not launched a moment ago.
        let first = self.evictions == 0;
        match (from, to) {
            (Stage::Queued, Stage::Starting(_)) if first => {
                Took { queue: Some(now.seconds_since(self.launched)), startup: None }
            }
            (Stage::Queued, Stage::Running(since)) if first => {
                Took { queue: Some(since.seconds_since(self.launched)), startup: None }
            }
            (Stage::Starting(Some(turn)), Stage::Running(since)) => {
                Took { queue: None, startup: Some(since.seconds_since(turn)) }
            }
            _ => Took::default(),
        }
    }

    fn due(&mut self, run: RunId, now: Timestamp, due: &mut Vec<Due>) {
        let (attempt, times) = (self.attempt, self.evictions);
        let question = Arc::clone(&self.question);
        let about = Attempt { run, number: attempt, question: &question };
        if times > self.said.evictions {
            self.said.evictions = times;
            let question = Arc::clone(&question);
            due.push(Due::Evicted(Evicted { run, attempt, question, times }));
        }
        match self.stage {
            Stage::Queued | Stage::Starting(_) => {
                let slot = now.seconds_since(self.launched) as i64 / HEARTBEAT_INTERVAL;
                if slot > self.said.slot {
                    self.said.slot = slot;
                    due.extend(about.waiting_heartbeat(self.launched, slot).map(Due::Heartbeat));
                    due.push(Due::Look(run));
                }
                due.extend(self.note(&about, now).map(Due::Note));
            }
            Stage::Running(since) if !self.said.running => {
                self.said.running = true;
                let waited = since.seconds_since(self.launched) >= AT_ONCE;
                // Of one that has run for longer, the child's own heartbeats are there.
                if waited && now.seconds_since(since) < HEARTBEAT_INTERVAL as f64 {
                    due.extend(about.running_heartbeat(since).map(Due::Heartbeat));
                }
            }
            Stage::Running(_) => {}
        }
    }

    fn note_interval(&self, now: Timestamp) -> f64 {
        NOTE_INTERVAL.max(now.seconds_since(self.launched) * NOTE_SHARE)
    }

    fn note(&mut self, about: &Attempt<'_>, now: Timestamp) -> Option<Notification> {
        if self.why.is_empty() {
            return None;
        }
        if let Some((at, text)) = &self.said.note
            && (*text == self.why || now.seconds_since(*at) < self.note_interval(now))
        {
            return None;
        }
        let report = about.log_record(now, LogLevel::Info, &self.why)?;
        self.said.note = Some((now, self.why.clone()));
        Some(report)
    }
}

/// Of a run that lives: when it was launched, its stage, and what it waits for.
fn read(phase: &RunPhase) -> Option<(Timestamp, Stage, &str)> {
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
    use crate::event::encode::Ask;
    use crate::event::{Kind, Sruid, decode};
    use uuid::Uuid;

    const RUN: RunId = RunId { question: Uuid::from_u128(7), retry: 0 };

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    fn state(phase: RunPhase) -> RunState {
        let mut attributes = Ask {
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

    /// The kinds of what is due to be said.
    fn said(waiting: &mut Waiting, seconds: i64) -> Vec<&'static str> {
        let said = waiting.due(at(seconds), true, 100).into_iter().filter_map(|due| match due {
            Due::Heartbeat(report) | Due::Note(report) => Some(report.message),
            Due::Evicted(_) | Due::Look(_) => None,
        });
        said.map(|message| match decode(&message.data, &message.attributes).unwrap().kind {
            Kind::Heartbeat => "heartbeat",
            Kind::LogRecord => "log_record",
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn a_run_that_waits_is_heard_of_every_two_minutes_and_once_when_it_runs() {
        let mut waiting = Waiting::default();
        waiting.hear(&queued(""), at(0));
        let beats: Vec<_> = (0..600).filter(|s| !said(&mut waiting, *s).is_empty()).collect();
        assert_eq!(beats, [120, 240, 360, 480]);

        waiting.hear(&running(600), at(600));
        assert_eq!(said(&mut waiting, 600), ["heartbeat"]);
        let beats: Vec<_> = (601..1200).filter(|s| !said(&mut waiting, *s).is_empty()).collect();
        assert_eq!(beats, [0; 0]);
    }

    #[test]
    fn whoever_takes_over_says_the_heartbeat_of_this_interval_and_none_before() {
        let mut waiting = Waiting::default();
        waiting.hear(&queued(""), at(0));
        for second in 0..400 {
            let due = waiting.due(at(second), false, 100);
            assert!(due.iter().all(|due| matches!(due, Due::Look(_))), "{due:?}");
        }

        assert_eq!(said(&mut waiting, 400), ["heartbeat"]);
        assert!(said(&mut waiting, 401).is_empty());
    }

    #[test]
    fn an_asker_is_told_what_his_question_waits_for_but_not_all_the_time() {
        let mut waiting = Waiting::default();
        for second in 0..60 {
            waiting.hear(&queued(&format!("{second} before it")), at(second));
            let notes = said(&mut waiting, second);
            assert_eq!(!notes.is_empty(), second % 30 == 0, "{second}: {notes:?}");
        }
        waiting.hear(&queued("30 before it"), at(119));
        assert!(said(&mut waiting, 119).is_empty(), "he knows");

        // After an hour every six minutes, beside the heartbeats.
        waiting.hear(&queued("29 before it"), at(3600));
        assert_eq!(said(&mut waiting, 3600), ["heartbeat", "log_record"]);
        waiting.hear(&queued("28 before it"), at(3601));
        assert_eq!(said(&mut waiting, 3850), ["heartbeat"]);
        assert_eq!(said(&mut waiting, 4005), ["heartbeat", "log_record"]);
    }

    #[test]
    fn who_runs_at_once_is_not_announced() {
        let mut waiting = Waiting::default();
        waiting.hear(&queued(""), at(0));
        waiting.hear(&running(3), at(3));
        assert!(said(&mut waiting, 4).is_empty());
    }

    #[test]
    fn an_eviction_is_due_once() {
        let mut waiting = Waiting::default();
        waiting.hear(&running(1), at(1));
        let evictions = |waiting: &mut Waiting| {
            let due = waiting.due(at(2), true, 100);
            due.iter().filter(|due| matches!(due, Due::Evicted(_))).count()
        };
        assert_eq!(evictions(&mut waiting), 0);

        waiting.hear(&RunState { evictions: 1, ..queued("") }, at(2));

        assert_eq!(evictions(&mut waiting), 1);
        assert_eq!(evictions(&mut waiting), 0);
    }

    #[test]
    fn the_stages_of_a_run_are_timed_and_counted() {
        let mut waiting = Waiting::default();
        waiting.hear(&queued(""), at(0));
        assert_eq!(waiting.counts(), Counts { queued: 1, ..Counts::default() });

        let starting = state(RunPhase::Starting { since: at(0), why: String::new() });
        assert_eq!(waiting.hear(&starting, at(40)), Took { queue: Some(40.0), startup: None });
        assert_eq!(waiting.hear(&starting, at(41)), Took::default());
        assert_eq!(waiting.counts(), Counts { starting: 1, ..Counts::default() });

        assert_eq!(waiting.hear(&running(50), at(51)), Took { queue: None, startup: Some(10.0) });
        assert_eq!(waiting.counts(), Counts { running: 1, ..Counts::default() });
        waiting.remove(RUN);
        assert_eq!(waiting.counts(), Counts::default());
    }

    #[test]
    fn a_cancellation_is_looked_for_whenever_a_run_comes_further() {
        let mut waiting = Waiting::default();
        let looks = |waiting: &mut Waiting| waiting.due(at(1), false, 100).len();
        waiting.hear(&queued(""), at(0));
        assert_eq!((looks(&mut waiting), looks(&mut waiting)), (1, 0));
        waiting.hear(&queued("a while"), at(0));
        assert_eq!(looks(&mut waiting), 0);
        waiting.hear(&running(1), at(1));
        assert_eq!((looks(&mut waiting), looks(&mut waiting)), (1, 0));
    }
}
