//! The runs that are not settled, and which of them starts next: pure.
//!
//! The number of slots limits how many runs are active; the others wait in the order of their
//! launches. A question whose parent question runs here takes no slot and does not wait: its parent
//! holds a slot until it ends, so a tree with more levels than slots would never end. How many such
//! questions run at once is up to the services.

use crate::event::{RunId, Timestamp};
use crate::runner::{RunEnd, RunPhase, RunState};
use std::collections::hash_map::Entry::Occupied;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// All runs that are not settled.
#[derive(Debug)]
pub(super) struct Queue {
    slots: usize,
    used_slots: usize,
    paused: bool,
    runs: BTreeMap<RunId, QueuedRun>,
    /// The runs that wait for a slot, by the order of their launches.
    waiting: BTreeMap<u64, RunId>,
    /// The runs that can start without a slot, by the order of their launches.
    startable: BTreeMap<u64, RunId>,
    /// The runs in `waiting` that have a parent question, by that question.
    children: HashMap<Uuid, BTreeSet<u64>>,
}

/// A run of the queue.
#[derive(Clone, Debug)]
pub(super) struct QueuedRun {
    /// The position in the order of launches.
    pub(super) sequence: u64,
    /// When it was launched.
    pub(super) launched: Timestamp,
    /// The revision that answers.
    pub(super) service: Arc<str>,
    /// The question that asked this one, if any.
    pub(super) parent_question: Option<Uuid>,
    /// The question's attributes.
    pub(super) attributes: Arc<HashMap<String, String>>,
    pub(super) stage: RunStage,
}

/// The stage of a run.
#[derive(Clone, Debug)]
pub(super) enum RunStage {
    /// It waits to be started.
    Waiting,
    /// It waited, and its end is being recorded: it does not start.
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
        /// When its child was started.
        since: Timestamp,
    },
    /// It has ended.
    Ended(RunEnd),
}

// === impl Queue ===

impl Queue {
    /// An empty queue with this number of slots.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            used_slots: 0,
            paused: false,
            runs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            startable: BTreeMap::new(),
            children: HashMap::new(),
        }
    }

    /// Adds a run.
    pub(super) fn insert(&mut self, run: RunId, entry: QueuedRun) {
        let stage = entry.stage.clone();
        self.runs.insert(run, QueuedRun { stage: RunStage::Withdrawn, ..entry });
        self.set_stage(run, stage);
    }

    pub(super) fn get(&self, run: RunId) -> Option<&QueuedRun> {
        self.runs.get(&run)
    }

    /// The state of a run, for the listeners.
    pub(super) fn state(&self, run: RunId) -> Option<RunState> {
        self.runs.get(&run).map(|entry| entry.state(run))
    }

    /// The states of all runs, for the listeners.
    pub(super) fn states(&self) -> impl Iterator<Item = RunState> {
        self.runs.iter().map(|(run, entry)| entry.state(*run))
    }

    /// Starts no further run.
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Takes the next run that can start, if any, and marks it as starting.
    pub(super) fn start_next(&mut self) -> Option<RunId> {
        if self.paused {
            return None;
        }
        let (run, slot) = match self.startable.first_key_value() {
            Some((_, run)) => (*run, false),
            None if self.used_slots < self.slots => (*self.waiting.first_key_value()?.1, true),
            None => return None,
        };
        self.set_stage(run, RunStage::Starting { slot });
        Some(run)
    }

    /// Marks a starting run as running. Returns false, and changes nothing, in any other stage.
    pub(super) fn started(&mut self, run: RunId, since: Timestamp) -> bool {
        let Some(RunStage::Starting { slot }) = self.get(run).map(|entry| &entry.stage) else {
            return false;
        };
        let slot = *slot;
        self.set_stage(run, RunStage::Running { slot, since });
        true
    }

    /// Marks a run as ended.
    pub(super) fn ended(&mut self, run: RunId, end: RunEnd) {
        self.set_stage(run, RunStage::Ended(end));
    }

    /// Withdraws a waiting run. Returns false, and changes nothing, in any other stage.
    pub(super) fn withdraw(&mut self, run: RunId) -> bool {
        let waits = matches!(self.get(run), Some(QueuedRun { stage: RunStage::Waiting, .. }));
        if waits {
            self.set_stage(run, RunStage::Withdrawn);
        }
        waits
    }

    /// Returns a withdrawn run to its position among the waiting runs.
    pub(super) fn reinstate(&mut self, run: RunId) {
        if matches!(self.get(run), Some(QueuedRun { stage: RunStage::Withdrawn, .. })) {
            self.set_stage(run, RunStage::Waiting);
        }
    }

    /// Removes a run that has ended.
    pub(super) fn remove(&mut self, run: RunId) {
        if matches!(self.get(run), Some(QueuedRun { stage: RunStage::Ended(_), .. })) {
            self.runs.remove(&run);
        }
    }

    /// The runs of a question.
    pub(super) fn runs_of(&self, question: Uuid) -> impl Iterator<Item = (RunId, &QueuedRun)> {
        let (first, last) = (RunId { question, retry: 0 }, RunId { question, retry: u32::MAX });
        self.runs.range(first..=last).map(|(run, entry)| (*run, entry))
    }

    /// Whether a run of the question is starting or running.
    pub(super) fn is_active(&self, question: Option<Uuid>) -> bool {
        question.is_some_and(|question| {
            self.runs_of(question).any(|(_, entry)| entry.stage.is_active())
        })
    }

    /// The runs that are starting or running.
    pub(super) fn active(&self) -> impl Iterator<Item = RunId> {
        self.runs.iter().filter(|(_, entry)| entry.stage.is_active()).map(|(run, _)| *run)
    }

    /// Changes the stage of a run, and with it every index by stage. Nothing else does.
    fn set_stage(&mut self, run: RunId, stage: RunStage) {
        let Some(entry) = self.runs.get_mut(&run) else { return };
        let (sequence, parent) = (entry.sequence, entry.parent_question);
        let (waits, starts) = (matches!(stage, RunStage::Waiting), stage.is_active());
        self.used_slots += usize::from(stage.holds_slot());
        let before = std::mem::replace(&mut entry.stage, stage);
        self.used_slots -= usize::from(before.holds_slot());

        if matches!(before, RunStage::Waiting) {
            self.dequeue(sequence, parent);
        }
        if waits {
            self.enqueue(run, sequence, parent);
        }
        if starts {
            self.release_children(run.question);
        }
    }

    fn enqueue(&mut self, run: RunId, sequence: u64, parent: Option<Uuid>) {
        if self.is_active(parent) {
            self.startable.insert(sequence, run);
            return;
        }
        self.waiting.insert(sequence, run);
        if let Some(parent) = parent {
            self.children.entry(parent).or_default().insert(sequence);
        }
    }

    fn dequeue(&mut self, sequence: u64, parent: Option<Uuid>) {
        self.startable.remove(&sequence);
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
                self.startable.insert(sequence, run);
            }
        }
    }
}

// === impl QueuedRun ===

impl QueuedRun {
    fn state(&self, run: RunId) -> RunState {
        let launched = self.launched;
        let phase = match &self.stage {
            RunStage::Waiting | RunStage::Withdrawn | RunStage::Starting { .. } => {
                RunPhase::Queued { since: launched, why: String::new() }
            }
            RunStage::Running { since, .. } => RunPhase::Running { launched, since: *since },
            RunStage::Ended(end) => RunPhase::Ended(end.clone()),
        };
        RunState { run, attempt: 0, attributes: Arc::clone(&self.attributes), evictions: 0, phase }
    }
}

// === impl RunStage ===

impl RunStage {
    /// Whether a process exists or is about to.
    pub(super) fn is_active(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Running { .. })
    }

    fn holds_slot(&self) -> bool {
        matches!(self, Self::Starting { slot: true } | Self::Running { slot: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Cause, EndReason};

    fn run(number: u128) -> RunId {
        RunId { question: Uuid::from_u128(number), retry: 0 }
    }

    fn entry(sequence: u64, parent: Option<u128>) -> QueuedRun {
        QueuedRun {
            sequence,
            launched: Timestamp(0),
            service: "a/b:c".into(),
            parent_question: parent.map(Uuid::from_u128),
            attributes: Arc::default(),
            stage: RunStage::Waiting,
        }
    }

    fn end() -> RunEnd {
        RunEnd {
            at: Timestamp(1),
            started: None,
            cause: Cause::new(EndReason::Exited, ""),
            tail: Vec::new(),
        }
    }

    /// A queue of the runs 10, 11, …, launched in this order.
    fn queue(slots: usize, runs: u64) -> Queue {
        let mut queue = Queue::new(slots);
        // Added out of order, as after a restart.
        for n in (0..runs).rev() {
            queue.insert(run(10 + u128::from(n)), entry(n, None));
        }
        queue
    }

    /// The numbers of waiting and of starting runs.
    fn counts(queue: &Queue) -> (usize, usize) {
        let count = |is_in: fn(&RunStage) -> bool| {
            queue.runs.values().filter(|entry| is_in(&entry.stage)).count()
        };
        (
            count(|stage| matches!(stage, RunStage::Waiting | RunStage::Withdrawn)),
            count(|stage| matches!(stage, RunStage::Starting { .. })),
        )
    }

    #[test]
    fn runs_start_in_the_order_of_their_launches() {
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
    fn a_question_whose_parent_runs_takes_no_slot() {
        let mut queue = queue(1, 2);
        queue.insert(run(20), entry(7, Some(10)));
        queue.insert(run(30), entry(8, Some(20)));
        queue.insert(run(40), entry(9, Some(999)));

        // All of the tree of run 10, and no other run.
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
    fn a_withdrawn_run_does_not_start_unless_reinstated() {
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
    fn only_ended_runs_are_removed() {
        let mut queue = queue(1, 1);
        queue.remove(run(10));
        assert!(queue.get(run(10)).is_some());
        queue.ended(run(10), end());
        queue.remove(run(10));
        assert!(queue.get(run(10)).is_none());
        assert_eq!(counts(&queue), (0, 0));
    }

    #[test]
    fn a_paused_queue_starts_nothing() {
        let mut queue = queue(5, 2);
        queue.pause();
        assert_eq!(queue.start_next(), None);
    }

    #[test]
    fn the_runs_of_a_question_include_its_retries() {
        let mut queue = queue(1, 1);
        let retry = RunId { retry: 3, ..run(10) };
        queue.insert(retry, entry(1, None));
        let runs: Vec<_> = queue.runs_of(run(10).question).map(|(run, _)| run).collect();
        assert_eq!(runs, [run(10), retry]);
        assert_eq!(queue.runs_of(Uuid::nil()).count(), 0);
    }
}
