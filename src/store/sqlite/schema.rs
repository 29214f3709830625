//! The file of a store: its format version, its migrations, and the settings of its connections.

use crate::store::sqlite::{OpenError, Options, error_text, locks};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionBehavior};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// `PRAGMA application_id` of a store: `twnd` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x7477_6e64;
/// `PRAGMA user_version` of a store that we write. Each change of `schema.sql` raises it, and
/// adds a migration.
pub(super) const VERSION: i32 = 1 + MIGRATIONS.len() as i32;

const SCHEMA: &str = include_str!("schema.sql");
/// What makes a file of version 1 one of version 2, and so on.
const MIGRATIONS: [&str; 2] = [
    "CREATE INDEX events_of_questions ON events (datetime, uuid) WHERE kind = 'question'",
    include_str!("schema/version_3.sql"),
];
/// An index that only a view has: it finds out whether an envelope is still used.
const VIEW_INDEX: &str = "CREATE INDEX IF NOT EXISTS events_of_envelope ON events (envelope)";

/// The length of the log, in pages of 4 KiB, at which a commit moves it into the file. With
/// SQLite's default of 1,000 nearly every full commit does that: 36 k events/s were measured,
/// against 45 k. The callers of that commit wait longer, the longer the log is.
const LOG_PAGES: i64 = 4_000;
/// The size to which a log is truncated after a burst of large events, in bytes.
const LOG_BYTES: i64 = 32 << 20;
/// How much of the file a connection caches, in KiB. The system's cache has the rest.
const CACHE_KIB: i64 = 16 << 10;
/// More than the number of different queries.
const STATEMENTS: usize = 48;

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Empty,
    Ours(i32),
    Foreign,
}

/// Opens a file to write. Creates its tables where it is new, else checks and migrates it.
pub(super) fn writable(path: &Path, options: &Options) -> Result<Connection, OpenError> {
    writable_by(path, options, None)
}

/// As [`writable`], with another VFS of SQLite than its default.
pub(super) fn writable_by(
    path: &Path,
    options: &Options,
    vfs: Option<&str>,
) -> Result<Connection, OpenError> {
    let folder = folder(path)?;
    let unlocked =
        |source: io::Error| OpenError::Failed { path: path.to_owned(), source: source.into() };
    sync_log(path, folder).map_err(unlocked)?;
    let failed = |source| refusal(path, source);
    let mut connection = connect(path, options, vfs).map_err(failed)?;
    // SQLite opens a file without write permission read-only, and would fail at the first append.
    if connection.is_readonly(MAIN_DB).map_err(failed)? {
        let source = "it is read-only".into();
        return Err(OpenError::NotWritable { path: path.to_owned(), source });
    }
    locks::check(path, folder, vfs)?;
    let state = State::read(&mut connection).map_err(failed)?;
    state.check(path)?;
    // Two processes that switch a new file to a log at once fail, whatever their busy timeout is.
    // So one does it after the other. The lock goes with the file handle.
    let lock = match state {
        State::Empty => Some(lock_folder(folder).map_err(unlocked)?),
        State::Ours(_) | State::Foreign => None,
    };
    if set_up(&connection, options).map_err(failed)? != "wal" {
        return Err(OpenError::NoLog { path: path.to_owned() });
    }
    if lock.is_some() {
        create(&mut connection).map_err(failed)?.check(path)?;
    }
    migrate(&mut connection).map_err(failed)?;
    if options.keep.is_some() {
        connection.execute_batch(VIEW_INDEX).map_err(failed)?;
        // Pruning itself checks whether a row is referred to, by an index. SQLite would scan for
        // it.
        connection.pragma_update(None, "foreign_keys", false).map_err(failed)?;
    }
    Ok(connection)
}

fn connect(path: &Path, options: &Options, vfs: Option<&str>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        None => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Opens a file to read, while it is open to write.
pub(super) fn readable(path: &Path, options: &Options) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// The folder of the file. Fails where there is none, or where the path is a folder itself.
fn folder(path: &Path) -> Result<&Path, OpenError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(OpenError::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
    }
    if path.is_dir() {
        return Err(OpenError::Folder { path: path.to_owned() });
    }
    Ok(folder)
}

/// Waits for other processes that create stores in this folder.
fn lock_folder(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

/// Syncs what a killed process left in the log. SQLite takes it as committed where it is complete,
/// synced or not, and an event that is found there is acknowledged without another write.
fn sync_log(path: &Path, folder: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = match File::open(PathBuf::from(log)) {
        Ok(log) => log,
        // The last process that closed the file synced and removed the log.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    log.sync_data()?;
    File::open(folder)?.sync_all()
}

/// Sets up a connection that writes. Returns the journal mode of the file.
fn set_up(connection: &Connection, options: &Options) -> rusqlite::Result<String> {
    // Before the mode, which is written to the file and must be synced.
    let synchronous = if options.synced { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))?;
    Ok(mode)
}

/// Creates the tables in one transaction, unless another process has. Returns the state after that.
fn create(connection: &mut Connection) -> rusqlite::Result<State> {
    let state = State::read(connection)?;
    if state != State::Empty {
        return Ok(state);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(State::Ours(VERSION))
}

/// Migrates a file of an older version, unless another process has. Takes some seconds for each
/// million events.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    if State::read(connection)? == State::Ours(VERSION) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (from, migration) in (1..).zip(MIGRATIONS) {
        if from >= version {
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", from + 1)?;
        }
    }
    transaction.commit()
}

/// SQLite's error, as an error about the path.
fn refusal(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path },
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            OpenError::NotWritable { path, source: error_text(&source).into() }
        }
        Some(_) | None => OpenError::Failed { path, source: error_text(&source).into() },
    }
}

// === impl State ===

impl State {
    fn read(connection: &mut Connection) -> rusqlite::Result<Self> {
        // All of one moment: another process may be creating the tables.
        let moment = connection.transaction()?;
        let number = |name| moment.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let version = number("user_version")?;
        Ok(match number("application_id")? {
            APPLICATION_ID => Self::Ours(version),
            0 if version == 0 && !has_tables(&moment)? => Self::Empty,
            _ => Self::Foreign,
        })
    }

    fn check(&self, path: &Path) -> Result<(), OpenError> {
        let path = path.to_owned();
        match *self {
            Self::Empty | Self::Ours(1..=VERSION) => Ok(()),
            Self::Ours(found) => Err(OpenError::Version { path, found, known: VERSION }),
            Self::Foreign => Err(OpenError::NotOurs { path }),
        }
    }
}

fn has_tables(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}
