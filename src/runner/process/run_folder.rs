//! The folder of a run: all that is known of it, consistent after a crash at any point.
//!
//! A folder is completed under a temporary name, and then renamed to `question-<uuid>`, or
//! `question-<uuid>-r<n>` for a retry. Its files:
//!
//! | name | written by | content |
//! |---|---|---|
//! | `run.json` | runner, before the rename | what to run: a [`RunSpec`] |
//! | `question.json` | runner, before the rename | the inputs, as received |
//! | `life` | runner, before the rename | a FIFO that the supervisor keeps open for writing until it ends; a reader gets a byte when the child runs, and the end of the file when the supervisor ends |
//! | `wake` | runner, before the rename | a FIFO that the supervisor reads: a byte means that `stop` was written |
//! | `stop` | runner | why the run is to be ended: a [`StopRequest`] |
//! | `started` | supervisor, before it starts the child | when the child was started, then its pid; created once, so no child is started twice |
//! | `output`, `output.old` | supervisor | the last output of the child, for people |
//! | `supervisor.log` | supervisor | why the supervisor failed |
//! | `end.json` | supervisor, or the runner if there is none | how the run ended, when no process of it is left: an [`EndRecord`] |
//!
//! A run with `end.json` has ended. One whose `life` has a writer runs. One that has `started`, and
//! neither of these, is lost. Any other waits.
//!
//! FIFOs are used in place of pids: the kernel closes a FIFO when its holder ends, waiting for that
//! needs no thread, a later process cannot be mistaken for the holder, and Linux and macOS have
//! them.

use crate::event::RunId;
use crate::runner::process::records::{EndRecord, RunSpec, StopRequest};
use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use uuid::Uuid;

/// The prefix of a folder's name while it is created.
pub(super) const NEW: &str = ".new-";
/// The prefix of a folder's name while it is removed.
pub(super) const OLD: &str = ".old-";

const RUN: &str = "run.json";
const QUESTION: &str = "question.json";
const LIFE: &str = "life";
const WAKE: &str = "wake";
const STOP: &str = "stop";
const STARTED: &str = "started";
const OUTPUT: &str = "output";
const OUTPUT_OLD: &str = "output.old";
const LOG: &str = "supervisor.log";
const END: &str = "end.json";

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// Whether a run has a supervisor.
#[derive(Debug)]
pub enum SupervisorState {
    /// It runs; its end is the end of this FIFO.
    Alive(File),
    /// There is none.
    Dead,
}

// === impl RunFolder ===

impl RunFolder {
    /// The folder at a path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder of a run, which need not exist.
    pub fn new(runs: &Path, run: RunId) -> Self {
        Self::at(runs.join(run.to_string()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder, complete and durable. Returns false if it exists.
    ///
    /// Not to be called twice at once for one run.
    pub fn create(&self, spec: &RunSpec, question: &[u8]) -> io::Result<bool> {
        let new = self.sibling(NEW);
        let created = self.create_as(&new, spec, question);
        if !matches!(created, Ok(true)) {
            // If this fails, the next start removes it.
            let _ = fs::remove_dir_all(&new);
        }
        created
    }

    fn create_as(&self, new: &Path, spec: &RunSpec, question: &[u8]) -> io::Result<bool> {
        if self.path.join(RUN).exists() {
            return Ok(false);
        }
        remove_all(new)?;
        // Inputs may be confidential.
        DirBuilder::new().mode(0o700).create(new)?;
        write_synced(&new.join(RUN), &serde_json::to_vec(spec)?)?;
        write_synced(&new.join(QUESTION), question)?;
        make_fifos([&new.join(LIFE), &new.join(WAKE)])?;
        sync(new)?;
        fs::rename(new, &self.path)?;
        sync(self.parent())?;
        Ok(true)
    }

    /// What to run.
    pub fn spec(&self) -> io::Result<RunSpec> {
        let bytes = fs::read(self.path.join(RUN))?;
        serde_json::from_slice(&bytes).map_err(io::Error::from)
    }

    /// The file with the inputs.
    pub fn question_file(&self) -> PathBuf {
        self.path.join(QUESTION)
    }

    /// When the child was started, in microseconds since 1970; none if it was not.
    pub fn started_at(&self) -> io::Result<Option<i64>> {
        let path = self.path.join(STARTED);
        let Some(text) = absent_as_none(fs::read_to_string(&path))? else { return Ok(None) };
        let written = text.lines().next().and_then(|line| line.parse().ok());
        // A crash may leave the file empty.
        written.map_or_else(|| modified_at(&path), Ok).map(Some)
    }

    /// Claims the start of the child. Returns false if it has been claimed: a claim is never given
    /// back.
    pub fn claim_start(&self, now: i64) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).open(self.path.join(STARTED)) {
            Ok(mut file) => {
                writeln!(file, "{now}")?;
                file.sync_all()?;
                sync(&self.path)?;
                Ok(true)
            }
            Err(err) if err.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Records the child's pid, for people.
    pub fn record_pid(&self, pid: u32) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.path.join(STARTED))?;
        writeln!(file, "{pid}")
    }

    /// How the run ended; none if it has not, or if nothing recorded it.
    pub fn end_record(&self) -> io::Result<Option<EndRecord>> {
        self.read(END)
    }

    /// Records how the run ended, durably. The first record stays.
    pub fn record_end(&self, record: &EndRecord) -> io::Result<()> {
        if self.path.join(END).exists() {
            return Ok(());
        }
        self.write(END, record)
    }

    /// The request to stop, if there is one.
    pub fn stop_request(&self) -> io::Result<Option<StopRequest>> {
        self.read(STOP)
    }

    /// Requests, durably, that the run ends, and wakes its supervisor. A supervisor reads the
    /// request before it starts the child too.
    pub fn request_stop(&self, request: StopRequest) -> io::Result<()> {
        self.write(STOP, &request)?;
        let mut options = OpenOptions::new();
        match options.write(true).custom_flags(nonblocking()).open(self.path.join(WAKE)) {
            Ok(mut wake) => match wake.write_all(b"\n") {
                // The FIFO is full: the supervisor will wake.
                Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(()),
                other => other,
            },
            // There is no reader: the supervisor has ended, or has not started.
            Err(err) if err.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                Ok(())
            }
            Err(err) => Err(err),
        }
    }

    /// Opens the FIFO that wakes a supervisor. It is open for writing too, so that it never ends.
    pub fn open_wake(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(WAKE))
    }

    /// Whether a supervisor of the run is alive.
    pub fn supervisor_state(&self) -> io::Result<SupervisorState> {
        let mut life = self.open_life_reader()?;
        let mut bytes = [0; 64];
        loop {
            match life.read(&mut bytes) {
                Ok(0) => return Ok(SupervisorState::Dead),
                Ok(_) => {}
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    return Ok(SupervisorState::Alive(life));
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Both ends of `life`, for a supervisor that is to be started. The writing end is open from
    /// here on, so the run counts as supervised before the supervisor has come up.
    pub fn open_life(&self) -> io::Result<(File, File)> {
        let read = self.open_life_reader()?;
        let write = OpenOptions::new()
            .write(true)
            .custom_flags(nonblocking())
            .open(self.path.join(LIFE))?;
        Ok((read, write))
    }

    fn open_life_reader(&self) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(nonblocking()).open(self.path.join(LIFE))
    }

    /// The files of the child's output: the newer and the older one.
    pub fn outputs(&self) -> (PathBuf, PathBuf) {
        (self.path.join(OUTPUT), self.path.join(OUTPUT_OLD))
    }

    /// Opens the log of the supervisor.
    pub fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.path.join(LOG))
    }

    /// Removes the folder. A crash leaves it complete, or under a name that the next start removes.
    /// Idempotent.
    pub fn remove(&self) -> io::Result<()> {
        let old = self.sibling(OLD);
        remove_all(&old)?;
        absent_as_none(fs::rename(&self.path, &old))?;
        remove_all(&old)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let Some(bytes) = absent_as_none(fs::read(self.path.join(name)))? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        // Named by the writer's pid: a runner and a supervisor may write at once.
        let new = self.path.join(format!("{name}.{}", std::process::id()));
        write_synced(&new, &serde_json::to_vec(value)?)?;
        fs::rename(&new, self.path.join(name))?;
        sync(&self.path)
    }

    fn parent(&self) -> &Path {
        self.path.parent().expect("a run's folder is in the folder of runs")
    }

    fn sibling(&self, prefix: &str) -> PathBuf {
        let name = self.path.file_name().expect("a run's folder has the run's name");
        let mut sibling = std::ffi::OsString::from(prefix);
        sibling.push(name);
        self.path.with_file_name(sibling)
    }
}

/// The run whose folder has this name, if it is a run's.
pub(super) fn run_from_name(name: &str) -> Option<RunId> {
    let rest = name.strip_prefix("question-")?;
    let (uuid, retry) = match rest.split_at_checked(36)? {
        (uuid, "") => (uuid, 0),
        (uuid, retry) => (uuid, retry.strip_prefix("-r")?.parse().ok()?),
    };
    let run = RunId { question: Uuid::try_parse(uuid).ok()?, retry };
    // A run has one name: `-r0` and capitals are not accepted.
    (run.to_string() == name).then_some(run)
}

/// Creates a folder that only its owner may read, with its missing parents.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// Removes a file, or a folder with its content. Idempotent.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let Some(metadata) = absent_as_none(fs::symlink_metadata(path))? else { return Ok(()) };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    absent_as_none(removed).map(drop)
}

/// None for what does not exist.
pub(super) fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn modified_at(path: &Path) -> io::Result<i64> {
    let since = fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn nonblocking() -> i32 {
    OFlags::NONBLOCK.bits().cast_signed()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(target_vendor = "apple"))]
fn make_fifos(paths: [&Path; 2]) -> io::Result<()> {
    use rustix::fs::{CWD, Mode, mkfifoat};
    for path in paths {
        mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(())
}

/// On Apple's systems, rustix has no `mkfifoat`.
#[cfg(target_vendor = "apple")]
fn make_fifos(paths: [&Path; 2]) -> io::Result<()> {
    let status = std::process::Command::new("/usr/bin/mkfifo").args(paths).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("`mkfifo` failed")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::process::records::Outcome;
    use std::collections::HashMap;

    fn spec() -> RunSpec {
        RunSpec {
            sequence: 3,
            launched: 5,
            recipient: "a/b:c".to_owned(),
            parent_question: None,
            attributes: HashMap::from([("uuid".to_owned(), "x".to_owned())]),
            input_values: Some(17..20),
            input_manifest: None,
        }
    }

    fn created() -> (tempfile::TempDir, RunFolder) {
        let runs = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(runs.path(), RunId { question: Uuid::nil(), retry: 0 });
        assert!(folder.create(&spec(), b"{}").unwrap());
        (runs, folder)
    }

    #[test]
    fn a_folder_is_created_once_and_read_as_written() {
        let (runs, folder) = created();

        assert!(!folder.create(&RunSpec { sequence: 9, ..spec() }, b"[]").unwrap());

        assert_eq!(folder.spec().unwrap(), spec());
        assert_eq!(fs::read(folder.question_file()).unwrap(), b"{}");
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_left_incomplete_by_a_crash_is_replaced() {
        let (runs, folder) = created();
        fs::rename(folder.path(), folder.sibling(NEW)).unwrap();
        fs::write(folder.sibling(NEW).join(RUN), "{").unwrap();

        assert!(folder.create(&spec(), b"{}").unwrap());

        assert_eq!(folder.spec().unwrap(), spec());
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_start_is_claimed_once() {
        let (_runs, folder) = created();
        assert_eq!(folder.started_at().unwrap(), None);
        assert!(folder.claim_start(7).unwrap());
        folder.record_pid(12).unwrap();
        assert!(!folder.claim_start(8).unwrap());
        assert_eq!(folder.started_at().unwrap(), Some(7));

        fs::write(folder.path().join(STARTED), "").unwrap();
        assert!(folder.started_at().unwrap().unwrap() > 0);
    }

    #[test]
    fn the_first_end_record_stays() {
        let (_runs, folder) = created();
        assert_eq!(folder.end_record().unwrap(), None);
        let first = EndRecord {
            at: 1,
            outcome: Outcome::Signal(9),
            stop_request: Some(StopRequest::Cancel),
        };
        folder.record_end(&first).unwrap();
        folder.record_end(&EndRecord::now(Outcome::Lost)).unwrap();
        assert_eq!(folder.end_record().unwrap(), Some(first));
    }

    #[test]
    fn a_supervisor_is_alive_while_it_keeps_its_fifo_open() {
        let (_runs, folder) = created();
        assert!(matches!(folder.supervisor_state().unwrap(), SupervisorState::Dead));
        let (_read, write) = folder.open_life().unwrap();
        assert!(matches!(folder.supervisor_state().unwrap(), SupervisorState::Alive(_)));
        drop(write);
        assert!(matches!(folder.supervisor_state().unwrap(), SupervisorState::Dead));
    }

    #[test]
    fn a_request_to_stop_is_stored_with_and_without_a_supervisor() {
        let (_runs, folder) = created();
        assert_eq!(folder.stop_request().unwrap(), None);
        folder.request_stop(StopRequest::Interrupt).unwrap();
        assert_eq!(folder.stop_request().unwrap(), Some(StopRequest::Interrupt));

        let mut wake = folder.open_wake().unwrap();
        folder.request_stop(StopRequest::Cancel).unwrap();
        let mut byte = [0];
        wake.read_exact(&mut byte).unwrap();
        assert_eq!(folder.stop_request().unwrap(), Some(StopRequest::Cancel));
    }

    #[test]
    fn a_removed_folder_can_be_removed_again() {
        let (runs, folder) = created();
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_the_canonical_name_of_a_run_is_accepted() {
        let question = Uuid::from_u128(0xabc);
        for retry in [0, 1, 12] {
            let run = RunId { question, retry };
            assert_eq!(run_from_name(&run.to_string()), Some(run));
        }
        let first = format!("question-{question}");
        for name in [
            String::new(),
            "question-".to_owned(),
            "question-abc".to_owned(),
            first.to_uppercase(),
            first.replace("abc", "ABC"),
            format!("{first}-r0"),
            format!("{first}-r01"),
            format!("{first}-r"),
            format!("{first}x"),
            format!(".new-{first}"),
            format!("question-{}é", "a".repeat(35)),
        ] {
            assert_eq!(run_from_name(&name), None, "{name}");
        }
    }
}
