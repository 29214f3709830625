//! What is to be executed for a run, read anew for each: a change of a service's code, `.env` or
//! virtual environment is what its next question runs.

use crate::dotenv::{self, DotenvError};
use crate::runner::process::environment::{self, Environment, Sources};
use crate::runner::process::folder::{Folder, absent_as_none};
use crate::runner::process::record::{Asked, Plan};
use crate::runner::process::{Options, Service};
use crate::sdk::arguments::{
    self, ARGUMENT_LIMIT, ATTRIBUTES_OPTION, MANIFEST_OPTION, VALUES_OPTION,
};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where a service's folder may have a virtual environment.
const VENVS: [&str; 2] = [".venv", "venv"];

/// Why there is nothing to execute: words for the asker, to follow "could not be started:".
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The service has no folder.
    #[error("its folder `{}` is not there; put it back, or start the network without it", .0.display())]
    NoFolder(PathBuf),
    /// The `.env` is wrong.
    #[error(
        "line {line} of `{}` is not `NAME=value`; correct it, and ask again",
        .file.display()
    )]
    Dotenv {
        /// Which file.
        file: PathBuf,
        /// Which line of it, from 1.
        line: usize,
    },
    /// The command names no program.
    #[error("its command is empty")]
    NoCommand,
    /// There is no such program.
    #[error(
        "there is no program `{}` in `{folder}/.venv/bin`, in `{folder}/venv/bin` or on the PATH \
         `{}`; {}",
        .program.display(),
        .path.display(),
        install(.program, .folder),
        folder = .folder.display(),
    )]
    NoProgram {
        /// What the command names.
        program: PathBuf,
        /// The service's folder.
        folder: PathBuf,
        /// Where else it was looked for.
        path: OsString,
    },
    /// Something that is there cannot be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Plans a run: what to execute, where, and with what.
pub fn plan(
    options: &Options,
    service: &Service,
    folder: &Folder,
    asked: &Asked,
) -> Result<Plan, PlanError> {
    if !service.folder.is_dir() {
        return Err(PlanError::NoFolder(service.folder.clone()));
    }
    let mut environment = Sources {
        inherited: &options.inherited,
        dotenv: &read_dotenv(&service.folder.join(".env"))?,
        network: &options.environment,
        tag: service.sruid.as_sruid().tag(),
        passed: &options.passed,
        shim: options.shim.as_deref(),
        run: folder.path(),
        question: &folder.question_file(),
    }
    .environment();
    let (name, fixed) = service.command.split_first().ok_or(PlanError::NoCommand)?;
    let program = program(name, &service.folder, &mut environment)?;

    let path = folder.question_file();
    let question = fs::read(&path).map_err(|source| PlanError::Read { path, source })?;
    let mut arguments = fixed.to_vec();
    arguments.extend(contract(asked, &question).into_iter().map(OsString::from));
    Ok(Plan {
        service: service.sruid.to_string(),
        program,
        arguments,
        folder: service.folder.clone(),
        environment: environment.into_iter().collect(),
    })
}

/// The arguments of the contract. What is too long for one is left to the question's file.
fn contract(asked: &Asked, question: &[u8]) -> Vec<String> {
    let attributes = arguments::attributes(&asked.attributes);
    let mut arguments = vec![ATTRIBUTES_OPTION.to_owned(), attributes];
    for (option, range) in
        [(VALUES_OPTION, &asked.input_values), (MANIFEST_OPTION, &asked.input_manifest)]
    {
        if let Some(text) = raw(question, range.clone())
            && text.len() <= ARGUMENT_LIMIT
        {
            arguments.extend([option.to_owned(), text.to_owned()]);
        }
    }
    arguments
}

fn raw(question: &[u8], range: Option<Range<usize>>) -> Option<&str> {
    std::str::from_utf8(question.get(range?)?).ok()
}

/// The file to execute: in the service's virtual environment, which is then activated, or on the
/// child's own path.
fn program(
    name: &OsStr,
    folder: &Path,
    environment: &mut Environment,
) -> Result<PathBuf, PlanError> {
    if name.as_encoded_bytes().contains(&b'/') {
        // As a shell in the service's folder would take it; a missing one is told at its start.
        return Ok(folder.join(name));
    }
    for venv in VENVS.map(|venv| folder.join(venv)) {
        let program = venv.join("bin").join(name);
        if is_executable(&program) {
            environment::activate(environment, &venv);
            return Ok(program);
        }
    }
    let path = environment::path(environment);
    std::env::split_paths(path)
        .map(|place| folder.join(place).join(name))
        .find(|program| is_executable(program))
        .ok_or_else(|| PlanError::NoProgram {
            program: name.into(),
            folder: folder.to_owned(),
            path: path.to_owned(),
        })
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn install(program: &Path, folder: &Path) -> String {
    let folder = folder.display();
    if program == Path::new("octue") {
        format!(
            "install it: `pip install octue`, or put a virtual environment that has it in \
             `{folder}/.venv`"
        )
    } else {
        format!("install it, or put a virtual environment that has it in `{folder}/.venv`")
    }
}

/// The variables of a `.env`; none where there is no such file.
fn read_dotenv(file: &Path) -> Result<Vec<(String, String)>, PlanError> {
    let read = |source| PlanError::Read { path: file.to_owned(), source };
    let Some(bytes) = absent_as_none(fs::read(file)).map_err(read)? else { return Ok(Vec::new()) };
    dotenv::parse(&bytes).map_err(|error| match error {
        DotenvError::Line(line) => PlanError::Dotenv { file: file.to_owned(), line },
        DotenvError::Text(source) => read(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const QUESTION: &[u8] = br#"{"input_values":NaN,"input_manifest":{}}"#;

    fn asked() -> Asked {
        Asked {
            sequence: 0,
            launched: 0,
            recipient: "a/b:c".to_owned(),
            parent_question: None,
            attributes: HashMap::from([("forward_logs".to_owned(), "1".to_owned())]),
            input_values: Some(16..19),
            input_manifest: Some(37..39),
        }
    }

    #[test]
    fn inputs_are_arguments_as_they_came() {
        assert_eq!(
            contract(&asked(), QUESTION),
            [
                "--attributes",
                r#"{"forward_logs":"1","retry_count":"0"}"#,
                "--input-values",
                "NaN",
                "--input-manifest",
                "{}"
            ]
        );
    }

    #[test]
    fn what_is_not_given_or_too_long_is_no_argument() {
        let none = Asked { input_values: None, input_manifest: None, ..asked() };
        assert_eq!(contract(&none, b"{}").len(), 2);

        let long = vec![b'1'; ARGUMENT_LIMIT + 1];
        let fits = Asked { input_values: Some(0..ARGUMENT_LIMIT), input_manifest: None, ..asked() };
        assert_eq!(contract(&fits, &long).len(), 4);
        let over = Asked { input_values: Some(0..ARGUMENT_LIMIT + 1), ..fits };
        assert_eq!(contract(&over, &long).len(), 2);
    }

    #[test]
    fn a_wrong_dotenv_is_told_by_file_and_line_and_not_by_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".env");
        assert!(read_dotenv(&file).unwrap().is_empty());

        fs::write(&file, "\u{feff}# first\nA=1\nexport B='two words'\n").unwrap();
        let variables = read_dotenv(&file).unwrap();
        assert_eq!(
            variables,
            [("A", "1"), ("B", "two words")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );

        fs::write(&file, "A=1\n\nno secret here\n").unwrap();
        let message = read_dotenv(&file).unwrap_err().to_string();
        assert!(message.starts_with("line 3 of `"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }

    #[test]
    fn a_program_is_found_in_a_virtual_environment_first() {
        let folder = tempfile::tempdir().unwrap();
        let name = OsStr::new("sh");
        let mut environment = Environment::from([("PATH".into(), "/nowhere:/bin".into())]);
        let on_path = program(name, folder.path(), &mut environment).unwrap();
        assert_eq!(on_path, Path::new("/bin/sh"));
        assert_eq!(environment.len(), 1);

        let own = folder.path().join("venv/bin/sh");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "").unwrap();
        // It cannot be executed yet.
        assert_eq!(program(name, folder.path(), &mut environment).unwrap(), on_path);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program(name, folder.path(), &mut environment).unwrap(), own);
        assert_eq!(environment[OsStr::new("VIRTUAL_ENV")], folder.path().join("venv"));
    }

    #[test]
    fn a_missing_program_is_told_with_the_remedy() {
        let mut environment = Environment::from([("PATH".into(), "/nowhere".into())]);
        let error = program(OsStr::new("octue"), Path::new("/service"), &mut environment);
        assert_eq!(
            error.unwrap_err().to_string(),
            "there is no program `octue` in `/service/.venv/bin`, in `/service/venv/bin` or on the \
             PATH `/nowhere`; install it: `pip install octue`, or put a virtual environment that \
             has it in `/service/.venv`"
        );
    }
}
