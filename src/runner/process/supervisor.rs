//! The supervisor: the parent process of a run's child. It outlives the daemon.
//!
//! ```text
//! command (stdin) -> `stop`? -> `started` (once) -> child -> end -> SIGKILL to the rest -> end.json
//! ```
//!
//! It keeps the run's `life` (its stdout) open until it ends. It has a session of its own, so that
//! a terminal does not end it, and becomes the parent of orphans of its child, so that no process
//! escapes it. It waits in plain threads, because an async runtime would cost memory for each run.

mod output_files;
mod process_tree;

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::process::records::{ChildCommand, EndRecord, Outcome, StopRequest};
use crate::runner::process::run_folder::RunFolder;
use output_files::OutputFiles;
use process_tree::ProcessTree;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;
use tokio::time::Instant;

/// How long a child may take to end after SIGTERM, like the grace period of a pod.
pub(super) const GRACE_PERIOD: Duration = Duration::from_secs(3);

/// How long to wait for the end of the output after the end of all known processes. On Linux, where
/// no process escapes, the output ends with them.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often, and how many times, the record of the end is tried on a full disk.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RECORD_ATTEMPTS: u32 = 600;

/// Why a supervisor failed.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("failed to read the child's command")]
    Command(#[source] io::Error),
    #[error("failed to read or write the run's folder")]
    Folder(#[source] io::Error),
}

/// An event in the life of a child.
#[derive(Debug)]
enum SupervisorEvent {
    /// A process of the tree has ended, and is to be reaped.
    ProcessEnded,
    /// There may be a request to stop.
    Woken,
    /// All output is in its files.
    OutputEnded,
}

/// Supervises a running child.
#[derive(Debug)]
struct Supervisor<'a> {
    folder: &'a RunFolder,
    tree: ProcessTree,
    events: Receiver<SupervisorEvent>,
    /// Resumes the thread that waits for ended processes.
    reaped: Sender<()>,
    stop_request: Option<StopRequest>,
    /// When the grace period ends, if it has begun.
    deadline: Option<Instant>,
    output_ended: bool,
}

/// Runs the child of a run, until all its processes have ended.
///
/// For the hidden command `supervise` of the program: a runner starts it.
pub fn supervise(folder: &Path) -> ExitCode {
    match run(&RunFolder::at(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // Stderr is `supervisor.log`. There is nowhere to report a failure to write it.
            let _ = writeln!(io::stderr(), "{}", Chain(&err));
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &RunFolder) -> Result<(), SuperviseError> {
    process_tree::detach();
    let command = read_command(io::stdin()).map_err(SuperviseError::Command)?;

    // Opened before `stop` is read: a later request wakes the supervisor.
    let wake = folder.open_wake().map_err(SuperviseError::Folder)?;
    if let Some(request) = folder.stop_request().map_err(SuperviseError::Folder)? {
        let record = EndRecord::stopped_before_start(request);
        return folder.record_end(&record).map_err(SuperviseError::Folder);
    }
    if !folder.claim_start(Timestamp::now().0).map_err(SuperviseError::Folder)? {
        // Another supervisor has the run.
        return Ok(());
    }
    let spawned = spawn(&command, folder).map_err(|err| not_started(&command, &err));
    // It may hold the inputs of a question, and a supervisor lives as long as the child.
    drop(command);
    let record = match spawned {
        Ok((child, output)) => Supervisor::new(folder, &child, wake, output).wait(),
        Err(why) => EndRecord::now(Outcome::NotStarted(why)),
    };
    record_end(folder, &record)
}

/// Reads the command. A truncated one is refused: its runner died, and no child has been started.
fn read_command(mut from: impl Read) -> io::Result<ChildCommand> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn spawn(command: &ChildCommand, folder: &RunFolder) -> io::Result<(Child, io::PipeReader)> {
    let (output, out) = io::pipe()?;
    let child = Command::new(&command.program)
        .args(&command.arguments)
        .env_clear()
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&command.folder)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()?;
    // The pid is for people only.
    let _ = folder.record_pid(child.id());
    // If no daemon reads this, the next one reads `started`.
    let _ = io::stdout().write_all(b"\n").and_then(|()| io::stdout().flush());
    Ok((child, output))
}

fn not_started(command: &ChildCommand, err: &io::Error) -> String {
    let (program, folder) = (command.program.display(), command.folder.display());
    let hint = match err.kind() {
        io::ErrorKind::NotFound => {
            "it, or the interpreter that its first line names, does not exist; install it again"
        }
        io::ErrorKind::PermissionDenied => "it is not executable: see `chmod +x`",
        io::ErrorKind::ArgumentListTooLong => {
            "the question's attributes exceed the length limit of an argument"
        }
        _ => "try to run it in a shell",
    };
    format!("failed to execute `{program}` in `{folder}`: {err}; {hint}")
}

/// Records the end. Nothing else knows of it, so this waits for space on a full disk.
fn record_end(folder: &RunFolder, record: &EndRecord) -> Result<(), SuperviseError> {
    let (_sender, never) = channel::<()>();
    for _ in 1..MAX_RECORD_ATTEMPTS {
        if folder.record_end(record).is_ok() || !folder.path().exists() {
            return Ok(());
        }
        let _ = never.recv_timeout(RECORD_INTERVAL);
    }
    folder.record_end(record).map_err(SuperviseError::Folder)
}

// === impl Supervisor ===

impl<'a> Supervisor<'a> {
    /// Starts the threads that wait for processes, requests and output.
    fn new(folder: &'a RunFolder, child: &Child, wake: File, output: io::PipeReader) -> Self {
        let (sender, events) = channel();
        let (reaped, resume) = channel();
        let (newer, older) = folder.outputs();

        let to = sender.clone();
        thread::spawn(move || wait_for_processes(&to, &resume));
        let to = sender.clone();
        thread::spawn(move || wait_for_wakes(&to, wake));
        thread::spawn(move || {
            OutputFiles::new(newer, older).write_all(output);
            let _ = sender.send(SupervisorEvent::OutputEnded);
        });
        Self {
            folder,
            tree: ProcessTree::new(child),
            events,
            reaped,
            stop_request: None,
            deadline: None,
            output_ended: false,
        }
    }

    /// Waits for the end of the child, and kills the processes that it left.
    fn wait(mut self) -> EndRecord {
        let outcome = loop {
            match self.next() {
                Some(SupervisorEvent::ProcessEnded) => {
                    if let Some(outcome) = self.tree.reap() {
                        break outcome;
                    }
                    let _ = self.reaped.send(());
                }
                Some(SupervisorEvent::Woken) => self.read_stop_request(),
                Some(SupervisorEvent::OutputEnded) => self.output_ended = true,
                None => {
                    self.tree.kill();
                    self.deadline = None;
                }
            }
        };
        let at = Timestamp::now().0;
        self.tree.kill_remaining();
        self.wait_for_output();
        EndRecord { at, outcome, stop_request: self.stop_request }
    }

    /// The next event; none if the grace period ends first.
    fn next(&self) -> Option<SupervisorEvent> {
        let Some(deadline) = self.deadline else {
            let event = self.events.recv();
            return Some(event.expect("a thread waits for processes until the child is reaped"));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.events.recv_timeout(left).ok()
    }

    /// Follows the first request to stop.
    fn read_stop_request(&mut self) {
        if self.stop_request.is_none()
            && let Ok(Some(request)) = self.folder.stop_request()
        {
            self.stop_request = Some(request);
            self.tree.terminate();
            self.deadline = Some(Instant::now() + GRACE_PERIOD);
        }
    }

    /// Waits for the end of the output.
    fn wait_for_output(&mut self) {
        let deadline = Instant::now() + OUTPUT_TIMEOUT;
        while !self.output_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(SupervisorEvent::OutputEnded) => self.output_ended = true,
                Ok(SupervisorEvent::ProcessEnded | SupervisorEvent::Woken) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Sends an event for each process that has ended. The receiver reaps it, and it alone sends
/// signals, so no signal reaches a later process with the same pid.
fn wait_for_processes(to: &Sender<SupervisorEvent>, resume: &Receiver<()>) {
    while process_tree::wait_for_an_end() {
        if to.send(SupervisorEvent::ProcessEnded).is_err() || resume.recv().is_err() {
            return;
        }
    }
}

fn wait_for_wakes(to: &Sender<SupervisorEvent>, mut wake: File) {
    // First without a wake: for a request made after `stop` was read and before the child.
    while to.send(SupervisorEvent::Woken).is_ok() {
        if let Err(err) = wake.read(&mut [0; 64])
            && err.kind() != io::ErrorKind::Interrupted
        {
            return;
        }
    }
}
