//! Follows one run from the start of its child to its end.
//!
//! ```text
//! command -> supervisor -> `life`: a byte (the child runs), end of file -> end.json -> RunEnd
//! ```
//!
//! Another daemon can continue at any point: all that it needs is in the run's folder.

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::runner::RunEnd;
use crate::runner::process::child_command::{CommandError, child_command};
use crate::runner::process::folder_state::{end_with_output, recorded_end};
use crate::runner::process::records::{ChildCommand, EndRecord, Outcome};
use crate::runner::process::run_folder::{RunFolder, SupervisorState};
use crate::runner::process::{ProcessRunnerOptions, ProcessService, SUPERVISE};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;
use tracing::warn;

/// How many supervisors are started for a run whose supervisors end before they start the child. A
/// key pressed at the terminal in a supervisor's first millisecond ends it: the question is not at
/// fault.
const MAX_SUPERVISORS: usize = 3;

/// How often, and how many times, the remaining processes of a lost run are killed.
const KILL_INTERVAL: Duration = Duration::from_millis(20);
const MAX_KILLS: usize = 100;

/// How often a supervisor that cannot be watched is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What all runs need.
#[derive(Debug)]
pub(super) struct RunContext {
    pub(super) options: ProcessRunnerOptions,
    /// The services, by SRUID.
    pub(super) services: HashMap<String, ProcessService>,
}

/// Follows a run.
#[derive(Clone, Debug)]
pub(super) struct RunTask {
    pub(super) context: Arc<RunContext>,
    pub(super) run: RunId,
    /// The revision that answers.
    pub(super) service: Arc<str>,
    /// Receives the time at which the child was started, at most twice for each supervisor.
    pub(super) starts: UnboundedSender<(RunId, Timestamp)>,
}

/// Why no supervisor was started.
#[derive(Debug, thiserror::Error)]
enum StartSupervisorError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("`{0}` is no longer a service of this network")]
    NoService(Arc<str>),
    #[error("failed to start its supervisor `{0}`")]
    Supervisor(String, #[source] io::Error),
}

// === impl RunTask ===

impl RunTask {
    /// Starts the child, and waits for the end of the run.
    pub(super) async fn start(self) -> RunEnd {
        for _ in 0..MAX_SUPERVISORS {
            let this = self.clone();
            let start = move || this.start_supervisor().map_err(|err| Chain(&err).to_string());
            match blocking(start).await {
                Ok((mut supervisor, life)) => {
                    self.follow(Ok(life)).await;
                    // The supervisor has ended: this only reaps it.
                    let _ = supervisor.wait().await;
                }
                Err(why) => return self.not_started(why).await,
            }
            if let Some(end) = self.conclude().await {
                return end;
            }
        }
        let why = "its supervisor ended early each time; `supervisor.log` in the run's folder may \
                   have the reason";
        self.not_started(why.to_owned()).await
    }

    /// Waits for the end of a run that another daemon started.
    pub(super) async fn adopt(self, life: File) -> RunEnd {
        self.follow(pipe::Receiver::from_file(life)).await;
        match self.conclude().await {
            Some(end) => end,
            // Its supervisor ended before it started the child.
            None => self.start().await,
        }
    }

    /// Ends a run whose child was started and whose supervisor left no record.
    pub(super) async fn end_lost(self) -> RunEnd {
        match self.conclude().await {
            Some(end) => end,
            None => self.record_end(EndRecord::now(Outcome::Lost)).await,
        }
    }

    fn folder(&self) -> RunFolder {
        RunFolder::new(&self.context.options.runs, self.run)
    }

    /// Starts a supervisor and sends it the child's command. Blocks.
    fn start_supervisor(&self) -> Result<(Child, pipe::Receiver), StartSupervisorError> {
        let RunContext { options, services } = &*self.context;
        let service = services
            .get(&*self.service)
            .ok_or_else(|| StartSupervisorError::NoService(Arc::clone(&self.service)))?;
        let folder = self.folder();
        let read = |source| CommandError::Read { path: folder.path().to_owned(), source };
        let spec = folder.spec().map_err(read)?;
        let command = child_command(options, service, &folder, &spec)?;

        spawn_supervisor(options, &folder, &command).map_err(|err| {
            StartSupervisorError::Supervisor(options.supervisor.display().to_string(), err)
        })
    }

    /// Waits for the end of a supervisor.
    async fn follow(&self, life: io::Result<pipe::Receiver>) {
        self.report_start().await;
        let watched = match life {
            Ok(life) => self.watch(life).await,
            Err(err) => Err(err),
        };
        if let Err(err) = watched {
            warn!(run = %self.run, error = %Chain(&err), "failed to watch supervisor of run");
            while self.has_supervisor().await {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        }
    }

    /// Reads the `life` of a supervisor until the end of the file.
    async fn watch(&self, life: pipe::Receiver) -> io::Result<()> {
        loop {
            life.readable().await?;
            match life.try_read(&mut [0; 64]) {
                Ok(0) => return Ok(()),
                Ok(_) => self.report_start().await,
                Err(err)
                    if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(err) => return Err(err),
            }
        }
    }

    async fn has_supervisor(&self) -> bool {
        let folder = self.folder();
        matches!(blocking(move || folder.supervisor_state()).await, Ok(SupervisorState::Alive(_)))
    }

    async fn report_start(&self) {
        let folder = self.folder();
        if let Ok(Some(at)) = blocking(move || folder.started_at()).await {
            // The receiver is gone when the runner stops.
            let _ = self.starts.send((self.run, Timestamp(at)));
        }
    }

    /// How the run ended; none if its supervisor ended before it started the child.
    async fn conclude(&self) -> Option<RunEnd> {
        let this = self.clone();
        let read = move || {
            let folder = this.folder();
            (folder.started_at(), recorded_end(&folder, &this.service))
        };
        match blocking(read).await {
            (_, Ok(Some(end))) => Some(end),
            (Ok(None), Ok(None)) => None,
            (Ok(Some(_)) | Err(_), Ok(None)) => {
                self.kill_remaining().await;
                Some(self.record_end(EndRecord::now(Outcome::Lost)).await)
            }
            (_, Err(err)) => {
                warn!(run = %self.run, error = %Chain(&err), "failed to read end record of run");
                self.kill_remaining().await;
                Some(self.end_with_output(EndRecord::now(Outcome::Lost)).await)
            }
        }
    }

    /// Kills the remaining processes of a run without a supervisor, until there is none.
    async fn kill_remaining(&self) {
        for _ in 0..MAX_KILLS {
            let folder = self.folder();
            if blocking(move || kill_processes_of(&folder)).await == 0 {
                return;
            }
            tokio::time::sleep(KILL_INTERVAL).await;
        }
        warn!(run = %self.run, "processes of lost run did not end after SIGKILL");
    }

    async fn not_started(&self, why: String) -> RunEnd {
        self.record_end(EndRecord::now(Outcome::NotStarted(why))).await
    }

    async fn record_end(&self, record: EndRecord) -> RunEnd {
        let (folder, written) = (self.folder(), record.clone());
        if let Err(err) = blocking(move || folder.record_end(&written)).await {
            // It is reported nevertheless; the next daemon would come to the same end.
            warn!(run = %self.run, error = %Chain(&err), "failed to record end of run");
        }
        self.end_with_output(record).await
    }

    async fn end_with_output(&self, record: EndRecord) -> RunEnd {
        let this = self.clone();
        blocking(move || end_with_output(&this.folder(), &this.service, &record)).await
    }
}

/// Runs what may block on a disk in a thread for such work.
pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(act).await {
        Ok(done) => done,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down, and drops this future.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Starts a supervisor. If this process dies before it has sent the whole command, the supervisor
/// starts no child.
fn spawn_supervisor(
    options: &ProcessRunnerOptions,
    folder: &RunFolder,
    command: &ChildCommand,
) -> io::Result<(Child, pipe::Receiver)> {
    let (read, write) = folder.open_life()?;
    let life = pipe::Receiver::from_file(read)?;
    let (stdin, mut stdin_writer) = io::pipe()?;
    // The builder owns this process's copies of the supervisor's ends, and is dropped here.
    let supervisor = Command::new(&options.supervisor)
        .arg(SUPERVISE)
        .arg(folder.path())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(write))
        .stderr(Stdio::from(folder.open_log()?))
        .spawn()?;
    match stdin_writer.write_all(&serde_json::to_vec(command)?) {
        // The supervisor has ended already, which `life` shows.
        Err(err) if err.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok((supervisor, life))
}

#[cfg(target_os = "linux")]
fn kill_processes_of(folder: &RunFolder) -> usize {
    crate::runner::process::procfs::kill_processes_of(folder.path())
}

/// Without `/proc`, the processes of a run cannot be found.
#[cfg(not(target_os = "linux"))]
fn kill_processes_of(_: &RunFolder) -> usize {
    0
}
