//! Runs each question as a child process.
//!
//! ```text
//! launch -> folder -> (a free slot) -> supervisor -> child -> end.json -> states -> settle
//!           durable                    outlives the daemon
//! ```
//!
//! A run is a folder, whether it waits, runs or has ended: after a start, the folders are the state
//! ([`run_folder`] lists their files). The parent process of the child is a supervisor, which
//! outlives the daemon and records the end. A file that is created once claims the start of the
//! child, so no child is started twice for one run.
//!
//! When a run has ended, none of its processes is left: on Linux, not even one that left the
//! child's process group and session. On other systems the process group alone is ended, and
//! nothing is if the supervisor itself is killed.

mod child_command;
mod end_cause;
mod environment;
mod folder_state;
mod output_tail;
#[cfg(target_os = "linux")]
mod procfs;
mod queue;
pub mod records;
mod retained_logs;
pub mod run_folder;
mod run_task;
mod scheduler;
mod supervisor;

use crate::chain::Chain;
use crate::event::{RunId, SruidBuf, Timestamp};
use crate::locked_folder::{FolderLock, LockError};
use crate::runner::states::Mailbox;
use crate::runner::{Coordinator, LaunchRequest, RunState, Runner, RunnerError, Settlement};
use crate::sdk::arguments::QuestionFile;
use async_trait::async_trait;
use folder_state::StoredState;
use futures_util::stream::BoxStream;
use records::RunSpec;
use run_folder::{NEW, OLD, RunFolder, make_private, remove_all, run_from_name};
use run_task::{RunContext, blocking};
use scheduler::{NewRun, Scheduler, SchedulerCommand, StoredRun};
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

/// How long [`ProcessRunner::interrupt`] waits: the children's grace period, and time for the
/// records.
const INTERRUPT_TIMEOUT: Duration = supervisor::GRACE_PERIOD.saturating_add(Duration::from_secs(5));

/// The hidden command of the program that runs a supervisor.
const SUPERVISE: &str = "supervise";

/// How often, and how many times, a folder in use is tried: after a restart, the previous daemon
/// may not have ended.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
const MAX_LOCK_ATTEMPTS: u32 = 20;

/// A service whose questions a [`ProcessRunner`] runs.
#[derive(Clone, Debug)]
pub struct ProcessService {
    /// The revision.
    pub sruid: SruidBuf,
    /// The folder of its code, as an absolute path.
    pub folder: PathBuf,
    /// The program that answers a question, with its first arguments, for example
    /// `octue twined question ask-local`. The program is searched for in the folder's `.venv` and
    /// `venv`, then in the child's `PATH`.
    pub command: Vec<OsString>,
}

/// The settings of a [`ProcessRunner`].
#[derive(Clone, Debug)]
pub struct ProcessRunnerOptions {
    /// The folder with the folders of runs.
    pub runs: PathBuf,
    /// The folder with the output of the last hundred settled runs, as `<run>.log`.
    pub logs: PathBuf,
    /// How many questions run at once, without those whose parent question runs here.
    pub max_runs: usize,
    /// The absolute path of this program, started as `<supervisor> supervise <folder>`.
    pub supervisor: PathBuf,
    /// The daemon's environment, of which children inherit a few variables.
    pub inherited: Vec<(OsString, OsString)>,
    /// The variables of the SDK's contract and of the network, for every child. They win over a
    /// service's `.env`.
    pub environment: Vec<(String, String)>,
    /// The variables of `--env` and `--env-file`, for every child. They win over all others.
    pub passed: Vec<(String, String)>,
    /// A folder to put first in `PYTHONPATH`.
    pub shim: Option<PathBuf>,
}

/// Runs questions as child processes.
///
/// When it is dropped or stopped, active runs continue, and queued runs wait for the next runner.
#[derive(Debug)]
pub struct ProcessRunner {
    /// Unbounded; in fact limited by the number of callers, who wait for their answers.
    commands: mpsc::UnboundedSender<SchedulerCommand>,
    /// The folder of runs.
    runs: PathBuf,
    resources: Mutex<Resources>,
}

/// The resources that a runner holds until it stops.
#[derive(Debug, Default)]
struct Resources {
    /// The scheduler, which owns all other tasks.
    task: JoinSet<()>,
    /// The lock of the folder of runs.
    lock: Option<FolderLock>,
}

/// Why a runner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder cannot be used.
    #[error("failed to use the folder of runs `{}`", .folder.display())]
    RunFolder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another runner uses the folder.
    #[error("the folder of runs `{}` is in use by another process", .0.display())]
    InUse(PathBuf),
}

/// The scheduler has ended.
#[derive(Debug, thiserror::Error)]
#[error("the runner has stopped")]
struct Stopped;

// === impl ProcessRunner ===

impl ProcessRunner {
    /// Takes over the folder of runs: follows the active runs, starts the queued ones, and reports
    /// those that have ended and are not settled.
    ///
    /// # Errors
    ///
    /// If the folder cannot be used, or another runner uses it. A run whose folder cannot be read
    /// is left out with a warning.
    pub async fn start(
        mut options: ProcessRunnerOptions,
        services: Vec<ProcessService>,
    ) -> Result<Self, StartError> {
        let lock = lock(&options.runs).await?;
        let runs = options.runs.clone();
        let (runs, stored) = blocking(move || scan(&runs)).await?;
        options.runs.clone_from(&runs);
        let services =
            services.into_iter().map(|service| (service.sruid.to_string(), service)).collect();

        let scheduler = Scheduler::new(Arc::new(RunContext { options, services }), stored);
        let (commands, received) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(scheduler.run(received));
        let resources = Mutex::new(Resources { task, lock: Some(lock) });
        Ok(Self { commands, runs, resources })
    }

    /// Starts no further run, and ends the active ones with `EndReason::Interrupted`. Returns when
    /// no process of them is left, or after 8 s. Queued runs stay queued.
    ///
    /// For a network that stops with its emulator, which its children need.
    pub async fn interrupt(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(SchedulerCommand::Interrupt(reply)).is_ok()
            && tokio::time::timeout(INTERRUPT_TIMEOUT, done).await.is_err()
        {
            warn!("some runs did not end within the grace period");
        }
    }

    /// Waits until no run is active, and every run that has ended is settled. Runs may be queued.
    pub async fn wait_until_idle(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(SchedulerCommand::Idle(reply)).is_ok() {
            // A scheduler that has ended has no active runs.
            let _ = done.await;
        }
    }

    /// Stops the runner. Active runs continue; the streams of states end. A drop does the same
    /// without waiting for it.
    pub async fn stop(&self) {
        let _ = self.commands.send(SchedulerCommand::Stop);
        let resources = || self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        let Resources { mut task, lock } = std::mem::take(&mut *resources());
        while task.join_next().await.is_some() {}
        drop(lock);
    }

    async fn send<T>(
        &self,
        verb: &'static str,
        question: Uuid,
        command: impl FnOnce(scheduler::Reply<T>) -> SchedulerCommand,
    ) -> Result<T, RunnerError> {
        let (reply, answer) = oneshot::channel();
        // An undelivered command drops its reply, and `answer` fails.
        let _ = self.commands.send(command(reply));
        let stopped = || RunnerError::Unavailable { verb, question, source: Box::new(Stopped) };
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

#[async_trait]
impl Runner for ProcessRunner {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        let new = Box::new(NewRun::from_request(&launch, Timestamp::now()));
        self.send("launch", launch.run.question, |reply| SchedulerCommand::Launch(new, reply)).await
    }

    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError> {
        self.send("cancel", question, |reply| SchedulerCommand::Cancel(question, reply)).await
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        Ok(RunFolder::new(&self.runs, run).path().is_dir())
    }

    async fn settle(&self, run: RunId) -> Result<Settlement, RunnerError> {
        self.send("settle", run.question, |reply| SchedulerCommand::Settle(run, reply)).await
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        let mailbox = Arc::new(Mailbox::default());
        if self.commands.send(SchedulerCommand::Listen(Arc::clone(&mailbox))).is_err() {
            mailbox.close();
        }
        mailbox.stream()
    }
}

/// The runs of a process runner belong to one daemon.
impl Coordinator for ProcessRunner {}

// === impl NewRun ===

impl NewRun {
    /// The specification of a run, and the file with its inputs.
    fn from_request(launch: &LaunchRequest<'_>, now: Timestamp) -> Self {
        let LaunchRequest { run, recipient, parent_question, attributes, inputs } = *launch;
        let QuestionFile { bytes: question, input_values, input_manifest } =
            QuestionFile::new(inputs);
        let spec = RunSpec {
            sequence: 0,
            launched: now.0,
            recipient: recipient.to_string(),
            parent_question,
            attributes: attributes.clone(),
            input_values,
            input_manifest,
        };
        Self { run, spec, question }
    }
}

/// The folder of the run to supervise, if these are the arguments of a supervisor.
pub fn supervisor_folder(mut arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let command = arguments.nth(1)?;
    (command == SUPERVISE).then(|| arguments.next()).flatten().map(PathBuf::from)
}

/// Locks the folder of runs: two runners would start each other's runs.
async fn lock(runs: &Path) -> Result<FolderLock, StartError> {
    let fail = |source| StartError::RunFolder { folder: runs.to_owned(), source };
    make_private(runs).map_err(fail)?;
    for _ in 0..MAX_LOCK_ATTEMPTS {
        match FolderLock::acquire(&runs.join(".lock")) {
            Ok(lock) => return Ok(lock),
            Err(LockError::InUse { .. }) => tokio::time::sleep(LOCK_INTERVAL).await,
            Err(LockError::Io(err)) => return Err(fail(err)),
        }
    }
    Err(StartError::InUse(runs.to_owned()))
}

/// Removes the incomplete folders that a crash left, and reads the others. Blocks.
fn scan(runs: &Path) -> Result<(PathBuf, Vec<StoredRun>), StartError> {
    let fail = |source| StartError::RunFolder { folder: runs.to_owned(), source };
    // A supervisor has another working directory.
    let runs = fs::canonicalize(runs).map_err(fail)?;
    let mut stored = Vec::new();
    for entry in fs::read_dir(&runs).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(NEW) || name.starts_with(OLD) {
            remove_incomplete(&runs.join(name));
        } else if let Some(run) = run_from_name(name) {
            stored.extend(read_run(&runs, run));
        } else {
            debug!(%name, "file in the folder of runs ignored: its name is not a run's");
        }
    }
    stored.sort_unstable_by_key(|stored| stored.spec.sequence);
    Ok((runs, stored))
}

fn remove_incomplete(path: &Path) {
    if let Err(err) = remove_all(path) {
        warn!(path = %path.display(), error = %Chain(&err), "failed to remove incomplete folder of a run");
    }
}

fn read_run(runs: &Path, run: RunId) -> Option<StoredRun> {
    let folder = RunFolder::new(runs, run);
    let read = || {
        let spec = folder.spec()?;
        let state = StoredState::read(&folder, &spec.recipient)?;
        Ok(StoredRun { run, spec, state })
    };
    read()
        .inspect_err(|err: &io::Error| {
            warn!(%run, error = %Chain(err), "run ignored: failed to read its folder");
        })
        .ok()
}
