//! Settings of both `twined local` and `twined serve`.

use crate::config::{ConfigError, env_variable};
use crate::dotenv::{self, DotenvError};
use crate::request_guard::HostName;
use crate::sdk::variables;
use clap::Args;
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Services in folders, run as processes.
#[derive(Args, Clone, Debug)]
pub struct ServicesArgs {
    /// Folders with an `octue.yaml`, or folders of such folders [default: the current one]
    #[arg(value_name = "DIR")]
    pub services: Vec<PathBuf>,

    /// Revision tag of the services in folders
    #[arg(long, env = variables::SERVICE_REVISION_TAG, default_value = "local")]
    pub tag: String,

    /// Number of questions that may run at a time as processes [default: number of CPUs]
    ///
    /// Others wait, in order. A question of a running question does not count, because its parent
    /// waits for it.
    #[arg(long, env = "TWINED_MAX_RUNS", value_name = "N")]
    pub max_runs: Option<NonZeroUsize>,
}

/// Names of this host for clients of our HTTP servers.
#[derive(Args, Clone, Debug, Default)]
pub struct HostArgs {
    /// Name of this host that HTTP clients may use besides its addresses and `localhost`
    ///
    /// A server that listens on loopback refuses requests for any other name, because a web page
    /// can make its own name resolve to this host. With a name given, so does a server that other
    /// hosts can reach. Repeat it, or separate names by commas. gRPC clients may use any name.
    #[arg(
        long = "allow-host",
        env = "TWINED_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_host: Vec<HostName>,
}

/// Variables for the services.
#[derive(Args, Clone, Debug, Default)]
pub struct VariablesArgs {
    /// Environment variable for the services; without a value, it is copied from this process
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,

    /// File of environment variables for the services
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
}

// === impl ServicesArgs ===

impl ServicesArgs {
    /// Number of questions that may run at a time.
    pub fn max_runs(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        self.max_runs.map_or_else(cpus, NonZeroUsize::get)
    }
}

impl Default for ServicesArgs {
    /// The defaults of the flags.
    fn default() -> Self {
        Self { services: Vec::new(), tag: "local".to_owned(), max_runs: None }
    }
}

// === impl VariablesArgs ===

impl VariablesArgs {
    /// The variables for the services besides those of the network. Flags win over files, later
    /// ones over earlier ones.
    pub fn variables(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            let failed = |source| ConfigError::EnvFile { path: path.clone(), source };
            let bytes = fs::read(path).map_err(failed)?;
            variables.extend(dotenv::parse(&bytes).map_err(|error| match error {
                DotenvError::Line(line) => ConfigError::EnvLine { path: path.clone(), line },
                DotenvError::Text(source) => failed(source),
            })?);
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
        None => (text, env_variable(text).ok_or_else(|| ConfigError::NotSet(text.to_owned()))?),
    };
    if name.is_empty() {
        return Err(ConfigError::NoName(text.to_owned()));
    }
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        variables: VariablesArgs,
    }

    fn variables(args: &[&str]) -> Result<BTreeMap<String, String>, ConfigError> {
        let args = ["twined"].iter().chain(args);
        Cli::try_parse_from(args).map_err(|error| error.to_string()).unwrap().variables.variables()
    }

    #[test]
    fn the_last_of_several_variables_with_one_name_wins() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.env");
        std::fs::write(&file, "A=1\nexport B=\"two words\" # why\n").unwrap();
        let file = file.to_str().unwrap();
        let variables = variables(&["--env-file", file, "--env", "A=2", "--env", "C=x=y"]).unwrap();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(variables, [("A", "2"), ("B", "two words"), ("C", "x=y")]);
    }

    #[test]
    fn a_variable_without_a_value_is_copied_from_our_environment() {
        assert_eq!(variables(&["--env", "PATH"]).unwrap()["PATH"], env_variable("PATH").unwrap());
        let error = variables(&["--env", "TWINED_NO_SUCH"]).unwrap_err();
        assert!(matches!(error, ConfigError::NotSet(name) if name == "TWINED_NO_SUCH"));
        assert!(matches!(variables(&["--env", "=x"]), Err(ConfigError::NoName(_))));
    }
}
