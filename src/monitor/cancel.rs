//! Ends the runs of cancelled questions.
//!
//! ```text
//! Runner::states ────────────► live runs ──────┐
//! View::cancelled_questions ─► cancellations ──┼──► both? ──► Runner::cancel, until it succeeds
//! this replica's pipeline ───► cancellations ──┘
//! ```
//!
//! A run must end when both its state and an accepted cancellation of its question have been seen.
//! They come in any order, and the view of a replica may be a minute behind. So the two are
//! compared whenever either comes, and nothing depends on which replica launched the run, received
//! the cancellation or saw either first. Every replica does so: ending a run twice is harmless.
//!
//! [`event::may_cancel`] decides whose cancellation is accepted. The view applies it to the events
//! that it has. For a cancellation from the pipeline it is applied here, to the attributes in the
//! state of the run.

use crate::cancellations::Cancellation;
use crate::chain::Chain;
use crate::event::attributes as name;
use crate::event::{self, RunId, Timestamp};
use crate::monitor::live_runs::LiveRuns;
use crate::monitor::publish::BACKOFF;
use crate::monitor::{Monitor, log_panic};
use crate::notifications::QuestionAttributes;
use crate::store::{View, ViewPosition};
use futures_util::stream::{BoxStream, StreamExt, unfold};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

/// For how long a cancellation is remembered here. A run that is first seen later is compared with
/// the view alone. By then the view has its question, without which it accepts no cancellation.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How many cancellations are remembered: a few MB.
const MAX_REMEMBERED: usize = 50_000;

/// How many cancelled questions are read from the view at once.
const PAGE: u32 = 500;

/// The shortest and the longest pause between two reads of the view. No notification shows what
/// another process appends to it.
const READ_INTERVALS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How many comparisons are under way at once. At the start there is one for each existing run.
const CONCURRENT: usize = 128;

/// Compares live runs with cancellations.
pub(super) struct CancellationReconciler {
    monitor: Arc<Monitor>,
    recent: RecentCancellations,
    queue: VecDeque<(RunId, CancelDecision)>,
    tasks: JoinSet<()>,
}

/// Whether a run is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CancelDecision {
    Cancelled,
    /// It is, if the view has an accepted cancellation. With the datetime of the question.
    CheckView(Timestamp),
}

/// The senders of recent cancellations, by question.
#[derive(Debug, Default)]
struct RecentCancellations {
    senders: HashMap<Uuid, Vec<String>>,
    /// When each came, the oldest first.
    ages: VecDeque<(Instant, Uuid)>,
}

// === impl CancellationReconciler ===

impl CancellationReconciler {
    pub(super) fn new(monitor: Arc<Monitor>) -> Self {
        let recent = RecentCancellations::default();
        Self { monitor, recent, queue: VecDeque::new(), tasks: JoinSet::new() }
    }

    /// Compares a run, or an attempt of it, that was seen for the first time.
    pub(super) fn run(&mut self, run: RunId, question: &QuestionAttributes) {
        match self.recent.senders(run.question).any(|sender| may_cancel(sender, question)) {
            true => self.queue.push_front((run, CancelDecision::Cancelled)),
            false => self.queue.push_back((run, CancelDecision::check_view(question))),
        }
        self.start();
    }

    /// Compares cancelled questions of the view.
    pub(super) fn cancelled_questions(&mut self, questions: Vec<Uuid>, live: &LiveRuns) {
        for question in questions {
            let runs = live.runs_of(question);
            let runs = runs.map(|(run, question)| (run, CancelDecision::check_view(question)));
            self.queue.extend(runs);
        }
        self.start();
    }

    /// Compares a cancellation that this replica has put on record.
    pub(super) fn cancellation(&mut self, cancellation: Cancellation, live: &LiveRuns) {
        let Cancellation { question, sender } = cancellation;
        for (run, attributes) in live.runs_of(question) {
            if may_cancel(&sender, attributes) {
                self.queue.push_front((run, CancelDecision::Cancelled));
            } else {
                warn!(%question, sender, "cancellation ignored: its sender did not ask the question");
            }
        }
        self.recent.insert(question, sender);
        self.start();
    }

    /// Waits until a comparison is over, and starts the next.
    pub(super) async fn next(&mut self) -> Option<()> {
        let ended: Result<(), JoinError> = self.tasks.join_next().await?;
        if let Err(panic) = &ended {
            log_panic(panic);
        }
        self.start();
        Some(())
    }

    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }

    fn start(&mut self) {
        while self.tasks.len() < CONCURRENT {
            let Some((run, decision)) = self.queue.pop_front() else { return };
            let monitor = Arc::clone(&self.monitor);
            self.tasks.spawn(async move {
                let is_cancelled = match decision {
                    CancelDecision::Cancelled => true,
                    CancelDecision::CheckView(asked_at) => {
                        monitor.is_cancelled(run, asked_at).await
                    }
                };
                if is_cancelled {
                    monitor.end_cancelled(run).await;
                }
            });
        }
    }
}

// === impl CancelDecision ===

impl CancelDecision {
    fn check_view(question: &QuestionAttributes) -> Self {
        let datetime = question.get(name::DATETIME).and_then(|text| Timestamp::parse(text));
        // Without it, the question may be of any age.
        Self::CheckView(datetime.unwrap_or(Timestamp(0)))
    }
}

// === impl Monitor ===

impl Monitor {
    /// Whether the view has an accepted cancellation. Without the question, the view cannot tell
    /// whose cancellation to accept.
    async fn is_cancelled(&self, run: RunId, asked_at: Timestamp) -> bool {
        let mut backoff = BACKOFF;
        loop {
            match self.dependencies.view.run_record_since(run, asked_at).await {
                Ok(record) => return record.question && record.cancelled,
                Err(error) => {
                    warn!(question = %run.question, error = %Chain(&error), "failed to read the view")
                }
            }
            backoff.wait().await;
        }
    }

    async fn end_cancelled(&self, run: RunId) {
        info!(question = %run.question, "ending the run of a cancelled question");
        self.call_runner(run, || self.dependencies.runner.cancel(run.question)).await;
    }
}

// === impl RecentCancellations ===

impl RecentCancellations {
    fn insert(&mut self, question: Uuid, sender: String) {
        while let Some((at, oldest)) = self.ages.front()
            && (at.elapsed() > REMEMBERED || self.ages.len() >= MAX_REMEMBERED)
        {
            self.senders.remove(oldest);
            self.ages.pop_front();
        }
        self.senders.entry(question).or_default().push(sender);
        self.ages.push_back((Instant::now(), question));
    }

    fn senders(&self, question: Uuid) -> impl Iterator<Item = &String> {
        self.senders.get(&question).into_iter().flatten()
    }
}

/// The cancelled questions of a view: first those that it has, then new ones as they come.
pub(super) fn cancelled_questions(view: Arc<dyn View>) -> BoxStream<'static, Vec<Uuid>> {
    unfold((view, ViewPosition::default()), async |(view, mut position)| {
        let (least, most) = READ_INTERVALS;
        loop {
            let mut appended = view.appended();
            match view.cancelled_questions(position, PAGE).await {
                Ok(page) if !page.questions.is_empty() => {
                    return Some((page.questions, (view, page.position)));
                }
                Ok(page) => position = page.position,
                Err(error) => warn!(error = %Chain(&error), "failed to read cancelled questions"),
            }
            let changed = async {
                if appended.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(most, changed).await;
            tokio::time::sleep(least).await;
        }
    })
    .boxed()
}

/// Whether a sender may cancel the question of a run.
fn may_cancel(sender: &str, question: &QuestionAttributes) -> bool {
    match (question.get(name::PARENT), question.get(name::ORIGINATOR)) {
        (Some(parent), Some(originator)) => event::may_cancel(sender, parent, originator),
        // Every question on record names both.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_does_not_name_its_parent_and_originator_cannot_be_cancelled() {
        let both = [(name::PARENT, "a/parent:1"), (name::ORIGINATOR, "a/root:1")];
        let question = |names: &[(&str, &str)]| {
            names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };

        assert!(may_cancel("a/parent:1", &question(&both)));
        assert!(!may_cancel("a/parent:1", &question(&both[..1])));
        assert!(!may_cancel("", &QuestionAttributes::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn cancellations_are_remembered_for_ten_minutes_and_up_to_a_limit() {
        let mut recent = RecentCancellations::default();
        let question = |number: usize| Uuid::from_u128(number as u128);
        for number in 0..=MAX_REMEMBERED {
            recent.insert(question(number), "a/parent:1".into());
        }
        assert_eq!(recent.senders(question(0)).count(), 0, "over the limit");
        assert_eq!(recent.senders(question(MAX_REMEMBERED)).count(), 1);

        tokio::time::advance(REMEMBERED + Duration::from_secs(1)).await;
        recent.insert(question(0), "a/parent:1".into());

        assert_eq!((recent.senders.len(), recent.ages.len()), (1, 1));
    }
}
