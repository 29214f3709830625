//! The connections that read, on threads where they may wait, beside the one that writes: a reader
//! sees all that was answered for, and stops nobody.

mod cancelled;
mod unanswered;
use crate::event::{RunId, Timestamp};
use crate::store::sqlite::stored::{self, ATTRIBUTES, CONTENTS, FROM};
use crate::store::sqlite::{Closed, Options, schema, words};
use crate::store::{EventQuery, EventScope, ReadError, RunRecord, StoredEvent};
pub(super) use cancelled::cancelled_questions;
use rusqlite::{Connection, OptionalExtension, named_params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
pub(super) use unanswered::unanswered;
use uuid::Uuid;

/// How many read at once: one long read leaves the looks of launches and monitor their own.
const READERS: usize = 2;

/// The kinds that say how far a run is. To the letter as the index says it, or it is not used.
const OF_RUN: &str =
    "e.kind IN ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')";

/// When the first attempt at a question was made; the earliest, where it was sent twice. (The `+`
/// keeps it from looking through a long log in the order of time.)
const ASKED: &str = "\
    SELECT min(+e.datetime) FROM events AS e \
    WHERE e.question = ?1 AND e.kind = 'question' AND e.retry_count = 0 \
    AND e.kind IN ('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')";

/// A pool of connections, opened when first used.
pub(super) struct Readers {
    path: PathBuf,
    options: Options,
    free: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// An event of [`OF_RUN`], as far as [`fold`] looks at it.
struct Said {
    kind: String,
    retry_count: u32,
    sender: String,
    parent: String,
    originator: String,
}

// === impl Readers ===

impl Readers {
    pub(super) fn new(path: &Path, options: Options) -> Self {
        Self {
            path: path.to_owned(),
            options,
            free: Arc::new(Semaphore::new(READERS)),
            idle: Mutex::default(),
        }
    }

    /// Reads on a thread where it may wait. Dropping the future does not stop the reading, and
    /// does no harm.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let free = Arc::clone(&self.free);
        let turn = free.acquire_owned().await.map_err(|_| ReadError(Box::new(Closed)))?;
        let readers = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let mut connection = readers.take()?;
            let found = look(&mut connection);
            // A connection that failed is not used again: the next one may fare better.
            if found.is_ok() {
                readers.idle().push(connection);
            }
            drop(turn);
            found
        });
        reading
            .await
            .map_err(|error| ReadError(Box::new(error)))?
            .map_err(|error| ReadError(words(&error).into()))
    }

    /// Waits for those who read, and lets go of the file. Who asks later is told so.
    pub(super) async fn close(&self) {
        let all = u32::try_from(READERS).expect("a handful");
        // An error says that it is closed already.
        let turns = self.free.acquire_many(all).await;
        self.free.close();
        self.idle().clear();
        drop(turns);
    }

    fn take(&self) -> rusqlite::Result<Connection> {
        let idle = self.idle().pop();
        idle.map_or_else(|| schema::readable(&self.path, &self.options), Ok)
    }

    pub(super) fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // A push or a pop leaves the list whole wherever a thread panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of a query, in the order of their datetimes, then of arrival.
pub(super) fn events(
    connection: &mut Connection,
    query: &EventQuery,
) -> rusqlite::Result<Vec<StoredEvent>> {
    // Both halves of a tree at one moment.
    let snapshot = connection.transaction()?;
    let (EventScope::Question(uuid) | EventScope::Parent(uuid) | EventScope::Originator(uuid)) =
        query.of;
    let Some(question) = id(&snapshot, uuid)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for filter in filters(query.of) {
        select(&snapshot, query, question, filter, &mut found)?;
    }
    found.sort_by_key(|read| (read.datetime, read.id));
    let limit = query.limit as usize;
    if query.tail {
        found.drain(..found.len().saturating_sub(limit));
    }
    found.truncate(limit);
    Ok(found.into_iter().map(|read| read.event).collect())
}

/// The parts that make up whose events are asked for, each answered by one index in order.
fn filters(of: EventScope) -> &'static [&'static str] {
    match of {
        EventScope::Question(_) => &["e.question = :question"],
        EventScope::Parent(_) => &["e.parent_question = :question"],
        EventScope::Originator(_) => &[
            "e.question = :question AND e.originator_question = :question",
            "e.originator_question = :question AND e.originator_question <> e.question",
        ],
    }
}

/// What the file has instead of a question's uuid.
fn id(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM questions WHERE uuid = ?1")?
        .query_row([uuid.to_string()], |row| row.get(0))
        .optional()
}

fn select(
    connection: &Connection,
    query: &EventQuery,
    question: i64,
    filter: &str,
    found: &mut Vec<stored::Read>,
) -> rusqlite::Result<()> {
    let json = |kinds: &[String]| serde_json::to_string(kinds).expect("texts are JSON");
    let mut statement = connection.prepare_cached(&sql(filter, query.tail))?;
    let rows = statement.query_map(
        named_params! {
            ":question": question,
            ":kinds": json(&query.kinds),
            ":excluded": json(&query.exclude_kinds),
            ":limit": query.limit,
        },
        stored::read,
    )?;
    for row in rows {
        found.push(row?);
    }
    Ok(())
}

fn sql(filter: &str, tail: bool) -> String {
    let way = if tail { "DESC" } else { "ASC" };
    format!(
        "SELECT {ATTRIBUTES}, {CONTENTS} {FROM} WHERE {filter} \
         AND (:kinds = '[]' OR e.kind IN (SELECT value FROM json_each(:kinds))) \
         AND e.kind NOT IN (SELECT value FROM json_each(:excluded)) \
         ORDER BY e.datetime {way}, e.id {way} LIMIT :limit"
    )
}

/// Whether an event of this uuid is there.
pub(super) fn has(connection: &Connection, event: Uuid) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE uuid = ?1)")?
        .query_row([event.as_bytes()], |row| row.get(0))
}

/// The question of an event.
pub(super) fn question_of(connection: &Connection, event: Uuid) -> rusqlite::Result<Option<Uuid>> {
    let found: Option<String> = connection
        .prepare_cached(
            "SELECT q.uuid FROM events AS e JOIN questions AS q ON q.id = e.question \
             WHERE e.uuid = ?1",
        )?
        .query_row([event.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(found.and_then(|text| text.parse().ok()))
}

/// When the first attempt at a question was made, where it is there.
pub(super) fn asked(
    connection: &Connection,
    question: Uuid,
) -> rusqlite::Result<Option<Timestamp>> {
    let Some(question) = id(connection, question)? else { return Ok(None) };
    connection
        .prepare_cached(ASKED)?
        .query_row([question], |row| Ok(row.get::<_, Option<i64>>(0)?.map(Timestamp)))
}

/// What is on record of a run.
pub(super) fn record(connection: &Connection, run: RunId) -> rusqlite::Result<RunRecord> {
    let Some(question) = id(connection, run.question)? else { return Ok(RunRecord::default()) };
    Ok(fold(run.retry, &said(connection, question)?))
}

/// The events that say how far the runs of a question are.
fn said(connection: &Connection, question: i64) -> rusqlite::Result<Vec<Said>> {
    let mut statement = connection.prepare_cached(&of_run())?;
    let said = statement.query_map([question], |row| {
        Ok(Said {
            kind: row.get(0)?,
            retry_count: row.get(1)?,
            sender: row.get(2)?,
            parent: row.get(3)?,
            originator: row.get(4)?,
        })
    })?;
    said.collect()
}

fn of_run() -> String {
    format!(
        "SELECT e.kind, e.retry_count, v.sender, v.parent, v.originator FROM events AS e \
         JOIN envelopes AS v ON v.id = e.envelope \
         WHERE e.question = ?1 AND {OF_RUN}"
    )
}

/// What the events of a question amount to for one attempt. A cancellation holds for every attempt.
fn fold(retry_count: u32, said: &[Said]) -> RunRecord {
    let of_kind = |kind: &'static str| said.iter().filter(move |said| said.kind == kind);
    let attempt = |kind| of_kind(kind).any(|said| said.retry_count == retry_count);
    RunRecord {
        question: attempt("question"),
        acknowledged: attempt("delivery_acknowledgement"),
        terminal: attempt("result") || attempt("exception"),
        answered: attempt("result"),
        cancelled: is_cancelled(said),
    }
}

/// Whether a question was cancelled by its parent or the originator of its tree.
///
/// The question names both. Until it is on record, the cancellation's own names count. This keeps out
/// mistakes, not forgers.
fn is_cancelled(said: &[Said]) -> bool {
    let of_kind = |kind: &'static str| said.iter().filter(move |said| said.kind == kind);
    let asked = of_kind("question").next().is_some();
    of_kind("cancellation").any(|cancellation| {
        let may = |by: &Said| [&by.parent, &by.originator].contains(&&cancellation.sender);
        if asked { of_kind("question").any(may) } else { may(cancellation) }
    })
}

#[cfg(test)]
mod tests;
