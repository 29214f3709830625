//! The one thread that writes: whatever waits goes into one transaction, and is answered after its
//! commit.
//!
//! ```text
//! append ─┐
//! append ─┼─► queue ─► BEGIN, rows of all, COMMIT (one sync) ─► answers
//! append ─┘
//! ```
//!
//! While one commit syncs, the next one's rows gather: the busier, the larger the transaction, so
//! no timer is needed and a lone event waits for nothing. Where a transaction fails for what might
//! be one job's fault, each job is tried on its own, so that it fails nobody else's.

use crate::store::AppendError;
use crate::store::sqlite::metrics::{Duplicates, Metrics};
use crate::store::sqlite::prune::Pruner;
use crate::store::sqlite::stored::{Envelope, OwnedMessage, OwnedRow};
use crate::store::sqlite::words;
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

/// The most rows of one transaction. At 500 a sync's cost is shared well; beyond some thousands
/// only the waiting grows.
const ROWS: usize = 2_000;
/// The most bytes of one transaction, but for one job that has more: what is not yet committed is
/// in memory, and in the log.
const BYTES: usize = 16 << 20;
/// How many rows are forgotten between two looks at what waits, at least: some milliseconds. Where
/// more were written, twice as many go, so that forgetting keeps up.
const FORGOTTEN: usize = 200;
/// How many questions and envelopes the thread remembers the ids of: those in flight, and more.
const REMEMBERED: usize = 20_000;

/// Work for the thread.
pub(super) enum Job {
    Write(Write),
    /// Ends the thread, after all that came before.
    Stop,
}

/// Something to write, and whom to tell.
pub(super) struct Write {
    pub(super) what: What,
    /// About how many bytes of memory it takes.
    pub(super) weight: usize,
    /// Told once, after the commit.
    pub(super) answer: oneshot::Sender<Result<(), AppendError>>,
    /// Its share of the queue, given back when it is answered.
    pub(super) share: OwnedSemaphorePermit,
}

pub(super) enum What {
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
    /// Whether more is to be forgotten.
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

/// The ids of what is written once. They are in the file for good once they are committed.
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

    /// Writes until it is told to stop, or nobody can ask any more.
    pub(super) fn run(mut self) {
        while let Some(Job::Write(first)) = self.next() {
            let (batch, stop) = self.gather(first);
            let rows: usize = batch.iter().map(Write::rows).sum();
            self.write(batch);
            if stop {
                break;
            }
            self.prune(FORGOTTEN.max(2 * rows));
        }
    }

    /// What is to be done next. While it is nothing, the rest of what is to go is forgotten.
    fn next(&mut self) -> Option<Job> {
        while self.behind {
            match self.queue.try_recv() {
                Ok(job) => return Some(job),
                Err(TryRecvError::Empty) => self.prune(FORGOTTEN),
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
                // Tried again after the next append, which will say what is wrong.
                self.behind = false;
                self.metrics.error();
            }
        }
    }

    /// What waits, up to the bounds of a transaction; and whether to stop after it.
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
                    job.answer(result.map_err(|failure| failure.told()));
                }
            }
            Err(failure) => batch.into_iter().for_each(|job| job.answer(Err(failure.told()))),
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
            // Some were those of the transaction that is no more.
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
    // Takes the lock at once: nobody else writes between the look-up of an id and its use.
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Failure::of_all)?;
    let mut written = Written::default();
    let mut statements = Statements::of(&transaction).map_err(Failure::of_all)?;
    for job in batch {
        match &job.what {
            What::Rows(rows) => {
                for row in rows {
                    let new = statements.append(ids, row);
                    match new.map_err(|error| Failure::of(row.uuid, error))? {
                        true => written.added += 1,
                        false => written.duplicates.add(&row.kind),
                    }
                }
            }
            What::Rejected(message) => statements.keep(message).map_err(Failure::of_all)?,
        }
    }
    drop(statements);
    transaction.commit().map_err(Failure::of_all)?;
    Ok(written)
}

// === impl Write ===

impl Write {
    fn rows(&self) -> usize {
        match &self.what {
            What::Rows(rows) => rows.len(),
            What::Rejected(_) => 1,
        }
    }

    fn answer(self, result: Result<(), AppendError>) {
        drop(self.share);
        // Who no longer waits for it will ask again.
        let _ = self.answer.send(result);
    }
}

// === impl Failure ===

impl Failure {
    fn of_all(error: rusqlite::Error) -> Self {
        Self { error, event: None }
    }

    fn of(event: Uuid, error: rusqlite::Error) -> Self {
        Self { error, event: Some(event) }
    }

    /// Whether another job might go through without this one's. Where the file or its lock is what
    /// failed, all would only wait for the same again, one after the other.
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

    /// As a caller is told: refused where this row will never do, else to be tried again.
    fn told(&self) -> AppendError {
        let row = matches!(
            self.error.sqlite_error_code(),
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig)
        );
        // A key that leads nowhere is no fault of the row: somebody has deleted what we remember.
        let ours = self.error.sqlite_error().is_some_and(|error| {
            error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY
        });
        match self.event {
            Some(uuid) if row && !ours => AppendError::Refused { uuid, reason: words(&self.error) },
            Some(_) | None => AppendError::Unavailable(words(&self.error).into()),
        }
    }
}

// === impl Ids ===

fn remember<K: Eq + Hash>(ids: &mut HashMap<K, i64>, key: K, id: i64) {
    // Now and then looking up a thousand again costs less than keeping their order.
    if ids.len() >= REMEMBERED {
        ids.clear();
    }
    ids.insert(key, id);
}

// === impl Statements ===

impl<'t> Statements<'t> {
    fn of(transaction: &'t Transaction<'_>) -> rusqlite::Result<Self> {
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

    /// Whether the row was new.
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

    fn keep(&mut self, message: &OwnedMessage) -> rusqlite::Result<()> {
        let OwnedMessage { message_id, digest, ordering_key, data, attributes, reason, at } =
            message;
        // As text where people can read it; not with a NUL, where SQLite's functions stop reading.
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
