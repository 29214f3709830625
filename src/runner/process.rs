//! Questions as child processes.
//!
//! ```text
//! launch -> folder -> (its turn) -> supervisor -> child -> end.json -> states -> settle
//!           durable                 outlives us
//! ```
//!
//! A run is a folder ([`folder`] says what is in it), and what waits is a folder too: on start the
//! folders are what is. The child's parent is a small process of ours, the [`supervisor`], which
//! outlives the daemon and records the end. No child is started twice for one run: the right to
//! start it is a file that is made once.
//!
//! When a run has ended nothing of it is left: on Linux, not even a process that left the child's
//! group for a session of its own. (Elsewhere the child's process group is ended, and if the
//! supervisor itself is killed, nothing is.)

pub mod attend;
pub mod command;
pub mod environment;
pub mod folder;
pub mod kept;
pub mod owner;
#[cfg(target_os = "linux")]
pub mod procfs;
pub mod queue;
pub mod record;
pub mod supervisor;
pub mod tail;
pub mod verdict;

use crate::chain::Chain;
use crate::event::{RunId, SruidBuf, Timestamp};
use crate::locked_folder::{FolderLock, LockError};
use crate::runner::states::Mailbox;
use crate::runner::{Coordinator, LaunchRequest, RunState, Runner, RunnerError};
use crate::sdk::arguments::QuestionFile;
use async_trait::async_trait;
use attend::{Context, Standing, blocking};
use folder::{Folder, NEW, OLD, make_private, remove_all, run_of};
use futures_util::stream::BoxStream;
use owner::{Command, Draft, Found, Owner};
use record::Asked;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
pub use supervisor::supervise;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, warn};
use uuid::Uuid;

/// How long [`ProcessRunner::interrupt`] waits: the children's grace, and time for the records.
const INTERRUPT: Duration = supervisor::GRACE.saturating_add(Duration::from_secs(5));

/// The hidden command by which our own program is a supervisor.
const SUPERVISE: &str = "supervise";

/// How often, and how many times, a folder in use is tried: a daemon that is restarted may find
/// the one before it on its way out.
const LOCK_EVERY: Duration = Duration::from_millis(50);
const LOCK_TIMES: u32 = 20;

/// A service that this runner can run.
#[derive(Clone, Debug)]
pub struct Service {
    /// Which revision it is.
    pub sruid: SruidBuf,
    /// Where its code is. Absolute.
    pub folder: PathBuf,
    /// What answers a question: a program and its first arguments, such as
    /// `octue twined question ask-local`. The program is looked for in the folder's `.venv` and
    /// `venv`, then on the child's path.
    pub command: Vec<OsString>,
}

/// The settings of a [`ProcessRunner`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the folders of runs are.
    pub runs: PathBuf,
    /// Where the output of the last hundred runs that are settled is, as `<run>.log`.
    pub logs: PathBuf,
    /// How many questions run at once, not counting those asked by one that runs here.
    pub max_runs: usize,
    /// The program to run as `<supervisor> supervise <folder>`: our own, absolute.
    pub supervisor: PathBuf,
    /// Our own environment, of which children get [`environment::INHERITED`] and no more.
    pub inherited: Vec<(OsString, OsString)>,
    /// What every child gets: the contract's and the network's. A service's `.env` cannot change
    /// it.
    pub environment: Vec<(String, String)>,
    /// What the person passes on to every child. It wins over all else.
    pub passed: Vec<(String, String)>,
    /// A folder to put first on the path of Python.
    pub shim: Option<PathBuf>,
}

/// Runs questions as child processes.
///
/// When it is dropped or stopped, what runs runs on, and what waits waits for the next one.
#[derive(Debug)]
pub struct ProcessRunner {
    /// Unbounded, yet never longer than the callers that wait for an answer.
    commands: mpsc::UnboundedSender<Command>,
    /// The folder of runs.
    runs: PathBuf,
    held: Mutex<Held>,
}

/// What a runner holds until it stops.
#[derive(Debug, Default)]
struct Held {
    /// The owner's task alone; with it go all that it spawned.
    task: JoinSet<()>,
    /// The lock of the folder of runs.
    lock: Option<FolderLock>,
}

/// Why a runner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be used.
    #[error("failed to use the folder of runs `{}`", .folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another runner has the folder.
    #[error("the folder of runs `{}` is in use by another process", .0.display())]
    InUse(PathBuf),
}

/// The owner is gone: we are stopping.
#[derive(Debug, thiserror::Error)]
#[error("the runner has stopped")]
struct Stopped;

// === impl ProcessRunner ===

impl ProcessRunner {
    /// Takes over the folder of runs: goes on with what runs, starts what waits, and tells what
    /// has ended and is not settled.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be used, or another runner uses it. A folder in it that is no
    /// run's, or not readable, is left alone with a warning.
    pub async fn start(mut options: Options, services: Vec<Service>) -> Result<Self, StartError> {
        let lock = lock(&options.runs).await?;
        let runs = options.runs.clone();
        let (runs, found) = blocking(move || scan(&runs)).await?;
        options.runs.clone_from(&runs);
        let services =
            services.into_iter().map(|service| (service.sruid.to_string(), service)).collect();

        let owner = Owner::new(Arc::new(Context { options, services }), found);
        let (commands, told) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(owner.run(told));
        Ok(Self { commands, runs, held: Mutex::new(Held { task, lock: Some(lock) }) })
    }

    /// Starts nothing more, and ends all that runs, with `EndReason::Interrupted`; returns when
    /// nothing is left of it, or after 8 s. What waits stays as it is.
    ///
    /// For a network that stops with all that its children talk to.
    pub async fn interrupt(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Interrupt(reply)).is_ok()
            && tokio::time::timeout(INTERRUPT, done).await.is_err()
        {
            warn!("not all runs ended in time");
        }
    }

    /// Returns when nothing runs, and all that has ended is settled. What waits may wait on.
    pub async fn idle(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Idle(reply)).is_ok() {
            // Where the owner is gone, nothing is left that could become idle.
            let _ = done.await;
        }
    }

    /// Lets go of all runs; what runs runs on. The streams of states end. Dropping it does the
    /// same, but does not wait for it.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        let Held { mut task, lock } = held;
        while task.join_next().await.is_some() {}
        drop(lock);
    }

    async fn ask<T>(
        &self,
        verb: &'static str,
        question: Uuid,
        command: impl FnOnce(owner::Reply<T>) -> Command,
    ) -> Result<T, RunnerError> {
        let (reply, answer) = oneshot::channel();
        // A command that nobody takes drops its reply, which is seen below.
        let _ = self.commands.send(command(reply));
        let stopped = || RunnerError::Unavailable { verb, question, source: Box::new(Stopped) };
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

#[async_trait]
impl Runner for ProcessRunner {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        let draft = Box::new(Draft::of(&launch, Timestamp::now()));
        self.ask("launch", launch.run.question, |reply| Command::Launch(draft, reply)).await
    }

    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError> {
        self.ask("cancel", question, |reply| Command::Cancel(question, reply)).await
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        Ok(Folder::of(&self.runs, run).path().is_dir())
    }

    async fn settle(&self, run: RunId) -> Result<(), RunnerError> {
        self.ask("settle", run.question, |reply| Command::Settle(run, reply)).await
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        let mailbox = Arc::new(Mailbox::default());
        if self.commands.send(Command::Listen(Arc::clone(&mailbox))).is_err() {
            mailbox.close();
        }
        mailbox.stream()
    }
}

/// The runs of a process runner have one daemon.
impl Coordinator for ProcessRunner {}

// === impl Draft ===

impl Draft {
    /// A copy of what is to be run, of which the inputs go to a file of their own.
    fn of(launch: &LaunchRequest<'_>, now: Timestamp) -> Self {
        let LaunchRequest { run, recipient, parent_question, attributes, inputs } = *launch;
        let QuestionFile { bytes: question, input_values, input_manifest } =
            QuestionFile::new(inputs);
        let asked = Asked {
            sequence: 0,
            launched: now.0,
            recipient: recipient.to_string(),
            parent_question,
            attributes: attributes.clone(),
            input_values,
            input_manifest,
        };
        Self { run, asked, question }
    }
}

/// The folder of the run that this process is to supervise; none where it is started for anything
/// else. For a program's first look at its arguments.
pub fn supervisor_folder(mut arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let command = arguments.nth(1)?;
    (command == SUPERVISE).then(|| arguments.next()).flatten().map(PathBuf::from)
}

/// Takes the folder of runs for ourselves: two runners would start each other's runs.
async fn lock(runs: &Path) -> Result<FolderLock, StartError> {
    let fail = |source| StartError::Folder { folder: runs.to_owned(), source };
    make_private(runs).map_err(fail)?;
    for _ in 0..LOCK_TIMES {
        match FolderLock::acquire(&runs.join(".lock")) {
            Ok(lock) => return Ok(lock),
            Err(LockError::InUse { .. }) => tokio::time::sleep(LOCK_EVERY).await,
            Err(LockError::Io(err)) => return Err(fail(err)),
        }
    }
    Err(StartError::InUse(runs.to_owned()))
}

/// Clears away what a crash left half done, and looks at the rest. Blocks.
fn scan(runs: &Path) -> Result<(PathBuf, Vec<Found>), StartError> {
    let fail = |source| StartError::Folder { folder: runs.to_owned(), source };
    // A supervisor is told a path that holds wherever it is.
    let runs = fs::canonicalize(runs).map_err(fail)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&runs).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(NEW) || name.starts_with(OLD) {
            clear(&runs.join(name));
        } else if let Some(run) = run_of(name) {
            found.extend(find(&runs, run));
        } else {
            debug!(%name, "no folder of a run");
        }
    }
    found.sort_unstable_by_key(|found| found.asked.sequence);
    Ok((runs, found))
}

fn clear(path: &Path) {
    if let Err(err) = remove_all(path) {
        warn!(path = %path.display(), error = %Chain(&err), "failed to clear away");
    }
}

fn find(runs: &Path, run: RunId) -> Option<Found> {
    let folder = Folder::of(runs, run);
    let look = || {
        let asked = folder.asked()?;
        let standing = Standing::of(&folder, &asked.recipient)?;
        Ok(Found { run, asked, standing })
    };
    look()
        .map_err(|err: io::Error| warn!(%run, error = %Chain(&err), "left alone an odd folder"))
        .ok()
}
