//! Deletes old rows of a view, a few at a time, between the commits of the thread that writes.
//!
//! Rows go in the order of arrival. Marks record when they arrived: at intervals, the newest row's
//! id is noted with the time. (An event's own datetime is by its sender's clock, which may be a
//! year ahead.)

use crate::event::Timestamp;
use crate::store::sqlite::Keep;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::time::Instant;

/// The number of marks in the time that is kept.
const MARKS: u32 = 32;

/// The latest arrival of a row that was deleted, for readers.
#[derive(Debug)]
pub(super) struct Horizon(AtomicI64);

/// Deletes old rows.
pub(super) struct Pruner {
    keep: Keep,
    horizon: Arc<Horizon>,
    /// The marks in the time that is kept.
    marks: VecDeque<Mark>,
    /// The last mark before that time.
    old: Option<Mark>,
}

/// The outcome of a step.
#[derive(Default)]
pub(super) struct Pruned {
    /// Whether more rows are to go.
    pub(super) more: bool,
    /// Whether ids of questions or envelopes were deleted.
    pub(super) ids: bool,
}

/// A time, and the newest row at that time.
#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    moment: Timestamp,
    newest: i64,
}

/// The questions and envelopes that deleted rows had referred to.
#[derive(Default)]
struct References {
    last: Option<i64>,
    rows: usize,
    questions: BTreeSet<i64>,
    envelopes: BTreeSet<i64>,
}

// === impl Horizon ===

impl Horizon {
    const NOTHING: i64 = i64::MIN;

    /// Nothing was deleted.
    pub(super) fn new() -> Self {
        Self(AtomicI64::new(Self::NOTHING))
    }

    /// None where nothing was deleted.
    pub(super) fn get(&self) -> Option<Timestamp> {
        Some(Timestamp(self.0.load(Ordering::Acquire))).filter(|at| at.0 != Self::NOTHING)
    }

    fn advance(&self, at: Timestamp) {
        self.0.fetch_max(at.0, Ordering::AcqRel);
    }
}

// === impl Pruner ===

impl Pruner {
    pub(super) fn new(keep: Keep, horizon: Arc<Horizon>) -> Self {
        Self { keep, horizon, marks: VecDeque::new(), old: None }
    }

    /// Deletes at most this many rows.
    pub(super) fn step(
        &mut self,
        connection: &mut Connection,
        rows: usize,
    ) -> rusqlite::Result<Pruned> {
        let Some(newest) = newest(connection)? else { return Ok(Pruned::default()) };
        self.mark(newest);
        let Some(last) = self.last_to_go(connection, newest)? else {
            return Ok(Pruned::default());
        };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let references = delete(&transaction, last, rows)?;
        let Some(gone) = references.last else { return Ok(Pruned::default()) };
        let ids = delete_unused(&transaction, &references)?;
        // Before the commit: a reader in between reads the history once more than needed.
        self.horizon.advance(self.before(gone));
        transaction.commit()?;
        Ok(Pruned { more: references.rows == rows, ids })
    }

    /// Adds a mark where the last is old enough, and drops those that are too old.
    fn mark(&mut self, newest: i64) {
        let now = Instant::now();
        let due = |mark: &Mark| now.duration_since(mark.at) >= self.keep.age / MARKS;
        if self.marks.back().is_none_or(due) {
            self.marks.push_back(Mark { at: now, moment: Timestamp::now(), newest });
        }
        while let Some(mark) = self.marks.front() {
            if now.duration_since(mark.at) < self.keep.age {
                break;
            }
            self.old = self.marks.pop_front();
        }
    }

    /// The last row that may go. Never the newest, whose id would be used again.
    fn last_to_go(&self, connection: &Connection, newest: i64) -> rusqlite::Result<Option<i64>> {
        let last = match used(connection)? > self.keep.bytes {
            true => Some(newest),
            false => self.old.map(|mark| mark.newest),
        };
        Ok(last.map(|last| last.min(newest - 1)))
    }

    /// A time by which a row had arrived.
    fn before(&self, row: i64) -> Timestamp {
        let mark = self.old.iter().chain(&self.marks).find(|mark| mark.newest >= row);
        mark.map_or_else(Timestamp::now, |mark| mark.moment)
    }
}

fn newest(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM events ORDER BY id DESC LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()
}

/// How many bytes of the file are in use.
fn used(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "SELECT (page_count - freelist_count) * page_size \
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

/// Deletes the first rows, up to the last that may go, and returns what they had referred to.
fn delete(transaction: &Transaction<'_>, last: i64, rows: usize) -> rusqlite::Result<References> {
    let mut statement = transaction.prepare_cached(
        "DELETE FROM events \
         WHERE id IN (SELECT id FROM events WHERE id <= ?1 ORDER BY id LIMIT ?2) \
         RETURNING id, question, parent_question, originator_question, envelope",
    )?;
    let mut deleted = statement.query([last, i64::try_from(rows).unwrap_or(i64::MAX)])?;
    let mut references = References::default();
    while let Some(row) = deleted.next()? {
        references.rows += 1;
        references.last = references.last.max(Some(row.get(0)?));
        references.questions.insert(row.get(1)?);
        references.questions.extend(row.get::<_, Option<i64>>(2)?);
        references.questions.insert(row.get(3)?);
        references.envelopes.insert(row.get(4)?);
    }
    Ok(references)
}

/// Deletes the questions and envelopes that no row refers to any more. Returns whether there were
/// any.
fn delete_unused(transaction: &Transaction<'_>, references: &References) -> rusqlite::Result<bool> {
    let mut question = transaction.prepare_cached(
        "DELETE FROM questions WHERE id = ?1 \
         AND NOT EXISTS (SELECT 1 FROM events WHERE question = ?1) \
         AND NOT EXISTS (SELECT 1 FROM events WHERE parent_question = ?1) \
         AND NOT EXISTS (SELECT 1 FROM events WHERE originator_question = ?1 \
             AND originator_question <> question)",
    )?;
    let mut envelope = transaction.prepare_cached(
        "DELETE FROM envelopes WHERE id = ?1 \
         AND NOT EXISTS (SELECT 1 FROM events WHERE envelope = ?1)",
    )?;
    let mut gone = 0;
    for id in &references.questions {
        gone += question.execute([id])?;
    }
    for id in &references.envelopes {
        gone += envelope.execute([id])?;
    }
    Ok(gone > 0)
}
