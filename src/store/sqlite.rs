//! The event store in one SQLite file.
//!
//! ```text
//! EventLog ─► queue (bounded by bytes) ─► writer thread: group commit
//! History, View ─► two connections that read, on tokio's blocking threads
//! ```
//!
//! A store that serves as a view forgets old events ([`Keep`]), and need not be synced.
//!
//! An append is synced before it returns (`WAL`, `synchronous=FULL`). Several processes of one host
//! may share a file. Network file systems, and file systems without locks, are refused. The SQL
//! views `service_events` and `rejected_messages` are for people, with any SQLite at hand.

mod locks;
mod metrics;
mod prune;
mod reader;
mod schema;
mod stored;
mod writer;
use crate::event::{RunId, Timestamp};
use crate::store::{
    AppendError, CancelledQuestions, EventLog, EventQuery, History, PartialView, QuestionFilter,
    ReadError, RejectedMessage, RejectedQuery, Row, RunRecord, ServiceQuery, StoredEvent,
    StoredQuestion, StoredRejectedMessage, UnansweredQuery, UnansweredQuestion, View, ViewPosition,
    ViewedQuestion,
};
use async_trait::async_trait;
use metrics::Metrics;
use prune::{Horizon, Pruner};
use reader::Readers;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use stored::{OwnedMessage, OwnedRow};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;
use writer::{Content, Job, Write, Writer};

/// How much may wait to be written, in KiB: the memory that a slow disk may cost. That is six of
/// the largest messages, or tens of thousands of small ones.
const QUEUE_KIB: u32 = 64 << 10;

/// An event store in one file, which is also a [`View`]. Cheap to clone. The last clone to be
/// dropped writes what waits, and closes the file.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

/// The options of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a call waits for another process that writes to the same file.
    pub busy_timeout: Duration,
    /// Whether appended events survive a power loss. They survive a killed process in any case.
    pub synced: bool,
    /// How much to keep; everything where it is none. Only one process may open a store that
    /// forgets.
    pub keep: Option<Keep>,
}

/// How much a store keeps. Older rows are deleted in the order of arrival, a few after each append:
/// while nothing is appended, nothing is deleted.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The age by arrival from which a row is deleted, within a further 1/32 of it.
    pub age: Duration,
    /// How many bytes of the file may be in use. The file is a little larger, and does not shrink.
    pub bytes: u64,
}

/// Why a store could not be opened. The file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such folder.
    #[error("no folder `{folder}` for event store `{path}`: create it, or choose another path")]
    NoFolder {
        /// Of the file.
        path: PathBuf,
        /// Of its folder.
        folder: PathBuf,
    },
    /// The path is a folder.
    #[error("event store `{path}` is a folder: choose the path of a file")]
    Folder {
        /// Of the folder.
        path: PathBuf,
    },
    /// The file or its folder is not writable.
    #[error(
        "cannot write event store `{path}`: its folder, and the file if there is one, must be \
         writable"
    )]
    NotWritable {
        /// Of the file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file is not a database.
    #[error("event store `{path}` is not a SQLite database: choose another path")]
    NotADatabase {
        /// Of the file.
        path: PathBuf,
    },
    /// The file is a database of another program.
    #[error("database `{path}` is not an event store of twined: choose another path")]
    NotOurs {
        /// Of the file.
        path: PathBuf,
    },
    /// The file has a format version that we do not know.
    #[error(
        "event store `{path}` has format version {found}, this twined reads versions up to {known}: \
         use the twined that wrote it or a newer one, or choose another path"
    )]
    Version {
        /// Of the file.
        path: PathBuf,
        /// The file's version.
        found: i32,
        /// The version that we write.
        known: i32,
    },
    /// The file system does not support the log.
    #[error(
        "event store `{path}` cannot have a write-ahead log: choose a path on a disk of this host"
    )]
    NoLog {
        /// Of the file.
        path: PathBuf,
    },
    /// The file system does not enforce locks.
    #[error(
        "event store `{path}` is on a file system without locks ({why}): choose a path on a disk \
         of this host, not on a network share"
    )]
    NoLocks {
        /// Of the file.
        path: PathBuf,
        /// What the check found.
        why: String,
    },
    /// The file is on a network file system.
    #[error(
        "event store `{path}` is on a network share ({share}), where SQLite is not safe: choose a \
         path on a disk of this host"
    )]
    Share {
        /// Of the file.
        path: PathBuf,
        /// The name of the file system.
        share: &'static str,
    },
    /// Another error.
    #[error("failed to open event store `{path}`")]
    Failed {
        /// Of the file.
        path: PathBuf,
        /// The error of SQLite or of the system.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The store was closed, or its thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("store is closed")]
struct Closed;

struct Inner {
    path: PathBuf,
    /// Bounded by the budget.
    queue: UnboundedSender<Job>,
    /// In KiB.
    budget: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: Arc<Readers>,
    appended: watch::Receiver<u64>,
    horizon: Arc<Horizon>,
    metrics: Arc<Metrics>,
}

/// SQLite's message for an error, once. (The sources of its errors repeat it.)
fn error_text(error: &rusqlite::Error) -> String {
    let general = error.to_string();
    match error.sqlite_error() {
        Some(sqlite) => {
            let precise = rusqlite::ffi::code_to_str(sqlite.extended_code);
            if general.eq_ignore_ascii_case(precise) {
                general
            } else {
                format!("{general} ({precise})")
            }
        }
        None => general,
    }
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens a store, or creates it where there is no file or an empty one. Blocks for some
    /// milliseconds, and for some seconds where a large file has to be migrated.
    ///
    /// # Errors
    ///
    /// Where the file cannot be written, or is not an event store of a known version.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let connection = schema::writable(path, &options)?;
        let metrics = Arc::new(Metrics::new(&options));
        Self::with_connection(connection, path, options, metrics)
    }

    fn with_connection(
        connection: rusqlite::Connection,
        path: &Path,
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let (announce, appended) = watch::channel(0);
        let counted = Arc::clone(&metrics);
        let horizon = Arc::new(Horizon::new());
        let pruner = options.keep.map(|keep| Pruner::new(keep, Arc::clone(&horizon)));
        let write = move |queue| {
            Writer::new(connection, queue, announce, counted, pruner).run();
        };
        Self::with_writer(path, options, metrics, (appended, horizon), write)
    }

    fn with_writer(
        path: &Path,
        options: Options,
        metrics: Arc<Metrics>,
        (appended, horizon): (watch::Receiver<u64>, Arc<Horizon>),
        write: impl FnOnce(UnboundedReceiver<Job>) + Send + 'static,
    ) -> Result<Self, OpenError> {
        let (queue, jobs) = mpsc::unbounded_channel();
        let writer = thread::Builder::new()
            .name("event-store".to_owned())
            .spawn(move || write(jobs))
            .map_err(|error| OpenError::Failed { path: path.to_owned(), source: error.into() })?;
        let inner = Inner {
            path: path.to_owned(),
            queue,
            budget: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            writer: Mutex::new(Some(writer)),
            readers: Arc::new(Readers::new(path, options)),
            appended,
            horizon,
            metrics,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Writes what waits, and closes the file. Later calls fail, of all clones.
    pub async fn close(&self) {
        self.inner.budget.close();
        self.inner.readers.close().await;
        if let Some(writer) = self.inner.stop() {
            // A thread that panicked has nothing left to write.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }

    /// Passes it to the thread that writes, and waits until it is durable.
    async fn write(
        &self,
        weight: usize,
        content: impl FnOnce() -> Content,
    ) -> Result<(), AppendError> {
        let start = Instant::now();
        let result = self.enqueue(weight, content).await;
        self.inner.metrics.append(start.elapsed());
        if result.is_err() {
            self.inner.metrics.error();
        }
        result
    }

    async fn enqueue(
        &self,
        weight: usize,
        content: impl FnOnce() -> Content,
    ) -> Result<(), AppendError> {
        let closed = || AppendError::Unavailable(Box::new(Closed));
        // A job that is larger than the whole queue takes all of it.
        let share = u32::try_from(weight / 1024 + 1).unwrap_or(u32::MAX).min(QUEUE_KIB);
        let budget = Arc::clone(&self.inner.budget);
        let share = budget.acquire_many_owned(share).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        // Copied only now: what waits for the queue is not counted in it.
        let write = Write { content: content(), weight, answer, share };
        self.inner.queue.send(Job::Write(write)).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let result = self.inner.readers.read(read).await;
        if result.is_err() {
            self.inner.metrics.error();
        }
        result
    }
}

#[async_trait]
impl EventLog for SqliteStore {
    async fn append(&self, rows: &[Row<'_>]) -> Result<(), AppendError> {
        if rows.is_empty() {
            return Ok(());
        }
        let weight = rows.iter().map(stored::weight).sum();
        self.write(weight, || Content::Rows(rows.iter().map(OwnedRow::new).collect())).await
    }

    async fn reject(&self, message: &RejectedMessage<'_>) -> Result<(), AppendError> {
        let weight = stored::message_weight(message);
        self.write(weight, || Content::Rejected(OwnedMessage::new(message))).await
    }
}

#[async_trait]
impl History for SqliteStore {
    async fn events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, ReadError> {
        let query = query.clone();
        self.read(move |connection| reader::events(connection, &query)).await
    }

    async fn questions(&self, query: &ServiceQuery) -> Result<Vec<StoredQuestion>, ReadError> {
        let query = query.clone();
        self.read(move |connection| reader::questions_to_service(connection, &query)).await
    }

    async fn rejected(
        &self,
        query: &RejectedQuery,
    ) -> Result<Vec<StoredRejectedMessage>, ReadError> {
        let query = query.clone();
        self.read(move |connection| reader::rejected(connection, &query)).await
    }

    async fn unanswered(
        &self,
        query: &UnansweredQuery,
    ) -> Result<Vec<UnansweredQuestion>, ReadError> {
        let query = *query;
        self.read(move |connection| reader::unanswered(connection, &query)).await
    }

    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        self.read(move |connection| reader::run_record(connection, run)).await
    }
}

#[async_trait]
impl View for SqliteStore {
    async fn run_record(&self, run: RunId) -> Result<RunRecord, ReadError> {
        History::run_record(self, run).await
    }

    async fn has(&self, question: Uuid, event: Uuid) -> Result<bool, ReadError> {
        self.read(move |connection| reader::has(connection, question, event)).await
    }

    async fn questions(&self, filter: &QuestionFilter) -> Result<Vec<ViewedQuestion>, ReadError> {
        let filter = filter.clone();
        self.read(move |connection| reader::questions_of_view(connection, &filter)).await
    }

    async fn cancelled_questions(
        &self,
        after: ViewPosition,
        limit: u32,
    ) -> Result<CancelledQuestions, ReadError> {
        self.read(move |connection| reader::cancelled_questions(connection, after, limit)).await
    }

    /// Its value is the number of rows that this store has added since it was opened. It closes
    /// when the store's thread ends, by [`SqliteStore::close`] or by a panic.
    fn appended(&self) -> watch::Receiver<u64> {
        let mut appended = self.inner.appended.clone();
        appended.mark_unchanged();
        appended
    }
}

#[async_trait]
impl PartialView for SqliteStore {
    async fn asked_at(&self, question: Uuid) -> Result<Option<Timestamp>, ReadError> {
        self.read(move |connection| reader::asked_at(connection, question)).await
    }

    fn forgotten(&self) -> Option<Timestamp> {
        self.inner.horizon.get()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqliteStore").field(&self.inner.path).finish()
    }
}

// === impl Options ===

impl Default for Options {
    /// Keeps everything, synced. Waits five seconds: longer than the longest commit that was
    /// measured on a slow disk.
    fn default() -> Self {
        Self { busy_timeout: Duration::from_secs(5), synced: true, keep: None }
    }
}

// === impl Inner ===

impl Inner {
    /// Stops the thread. The caller joins it, unless another caller does.
    fn stop(&self) -> Option<JoinHandle<()>> {
        // Fails where the thread has ended.
        let _ = self.queue.send(Job::Stop);
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The readers first: the last connection to close removes the log, and must be able to
        // write.
        self.readers.idle().clear();
        if let Some(writer) = self.stop() {
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests;
