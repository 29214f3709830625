//! The environment of a child. It has no other variables of the daemon's environment than
//! [`INHERITED`].
//!
//! If two sources set a variable, the later one wins:
//!
//! 1. the daemon's environment: the variables of [`INHERITED`];
//! 2. the service's `.env`;
//! 3. the SDK's contract and the network;
//! 4. `--env` and `--env-file`;
//! 5. what every run needs.
//!
//! The network wins over `.env`, because the `.env` of a service often names the credentials and
//! the project of its production network. A variable of `--env` is set on purpose, and wins over
//! both.

use crate::sdk::variables;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The variables that a child inherits from the daemon, with every `LC_*`.
pub(super) const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
];

/// The variable with the run's folder, by which the processes of a run are found.
pub(super) const RUN: &str = "TWINED_RUN";

const PATH: &str = "PATH";
const PYTHONPATH: &str = "PYTHONPATH";
/// The `PATH` of a child if no source sets one.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A child's environment.
pub(super) type Environment = BTreeMap<OsString, OsString>;

/// The sources of a child's environment.
#[derive(Clone, Copy, Debug)]
pub(super) struct EnvironmentSources<'a> {
    /// The daemon's environment.
    pub(super) inherited: &'a [(OsString, OsString)],
    /// The service's `.env`.
    pub(super) dotenv: &'a [(String, String)],
    /// The variables of the SDK's contract and of the network.
    pub(super) network: &'a [(String, String)],
    /// The service's revision tag.
    pub(super) tag: &'a str,
    /// The variables of `--env` and `--env-file`.
    pub(super) passed: &'a [(String, String)],
    /// The folder to put first in `PYTHONPATH`.
    pub(super) shim: Option<&'a Path>,
    /// The run's folder.
    pub(super) run: &'a Path,
    /// The file with the question's inputs.
    pub(super) question: &'a Path,
}

// === impl EnvironmentSources ===

impl EnvironmentSources<'_> {
    /// Merges the sources.
    pub(super) fn merge(&self) -> Environment {
        let mut all = Environment::new();
        all.insert(PATH.into(), DEFAULT_PATH.into());
        all.extend(self.inherited.iter().filter(|(name, _)| is_inherited(name)).cloned());
        all.extend(owned(self.dotenv));
        all.extend(owned(self.network));
        all.insert(variables::SERVICE_REVISION_TAG.into(), self.tag.into());
        // Output printed just before a kill must not stay in a buffer.
        all.insert("PYTHONUNBUFFERED".into(), "1".into());
        all.extend(owned(self.passed));
        if let Some(shim) = self.shim {
            put_first(&mut all, PYTHONPATH, shim);
        }
        all.insert(variables::QUESTION_FILE.into(), self.question.into());
        all.insert(RUN.into(), self.run.into());
        all
    }
}

/// Activates a virtual environment.
pub(super) fn activate(environment: &mut Environment, venv: &Path) {
    put_first(environment, PATH, &venv.join("bin"));
    environment.insert("VIRTUAL_ENV".into(), venv.into());
}

/// The `PATH`.
pub(super) fn path(environment: &Environment) -> &OsStr {
    environment.get(OsStr::new(PATH)).map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str)
}

fn is_inherited(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"))
}

fn owned(pairs: &[(String, String)]) -> impl Iterator<Item = (OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into()))
}

fn put_first(environment: &mut Environment, name: &str, first: &Path) {
    let list = environment.entry(name.into()).or_default();
    let mut all = first.as_os_str().to_owned();
    if !list.is_empty() {
        all.push(":");
        all.push(&*list);
    }
    *list = all;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn sources<'a>() -> EnvironmentSources<'a> {
        EnvironmentSources {
            inherited: &[],
            dotenv: &[],
            network: &[],
            tag: "1.0",
            passed: &[],
            shim: None,
            run: Path::new("/runs/one"),
            question: Path::new("/runs/one/question.json"),
        }
    }

    fn get<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
        environment.get(OsStr::new(name)).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn no_other_variable_of_the_daemon_is_inherited() {
        let inherited: Vec<(OsString, OsString)> = [
            ("HOME", "/home/me"),
            ("LC_TIME", "C"),
            ("PYTHONPATH", "/daemon"),
            ("TWINED_DATA", "/data"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/real.json"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();

        let environment = EnvironmentSources { inherited: &inherited, ..sources() }.merge();

        let names: Vec<_> = environment.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "HOME",
                "LC_TIME",
                "OCTUE_SERVICE_REVISION_TAG",
                "PATH",
                "PYTHONUNBUFFERED",
                "TWINED_QUESTION_FILE",
                "TWINED_RUN"
            ]
        );
        assert_eq!(path(&environment), DEFAULT_PATH);
    }

    #[test]
    fn the_later_source_wins() {
        let inherited = [("TZ".into(), "inherited".into()), ("LANG".into(), "C".into())];
        let dotenv = pairs(&[("TZ", "dotenv"), ("A", "dotenv"), ("B", "dotenv"), ("C", "dotenv")]);
        let network = pairs(&[("B", "network"), ("C", "network")]);
        let passed = pairs(&[("C", "passed"), ("PYTHONUNBUFFERED", ""), ("TWINED_RUN", "passed")]);

        let environment = EnvironmentSources {
            inherited: &inherited,
            dotenv: &dotenv,
            network: &network,
            passed: &passed,
            ..sources()
        }
        .merge();

        for (name, value) in [
            ("LANG", "C"),
            ("TZ", "dotenv"),
            ("A", "dotenv"),
            ("B", "network"),
            ("C", "passed"),
            ("PYTHONUNBUFFERED", ""),
            ("TWINED_RUN", "/runs/one"),
            ("OCTUE_SERVICE_REVISION_TAG", "1.0"),
        ] {
            assert_eq!(get(&environment, name), Some(value), "{name}");
        }
    }

    #[test]
    fn the_shim_comes_first_in_pythonpath() {
        let shim = Some(Path::new("/shim"));
        let alone = EnvironmentSources { shim, ..sources() }.merge();
        assert_eq!(get(&alone, PYTHONPATH), Some("/shim"));

        let dotenv = pairs(&[(PYTHONPATH, "src:lib")]);
        let both = EnvironmentSources { shim, dotenv: &dotenv, ..sources() }.merge();
        assert_eq!(get(&both, PYTHONPATH), Some("/shim:src:lib"));
    }

    #[test]
    fn a_virtual_environment_is_activated() {
        let mut environment = sources().merge();
        activate(&mut environment, Path::new("/service/.venv"));
        assert_eq!(
            get(&environment, PATH),
            Some("/service/.venv/bin:/usr/local/bin:/usr/bin:/bin")
        );
        assert_eq!(get(&environment, "VIRTUAL_ENV"), Some("/service/.venv"));
    }
}
