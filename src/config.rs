//! Settings, read and checked at the door: nothing is opened before all of them are right.

use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The topic that the SDK uses where nothing else is said.
pub const DEFAULT_TOPIC: &str = "main.octue.twined.services";

/// The port of the local network's HTTP server where nothing else is said.
pub const DEFAULT_HTTP_PORT: u16 = 8094;

/// The port that Google's own Pub/Sub emulator has in its examples, so that of ours too.
pub const DEFAULT_PUBSUB_PORT: u16 = 8085;

/// The project of a laptop's network. Any other names the same network there.
pub const DEFAULT_PROJECT: &str = "twined-local";

/// Where a person's commands look for the local network.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8094";

/// Settings of a network on a laptop.
#[derive(Args, Clone, Debug)]
pub struct LocalArgs {
    /// Folders with an `octue.yaml`, or folders of such folders [default: the current one]
    #[arg(value_name = "DIR")]
    pub services: Vec<PathBuf>,

    /// Revision tag of the services
    #[arg(long, env = "OCTUE_SERVICE_REVISION_TAG", default_value = "local")]
    pub tag: String,

    /// Name of the network's topic
    #[arg(long, env = "TWINED_SERVICES_TOPIC_NAME", default_value = DEFAULT_TOPIC)]
    pub topic: String,

    /// Google Cloud project that the network pretends to be in
    #[arg(long, env = "TWINED_PROJECT", default_value = DEFAULT_PROJECT)]
    pub project: String,

    /// Folder that keeps the events, the runs and their output
    #[arg(long, env = "TWINED_DATA", default_value = ".twined", value_name = "DIR")]
    pub data: PathBuf,

    /// Keep everything in a folder that goes when the network ends, not in `--data`
    #[arg(long)]
    pub ephemeral: bool,

    /// Port of the HTTP server on loopback; 0 for a free one
    #[arg(long, env = "TWINED_HTTP_PORT", default_value_t = DEFAULT_HTTP_PORT)]
    pub http_port: u16,

    /// Port of the Pub/Sub emulator on loopback; 0 for a free one
    #[arg(long, env = "TWINED_PUBSUB_PORT", default_value_t = DEFAULT_PUBSUB_PORT)]
    pub pubsub_port: u16,

    /// Use the Pub/Sub emulator that runs there, and start none
    #[arg(long, env = "TWINED_PUBSUB", value_name = "HOST:PORT")]
    pub pubsub: Option<String>,

    /// How many questions run at once [default: one for each CPU]
    ///
    /// The rest wait, in order. A question that was asked by one that runs does not count, for
    /// its parent waits for it.
    #[arg(long, env = "TWINED_MAX_RUNS", value_name = "N")]
    pub max_runs: Option<NonZeroUsize>,

    /// Environment variable for the services; without a value, ours is passed on
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,

    /// File of environment variables for the services
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
}

/// What is wrong with a setting, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--env` without a name.
    #[error("`--env {0}` names no variable: expected NAME or NAME=VALUE")]
    NoName(String),
    /// `--env NAME` of a variable that we do not have.
    #[error("`--env {0}` passes on a variable that is not set: set it, or give `--env {0}=VALUE`")]
    NotSet(String),
    /// A file of variables that cannot be read.
    #[error("failed to read `--env-file {}`", path.display())]
    EnvFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of variables that has something else in it. What it is may be a secret.
    #[error("`--env-file {}` is wrong after its variable {read}: expected NAME=VALUE", path.display())]
    EnvLine {
        /// Which.
        path: PathBuf,
        /// How many variables were read before it.
        read: usize,
    },
    /// A port that is taken.
    #[error(
        "port {port} for {what} is taken: end what listens there, or choose another with `{flag}`"
    )]
    Port {
        /// Which.
        port: u16,
        /// What it is for.
        what: &'static str,
        /// What sets it.
        flag: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

// === impl LocalArgs ===

impl LocalArgs {
    /// How many questions may run at once.
    pub fn max_runs(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        self.max_runs.map_or_else(cpus, NonZeroUsize::get)
    }

    /// The variables that the services get beside the network's own: those of the files, then
    /// those of the flags, and of several of one name the last.
    pub fn environment(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            let failed = |error, read| match error {
                dotenvy::Error::Io(source) => ConfigError::EnvFile { path: path.clone(), source },
                _ => ConfigError::EnvLine { path: path.clone(), read },
            };
            let pairs = dotenvy::from_path_iter(path).map_err(|error| failed(error, 0))?;
            for (read, pair) in pairs.enumerate() {
                variables.extend([pair.map_err(|error| failed(error, read))?]);
            }
        }
        for text in &self.env {
            variables.extend([variable(text)?]);
        }
        Ok(variables)
    }
}

fn variable(text: &str) -> Result<(String, String), ConfigError> {
    if text.is_empty() {
        return Err(ConfigError::NoName(String::new()));
    }
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, ours(text).ok_or_else(|| ConfigError::NotSet(text.to_owned()))?),
    };
    if name.is_empty() {
        return Err(ConfigError::NoName(text.to_owned()));
    }
    Ok((name.to_owned(), value))
}

/// A variable of our own environment.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
pub fn ours(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// All of our own environment.
pub fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// Our own program, to be started again as a supervisor or as the example service.
pub fn program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// A port of loopback. Zero is any free one.
pub fn bind(
    port: u16,
    what: &'static str,
    flag: &'static str,
) -> Result<std::net::TcpListener, ConfigError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| ConfigError::Port { port, what, flag, source })
}

/// A path that holds wherever it is used from.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        local: LocalArgs,
    }

    fn environment(args: &[&str]) -> Result<BTreeMap<String, String>, ConfigError> {
        let args = ["twined"].iter().chain(args);
        Cli::try_parse_from(args).map_err(|error| error.to_string()).unwrap().local.environment()
    }

    #[test]
    fn the_last_of_several_variables_of_one_name_holds() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.env");
        std::fs::write(&file, "A=1\nexport B=\"two words\" # why\n").unwrap();
        let file = file.to_str().unwrap();
        let variables =
            environment(&["--env-file", file, "--env", "A=2", "--env", "C=x=y"]).unwrap();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(variables, [("A", "2"), ("B", "two words"), ("C", "x=y")]);
    }

    #[test]
    fn a_variable_without_a_value_is_ours() {
        assert_eq!(environment(&["--env", "PATH"]).unwrap()["PATH"], ours("PATH").unwrap());
        let error = environment(&["--env", "TWINED_NO_SUCH"]).unwrap_err();
        assert!(matches!(error, ConfigError::NotSet(name) if name == "TWINED_NO_SUCH"));
        assert!(matches!(environment(&["--env", "=x"]), Err(ConfigError::NoName(_))));
    }

    #[test]
    fn a_taken_port_names_the_flag_that_chooses_another() {
        let taken = bind(0, "the test", "--test-port").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(port, "the test", "--test-port").unwrap_err();
        assert!(error.to_string().contains("--test-port"), "{error}");
    }
}
