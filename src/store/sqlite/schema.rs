//! The file: whose it is, of which version, and how a connection to it is set up.

use crate::store::sqlite::{OpenError, Options, locks, words};
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionBehavior};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What `PRAGMA application_id` says of a file of ours: `twnd` in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x7477_6e64;
/// What `PRAGMA user_version` says of a file that we write. Each change of `schema.sql` raises it, and
/// adds a migration.
pub(super) const VERSION: i32 = 1 + MIGRATIONS.len() as i32;

const SCHEMA: &str = include_str!("schema.sql");
/// What makes a file of version 1 one of version 2, and so on.
const MIGRATIONS: [&str; 2] = [
    "CREATE INDEX events_of_questions ON events (datetime, uuid) WHERE kind = 'question'",
    include_str!("schema/version_3.sql"),
];
/// What a store that forgets has beside: who no longer uses an envelope is found by it.
const FORGETS: &str = "CREATE INDEX IF NOT EXISTS events_of_envelope ON events (envelope)";

/// How long the log may grow, in pages of 4 KiB, before a commit moves it into the file. With
/// SQLite's own 1,000 nearly every full commit does: 36 k events/s against 45 k were measured.
/// The commit that moves it keeps its callers waiting, and the longer it is the longer.
const LOG_PAGES: i64 = 4_000;
/// What a log left behind by a burst of large events is cut down to.
const LOG_BYTES: i64 = 32 << 20;
/// How much of the file a connection keeps in memory. The index by uuid is the part that is
/// written all over; the rest is left to the system's cache.
const CACHE_KIB: i64 = 16 << 10;
/// More than there are different queries.
const STATEMENTS: usize = 48;

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Empty,
    Ours(i32),
    Foreign,
}

/// Opens the file to write, makes the tables where it is new, and checks it where it is not.
pub(super) fn writable(path: &Path, options: &Options) -> Result<Connection, OpenError> {
    writable_by(path, options, None)
}

/// As [`writable`], by another way of SQLite's to the files than its usual one.
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
    // SQLite opens what it may not write to read it, and would fail the first append.
    if connection.is_readonly(MAIN_DB).map_err(failed)? {
        let source = "it is read-only".into();
        return Err(OpenError::NotWritable { path: path.to_owned(), source });
    }
    locks::check(path, folder, vfs)?;
    let state = State::of(&mut connection).map_err(failed)?;
    state.check(path)?;
    // Who switches a new file to a log while another does fails at once, however long it would
    // wait: so one after the other. The lock goes with the file handle.
    let turn = match state {
        State::Empty => Some(lock(folder).map_err(unlocked)?),
        State::Ours(_) | State::Foreign => None,
    };
    if set_up(&connection, options).map_err(failed)? != "wal" {
        return Err(OpenError::NoLog { path: path.to_owned() });
    }
    if turn.is_some() {
        create(&mut connection).map_err(failed)?.check(path)?;
    }
    migrate(&mut connection).map_err(failed)?;
    if options.keep.is_some() {
        connection.execute_batch(FORGETS).map_err(failed)?;
        // It looks itself whether something is used, by an index. SQLite would look through all.
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

/// Opens the file to read. It has been opened to write before, and still is.
pub(super) fn readable(path: &Path, options: &Options) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// The folder of the file, if there is one, and if the file is none.
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

/// Waits for its turn among those who make files in this folder.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

/// Makes durable what a killed process left in the log. SQLite takes it for committed where it is
/// whole, synced or not, and an event that is found there is answered for without another write.
fn sync_log(path: &Path, folder: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = match File::open(PathBuf::from(log)) {
        Ok(log) => log,
        // The last to let go of the file took the log with it, synced.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    log.sync_data()?;
    File::open(folder)?.sync_all()
}

/// Sets up a connection that writes, and says in which mode the file's journal is.
fn set_up(connection: &Connection, options: &Options) -> rusqlite::Result<String> {
    // Before the mode, which is written to the file: with it, and all after, synced.
    let synchronous = if options.synced { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))?;
    Ok(mode)
}

/// Makes the tables, in one transaction, unless another process has; and says what there is then.
fn create(connection: &mut Connection) -> rusqlite::Result<State> {
    let state = State::of(connection)?;
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
    if State::of(connection)? == State::Ours(VERSION) {
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

/// SQLite's refusal of a file, in the words of whoever chose its path.
fn refusal(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path },
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            OpenError::NotWritable { path, source: words(&source).into() }
        }
        Some(_) | None => OpenError::Failed { path, source: words(&source).into() },
    }
}

// === impl State ===

impl State {
    fn of(connection: &mut Connection) -> rusqlite::Result<Self> {
        // All of one moment: another process may be making the tables.
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
