//! One run, from its turn to its end.
//!
//! ```text
//! plan -> supervisor -> its life: a byte (the child runs), the end -> end.json -> RunEnd
//! ```
//!
//! What a daemon began another may go on with: all that it needs is in the run's folder.

use crate::chain::Chain;
use crate::event::{RunId, Timestamp};
use crate::runner::RunEnd;
use crate::runner::process::command::{PlanError, plan};
use crate::runner::process::folder::{Folder, Life};
use crate::runner::process::record::{Ending, How, Plan};
use crate::runner::process::tail::tail;
use crate::runner::process::{Options, SUPERVISE, Service, verdict};
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

/// How often a supervisor may end before it starts the child. It is not the question's fault: a
/// key pressed at the terminal in its first millisecond does it.
const ATTEMPTS: usize = 3;

/// How often, and how many times, what a lost run left is looked for and killed.
const SWEEP_EVERY: Duration = Duration::from_millis(20);
const SWEEPS: usize = 100;

/// How often a supervisor is looked for that cannot be watched.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What all runs need.
#[derive(Debug)]
pub struct Context {
    /// The settings.
    pub options: Options,
    /// The services, by SRUID.
    pub services: HashMap<String, Service>,
}

/// A run, and where to tell of it.
#[derive(Clone, Debug)]
pub struct Attendance {
    /// What all runs need.
    pub context: Arc<Context>,
    /// Which run.
    pub run: RunId,
    /// Which revision answers.
    pub service: Arc<str>,
    /// Where it is told that it runs, and since when. It holds one note for each run at most.
    pub notes: UnboundedSender<(RunId, Timestamp)>,
}

/// Why no supervisor was started.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("`{0}` is no service of this network any more")]
    NoService(Arc<str>),
    #[error("failed to start its supervisor `{0}`")]
    Supervisor(String, #[source] io::Error),
}

// === impl Attendance ===

impl Attendance {
    /// Starts a run whose turn it is, and waits for its end.
    pub async fn start(self) -> RunEnd {
        for _ in 0..ATTEMPTS {
            let this = self.clone();
            match blocking(move || this.begin().map_err(|err| Chain(&err).to_string())).await {
                Ok((mut supervisor, life)) => {
                    self.follow(Ok(life)).await;
                    // It is gone: this only clears it away.
                    let _ = supervisor.wait().await;
                }
                Err(why) => return self.not_started(why).await,
            }
            if let Some(end) = self.conclude().await {
                return end;
            }
        }
        let why = "its supervisor ended at once, each time; see whether `supervisor.log` in the \
                   run's folder says why";
        self.not_started(why.to_owned()).await
    }

    /// Waits for the end of a run that another daemon started.
    pub async fn adopt(self, life: File) -> RunEnd {
        self.follow(pipe::Receiver::from_file(life)).await;
        // It may have been told to start, and died before it did.
        match self.conclude().await {
            Some(end) => end,
            None => self.start().await,
        }
    }

    /// Deals with a run that had started, whose supervisor is gone without a word.
    pub async fn find_lost(self) -> RunEnd {
        match self.conclude().await {
            Some(end) => end,
            None => self.record(Ending::now(How::Lost)).await,
        }
    }

    fn folder(&self) -> Folder {
        Folder::of(&self.context.options.runs, self.run)
    }

    /// Starts a supervisor and tells it what to do. Blocks.
    fn begin(&self) -> Result<(Child, pipe::Receiver), BeginError> {
        let Context { options, services } = &*self.context;
        let service = services
            .get(&*self.service)
            .ok_or_else(|| BeginError::NoService(Arc::clone(&self.service)))?;
        let folder = self.folder();
        let read = |source| PlanError::Read { path: folder.path().to_owned(), source };
        let asked = folder.asked().map_err(read)?;
        let plan = plan(options, service, &folder, &asked)?;

        spawn(options, &folder, &plan)
            .map_err(|err| BeginError::Supervisor(options.supervisor.display().to_string(), err))
    }

    /// Waits for the end of a supervisor.
    async fn follow(&self, life: io::Result<pipe::Receiver>) {
        self.note_start().await;
        let watched = match life {
            Ok(life) => self.watch(life).await,
            Err(err) => Err(err),
        };
        if let Err(err) = watched {
            // Nothing is lost that still has a supervisor: we look, now and then.
            warn!(run = %self.run, error = %Chain(&err), "failed to watch run");
            while self.is_held().await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Reads a supervisor's life to its end.
    async fn watch(&self, life: pipe::Receiver) -> io::Result<()> {
        loop {
            life.readable().await?;
            match life.try_read(&mut [0; 64]) {
                Ok(0) => return Ok(()),
                Ok(_) => self.note_start().await,
                Err(err)
                    if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(err) => return Err(err),
            }
        }
    }

    async fn is_held(&self) -> bool {
        let folder = self.folder();
        matches!(blocking(move || folder.life()).await, Ok(Life::Held(_)))
    }

    async fn note_start(&self) {
        let folder = self.folder();
        if let Ok(Some(at)) = blocking(move || folder.started()).await {
            // The one who is told may be gone: it stops.
            let _ = self.notes.send((self.run, Timestamp(at)));
        }
    }

    /// How the run ended; none where its supervisor is gone before it began.
    async fn conclude(&self) -> Option<RunEnd> {
        let this = self.clone();
        let (started, ended) = blocking(move || (this.folder().started(), this.end())).await;
        match (started, ended) {
            (_, Ok(Some(end))) => Some(end),
            (Ok(None), Ok(None)) => None,
            (Ok(Some(_)) | Err(_), Ok(None)) => {
                self.sweep().await;
                Some(self.record(Ending::now(How::Lost)).await)
            }
            (_, Err(err)) => {
                warn!(run = %self.run, error = %Chain(&err), "failed to read the end of run");
                self.sweep().await;
                Some(self.told(Ending::now(How::Lost)).await)
            }
        }
    }

    /// Kills what is left of a run whose supervisor is gone, until nothing is.
    async fn sweep(&self) {
        for _ in 0..SWEEPS {
            let folder = self.folder();
            if blocking(move || kill_processes_of(&folder)).await == 0 {
                return;
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
        warn!(run = %self.run, "processes of a lost run do not end");
    }

    async fn not_started(&self, why: String) -> RunEnd {
        self.record(Ending::now(How::NotStarted(why))).await
    }

    /// Records an end, and says how it is told.
    async fn record(&self, ending: Ending) -> RunEnd {
        let (folder, record) = (self.folder(), ending.clone());
        if let Err(err) = blocking(move || folder.end(&record)).await {
            // It is told nevertheless; another daemon would find out anew.
            warn!(run = %self.run, error = %Chain(&err), "failed to record the end of run");
        }
        self.told(ending).await
    }

    async fn told(&self, ending: Ending) -> RunEnd {
        let this = self.clone();
        blocking(move || told(&this.folder(), &this.service, &ending)).await
    }

    fn end(&self) -> io::Result<Option<RunEnd>> {
        end(&self.folder(), &self.service)
    }
}

/// How the run of a folder ended; none where there is no record of it. Blocks.
pub fn end(folder: &Folder, service: &str) -> io::Result<Option<RunEnd>> {
    Ok(folder.ending()?.map(|ending| told(folder, service, &ending)))
}

fn told(folder: &Folder, service: &str, ending: &Ending) -> RunEnd {
    let (newer, older) = folder.outputs();
    let started = folder.started().ok().flatten();
    verdict::end(service, ending, started, tail(&newer, &older))
}

/// Does what may wait for a disk where it keeps nobody waiting.
pub async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(act).await {
        Ok(done) => done,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and with it all that waits.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Starts a supervisor. If we die before it has the whole plan, it starts nothing.
fn spawn(options: &Options, folder: &Folder, plan: &Plan) -> io::Result<(Child, pipe::Receiver)> {
    let (read, write) = folder.new_life()?;
    let life = pipe::Receiver::from_file(read)?;
    let (stdin, mut told) = io::pipe()?;
    // The command holds our copies of its ends, and is dropped here.
    let supervisor = Command::new(&options.supervisor)
        .arg(SUPERVISE)
        .arg(folder.path())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(write))
        .stderr(Stdio::from(folder.log()?))
        .spawn()?;
    match told.write_all(&serde_json::to_vec(plan)?) {
        // It ended already, and its end will be seen.
        Err(err) if err.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok((supervisor, life))
}

#[cfg(target_os = "linux")]
fn kill_processes_of(folder: &Folder) -> usize {
    crate::runner::process::procfs::kill_processes_of(folder.path())
}

/// There is no telling here which processes are of a run.
#[cfg(not(target_os = "linux"))]
fn kill_processes_of(_: &Folder) -> usize {
    0
}

/// What a folder says of its run when a runner starts. Blocks.
#[derive(Debug)]
pub enum Standing {
    /// It waits for its turn.
    Waiting,
    /// A supervisor has it.
    Held(File),
    /// It had started, and nobody has it.
    Lost,
    /// It has ended.
    Ended(RunEnd),
}

// === impl Standing ===

impl Standing {
    /// Looks.
    pub fn of(folder: &Folder, service: &str) -> io::Result<Self> {
        // Life first: a supervisor that ends in the midst of our look has recorded its end.
        let life = folder.life()?;
        if let Some(end) = end(folder, service)? {
            return Ok(Self::Ended(end));
        }
        if let Life::Held(life) = life {
            return Ok(Self::Held(life));
        }
        if folder.started()?.is_some() {
            return Ok(Self::Lost);
        }
        match folder.order()? {
            Some(order) => {
                let ending = Ending::ordered(order);
                folder.end(&ending)?;
                Ok(Self::Ended(told(folder, service, &ending)))
            }
            None => Ok(Self::Waiting),
        }
    }
}
