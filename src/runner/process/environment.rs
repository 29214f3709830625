//! What is in a child's environment: clean, so that nothing of ours leaks into it.
//!
//! Of two that name one variable the later wins:
//!
//! 1. what a program needs of the person's own environment, [`INHERITED`] and no other;
//! 2. the service's `.env`;
//! 3. what the contract and the network give;
//! 4. what the person passes on with `--env` and `--env-file`;
//! 5. what a run cannot go without.
//!
//! The network wins over `.env`, as it does wherever `.env` files are read (a variable that is set
//! stays): a real service's `.env` often names the credentials and the project of its real
//! network, which must not take the child out of this one. Who passes a variable on by hand means
//! it, and wins over both.

use crate::sdk::variables;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// What is taken of our own environment; `LC_*` too.
pub const INHERITED: [&str; 12] = [
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

/// Names the run's folder: what a process of a run is known by.
pub const RUN: &str = "TWINED_RUN";

const PATH: &str = "PATH";
const PYTHONPATH: &str = "PYTHONPATH";
/// Where programs are looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A child's environment.
pub type Environment = BTreeMap<OsString, OsString>;

/// What a child's environment is made of.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Our own environment.
    pub inherited: &'a [(OsString, OsString)],
    /// The service's `.env`.
    pub dotenv: &'a [(String, String)],
    /// The contract's and the network's.
    pub network: &'a [(String, String)],
    /// The service's revision tag.
    pub tag: &'a str,
    /// What the person passes on.
    pub passed: &'a [(String, String)],
    /// What is put first on Python's path.
    pub shim: Option<&'a Path>,
    /// The run's folder.
    pub run: &'a Path,
    /// The file with the question's inputs.
    pub question: &'a Path,
}

// === impl Sources ===

impl Sources<'_> {
    /// Puts it together.
    pub fn environment(&self) -> Environment {
        let mut all = Environment::new();
        all.insert(PATH.into(), DEFAULT_PATH.into());
        all.extend(self.inherited.iter().filter(|(name, _)| is_inherited(name)).cloned());
        all.extend(owned(self.dotenv));
        all.extend(owned(self.network));
        all.insert(variables::SERVICE_REVISION_TAG.into(), self.tag.into());
        // What is printed just before a kill is to be seen.
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

/// Makes the child's own programs those of its virtual environment, as activating it would.
pub fn activate(environment: &mut Environment, venv: &Path) {
    put_first(environment, PATH, &venv.join("bin"));
    environment.insert("VIRTUAL_ENV".into(), venv.into());
}

/// Where programs are looked for.
pub fn path(environment: &Environment) -> &OsStr {
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

    fn sources<'a>() -> Sources<'a> {
        Sources {
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
    fn nothing_of_ours_leaks() {
        let ours: Vec<(OsString, OsString)> = [
            ("HOME", "/home/me"),
            ("LC_TIME", "C"),
            ("PYTHONPATH", "/ours"),
            ("TWINED_DATA", "/data"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/real.json"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();

        let environment = Sources { inherited: &ours, ..sources() }.environment();

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

        let environment = Sources {
            inherited: &inherited,
            dotenv: &dotenv,
            network: &network,
            passed: &passed,
            ..sources()
        }
        .environment();

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
    fn the_shim_comes_first_on_the_path_of_python() {
        let shim = Some(Path::new("/shim"));
        let alone = Sources { shim, ..sources() }.environment();
        assert_eq!(get(&alone, PYTHONPATH), Some("/shim"));

        let dotenv = pairs(&[(PYTHONPATH, "src:lib")]);
        let both = Sources { shim, dotenv: &dotenv, ..sources() }.environment();
        assert_eq!(get(&both, PYTHONPATH), Some("/shim:src:lib"));
    }

    #[test]
    fn a_virtual_environment_is_activated() {
        let mut environment = sources().environment();
        activate(&mut environment, Path::new("/service/.venv"));
        assert_eq!(
            get(&environment, PATH),
            Some("/service/.venv/bin:/usr/local/bin:/usr/bin:/bin")
        );
        assert_eq!(get(&environment, "VIRTUAL_ENV"), Some("/service/.venv"));
    }
}
