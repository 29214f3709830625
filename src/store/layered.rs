//! A view of the last days, and behind it the store that has all.
//!
//! ```text
//! run_record(run) ─► view ─ ended, or asked since the view began ─► answer
//!                  └─── else ─► store (at most every two seconds) ─► both together
//! ```
//!
//! The view has every event that was published since its subscription was made, and nothing that was
//! before. So it has all of a question that was asked since, but for a cancellation that came before
//! its question: a question of the view's first minutes is looked up in the store too. It is not
//! before the store either: what is read from it may be some moments behind what is on record.

use crate::event::{RunId, Timestamp, attributes};
use crate::store::{
    CancelledQuestions, EventQuery, EventScope, EventStore, ReadError, RunRecord, View,
    ViewPosition,
};
use async_trait::async_trait;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// By how much a cancellation may come before its question, and a sender's clock be ahead of ours.
const EARLY: Duration = Duration::from_secs(300);

/// For how long an answer of the store is not asked for again. What happens meanwhile is told by the
/// view; only what was published before the view began, and is not yet on record, has to be waited for.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How many answers are remembered: more than there are runs that wait at once.
const REMEMBERED: usize = 20_000;

/// How many heartbeats are looked through for a fence, the last first.
const FENCES: u32 = 100;

/// A [`View`] that knows what it may not have.
#[async_trait]
pub trait PartialView: View {
    /// When the first attempt at a question was made, where that is in the view.
    async fn asked(&self, question: Uuid) -> Result<Option<Timestamp>, ReadError>;

    /// The question of an event that is in the view.
    async fn question_of(&self, event: Uuid) -> Result<Option<Uuid>, ReadError>;

    /// All that came since is there still; none where nothing was forgotten.
    fn forgotten(&self) -> Option<Timestamp>;
}

/// Asks the view first, and the store for what is older.
#[derive(Debug)]
pub struct LayeredView {
    view: Arc<dyn PartialView>,
    store: Arc<dyn EventStore>,
    since: watch::Receiver<Timestamp>,
    records: Answers<RunId, RunRecord>,
    /// Fences that the store did not have.
    missing: Answers<Uuid, ()>,
}

/// Answers of the store, for a short while.
#[derive(Debug)]
struct Answers<K, V>(Mutex<HashMap<K, (Instant, V)>>);

// === impl LayeredView ===

impl LayeredView {
    /// The view has what was published since `since`: since its subscription was made, or made
    /// anew.
    pub fn new(
        view: Arc<dyn PartialView>,
        store: Arc<dyn EventStore>,
        since: watch::Receiver<Timestamp>,
    ) -> Self {
        Self { view, store, since, records: Answers::new(), missing: Answers::new() }
    }

    /// Whether the view has all that was ever said of a question.
    async fn is_whole(&self, question: Uuid) -> Result<bool, ReadError> {
        let since = *self.since.borrow();
        let since = self.view.forgotten().map_or(since, |forgotten| forgotten.max(since));
        let asked = self.view.asked(question).await?;
        Ok(asked.is_some_and(|asked| asked.seconds_since(since) > EARLY.as_secs_f64()))
    }

    async fn kept(&self, run: RunId) -> Result<RunRecord, ReadError> {
        if let Some(record) = self.records.get(&run) {
            return Ok(record);
        }
        let record = self.store.run_record(run).await?;
        self.records.put(run, record);
        Ok(record)
    }

    async fn is_kept(&self, question: Uuid, fence: Uuid) -> Result<bool, ReadError> {
        if self.missing.get(&fence).is_some() {
            return Ok(false);
        }
        let query = EventQuery {
            of: EventScope::Question(question),
            kinds: vec!["heartbeat".to_owned()],
            exclude_kinds: Vec::new(),
            limit: FENCES,
            tail: true,
        };
        let heartbeats = self.store.read(&query).await?;
        let uuid = fence.to_string();
        let kept =
            heartbeats.iter().any(|event| event.attributes.get(attributes::UUID) == Some(&uuid));
        match kept {
            // What came before it is on record too: what was answered earlier may not say so.
            true => self.records.drop_if(|run| run.question == question),
            false => self.missing.put(fence, ()),
        }
        Ok(kept)
    }
}

#[async_trait]
impl View for LayeredView {
    /// Of a run that the view knows to have ended, nothing older is asked for: it was asked, and
    /// what else happened to it is as the view has it.
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        let seen = self.view.run_record(run).await?;
        if seen.terminal {
            return Ok(RunRecord { question: true, ..seen });
        }
        if self.is_whole(run.question).await? {
            return Ok(seen);
        }
        Ok(together(seen, self.kept(run).await?))
    }

    /// Whether a fence is on record, and with it all that its run published before. Where the view
    /// is younger than the question, the store must have it too: something that was published
    /// before the view began may still be on its way there, but not behind its fence.
    async fn has(&self, event: Uuid) -> Result<bool, ReadError> {
        if !self.view.has(event).await? {
            return Ok(false);
        }
        let Some(question) = self.view.question_of(event).await? else { return Ok(true) };
        Ok(self.is_whole(question).await? || self.is_kept(question, event).await?)
    }

    /// Those of the view alone: a cancellation from before the view began is found with the run's
    /// record.
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

/// What the view saw and what the store kept of one run.
fn together(seen: RunRecord, kept: RunRecord) -> RunRecord {
    RunRecord {
        question: seen.question || kept.question,
        acknowledged: seen.acknowledged || kept.acknowledged,
        terminal: seen.terminal || kept.terminal,
        answered: seen.answered || kept.answered,
        // Without the question the view takes a cancellation at its word; the store may know better.
        cancelled: kept.cancelled || seen.cancelled && (seen.question || !kept.question),
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
        (at.elapsed() < ASK_AGAIN).then(|| answer.clone())
    }

    fn put(&self, key: K, answer: V) {
        let mut answers = self.lock();
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (at, _)| at.elapsed() < ASK_AGAIN);
        }
        if answers.len() < REMEMBERED {
            answers.insert(key, (Instant::now(), answer));
        }
    }

    fn drop_if(&self, gone: impl Fn(&K) -> bool) {
        self.lock().retain(|key, _| !gone(key));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, (Instant, V)>> {
        // Each change leaves the map whole wherever a thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
