//! The command line: what a person types, and what he reads.
//!
//! Data goes to stdout and everything else to stderr. What ends a command is told by its exit
//! code.

mod ask;
mod demo;
mod doctor;
mod env;
mod example;
mod local;
mod network;
mod serve;
mod terminal;
use crate::chain::Chain;
use crate::config::{self, ConfigError};
use crate::daemon::{DaemonError, ProcessHost};
use crate::runner::process::{self, ProcessService};
use crate::telemetry::LogStyle;
use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::error::Error;
use std::ffi::OsStr;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was asked for was done.
pub const OK: u8 = 0;
/// The question failed, or something of ours did.
pub const FAILED: u8 = 1;
/// The command was given wrong arguments. (So does clap end a command.)
pub const USAGE: u8 = 2;
/// The network cannot be reached.
pub const UNREACHABLE: u8 = 3;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 4;
/// No answer came in the time that was given.
pub const TIMED_OUT: u8 = 124;
/// Ctrl-C came first.
pub const INTERRUPTED: u8 = 130;

/// A service network of Octue Twined: on a laptop, or the daemon in a cluster
///
/// Start with `twined demo`: it runs a whole network, asks one question and shows all that
/// happens.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 the question failed, 2 usage, 3 unreachable, \
    4 not found, 124 timed out, 130 interrupted.")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Logs to show on stderr, in the syntax of `RUST_LOG`
    #[arg(long, global = true, env = "TWINED_LOG", value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole network, ask it one question, and show all that happens
    Demo(demo::Args),
    /// Run a network on this machine, with the services in the given folders
    Local(local::Args),
    /// Run the daemon of a network: the event handler and autoscaler of a cluster
    Serve(Box<serve::Args>),
    /// Look at all that the daemon and its questions need, and say how to mend what is missing
    Doctor(Box<doctor::Args>),
    /// Print what makes Google's clients and the Octue SDK use the local network
    Env(env::Args),
    /// Ask a question, wait, and print the answer
    Ask(ask::Args),
    /// Run the Pub/Sub emulator alone
    Emulator(local::EmulatorArgs),
    /// Answer one question as the demo's service: what the daemon starts, not a person
    #[command(hide = true)]
    ExampleService(example::Args),
}

/// What ends a command early, with its exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    error: Box<dyn Error + Send + Sync>,
}

/// Runs the command that the process was given.
pub fn run() -> ExitCode {
    // Before anything else: one of these is in memory for each run.
    if let Some(folder) = process::supervisor_folder(std::env::args_os()) {
        return process::supervise(&folder);
    }
    let Cli { command, log } = Cli::given();
    let level = match &command {
        Command::Local(_) | Command::Emulator(_) | Command::Serve(_) => "info",
        // What stands in the way of an answer is told in the end.
        Command::Ask(_) | Command::Doctor(_) => "error",
        Command::Demo(_) | Command::Env(_) | Command::ExampleService(_) => "warn",
    };
    let style = match &command {
        Command::Serve(args) => args.log_style(),
        _ => LogStyle::Text,
    };
    crate::telemetry::install_logs(level, log.as_deref(), style);
    let outcome = match command {
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Local(args) => block_on(local::run(args)),
        Command::Serve(args) => block_on(serve::run(*args)),
        Command::Doctor(args) => block_on(doctor::run(*args)),
        Command::Env(args) => block_on(env::run(args)),
        Command::Ask(args) => block_on(ask::run(args)),
        Command::Emulator(args) => block_on(local::emulator(args)),
        Command::ExampleService(args) => block_on(example::run(args)),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) if style == LogStyle::Json => {
            serve::log_failure(&failure);
            ExitCode::from(failure.code)
        }
        Err(Failure { code, error }) => {
            terminal::note(&format!("twined: {}", terminal::safe(&Chain(&*error).to_string())));
            ExitCode::from(code)
        }
    }
}

// === impl Cli ===

impl Cli {
    /// What the arguments and the environment say; where they are wrong, the process ends.
    fn given() -> Self {
        let command = without_empty(Self::command());
        let given = Self::from_arg_matches(&command.clone().get_matches());
        given.unwrap_or_else(|error| error.with_cmd(&command).exit())
    }
}

/// An empty variable is one that is not set: so it is in a chart.
fn without_empty(command: clap::Command) -> clap::Command {
    let empty =
        |name: &OsStr| name.to_str().and_then(config::env_variable).is_some_and(|v| v.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(without_empty)
}

fn block_on(command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = Runtime::new().map_err(Failure::failed)?;
    let outcome = runtime.block_on(command);
    // Not awaited: a look-up of a name, or a read of the store, may hang for longer than an end may
    // take. All that must be done was awaited.
    runtime.shutdown_background();
    outcome
}

/// Ends when a person or a system asks the process to: Ctrl-C, SIGTERM, or a terminal that is
/// closed.
async fn interrupted() {
    Signals::listen().next().await;
}

/// What a person or a system ends the process with. From when it listens on none ends it by itself.
struct Signals([Option<Signal>; 3]);

// === impl Signals ===

impl Signals {
    fn listen() -> Self {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        // No handler to be had: the signal ends us without our doing.
        Self(kinds.map(|kind| signal(kind).ok()))
    }

    /// Waits for the next.
    async fn next(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        let wait = async |signal: &mut Option<Signal>| match signal {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        };
        tokio::select! {
            () = wait(interrupt) => {}
            () = wait(terminate) => {}
            () = wait(hangup) => {}
        }
    }
}

// === impl Failure ===

impl Failure {
    fn new(code: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code, error: error.into() }
    }

    fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(FAILED, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(USAGE, error)
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let code = match &error {
            DaemonError::Config(_) | DaemonError::Connect(_) => USAGE,
            // For example a name that no topic can have.
            DaemonError::Topic(call) if call.is_refused() => USAGE,
            DaemonError::Topic(_) | DaemonError::Subscriptions(_) => UNREACHABLE,
            DaemonError::Preflight(_)
            | DaemonError::Data(_)
            | DaemonError::Store(_)
            | DaemonError::Runner(_)
            | DaemonError::Subscribe(_)
            | DaemonError::Listen(_)
            | DaemonError::Thread(_)
            | DaemonError::Task(_) => FAILED,
        };
        Self::new(code, error)
    }
}

/// What this host gives to the questions of services that run as processes.
fn process_host(services: Vec<ProcessService>) -> Result<ProcessHost, Failure> {
    let program = config::own_program().map_err(Failure::failed)?;
    Ok(ProcessHost { services, inherited: config::environment(), program })
}
