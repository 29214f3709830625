//! The thread that writes. Everything that waits goes into one transaction, and is answered after
//! its commit.
//!
//! ```text
//! append ─┐
//! append ─┼─► queue ─► BEGIN, rows of all, COMMIT (one sync) ─► answers
//! append ─┘
//! ```
//!
//! While one commit syncs, the rows of the next one gather. So transactions grow with the load,
//! without a timer, and a single event does not wait. Where a transaction fails by what may be the
//! fault of one job, each job is tried on its own, so that the others succeed.

use crate::store::AppendError;
use crate::store::sqlite::error_text;
use crate::store::sqlite::metrics::{Duplicates, Metrics};
use crate::store::sqlite::prune::Pruner;
use crate::store::sqlite::stored::{Envelope, OwnedMessage, OwnedRow};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior,
    params,
};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use uuid::Uuid;

/// The most rows of one transaction. With 500 the cost of a sync is shared well; with some
/// thousands only the latency grows.
const ROWS: usize = 2_000;
/// The most bytes of one transaction, except that one job may have more. Uncommitted rows are in
/// memory and in the log.
const BYTES: usize = 16 << 20;
/// The least number of rows that are deleted before the queue is served again, which takes some
/// milliseconds. After a larger commit it is twice as many as were written, so that pruning keeps
/// up.
const PRUNED: usize = 200;
/// How many questions and envelopes the thread remembers the ids of: more than are in flight.
const REMEMBERED: usize = 20_000;

/// Work for the thread.
pub(super) enum Job {
    Write(Write),
    /// Ends the thread, after all earlier jobs.
    Stop,
}

/// Something to write, and where its answer goes.
pub(super) struct Write {
    pub(super) content: Content,
    /// Its approximate size in memory, in bytes.
    pub(super) weight: usize,
    /// Answered once, after the commit.
    pub(super) answer: oneshot::Sender<Result<(), AppendError>>,
    /// Its share of the queue, released when it is answered.
    pub(super) share: OwnedSemaphorePermit,
}

pub(super) enum Content {
    Rows(Vec<OwnedRow>),
    Rejected(OwnedMessage),
}

/// The state of the thread.
pub(super) struct Writer {
    connection: Connection,
    queue: UnboundedReceiver<Job>,
    ids: Ids,
    appended: watch::Sender<u64>,
    metrics: Arc<Metrics>,
    pruner: Option<Pruner>,
    /// Whether more rows are to be pruned.
    behind: bool,
}

/// Why a transaction failed.
struct Failure {
    error: rusqlite::Error,
    /// The event that was being written.
    event: Option<Uuid>,
}

/// What a transaction did.
#[derive(Default)]
struct Written {
    added: u64,
    duplicates: Duplicates,
}

/// The ids of questions and envelopes. An id stays valid once it is committed, until it is pruned.
#[derive(Default)]
struct Ids {
    questions: HashMap<Uuid, i64>,
    envelopes: HashMap<Envelope, i64>,
}

/// The statements of a transaction.
struct Statements<'t> {
    find_question: CachedStatement<'t>,
    add_question: CachedStatement<'t>,
    find_envelope: CachedStatement<'t>,
    add_envelope: CachedStatement<'t>,
    add_event: CachedStatement<'t>,
    add_rejected: CachedStatement<'t>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        connection: Connection,
        queue: UnboundedReceiver<Job>,
        appended: watch::Sender<u64>,
        metrics: Arc<Metrics>,
        pruner: Option<Pruner>,
    ) -> Self {
        let ids = Ids::default();
        Self { connection, queue, ids, appended, metrics, pruner, behind: false }
    }

    /// Writes until it gets [`Job::Stop`], or the queue is closed.
    pub(super) fn run(mut self) {
        while let Some(Job::Write(first)) = self.next() {
            let (batch, stop) = self.gather(first);
            let rows: usize = batch.iter().map(Write::rows).sum();
            self.write(batch);
            if stop {
                break;
            }
            self.prune(PRUNED.max(2 * rows));
        }
    }

    /// The next job. Prunes while there is none.
    fn next(&mut self) -> Option<Job> {
        while self.behind {
            match self.queue.try_recv() {
                Ok(job) => return Some(job),
                Err(TryRecvError::Empty) => self.prune(PRUNED),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        self.queue.blocking_recv()
    }

    fn prune(&mut self, rows: usize) {
        let Some(pruner) = &mut self.pruner else { return };
        match pruner.step(&mut self.connection, rows) {
            Ok(pruned) => {
                self.behind = pruned.more;
                if pruned.ids {
                    self.ids = Ids::default();
                }
            }
            Err(_) => {
                // Tried again after the next append, which reports the error.
                self.behind = false;
                self.metrics.error();
            }
        }
    }

    /// The jobs that wait, up to the bounds of a transaction, and whether to stop after them.
    fn gather(&mut self, first: Write) -> (Vec<Write>, bool) {
        let (mut rows, mut bytes) = (first.rows(), first.weight);
        let mut batch = vec![first];
        while rows < ROWS && bytes < BYTES {
            match self.queue.try_recv() {
                Ok(Job::Write(next)) => {
                    rows += next.rows();
                    bytes += next.weight;
                    batch.push(next);
                }
                Ok(Job::Stop) => return (batch, true),
                Err(_) => break,
            }
        }
        (batch, false)
    }

    fn write(&mut self, batch: Vec<Write>) {
        match self.commit(&batch) {
            Ok(()) => batch.into_iter().for_each(|job| job.answer(Ok(()))),
            Err(failure) if batch.len() > 1 && failure.may_be_of_one_job() => {
                for job in batch {
                    let result = self.commit(std::slice::from_ref(&job));
                    job.answer(result.map_err(|failure| failure.to_error()));
                }
            }
            Err(failure) => batch.into_iter().for_each(|job| job.answer(Err(failure.to_error()))),
        }
    }

    /// Writes all of the batch, or none; durable where it is `Ok`.
    fn commit(&mut self, batch: &[Write]) -> Result<(), Failure> {
        let result = transact(&mut self.connection, &mut self.ids, batch);
        match &result {
            Ok(written) => {
                self.metrics.duplicates(&written.duplicates);
                if written.added > 0 {
                    self.appended.send_modify(|count| *count += written.added);
                }
            }
            // Some are of the transaction that was rolled back.
            Err(_) => self.ids = Ids::default(),
        }
        result.map(drop)
    }
}

fn transact(
    connection: &mut Connection,
    ids: &mut Ids,
    batch: &[Write],
) -> Result<Written, Failure> {
    // Takes the lock at once: no other process writes between the lookup of an id and its use.
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Failure::of_transaction)?;
    let mut written = Written::default();
    let mut statements = Statements::prepare(&transaction).map_err(Failure::of_transaction)?;
    for job in batch {
        match &job.content {
            Content::Rows(rows) => {
                for row in rows {
                    let new = statements.append(ids, row);
                    match new.map_err(|error| Failure::of_event(row.uuid, error))? {
                        true => written.added += 1,
                        false => written.duplicates.add(&row.kind),
                    }
                }
            }
            Content::Rejected(message) => {
                statements.reject(message).map_err(Failure::of_transaction)?
            }
        }
    }
    drop(statements);
    transaction.commit().map_err(Failure::of_transaction)?;
    Ok(written)
}

// === impl Write ===

impl Write {
    fn rows(&self) -> usize {
        match &self.content {
            Content::Rows(rows) => rows.len(),
            Content::Rejected(_) => 1,
        }
    }

    fn answer(self, result: Result<(), AppendError>) {
        drop(self.share);
        // A caller that no longer waits will call again.
        let _ = self.answer.send(result);
    }
}

// === impl Failure ===

impl Failure {
    fn of_transaction(error: rusqlite::Error) -> Self {
        Self { error, event: None }
    }

    fn of_event(event: Uuid, error: rusqlite::Error) -> Self {
        Self { error, event: Some(event) }
    }

    /// Whether another job may succeed without this one. Where the file or its lock failed, every
    /// job would only wait for the same failure again.
    fn may_be_of_one_job(&self) -> bool {
        !matches!(
            self.error.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::FileLockingProtocolFailed
            )
        )
    }

    /// The caller's error: refused where this row will always fail, else unavailable.
    fn to_error(&self) -> AppendError {
        let row = matches!(
            self.error.sqlite_error_code(),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig)
        );
        // A missing foreign key is not the row's fault: another process deleted an id that we
        // remember.
        let ours = self.error.sqlite_error().is_some_and(|error| {
            error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY
        });
        match self.event {
            Some(uuid) if row && !ours => {
                AppendError::Refused { uuid, reason: error_text(&self.error) }
            }
            Some(_) | None => AppendError::Unavailable(error_text(&self.error).into()),
        }
    }
}

// === impl Ids ===

fn remember<K: Eq + Hash>(ids: &mut HashMap<K, i64>, key: K, id: i64) {
    // Sometimes looking up a thousand ids again costs less than keeping their order.
    if ids.len() >= REMEMBERED {
        ids.clear();
    }
    ids.insert(key, id);
}

// === impl Statements ===

impl<'t> Statements<'t> {
    fn prepare(transaction: &'t Transaction<'_>) -> rusqlite::Result<Self> {
        let statement = |sql| transaction.prepare_cached(sql);
        Ok(Self {
            find_question: statement("SELECT id FROM questions WHERE uuid = ?1")?,
            add_question: statement("INSERT INTO questions (uuid) VALUES (?1)")?,
            find_envelope: statement(
                "SELECT id FROM envelopes WHERE parent = ?1 AND originator = ?2 AND sender = ?3 \
                 AND recipient = ?4 AND sender_type = ?5 AND other_attributes = ?6 \
                 AND sender_sdk_version = ?7",
            )?,
            add_envelope: statement(
                "INSERT INTO envelopes (parent, originator, sender, recipient, sender_type, \
                 other_attributes, sender_sdk_version) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?,
            add_event: statement(
                "INSERT INTO events (uuid, digest, datetime, kind, question, parent_question, \
                 originator_question, retry_count, envelope, other_attributes, as_written, \
                 service, message_id, ordering_key, kind_start, kind_end, data) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17) \
                 ON CONFLICT (question, uuid, digest) DO NOTHING",
            )?,
            add_rejected: statement(
                "INSERT INTO rejected (message_id, digest, ordering_key, data, attributes, \
                 reason, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                 ON CONFLICT (message_id, digest) DO NOTHING",
            )?,
        })
    }

    /// Returns whether the row was new.
    fn append(&mut self, ids: &mut Ids, row: &OwnedRow) -> rusqlite::Result<bool> {
        let question = self.question(ids, row.question)?;
        let parent = row.parent_question.map(|uuid| self.question(ids, uuid)).transpose()?;
        let originator = self.question(ids, row.originator_question)?;
        let envelope = self.envelope(ids, &row.envelope)?;
        let changed = self.add_event.execute(params![
            row.uuid.as_bytes(),
            row.digest,
            row.datetime.0,
            row.kind,
            question,
            parent,
            originator,
            row.retry_count,
            envelope,
            row.other_attributes,
            row.as_written,
            row.service,
            row.message_id,
            row.ordering_key,
            row.kind_start as i64,
            row.kind_end as i64,
            row.data,
        ])?;
        Ok(changed > 0)
    }

    fn reject(&mut self, message: &OwnedMessage) -> rusqlite::Result<()> {
        let OwnedMessage { message_id, digest, ordering_key, data, attributes, reason, at } =
            message;
        // As text where it is readable, but not with a NUL, at which SQLite's functions stop.
        let text = std::str::from_utf8(data).ok().filter(|text| !text.contains('\0'));
        let data: &dyn rusqlite::ToSql = match &text {
            Some(text) => text,
            None => data,
        };
        self.add_rejected.execute(params![
            message_id,
            digest,
            ordering_key,
            data,
            attributes,
            reason,
            at.0
        ])?;
        Ok(())
    }

    fn question(&mut self, ids: &mut Ids, uuid: Uuid) -> rusqlite::Result<i64> {
        if let Some(id) = ids.questions.get(&uuid) {
            return Ok(*id);
        }
        let mut buffer = Uuid::encode_buffer();
        let text: &str = uuid.hyphenated().encode_lower(&mut buffer);
        let found = self.find_question.query_row([text], |row| row.get(0)).optional()?;
        let id = match found {
            Some(id) => id,
            None => self.add_question.insert([text])?,
        };
        remember(&mut ids.questions, uuid, id);
        Ok(id)
    }

    fn envelope(&mut self, ids: &mut Ids, envelope: &Envelope) -> rusqlite::Result<i64> {
        if let Some(id) = ids.envelopes.get(envelope) {
            return Ok(*id);
        }
        let parts = envelope.parts();
        let found = self.find_envelope.query_row(parts, |row| row.get(0)).optional()?;
        let id = match found {
            Some(id) => id,
            None => self.add_envelope.insert(parts)?,
        };
        remember(&mut ids.envelopes, envelope.clone(), id);
        Ok(id)
    }
}
