//! The folder of a run: all that is known of it, safe from a crash at any point.
//!
//! A folder is made whole under another name, and then given its own:
//! `question-<uuid>` or `question-<uuid>-r<n>`. In it:
//!
//! | name | made by | what it says |
//! |---|---|---|
//! | `run.json` | runner, before the name | what is to be run: an [`Asked`] |
//! | `question.json` | runner, before the name | the inputs, as they came |
//! | `life` | runner, before the name | a FIFO that the supervisor holds open for writing as long as it lives: whoever reads it sees the end, and a byte when the child runs |
//! | `wake` | runner, before the name | a FIFO that the supervisor reads: a byte means, look at `stop` |
//! | `stop` | runner | the run shall end: an [`Order`] |
//! | `started` | supervisor, before the child | when it started; made once only, so no run starts twice. The second line is the child's pid |
//! | `output`, `output.old` | supervisor | the last of what the child printed, for the person |
//! | `supervisor.log` | supervisor | why a supervisor failed |
//! | `end.json` | supervisor, or the runner where there is none | how it ended, when nothing of it is left: an [`Ending`] |
//!
//! So a folder with `end.json` has ended; one that somebody writes `life` of runs; one with
//! `started` and nobody there is lost; any other waits.
//!
//! FIFOs rather than pids: the kernel closes them at the end of whoever held them, they need no
//! thread to wait on, they cannot be taken for those of a later process, and both Linux and macOS
//! have them.

use crate::event::RunId;
use crate::runner::process::record::{Asked, Ending, Order};
use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use uuid::Uuid;

/// What a folder is called while it is made.
pub const NEW: &str = ".new-";
/// What a folder is called while it is removed.
pub const OLD: &str = ".old-";

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
pub struct Folder {
    path: PathBuf,
}

/// Whether a supervisor has a run.
#[derive(Debug)]
pub enum Life {
    /// One has it; its end is the end of this FIFO.
    Held(File),
    /// None has.
    Nobody,
}

// === impl Folder ===

impl Folder {
    /// The folder at a path, which need not be there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder of a run, which need not be there.
    pub fn of(runs: &Path, run: RunId) -> Self {
        Self::at(runs.join(run.to_string()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder, whole and durable; false where there is one already.
    ///
    /// One caller at a time for each run.
    pub fn make(&self, asked: &Asked, question: &[u8]) -> io::Result<bool> {
        let new = self.sibling(NEW);
        let made = self.make_as(&new, asked, question);
        if !matches!(made, Ok(true)) {
            // What is left is cleared away at the next start, if not now.
            let _ = fs::remove_dir_all(&new);
        }
        made
    }

    fn make_as(&self, new: &Path, asked: &Asked, question: &[u8]) -> io::Result<bool> {
        if self.path.join(RUN).exists() {
            return Ok(false);
        }
        remove_all(new)?;
        // What a question brings is for nobody else to read.
        DirBuilder::new().mode(0o700).create(new)?;
        write_synced(&new.join(RUN), &serde_json::to_vec(asked)?)?;
        write_synced(&new.join(QUESTION), question)?;
        make_fifos([&new.join(LIFE), &new.join(WAKE)])?;
        sync(new)?;
        fs::rename(new, &self.path)?;
        sync(self.parent())?;
        Ok(true)
    }

    /// What is to be run.
    pub fn asked(&self) -> io::Result<Asked> {
        let bytes = fs::read(self.path.join(RUN))?;
        serde_json::from_slice(&bytes).map_err(io::Error::from)
    }

    /// The file with the inputs.
    pub fn question_file(&self) -> PathBuf {
        self.path.join(QUESTION)
    }

    /// When the child was started; none where nobody has yet begun to.
    pub fn started(&self) -> io::Result<Option<i64>> {
        let path = self.path.join(STARTED);
        let Some(text) = absent_as_none(fs::read_to_string(&path))? else { return Ok(None) };
        let written = text.lines().next().and_then(|line| line.parse().ok());
        // A crash may leave the file without its text.
        written.map_or_else(|| changed(&path), Ok).map(Some)
    }

    /// Takes the right to start the child; false where somebody has. Never given twice, nor given
    /// back.
    pub fn start(&self, now: i64) -> io::Result<bool> {
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

    /// Notes the child's pid, for the person.
    pub fn note_child(&self, pid: u32) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.path.join(STARTED))?;
        writeln!(file, "{pid}")
    }

    /// How the run ended; none where it has not.
    pub fn ending(&self) -> io::Result<Option<Ending>> {
        self.read(END)
    }

    /// Records how the run ended, durably. The first record stays.
    pub fn end(&self, ending: &Ending) -> io::Result<()> {
        if self.path.join(END).exists() {
            return Ok(());
        }
        self.write(END, ending)
    }

    /// What is ordered, if anything.
    pub fn order(&self) -> io::Result<Option<Order>> {
        self.read(STOP)
    }

    /// Orders, durably, that the run ends, and wakes whoever has it. One that starts just now
    /// looks for the order before it does.
    pub fn stop(&self, order: Order) -> io::Result<()> {
        self.write(STOP, &order)?;
        let mut options = OpenOptions::new();
        match options.write(true).custom_flags(nonblocking()).open(self.path.join(WAKE)) {
            Ok(mut wake) => match wake.write_all(b"\n") {
                // Full of wakes that nobody has read yet.
                Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(()),
                other => other,
            },
            // Nobody reads: it has ended, or has not begun.
            Err(err) if err.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                Ok(())
            }
            Err(err) => Err(err),
        }
    }

    /// What wakes a supervisor. It never ends: it is open for writing too.
    pub fn wakes(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(WAKE))
    }

    /// Looks whether a supervisor has the run.
    pub fn life(&self) -> io::Result<Life> {
        let mut life = self.open_life()?;
        let mut bytes = [0; 64];
        loop {
            match life.read(&mut bytes) {
                Ok(0) => return Ok(Life::Nobody),
                Ok(_) => {}
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(Life::Held(life)),
                Err(err) => return Err(err),
            }
        }
    }

    /// Both ends of the FIFO of a supervisor's life, for one that is to be started. Held from
    /// here on: between the runner and its supervisor there is no moment without a holder.
    pub fn new_life(&self) -> io::Result<(File, File)> {
        let read = self.open_life()?;
        let write = OpenOptions::new()
            .write(true)
            .custom_flags(nonblocking())
            .open(self.path.join(LIFE))?;
        Ok((read, write))
    }

    fn open_life(&self) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(nonblocking()).open(self.path.join(LIFE))
    }

    /// Where the child's output goes: the newer and the older file.
    pub fn outputs(&self) -> (PathBuf, PathBuf) {
        (self.path.join(OUTPUT), self.path.join(OUTPUT_OLD))
    }

    /// Where a supervisor says why it failed.
    pub fn log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.path.join(LOG))
    }

    /// Removes the folder. After a crash in the midst of it, it is there whole, or cleared away
    /// at the next start. One that is gone is fine.
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
        // Named after the writer: a runner and a supervisor may write at once.
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

/// The run whose folder has this name; none where it is no run's.
pub fn run_of(name: &str) -> Option<RunId> {
    let rest = name.strip_prefix("question-")?;
    let (uuid, retry) = match rest.split_at_checked(36)? {
        (uuid, "") => (uuid, 0),
        (uuid, retry) => (uuid, retry.strip_prefix("-r")?.parse().ok()?),
    };
    let run = RunId { question: Uuid::try_parse(uuid).ok()?, retry };
    // One name for each run: no `-r0`, no capitals.
    (run.to_string() == name).then_some(run)
}

/// Makes a folder that only its owner may look into, with the folders above it.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path)
}

/// Removes a file or a folder with all in it. One that is gone is fine.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let Some(metadata) = absent_as_none(fs::symlink_metadata(path))? else { return Ok(()) };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    absent_as_none(removed).map(drop)
}

/// What is not there, as none.
pub fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn changed(path: &Path) -> io::Result<i64> {
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

/// There is no safe call for it on Apple's systems.
#[cfg(target_vendor = "apple")]
fn make_fifos(paths: [&Path; 2]) -> io::Result<()> {
    let status = std::process::Command::new("/usr/bin/mkfifo").args(paths).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("`mkfifo` failed")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::process::record::How;
    use std::collections::HashMap;

    fn asked() -> Asked {
        Asked {
            sequence: 3,
            launched: 5,
            recipient: "a/b:c".to_owned(),
            parent_question: None,
            attributes: HashMap::from([("uuid".to_owned(), "x".to_owned())]),
            input_values: Some(17..20),
            input_manifest: None,
        }
    }

    fn made() -> (tempfile::TempDir, Folder) {
        let runs = tempfile::tempdir().unwrap();
        let folder = Folder::of(runs.path(), RunId { question: Uuid::nil(), retry: 0 });
        assert!(folder.make(&asked(), b"{}").unwrap());
        (runs, folder)
    }

    #[test]
    fn a_folder_is_made_once_and_read_as_written() {
        let (runs, folder) = made();

        assert!(!folder.make(&Asked { sequence: 9, ..asked() }, b"[]").unwrap());

        assert_eq!(folder.asked().unwrap(), asked());
        assert_eq!(fs::read(folder.question_file()).unwrap(), b"{}");
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_half_made_does_not_stand_in_the_way() {
        let (runs, folder) = made();
        fs::rename(folder.path(), folder.sibling(NEW)).unwrap();
        fs::write(folder.sibling(NEW).join(RUN), "{").unwrap();

        assert!(folder.make(&asked(), b"{}").unwrap());

        assert_eq!(folder.asked().unwrap(), asked());
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_right_to_start_is_given_once() {
        let (_runs, folder) = made();
        assert_eq!(folder.started().unwrap(), None);
        assert!(folder.start(7).unwrap());
        folder.note_child(12).unwrap();
        assert!(!folder.start(8).unwrap());
        assert_eq!(folder.started().unwrap(), Some(7));

        fs::write(folder.path().join(STARTED), "").unwrap();
        assert!(folder.started().unwrap().unwrap() > 0);
    }

    #[test]
    fn the_first_end_stays() {
        let (_runs, folder) = made();
        assert_eq!(folder.ending().unwrap(), None);
        let first = Ending { at: 1, how: How::Signal(9), order: Some(Order::Cancel) };
        folder.end(&first).unwrap();
        folder.end(&Ending::now(How::Lost)).unwrap();
        assert_eq!(folder.ending().unwrap(), Some(first));
    }

    #[test]
    fn a_life_is_seen_as_long_as_somebody_holds_it() {
        let (_runs, folder) = made();
        assert!(matches!(folder.life().unwrap(), Life::Nobody));
        let (_read, write) = folder.new_life().unwrap();
        assert!(matches!(folder.life().unwrap(), Life::Held(_)));
        drop(write);
        assert!(matches!(folder.life().unwrap(), Life::Nobody));
    }

    #[test]
    fn an_order_is_kept_whether_or_not_anybody_hears_it() {
        let (_runs, folder) = made();
        assert_eq!(folder.order().unwrap(), None);
        folder.stop(Order::Interrupt).unwrap();
        assert_eq!(folder.order().unwrap(), Some(Order::Interrupt));

        let mut wakes = folder.wakes().unwrap();
        folder.stop(Order::Cancel).unwrap();
        let mut byte = [0];
        wakes.read_exact(&mut byte).unwrap();
        assert_eq!(folder.order().unwrap(), Some(Order::Cancel));
    }

    #[test]
    fn a_removed_folder_can_be_removed_again() {
        let (runs, folder) = made();
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_is_a_runs_only_as_we_write_it() {
        let question = Uuid::from_u128(0xabc);
        for retry in [0, 1, 12] {
            let run = RunId { question, retry };
            assert_eq!(run_of(&run.to_string()), Some(run));
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
            assert_eq!(run_of(&name), None, "{name}");
        }
    }
}
