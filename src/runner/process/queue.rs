//! Which runs there are, and whose turn it is: pure.
//!
//! At most a given number hold a slot; the rest wait in the order of their launches. A question
//! that was asked by one that runs here takes no slot and never waits: the one that asked it holds
//! a slot until this one ends, so a tree deeper than the slots would never end. It is for the
//! services to ask no more at once than the machine can do.

use crate::event::{RunId, Timestamp};
use crate::runner::{RunEnd, RunPhase, RunState};
use std::collections::hash_map::Entry::Occupied;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// All runs that are not settled.
#[derive(Debug)]
pub struct Queue {
    slots: usize,
    held: usize,
    paused: bool,
    runs: BTreeMap<RunId, Entry>,
    /// Those that wait for a slot, in the order of their launches.
    waiting: BTreeMap<u64, RunId>,
    /// Those that wait for none, in the order of their launches.
    due: BTreeMap<u64, RunId>,
    /// Those of `waiting` that were asked by a question, by that question.
    children: HashMap<Uuid, BTreeSet<u64>>,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The place in the order of launches.
    pub sequence: u64,
    /// When it was launched.
    pub launched: Timestamp,
    /// Which revision answers.
    pub service: Arc<str>,
    /// The question that asked this one, if any.
    pub parent_question: Option<Uuid>,
    /// The question's attributes.
    pub attributes: Arc<HashMap<String, String>>,
    /// How far it is.
    pub stage: Stage,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub enum Stage {
    /// It waits for its turn.
    Waiting,
    /// It waited, and its end is being recorded.
    Withdrawn,
    /// It is being started.
    Starting {
        /// Whether it holds a slot.
        slot: bool,
    },
    /// It runs.
    Running {
        /// Whether it holds a slot.
        slot: bool,
        /// Since when.
        since: Timestamp,
    },
    /// It has ended.
    Ended(RunEnd),
}

// === impl Queue ===

impl Queue {
    /// None yet, with so many slots.
    pub fn new(slots: usize) -> Self {
        Self {
            slots,
            held: 0,
            paused: false,
            runs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            due: BTreeMap::new(),
            children: HashMap::new(),
        }
    }

    /// Takes in a run.
    pub fn insert(&mut self, run: RunId, entry: Entry) {
        let stage = entry.stage.clone();
        self.runs.insert(run, Entry { stage: Stage::Withdrawn, ..entry });
        self.set(run, stage);
    }

    /// The run, if it is here.
    pub fn get(&self, run: RunId) -> Option<&Entry> {
        self.runs.get(&run)
    }

    /// The state of a run, as others see it.
    pub fn state(&self, run: RunId) -> Option<RunState> {
        self.runs.get(&run).map(|entry| entry.state(run))
    }

    /// The states of all runs, as others see them.
    pub fn states(&self) -> impl Iterator<Item = RunState> {
        self.runs.iter().map(|(run, entry)| entry.state(*run))
    }

    /// Starts nothing more.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// The run whose turn it is, which is then starting.
    pub fn start_next(&mut self) -> Option<RunId> {
        if self.paused {
            return None;
        }
        let (run, slot) = match self.due.first_key_value() {
            Some((_, run)) => (*run, false),
            None if self.held < self.slots => (*self.waiting.first_key_value()?.1, true),
            None => return None,
        };
        self.set(run, Stage::Starting { slot });
        Some(run)
    }

    /// A run that is being started runs; false where it is further already.
    pub fn started(&mut self, run: RunId, since: Timestamp) -> bool {
        let Some(Stage::Starting { slot }) = self.get(run).map(|entry| &entry.stage) else {
            return false;
        };
        let slot = *slot;
        self.set(run, Stage::Running { slot, since });
        true
    }

    /// A run has ended.
    pub fn ended(&mut self, run: RunId, end: RunEnd) {
        self.set(run, Stage::Ended(end));
    }

    /// Takes a run that waits out of the line; false where it does not wait.
    pub fn withdraw(&mut self, run: RunId) -> bool {
        let waits = matches!(self.get(run), Some(Entry { stage: Stage::Waiting, .. }));
        if waits {
            self.set(run, Stage::Withdrawn);
        }
        waits
    }

    /// Puts a run that was withdrawn back in its place in the line.
    pub fn reinstate(&mut self, run: RunId) {
        if matches!(self.get(run), Some(Entry { stage: Stage::Withdrawn, .. })) {
            self.set(run, Stage::Waiting);
        }
    }

    /// Forgets a run that has ended.
    pub fn remove(&mut self, run: RunId) {
        if matches!(self.get(run), Some(Entry { stage: Stage::Ended(_), .. })) {
            self.runs.remove(&run);
        }
    }

    /// The runs of a question.
    pub fn runs_of(&self, question: Uuid) -> impl Iterator<Item = (RunId, &Entry)> {
        let (first, last) = (RunId { question, retry: 0 }, RunId { question, retry: u32::MAX });
        self.runs.range(first..=last).map(|(run, entry)| (*run, entry))
    }

    /// Whether a question runs here, or is being started.
    pub fn is_active(&self, question: Option<Uuid>) -> bool {
        question.is_some_and(|question| {
            self.runs_of(question).any(|(_, entry)| entry.stage.is_active())
        })
    }

    /// The runs that are being started or run.
    pub fn active(&self) -> impl Iterator<Item = RunId> {
        self.runs.iter().filter(|(_, entry)| entry.stage.is_active()).map(|(run, _)| *run)
    }

    /// The one place where a run changes its stage, and with it all that is kept by stage.
    fn set(&mut self, run: RunId, stage: Stage) {
        let Some(entry) = self.runs.get_mut(&run) else { return };
        let (sequence, parent) = (entry.sequence, entry.parent_question);
        let (waits, starts) = (matches!(stage, Stage::Waiting), stage.is_active());
        self.held += usize::from(stage.holds_slot());
        let before = std::mem::replace(&mut entry.stage, stage);
        self.held -= usize::from(before.holds_slot());

        if matches!(before, Stage::Waiting) {
            self.leave_line(sequence, parent);
        }
        if waits {
            self.join_line(run, sequence, parent);
        }
        if starts {
            self.release_children(run.question);
        }
    }

    fn join_line(&mut self, run: RunId, sequence: u64, parent: Option<Uuid>) {
        if self.is_active(parent) {
            self.due.insert(sequence, run);
            return;
        }
        self.waiting.insert(sequence, run);
        if let Some(parent) = parent {
            self.children.entry(parent).or_default().insert(sequence);
        }
    }

    fn leave_line(&mut self, sequence: u64, parent: Option<Uuid>) {
        self.due.remove(&sequence);
        self.waiting.remove(&sequence);
        if let Some(parent) = parent
            && let Occupied(mut siblings) = self.children.entry(parent)
        {
            siblings.get_mut().remove(&sequence);
            if siblings.get().is_empty() {
                siblings.remove();
            }
        }
    }

    fn release_children(&mut self, question: Uuid) {
        for sequence in self.children.remove(&question).unwrap_or_default() {
            if let Some(run) = self.waiting.remove(&sequence) {
                self.due.insert(sequence, run);
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    fn state(&self, run: RunId) -> RunState {
        let launched = self.launched;
        let phase = match &self.stage {
            Stage::Waiting | Stage::Withdrawn | Stage::Starting { .. } => {
                RunPhase::Queued { since: launched, why: String::new() }
            }
            Stage::Running { since, .. } => RunPhase::Running { launched, since: *since },
            Stage::Ended(end) => RunPhase::Ended(end.clone()),
        };
        RunState { run, attempt: 0, attributes: Arc::clone(&self.attributes), evictions: 0, phase }
    }
}

// === impl Stage ===

impl Stage {
    /// Whether there is, or is about to be, a process.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Running { .. })
    }

    fn holds_slot(&self) -> bool {
        matches!(self, Self::Starting { slot: true } | Self::Running { slot: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::EndReason;

    fn run(number: u128) -> RunId {
        RunId { question: Uuid::from_u128(number), retry: 0 }
    }

    fn entry(sequence: u64, parent: Option<u128>) -> Entry {
        Entry {
            sequence,
            launched: Timestamp(0),
            service: "a/b:c".into(),
            parent_question: parent.map(Uuid::from_u128),
            attributes: Arc::default(),
            stage: Stage::Waiting,
        }
    }

    fn end() -> RunEnd {
        RunEnd {
            at: Timestamp(1),
            started: None,
            reason: EndReason::Exited,
            message: String::new(),
            tail: Vec::new(),
        }
    }

    /// Runs 10, 11, … in this order, with so many slots.
    fn queue(slots: usize, runs: u64) -> Queue {
        let mut queue = Queue::new(slots);
        // Taken in out of order, as after a restart.
        for n in (0..runs).rev() {
            queue.insert(run(10 + u128::from(n)), entry(n, None));
        }
        queue
    }

    /// How many runs wait, and how many are starting.
    fn counts(queue: &Queue) -> (usize, usize) {
        let count = |is_in: fn(&Stage) -> bool| {
            queue.runs.values().filter(|entry| is_in(&entry.stage)).count()
        };
        (
            count(|stage| matches!(stage, Stage::Waiting | Stage::Withdrawn)),
            count(|stage| matches!(stage, Stage::Starting { .. })),
        )
    }

    #[test]
    fn runs_take_turns_in_the_order_of_their_launches() {
        let mut queue = queue(2, 4);
        assert_eq!(
            (queue.start_next(), queue.start_next(), queue.start_next()),
            (Some(run(10)), Some(run(11)), None)
        );
        assert_eq!(counts(&queue), (2, 2));

        assert!(queue.started(run(11), Timestamp(5)));
        assert!(!queue.started(run(11), Timestamp(6)));
        assert!(!queue.started(run(12), Timestamp(6)));
        assert_eq!(queue.start_next(), None);

        queue.ended(run(11), end());
        assert_eq!((queue.start_next(), queue.start_next()), (Some(run(12)), None));
        assert_eq!(counts(&queue), (1, 2));
    }

    #[test]
    fn a_question_asked_by_one_that_runs_takes_no_slot() {
        let mut queue = queue(1, 2);
        queue.insert(run(20), entry(7, Some(10)));
        queue.insert(run(30), entry(8, Some(20)));
        queue.insert(run(40), entry(9, Some(999)));

        // The whole tree of run 10, and nobody else.
        let started: Vec<_> = std::iter::from_fn(|| queue.start_next()).collect();
        assert_eq!(started, [run(10), run(20), run(30)]);

        queue.insert(run(21), entry(10, Some(20)));
        assert_eq!(queue.start_next(), Some(run(21)));
        queue.ended(run(20), end());
        assert_eq!(queue.start_next(), None);
        queue.ended(run(10), end());
        assert_eq!(queue.start_next(), Some(run(11)));
        queue.ended(run(11), end());
        assert_eq!(queue.start_next(), Some(run(40)));
    }

    #[test]
    fn what_is_withdrawn_does_not_start_unless_put_back() {
        let mut queue = queue(1, 3);
        assert!(queue.withdraw(run(10)));
        assert!(!queue.withdraw(run(10)));
        assert!(queue.withdraw(run(11)));
        queue.reinstate(run(11));
        assert_eq!(queue.start_next(), Some(run(11)));
        assert!(!queue.withdraw(run(11)));
        queue.ended(run(10), end());
        assert_eq!(counts(&queue), (1, 1));
    }

    #[test]
    fn only_what_has_ended_is_forgotten() {
        let mut queue = queue(1, 1);
        queue.remove(run(10));
        assert!(queue.get(run(10)).is_some());
        queue.ended(run(10), end());
        queue.remove(run(10));
        assert!(queue.get(run(10)).is_none());
        assert_eq!(counts(&queue), (0, 0));
    }

    #[test]
    fn a_pause_starts_nothing() {
        let mut queue = queue(5, 2);
        queue.pause();
        assert_eq!(queue.start_next(), None);
    }

    #[test]
    fn the_runs_of_a_question_are_all_its_attempts() {
        let mut queue = queue(1, 1);
        let again = RunId { retry: 3, ..run(10) };
        queue.insert(again, entry(1, None));
        let runs: Vec<_> = queue.runs_of(run(10).question).map(|(run, _)| run).collect();
        assert_eq!(runs, [run(10), again]);
        assert_eq!(queue.runs_of(Uuid::nil()).count(), 0);
    }
}
