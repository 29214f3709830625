//! The command of a run's child. It is determined anew for each run, so a change of a service's
//! code, `.env` or virtual environment takes effect with its next question.

use crate::dotenv::{self, DotenvError};
use crate::runner::process::environment::{self, Environment, EnvironmentSources};
use crate::runner::process::records::{ChildCommand, RunSpec};
use crate::runner::process::run_folder::{RunFolder, absent_as_none};
use crate::runner::process::{ProcessRunnerOptions, ProcessService};
use crate::sdk::arguments::{
    self, ARGUMENT_LIMIT, ATTRIBUTES_OPTION, MANIFEST_OPTION, VALUES_OPTION,
};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The folders in which a service may have a virtual environment.
const VENVS: [&str; 2] = [".venv", "venv"];

/// Why there is no command, for the parent: the end of "failed to start `<service>`: …".
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The service's folder does not exist.
    #[error("its folder `{}` does not exist; put it back, or start the network without it", .0.display())]
    NoFolder(PathBuf),
    /// A line of the `.env` is invalid.
    #[error(
        "line {line} of `{}` is not `NAME=value`; correct it, and ask again",
        .file.display()
    )]
    Dotenv {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The command is empty.
    #[error("its command is empty")]
    NoCommand,
    /// The program was not found.
    #[error(
        "program `{}` not found in `{folder}/.venv/bin`, in `{folder}/venv/bin` or in the PATH `{}`; \
         {}",
        .program.display(),
        .path.display(),
        install(.program, .folder),
        folder = .folder.display(),
    )]
    NoProgram {
        /// The program that the command names.
        program: PathBuf,
        /// The service's folder.
        folder: PathBuf,
        /// The `PATH` that was searched.
        path: OsString,
    },
    /// A file or folder cannot be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The command of a run.
pub(super) fn child_command(
    options: &ProcessRunnerOptions,
    service: &ProcessService,
    folder: &RunFolder,
    spec: &RunSpec,
) -> Result<ChildCommand, CommandError> {
    if !service.folder.is_dir() {
        return Err(CommandError::NoFolder(service.folder.clone()));
    }
    let mut environment = EnvironmentSources {
        inherited: &options.inherited,
        dotenv: &read_dotenv(&service.folder.join(".env"))?,
        network: &options.environment,
        tag: service.sruid.as_sruid().tag(),
        passed: &options.passed,
        shim: options.shim.as_deref(),
        run: folder.path(),
        question: &folder.question_file(),
    }
    .merge();
    let (name, fixed) = service.command.split_first().ok_or(CommandError::NoCommand)?;
    let program = program(name, &service.folder, &mut environment)?;

    let path = folder.question_file();
    let question = fs::read(&path).map_err(|source| CommandError::Read { path, source })?;
    let mut arguments = fixed.to_vec();
    arguments.extend(contract_arguments(spec, &question).into_iter().map(OsString::from));
    Ok(ChildCommand {
        service: service.sruid.to_string(),
        program,
        arguments,
        folder: service.folder.clone(),
        environment: environment.into_iter().collect(),
    })
}

/// The arguments of the SDK's contract. An input that is too long for an argument is in the
/// question's file only.
fn contract_arguments(spec: &RunSpec, question: &[u8]) -> Vec<String> {
    let attributes = arguments::attributes(&spec.attributes);
    let mut arguments = vec![ATTRIBUTES_OPTION.to_owned(), attributes];
    for (option, range) in
        [(VALUES_OPTION, &spec.input_values), (MANIFEST_OPTION, &spec.input_manifest)]
    {
        if let Some(text) = input(question, range.clone())
            && text.len() <= ARGUMENT_LIMIT
        {
            arguments.extend([option.to_owned(), text.to_owned()]);
        }
    }
    arguments
}

fn input(question: &[u8], range: Option<Range<usize>>) -> Option<&str> {
    std::str::from_utf8(question.get(range?)?).ok()
}

/// The file to execute: in the service's virtual environment, which is then activated, or in the
/// child's `PATH`.
fn program(
    name: &OsStr,
    folder: &Path,
    environment: &mut Environment,
) -> Result<PathBuf, CommandError> {
    if name.as_encoded_bytes().contains(&b'/') {
        // As a shell in the service's folder resolves it; the supervisor reports a missing one.
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
        .map(|path| folder.join(path).join(name))
        .find(|program| is_executable(program))
        .ok_or_else(|| CommandError::NoProgram {
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

/// The variables of a `.env`; none if it does not exist.
fn read_dotenv(file: &Path) -> Result<Vec<(String, String)>, CommandError> {
    let read = |source| CommandError::Read { path: file.to_owned(), source };
    let Some(bytes) = absent_as_none(fs::read(file)).map_err(read)? else { return Ok(Vec::new()) };
    dotenv::parse(&bytes).map_err(|error| match error {
        DotenvError::Line(line) => CommandError::Dotenv { file: file.to_owned(), line },
        DotenvError::Text(source) => read(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const QUESTION: &[u8] = br#"{"input_values":NaN,"input_manifest":{}}"#;

    fn spec() -> RunSpec {
        RunSpec {
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
    fn inputs_are_passed_as_received() {
        assert_eq!(
            contract_arguments(&spec(), QUESTION),
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
    fn missing_and_long_inputs_are_no_arguments() {
        let none = RunSpec { input_values: None, input_manifest: None, ..spec() };
        assert_eq!(contract_arguments(&none, b"{}").len(), 2);

        let long = vec![b'1'; ARGUMENT_LIMIT + 1];
        let fits =
            RunSpec { input_values: Some(0..ARGUMENT_LIMIT), input_manifest: None, ..spec() };
        assert_eq!(contract_arguments(&fits, &long).len(), 4);
        let over = RunSpec { input_values: Some(0..ARGUMENT_LIMIT + 1), ..fits };
        assert_eq!(contract_arguments(&over, &long).len(), 2);
    }

    #[test]
    fn an_invalid_dotenv_is_reported_by_line_without_its_text() {
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
    fn a_virtual_environment_comes_before_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let name = OsStr::new("sh");
        let mut environment = Environment::from([("PATH".into(), "/nowhere:/bin".into())]);
        let on_path = program(name, folder.path(), &mut environment).unwrap();
        assert_eq!(on_path, Path::new("/bin/sh"));
        assert_eq!(environment.len(), 1);

        let own = folder.path().join("venv/bin/sh");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "").unwrap();
        // It is not executable yet.
        assert_eq!(program(name, folder.path(), &mut environment).unwrap(), on_path);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program(name, folder.path(), &mut environment).unwrap(), own);
        assert_eq!(environment[OsStr::new("VIRTUAL_ENV")], folder.path().join("venv"));
    }

    #[test]
    fn a_missing_program_is_reported_with_its_remedy() {
        let mut environment = Environment::from([("PATH".into(), "/nowhere".into())]);
        let error = program(OsStr::new("octue"), Path::new("/service"), &mut environment);
        assert_eq!(
            error.unwrap_err().to_string(),
            "program `octue` not found in `/service/.venv/bin`, in `/service/venv/bin` or in the PATH \
             `/nowhere`; install it: `pip install octue`, or put a virtual environment that has it \
             in `/service/.venv`"
        );
    }
}
