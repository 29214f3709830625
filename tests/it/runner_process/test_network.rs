//! The folder of a network with a process runner, whose services are scripts.

use crate::runner_contract::{Ask, BAD, DEADLINE, ENDLESS, GOOD};
use rustix::process::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use twined::event::RunId;
use twined::runner::process::run_folder::RunFolder;
use twined::runner::process::{ProcessRunner, ProcessRunnerOptions, ProcessService};
use uuid::Uuid;

/// Appends the run's name to `$NETWORK/ran`, then waits for the file `$NETWORK/go`.
pub(super) const WAITS: &str = "test/waits:1.0";
pub(super) const WAITS_SCRIPT: &str = "basename $TWINED_RUN >> $NETWORK/ran
    until [ -e $NETWORK/go ]; do sleep 0.05; done";

/// The folder of a network, with services that are scripts.
pub(super) struct TestNetwork {
    pub folder: PathBuf,
    pub options: ProcessRunnerOptions,
    pub services: Vec<ProcessService>,
    /// Removes the folder when it is dropped, if this test created it.
    pub temporary: Option<tempfile::TempDir>,
}

// === impl TestNetwork ===

impl TestNetwork {
    pub(super) fn at(folder: &Path, supervisor: PathBuf) -> Self {
        let folder = folder.canonicalize().unwrap();
        let options = ProcessRunnerOptions {
            runs: folder.join("runs"),
            logs: folder.join("logs"),
            max_runs: 4,
            supervisor,
            inherited: std::env::vars_os().collect(),
            environment: vec![("NETWORK".to_owned(), folder.to_str().unwrap().to_owned())],
            passed: Vec::new(),
            shim: None,
        };
        Self { folder, options, services: Vec::new(), temporary: None }
            .service(GOOD, "echo hello")
            .service(BAD, "echo alas; exit 3")
            .service(ENDLESS, "while :; do sleep 1; done")
            .service(WAITS, WAITS_SCRIPT)
    }

    /// Adds a service that runs a script of the shell for each question.
    pub(super) fn service(self, sruid: &str, script: &str) -> Self {
        self.program(sruid, &["sh", "-c", script, "script"])
    }

    pub(super) fn program(mut self, sruid: &str, command: &[&str]) -> Self {
        let folder = self.folder.join("services").join(sruid.replace(['/', ':'], "-"));
        fs::create_dir_all(&folder).unwrap();
        let command = command.iter().map(Into::into).collect();
        self.services.push(ProcessService { sruid: sruid.parse().unwrap(), folder, command });
        self
    }

    pub(super) fn slots(mut self, max_runs: usize) -> Self {
        self.options.max_runs = max_runs;
        self
    }

    pub(super) fn service_folder(&self, sruid: &str) -> &Path {
        let service = self.services.iter().find(|service| service.sruid.as_str() == sruid);
        &service.unwrap().folder
    }

    pub(super) async fn start(&self) -> ProcessRunner {
        ProcessRunner::start(self.options.clone(), self.services.clone()).await.unwrap()
    }

    pub(super) fn run_folder(&self, run: RunId) -> RunFolder {
        RunFolder::new(&self.options.runs, run)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Ends all runs of [`WAITS`].
    pub(super) fn go(&self) {
        fs::write(self.file("go"), "").unwrap();
    }

    pub(super) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file has `count` lines, and returns them.
    pub(super) async fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        wait_until(|| self.lines(name).len() >= count).await;
        self.lines(name)
    }

    pub(super) async fn wait_for_pid(&self, name: &str) -> Pid {
        let line = self.wait_for_lines(name, 1).await.remove(0);
        Pid::from_raw(line.parse().unwrap()).unwrap()
    }
}

/// Forty questions, the same in each call.
pub(super) fn forty_questions() -> impl Iterator<Item = Ask> {
    (0..40).map(|n| {
        let run = RunId { question: Uuid::from_u128(0xc0ffee + n), retry: 0 };
        Ask { run, ..Ask::new(WAITS) }
    })
}

pub(super) async fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition was not met in time");
        sleep(Duration::from_millis(5)).await;
    }
}
