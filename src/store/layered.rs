//! A view of the last days, and the history for everything older.
//!
//! ```text
//! run_record(run) ─► view ─ ended, or asked after the view began ─► answer
//!                      └─ else ─► history (at most every two seconds) ─► both merged
//! ```
//!
//! A caller that has the question passes its datetime ([`View::run_record_since`]). Without it, the
//! history is also read for a question that has not come to the view yet.
//!
//! The view has every event that was published since its subscription was made, and none from
//! before. So it is complete for a question that was asked later, except that a cancellation may
//! come before its question: the questions of the view's first minutes are looked up in the history
//! too. The history itself may be some moments behind what was published.

use crate::event::{RunId, Timestamp, attributes};
use crate::store::{
    CancelledQuestions, EventQuery, EventScope, History, QuestionFilter, ReadError, RunRecord,
    View, ViewPosition, ViewedQuestion,
};
use async_trait::async_trait;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// The most by which a cancellation comes before its question, and a sender's clock is ahead of
/// ours.
const EARLY: Duration = Duration::from_secs(300);

/// How long an answer of the history is used again. The view shows what happens meanwhile; only
/// what was published before the view began, and is not yet on record, is seen this much later.
const REFRESH: Duration = Duration::from_secs(2);

/// How many answers are remembered: more than there are runs that wait at once.
const REMEMBERED: usize = 20_000;

/// How many heartbeats of a question are searched for a fence, the last first.
const FENCES: u32 = 100;

/// A [`View`] that may lack older events, and knows from when on it has them all.
#[async_trait]
pub trait PartialView: View {
    /// When the first attempt at a question was made, where the view has it.
    async fn asked_at(&self, question: Uuid) -> Result<Option<Timestamp>, ReadError>;

    /// The time after which the view still has everything that came; none where it has forgotten
    /// nothing.
    fn forgotten(&self) -> Option<Timestamp>;
}

/// Reads the view first, and the history for what is older.
#[derive(Debug)]
pub struct LayeredView {
    view: Arc<dyn PartialView>,
    history: Arc<dyn History>,
    since: watch::Receiver<Timestamp>,
    records: Answers<RunId, RunRecord>,
    /// Fences that the history did not have.
    missing: Answers<Uuid, ()>,
}

/// Answers of the history, remembered for a short time.
#[derive(Debug)]
struct Answers<K, V>(Mutex<HashMap<K, (Instant, V)>>);

// === impl LayeredView ===

impl LayeredView {
    /// The view has everything that was published after `since`, the moment at which its
    /// subscription was made, or made anew.
    pub fn new(
        view: Arc<dyn PartialView>,
        history: Arc<dyn History>,
        since: watch::Receiver<Timestamp>,
    ) -> Self {
        Self { view, history, since, records: Answers::new(), missing: Answers::new() }
    }

    /// Whether the view gets every event of a question. `asked_at` is the datetime of its first
    /// attempt, where the caller knows it.
    async fn is_complete(
        &self,
        question: Uuid,
        asked_at: Option<Timestamp>,
    ) -> Result<bool, ReadError> {
        let began = *self.since.borrow();
        let since = self.view.forgotten().map_or(began, |forgotten| forgotten.max(began));
        let asked_at = self.view.asked_at(question).await?.or(asked_at);
        Ok(asked_at.is_some_and(|at| at.seconds_since(since) > EARLY.as_secs_f64()))
    }

    /// Where the view has the end of a run, the history is not read: the run had a question, and
    /// the rest is as the view has it.
    async fn read(&self, run: RunId, asked_at: Option<Timestamp>) -> Result<RunRecord, ReadError> {
        let viewed = self.view.run_record(run).await?;
        if viewed.terminal {
            return Ok(RunRecord { question: true, ..viewed });
        }
        if self.is_complete(run.question, asked_at).await? {
            return Ok(viewed);
        }
        Ok(merge(viewed, self.recorded(run).await?))
    }

    async fn recorded(&self, run: RunId) -> Result<RunRecord, ReadError> {
        if let Some(record) = self.records.get(&run) {
            return Ok(record);
        }
        let record = self.history.run_record(run).await?;
        self.records.put(run, record);
        Ok(record)
    }

    async fn is_fence_recorded(&self, question: Uuid, fence: Uuid) -> Result<bool, ReadError> {
        if self.missing.get(&fence).is_some() {
            return Ok(false);
        }
        let query = EventQuery {
            kinds: vec!["heartbeat".to_owned()],
            tail: true,
            ..EventQuery::new(EventScope::Question(question), FENCES)
        };
        let heartbeats = self.history.events(&query).await?;
        let uuid = fence.to_string();
        let recorded =
            heartbeats.iter().any(|event| event.attributes.get(attributes::UUID) == Some(&uuid));
        match recorded {
            // So is everything before it, which an earlier answer may lack.
            true => self.records.drop_if(|run| run.question == question),
            false => self.missing.put(fence, ()),
        }
        Ok(recorded)
    }
}

#[async_trait]
impl View for LayeredView {
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        self.read(run, None).await
    }

    async fn run_record_since(
        &self,
        run: RunId,
        asked_at: Timestamp,
    ) -> Result<RunRecord, ReadError> {
        // The first attempt may be older than the view, and may have been cancelled.
        let is_first = run.retry == 0;
        self.read(run, is_first.then_some(asked_at)).await
    }

    /// Whether a fence is on record, and with it everything that its run published before. Where
    /// the question is older than the view, the history must have the fence too: an event from
    /// before the view began may not be on record yet, but it is once the fence behind it is.
    async fn has(&self, question: Uuid, event: Uuid) -> Result<bool, ReadError> {
        Ok(self.view.has(question, event).await?
            && (self.is_complete(question, None).await?
                || self.is_fence_recorded(question, event).await?))
    }

    /// Those of the view alone.
    async fn questions(&self, filter: &QuestionFilter) -> Result<Vec<ViewedQuestion>, ReadError> {
        self.view.questions(filter).await
    }

    /// Those of the view alone. [`LayeredView::run_record`] finds a cancellation from before the
    /// view began.
    async fn cancelled_questions(
        &self,
        after: ViewPosition,
        limit: u32,
    ) -> Result<CancelledQuestions, ReadError> {
        self.view.cancelled_questions(after, limit).await
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.view.appended()
    }
}

/// What the view and the history have of one run.
fn merge(viewed: RunRecord, recorded: RunRecord) -> RunRecord {
    RunRecord {
        question: viewed.question || recorded.question,
        acknowledged: viewed.acknowledged || recorded.acknowledged,
        terminal: viewed.terminal || recorded.terminal,
        answered: viewed.answered || recorded.answered,
        // Without the question, the view relies on the parent and originator that the cancellation
        // itself names. The history may have the question, whose names decide.
        cancelled: recorded.cancelled
            || viewed.cancelled && (viewed.question || !recorded.question),
    }
}

// === impl Answers ===

impl<K: Eq + Hash, V: Clone> Answers<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<V> {
        let answers = self.lock();
        let (at, answer) = answers.get(key)?;
        (at.elapsed() < REFRESH).then(|| answer.clone())
    }

    fn put(&self, key: K, answer: V) {
        let mut answers = self.lock();
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (at, _)| at.elapsed() < REFRESH);
        }
        if answers.len() < REMEMBERED {
            answers.insert(key, (Instant::now(), answer));
        }
    }

    fn drop_if(&self, dropped: impl Fn(&K) -> bool) {
        self.lock().retain(|key, _| !dropped(key));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, (Instant, V)>> {
        // Each change leaves the map valid wherever a thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
