//! Settings, read and checked together before anything is opened.

mod local;
mod serve;
mod shared;
use crate::sdk::variables;
pub use local::LocalArgs;
pub use serve::{
    DefaultResources, KubernetesSettings, LogFormat, PubsubChoice, RunnerKind, RunnerSettings,
    ServeArgs, ServeSettings,
};
pub use shared::{HostArgs, ServicesArgs, VariablesArgs};
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The topic that the SDK uses by default.
pub const DEFAULT_TOPIC: &str = "main.octue.twined.services";

/// The default port of the local network's HTTP server.
pub const DEFAULT_HTTP_PORT: u16 = 8094;

/// The default port of the emulator, which Google's own emulator uses in its examples.
pub const DEFAULT_PUBSUB_PORT: u16 = 8085;

/// The default project of a network with an emulator. Any other names the same network there.
pub const DEFAULT_PROJECT: &str = "twined-local";

/// The default HTTP address of `twined serve`: probes and scrapers come from other machines.
pub const DEFAULT_SERVE_HTTP: &str = "0.0.0.0:8080";

/// Where commands look for the local network by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8094";

/// An invalid setting: what is wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--env` without a name.
    #[error("`--env {0}` names no variable: expected NAME or NAME=VALUE")]
    NoName(String),
    /// `--env NAME` of a variable that is not set.
    #[error("`--env {0}` copies a variable that is not set: set it, or give `--env {0}=VALUE`")]
    NotSet(String),
    /// A file of variables that cannot be read.
    #[error("failed to read `--env-file {}`", path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A line of a file of variables is not a variable. Its text may be a secret.
    #[error("line {line} of `--env-file {}` is not NAME=VALUE", path.display())]
    EnvLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A port that is in use.
    #[error(
        "port {port} for {server} is in use: stop the process that listens there, or choose \
         another port with `{flag}`"
    )]
    Port {
        /// The port.
        port: u16,
        /// The server that needs it.
        server: &'static str,
        /// The flag that chooses another.
        flag: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// An address at which we cannot listen.
    #[error("{server} cannot listen at {address}: choose another address with `{flag}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The server that needs it.
        server: &'static str,
        /// The flag that chooses another.
        flag: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A setting that is missing, malformed, or in conflict with another.
    #[error("{0}")]
    Setting(String),
    /// The file of settings by service cannot be read, or is not valid.
    #[error("failed to read `--settings {}`", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A variable of our own environment, if it is set and valid Unicode.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
pub fn env_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The folder of this user for files that can be made again.
pub fn cache_folder() -> Option<PathBuf> {
    let given = env_variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = given.or_else(|| Some(PathBuf::from(env_variable("HOME")?).join(".cache")));
    folder.map(|folder| folder.join("twined"))
}

/// The file of credentials that Google's clients find by themselves, if there is one.
pub fn google_credentials() -> Option<PathBuf> {
    let usual = || {
        let home = PathBuf::from(env_variable("HOME")?);
        Some(home.join(".config/gcloud/application_default_credentials.json"))
    };
    let named = env_variable(variables::GOOGLE_APPLICATION_CREDENTIALS).map(PathBuf::from);
    named.or_else(|| usual().filter(|path| path.exists()))
}

/// All variables of our own environment.
pub fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// The path of our own program, to start it as a supervisor or as the example service.
pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Listens at a port of loopback; 0 for any free port.
pub fn bind_loopback(
    port: u16,
    server: &'static str,
    flag: &'static str,
) -> Result<std::net::TcpListener, ConfigError> {
    bind(SocketAddr::from(([127, 0, 0, 1], port)), server, flag)
}

/// Listens at an address; port 0 for any free port.
pub fn bind(
    address: SocketAddr,
    server: &'static str,
    flag: &'static str,
) -> Result<std::net::TcpListener, ConfigError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => {
            ConfigError::Port { port: address.port(), server, flag, source }
        }
        _ => ConfigError::Listen { address, server, flag, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_port_in_use_names_the_flag_that_chooses_another() {
        let taken = bind_loopback(0, "the test", "--test-port").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind_loopback(port, "the test", "--test-port").unwrap_err();
        assert!(error.to_string().contains("--test-port"), "{error}");
    }
}
