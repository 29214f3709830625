//! The connections that read, on threads that may block. They see every committed append, and do
//! not block the connection that writes.

mod cancelled;
mod events;
mod questions;
mod rejected;
mod unanswered;
use crate::event::{RunId, Timestamp, may_cancel};
use crate::store::sqlite::{Closed, Options, error_text, schema};
use crate::store::{EventCursor, ReadError, RunRecord, TimeRange};
pub(super) use cancelled::cancelled_questions;
pub(super) use events::events;
pub(super) use questions::{questions_of_view, questions_to_service};
pub(super) use rejected::rejected;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
pub(super) use unanswered::unanswered;
use uuid::Uuid;

/// How many read at once. With two, a long read does not hold up the lookups of launches and
/// monitor.
const READERS: usize = 2;

/// The kinds that decide how far a run is. SQLite uses the index of these kinds only for a query
/// that repeats its condition to the letter.
const KINDS_OF_RUN: &str =
    "('question', 'cancellation', 'delivery_acknowledgement', 'exception', 'result')";

/// Whether a question has an event.
const HAS: &str = "\
    SELECT EXISTS (SELECT 1 FROM questions AS q JOIN events AS e ON e.question = q.id \
    WHERE q.uuid = ?1 AND e.uuid = ?2)";

/// The id of a row by what identifies it.
const ROW: &str = "\
    SELECT e.id FROM questions AS q JOIN events AS e ON e.question = q.id \
    WHERE q.uuid = ?1 AND e.uuid = ?2 AND e.digest = ?3";

/// A pool of connections, opened when first used.
pub(super) struct Readers {
    path: PathBuf,
    options: Options,
    free: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

/// An event of [`KINDS_OF_RUN`], as far as [`fold`] needs it.
struct RunEvent {
    kind: String,
    retry_count: u32,
    sender: String,
    parent: String,
    originator: String,
}

/// A position in the order of datetime and arrival: a row, or a gap between rows.
#[derive(Clone, Copy)]
struct RowPosition {
    datetime: i64,
    id: i64,
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

    /// Reads on a thread that may block. Dropping the future does not stop the reading, and does no
    /// harm.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let free = Arc::clone(&self.free);
        let permit = free.acquire_owned().await.map_err(|_| ReadError(Box::new(Closed)))?;
        let readers = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let mut connection = readers.take()?;
            let found = read(&mut connection);
            // A connection that failed may be broken, and is not used again.
            if found.is_ok() {
                readers.idle().push(connection);
            }
            drop(permit);
            found
        });
        reading
            .await
            .map_err(|error| ReadError(Box::new(error)))?
            .map_err(|error| ReadError(error_text(&error).into()))
    }

    /// Waits for current reads, and closes the file. Later reads fail.
    pub(super) async fn close(&self) {
        let all = u32::try_from(READERS).expect("a handful");
        // Fails where it is closed already.
        let permits = self.free.acquire_many(all).await;
        self.free.close();
        self.idle().clear();
        drop(permits);
    }

    fn take(&self) -> rusqlite::Result<Connection> {
        let idle = self.idle().pop();
        idle.map_or_else(|| schema::readable(&self.path, &self.options), Ok)
    }

    pub(super) fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // A push or a pop leaves the list valid wherever a thread panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl RowPosition ===

impl RowPosition {
    /// Where a listing in ascending order begins: behind the cursor, but not before the time range.
    fn behind(
        connection: &Connection,
        during: TimeRange,
        after: Option<&EventCursor>,
    ) -> rusqlite::Result<Self> {
        match after {
            Some(cursor) if cursor.datetime >= during.since => Self::of_row(connection, cursor),
            Some(_) | None => Ok(Self { datetime: during.since.0, id: 0 }),
        }
    }

    /// Where a listing in descending order begins: before the cursor, but not after the time range.
    fn before(
        connection: &Connection,
        during: TimeRange,
        after: Option<&EventCursor>,
    ) -> rusqlite::Result<Self> {
        match after {
            Some(cursor) if cursor.datetime < during.until => Self::of_row(connection, cursor),
            Some(_) | None => Ok(Self { datetime: during.until.0, id: 0 }),
        }
    }

    /// The position of a row. A view that has forgotten the row has forgotten all rows that came
    /// before it, so the position is then before the other rows of its datetime.
    fn of_row(connection: &Connection, cursor: &EventCursor) -> rusqlite::Result<Self> {
        let id = connection
            .prepare_cached(ROW)?
            .query_row(
                params![cursor.question.to_string(), cursor.event.as_bytes(), cursor.digest],
                |row| row.get(0),
            )
            .optional()?;
        Ok(Self { datetime: cursor.datetime.0, id: id.unwrap_or_default() })
    }
}

/// The id that the file has for a question.
fn id(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM questions WHERE uuid = ?1")?
        .query_row([uuid.to_string()], |row| row.get(0))
        .optional()
}

/// Whether a question has an event.
pub(super) fn has(connection: &Connection, question: Uuid, event: Uuid) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(HAS)?
        .query_row(params![question.to_string(), event.as_bytes()], |row| row.get(0))
}

/// When the first attempt at a question was made, if it is on record.
pub(super) fn asked_at(
    connection: &Connection,
    question: Uuid,
) -> rusqlite::Result<Option<Timestamp>> {
    let Some(question) = id(connection, question)? else { return Ok(None) };
    connection
        .prepare_cached(&asked_at_sql())?
        .query_row([question], |row| Ok(row.get::<_, Option<i64>>(0)?.map(Timestamp)))
}

/// The earliest datetime, where the question was sent twice. Without the `+` SQLite would read a
/// long log by time.
fn asked_at_sql() -> String {
    format!(
        "SELECT min(+e.datetime) FROM events AS e \
         WHERE e.question = ?1 AND e.kind = 'question' AND e.retry_count = 0 \
         AND e.kind IN {KINDS_OF_RUN}"
    )
}

/// What is on record of a run.
pub(super) fn run_record(connection: &Connection, run: RunId) -> rusqlite::Result<RunRecord> {
    let Some(question) = id(connection, run.question)? else { return Ok(RunRecord::default()) };
    Ok(fold(run.retry, &run_events(connection, question)?))
}

/// The events that decide how far the runs of a question are.
fn run_events(connection: &Connection, question: i64) -> rusqlite::Result<Vec<RunEvent>> {
    let mut statement = connection.prepare_cached(&run_events_sql())?;
    let events = statement.query_map([question], |row| {
        Ok(RunEvent {
            kind: row.get(0)?,
            retry_count: row.get(1)?,
            sender: row.get(2)?,
            parent: row.get(3)?,
            originator: row.get(4)?,
        })
    })?;
    events.collect()
}

fn run_events_sql() -> String {
    format!(
        "SELECT e.kind, e.retry_count, v.sender, v.parent, v.originator FROM events AS e \
         JOIN envelopes AS v ON v.id = e.envelope \
         WHERE e.question = ?1 AND e.kind IN {KINDS_OF_RUN}"
    )
}

/// What the events of a question amount to for one attempt. A cancellation holds for every attempt.
fn fold(retry_count: u32, events: &[RunEvent]) -> RunRecord {
    let has =
        |kind| events.iter().any(|event| event.kind == kind && event.retry_count == retry_count);
    RunRecord {
        question: has("question"),
        acknowledged: has("delivery_acknowledgement"),
        terminal: has("result") || has("exception"),
        answered: has("result"),
        cancelled: is_cancelled(events),
    }
}

/// Whether a question was cancelled by a sender that may cancel it.
///
/// The question names its parent and its originator. Until it is on record, those count that the
/// cancellation itself names.
fn is_cancelled(events: &[RunEvent]) -> bool {
    let of_kind = |kind: &'static str| events.iter().filter(move |event| event.kind == kind);
    let asked = of_kind("question").next().is_some();
    of_kind("cancellation").any(|cancellation| {
        let may =
            |names: &RunEvent| may_cancel(&cancellation.sender, &names.parent, &names.originator);
        if asked { of_kind("question").any(may) } else { may(cancellation) }
    })
}

#[cfg(test)]
mod tests;
