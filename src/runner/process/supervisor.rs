//! The parent of a run's child: a small process of ours, which outlives the daemon.
//!
//! ```text
//! plan (stdin) -> order? -> started (once) -> child -> waits -> kills what is left -> end.json
//! ```
//!
//! It holds the run's `life` (stdout) for as long as it lives. It has a session of its own, so
//! that no terminal ends it, and takes in the orphans of its tree, so that none escapes it. It
//! does nothing but wait, in plain threads: a runtime would only cost memory, once for each run.

pub mod output;
pub mod tree;

use crate::chain::Chain;
use crate::event::Timestamp;
use crate::runner::process::folder::Folder;
use crate::runner::process::record::{Ending, How, Order, Plan};
use output::Output;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;
use tokio::time::Instant;
use tree::Tree;

/// How long a child may take to end by itself once it is told to: as a pod of a cluster.
pub const GRACE: Duration = Duration::from_secs(3);

/// How long to wait for the end of the output when all processes that we know of are gone. Where
/// none can escape us it comes at once.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often, and how many times, a full disk is tried again for the record of the end.
const RECORD_EVERY: Duration = Duration::from_secs(1);
const RECORD_TIMES: u32 = 600;

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("failed to read the plan")]
    Plan(#[source] io::Error),
    #[error("failed to read or write the run's folder")]
    Folder(#[source] io::Error),
}

/// What happens while a child runs.
#[derive(Debug)]
enum Happening {
    /// A process of the tree has ended, and is to be taken note of.
    Ended,
    /// There may be an order.
    Woken,
    /// All of the output is in its file.
    OutputEnded,
}

/// What a supervisor has in hand while a child runs.
#[derive(Debug)]
struct Supervisor<'a> {
    folder: &'a Folder,
    tree: Tree,
    happenings: Receiver<Happening>,
    /// Lets the thread that waits for processes go on.
    noted: Sender<()>,
    order: Option<Order>,
    /// When the grace ends.
    deadline: Option<Instant>,
    output_ended: bool,
}

/// Runs the child of a run, to its end and that of all its processes.
///
/// For the hidden command of our own binary: it expects to be started by a runner.
pub fn supervise(folder: &Path) -> ExitCode {
    match run(&Folder::at(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // It goes to the run's folder. That it cannot be told is not to be told either.
            let _ = writeln!(io::stderr(), "{}", Chain(&err));
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Folder) -> Result<(), SuperviseError> {
    tree::detach();
    let plan = read_plan(io::stdin()).map_err(SuperviseError::Plan)?;

    // Open before the look at the order: one that is given after the look wakes us.
    let wakes = folder.wakes().map_err(SuperviseError::Folder)?;
    if let Some(order) = folder.order().map_err(SuperviseError::Folder)? {
        return folder.end(&Ending::ordered(order)).map_err(SuperviseError::Folder);
    }
    if !folder.start(Timestamp::now().0).map_err(SuperviseError::Folder)? {
        // Another one has it.
        return Ok(());
    }
    let spawned = spawn(&plan, folder).map_err(|err| not_started(&plan, &err));
    // It may hold a whole question, and we live as long as the child.
    drop(plan);
    let ending = match spawned {
        Ok((child, output)) => Supervisor::new(folder, &child, wakes, output).wait(),
        Err(why) => Ending::now(How::NotStarted(why)),
    };
    record(folder, &ending)
}

/// A plan that was cut off belongs to a runner that died: it is refused, and nothing has begun.
fn read_plan(mut from: impl Read) -> io::Result<Plan> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn spawn(plan: &Plan, folder: &Folder) -> io::Result<(Child, io::PipeReader)> {
    let (output, out) = io::pipe()?;
    let child = Command::new(&plan.program)
        .args(&plan.arguments)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&plan.folder)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()?;
    // For the person only.
    let _ = folder.note_child(child.id());
    // Whoever looks after runs may be away; then it reads the folder when it is back.
    let _ = io::stdout().write_all(b"\n").and_then(|()| io::stdout().flush());
    Ok((child, output))
}

fn not_started(plan: &Plan, err: &io::Error) -> String {
    let (program, folder) = (plan.program.display(), plan.folder.display());
    let hint = match err.kind() {
        io::ErrorKind::NotFound => {
            "it, or the interpreter that its first line names, is not there; install it again"
        }
        io::ErrorKind::PermissionDenied => "it may not be executed: see `chmod +x`",
        io::ErrorKind::ArgumentListTooLong => {
            "the question's attributes are longer than an argument may be"
        }
        _ => "see whether it runs by hand",
    };
    format!("failed to execute `{program}` in `{folder}`: {err}; {hint}")
}

/// Records the end. It is all that is ever known of it, so a full disk is waited for.
fn record(folder: &Folder, ending: &Ending) -> Result<(), SuperviseError> {
    let (_held, never) = channel::<()>();
    for _ in 1..RECORD_TIMES {
        if folder.end(ending).is_ok() || !folder.path().exists() {
            return Ok(());
        }
        let _ = never.recv_timeout(RECORD_EVERY);
    }
    folder.end(ending).map_err(SuperviseError::Folder)
}

// === impl Supervisor ===

impl<'a> Supervisor<'a> {
    /// Starts the threads that wait: for processes, orders, and output.
    fn new(folder: &'a Folder, child: &Child, wakes: File, output: io::PipeReader) -> Self {
        let (told, happenings) = channel();
        let (noted, go_on) = channel();
        let (newer, older) = folder.outputs();

        let to = told.clone();
        thread::spawn(move || wait_for_processes(&to, &go_on));
        let to = told.clone();
        thread::spawn(move || wait_for_wakes(&to, wakes));
        thread::spawn(move || {
            Output::new(newer, older).keep(output);
            let _ = told.send(Happening::OutputEnded);
        });
        Self {
            folder,
            tree: Tree::new(child),
            happenings,
            noted,
            order: None,
            deadline: None,
            output_ended: false,
        }
    }

    /// Waits for the child's end and ends all that it left.
    fn wait(mut self) -> Ending {
        let how = loop {
            match self.next() {
                Some(Happening::Ended) => {
                    if let Some(how) = self.tree.note() {
                        break how;
                    }
                    let _ = self.noted.send(());
                }
                Some(Happening::Woken) => self.look(),
                Some(Happening::OutputEnded) => self.output_ended = true,
                None => {
                    self.tree.kill();
                    self.deadline = None;
                }
            }
        };
        let at = Timestamp::now().0;
        self.tree.clear();
        self.hear_out();
        Ending { at, how, order: self.order }
    }

    /// What happens next; none where the grace ends first.
    fn next(&self) -> Option<Happening> {
        let Some(deadline) = self.deadline else {
            let happening = self.happenings.recv();
            return Some(
                happening.expect("processes are waited for until the child's end is noted"),
            );
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.happenings.recv_timeout(left).ok()
    }

    /// Obeys an order, the first time that there is one.
    fn look(&mut self) {
        if self.order.is_none()
            && let Ok(Some(order)) = self.folder.order()
        {
            self.order = Some(order);
            self.tree.ask_to_end();
            self.deadline = Some(Instant::now() + GRACE);
        }
    }

    /// Waits for the last of the output.
    fn hear_out(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.output_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.happenings.recv_timeout(left) {
                Ok(Happening::OutputEnded) => self.output_ended = true,
                Ok(Happening::Ended | Happening::Woken) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Tells of each end, and leaves it to the one who is told to take note of it: so no process is
/// signalled by a number that is no longer its own.
fn wait_for_processes(told: &Sender<Happening>, go_on: &Receiver<()>) {
    while tree::wait_for_an_end() {
        if told.send(Happening::Ended).is_err() || go_on.recv().is_err() {
            return;
        }
    }
}

fn wait_for_wakes(told: &Sender<Happening>, mut wakes: File) {
    // Once at first: for an order given between the look and the child.
    while told.send(Happening::Woken).is_ok() {
        if let Err(err) = wakes.read(&mut [0; 64])
            && err.kind() != io::ErrorKind::Interrupted
        {
            return;
        }
    }
}
