//! The command line.
//!
//! Results go to stdout, everything else to stderr. The exit code names the kind of a failure.

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

/// The command succeeded.
pub const OK: u8 = 0;
/// The question failed, or the command did.
pub const FAILED: u8 = 1;
/// The arguments are invalid. (clap uses the same code.)
pub const USAGE: u8 = 2;
/// The network cannot be reached.
pub const UNREACHABLE: u8 = 3;
/// The service does not exist.
pub const NOT_FOUND: u8 = 4;
/// No answer came within the timeout.
pub const TIMED_OUT: u8 = 124;
/// Ctrl-C or a signal ended the command.
pub const INTERRUPTED: u8 = 130;

/// A service network of Octue Twined: on a laptop, or the daemon in a cluster
///
/// Start with `twined demo`: it runs a network on this machine, asks one question, and prints its
/// events and its answer.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 the question failed, 2 usage, 3 unreachable, \
    4 not found, 124 timed out, 130 interrupted.")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Filter of the logs on stderr, in the syntax of `RUST_LOG`
    #[arg(long, global = true, env = "TWINED_LOG", value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a network on this machine, ask one question, and print its events and its answer
    Demo(demo::Args),
    /// Run a network on this machine, with the services in the given folders
    Local(local::Args),
    /// Run the daemon of a network: the event handler and autoscaler of a cluster
    Serve(Box<serve::Args>),
    /// Check everything that `twined serve` and its questions need, and print the remedies
    Doctor(Box<doctor::Args>),
    /// Print the variables with which Google's clients and the Octue SDK use the local network
    Env(env::Args),
    /// Ask a question, wait, and print the answer
    Ask(ask::Args),
    /// Run the Pub/Sub emulator alone
    Emulator(local::EmulatorArgs),
    /// Answer one question as the service of `twined demo`; the daemon starts it
    #[command(hide = true)]
    ExampleService(example::Args),
}

/// Why a command failed, with its exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    error: Box<dyn Error + Send + Sync>,
}

/// Runs the command of the process's arguments.
pub fn run() -> ExitCode {
    // First, because each run has a supervisor: it must use little memory.
    if let Some(folder) = process::supervisor_folder(std::env::args_os()) {
        return process::supervise(&folder);
    }
    let Cli { command, log } = Cli::parse_arguments();
    let level = match &command {
        Command::Local(_) | Command::Emulator(_) | Command::Serve(_) => "info",
        // Their last line has the failure.
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
    /// The arguments and the environment; invalid ones end the process.
    fn parse_arguments() -> Self {
        let command = ignore_empty_variables(Self::command());
        let parsed = Self::from_arg_matches(&command.clone().get_matches());
        parsed.unwrap_or_else(|error| error.with_cmd(&command).exit())
    }
}

/// Ignores empty variables: a Helm chart sets them for values that are not given.
fn ignore_empty_variables(command: clap::Command) -> clap::Command {
    let empty =
        |name: &OsStr| name.to_str().and_then(config::env_variable).is_some_and(|v| v.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(ignore_empty_variables)
}

fn block_on(command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = Runtime::new().map_err(Failure::failed)?;
    let outcome = runtime.block_on(command);
    // Threads are not awaited: a name lookup or a read of the store may hang. The command has
    // awaited all necessary work.
    runtime.shutdown_background();
    outcome
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal.
async fn interrupted() {
    Signals::listen().next().await;
}

/// SIGINT, SIGTERM and SIGHUP. Once listened to, they do not end the process by themselves.
struct Signals([Option<Signal>; 3]);

// === impl Signals ===

impl Signals {
    fn listen() -> Self {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        // Without a handler, the signal ends the process.
        Self(kinds.map(|kind| signal(kind).ok()))
    }

    /// Waits for the next signal.
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

/// What this host provides for services that run as processes.
fn process_host(services: Vec<ProcessService>) -> Result<ProcessHost, Failure> {
    let program = config::own_program().map_err(Failure::failed)?;
    Ok(ProcessHost { services, inherited: config::environment(), program })
}
