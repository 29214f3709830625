//! Settings, read and checked at the door: nothing is opened before all of them are right.

mod local;
mod serve;
mod shared;
use crate::sdk::variables;
pub use local::LocalArgs;
pub use serve::{
    Bus, Defaults, KubernetesSettings, LogFormat, RunnerKind, Runs, ServeArgs, ServeSettings,
};
pub use shared::{HostArgs, ServicesArgs, VariablesArgs};
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The topic that the SDK uses where nothing else is said.
pub const DEFAULT_TOPIC: &str = "main.octue.twined.services";

/// The port of the local network's HTTP server where nothing else is said.
pub const DEFAULT_HTTP_PORT: u16 = 8094;

/// The port that Google's own Pub/Sub emulator has in its examples, so that of ours too.
pub const DEFAULT_PUBSUB_PORT: u16 = 8085;

/// The project of a laptop's network. Any other names the same network there.
pub const DEFAULT_PROJECT: &str = "twined-local";

/// Where the daemon of a cluster serves HTTP where nothing else is said: probes and scrapers come
/// from other machines.
pub const DEFAULT_SERVE_HTTP: &str = "0.0.0.0:8080";

/// Where a person's commands look for the local network.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8094";

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
    /// An address that cannot be listened at.
    #[error("cannot listen at {address} for {what}: choose another address with `{flag}`")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What it is for.
        what: &'static str,
        /// What sets it.
        flag: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A setting that must be given, or that does not go with another.
    #[error("{0}")]
    Setting(String),
    /// The file of settings by service cannot be used.
    #[error("`--settings {}` is wrong", path.display())]
    Settings {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A variable of our own environment.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
pub fn ours(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The folder of this user for files that can be made again.
pub fn cache_folder() -> Option<PathBuf> {
    let given = ours("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = given.or_else(|| Some(PathBuf::from(ours("HOME")?).join(".cache")));
    folder.map(|folder| folder.join("twined"))
}

/// The file of credentials that Google's clients find, by themselves; none where there is none.
pub fn google_credentials() -> Option<PathBuf> {
    let usual = || {
        let home = PathBuf::from(ours("HOME")?);
        Some(home.join(".config/gcloud/application_default_credentials.json"))
    };
    let named = ours(variables::GOOGLE_APPLICATION_CREDENTIALS).map(PathBuf::from);
    named.or_else(|| usual().filter(|path| path.exists()))
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
    bind_at(SocketAddr::from(([127, 0, 0, 1], port)), what, flag)
}

/// An address to listen at. Port zero is any free one.
pub fn bind_at(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<std::net::TcpListener, ConfigError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ConfigError::Port { port: address.port(), what, flag, source },
        _ => ConfigError::Listen { address, what, flag, source },
    })
}

/// A path that holds wherever it is used from.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_the_flag_that_chooses_another() {
        let taken = bind(0, "the test", "--test-port").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(port, "the test", "--test-port").unwrap_err();
        assert!(error.to_string().contains("--test-port"), "{error}");
    }
}
