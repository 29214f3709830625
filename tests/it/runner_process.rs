//! Questions as child processes: real ones, of the shell.

use crate::gauge;
use crate::runner_contract::{Ask, BAD, DEADLINE, ENDLESS, GOOD, Watch, every_promise};
use metrics_exporter_prometheus::PrometheusBuilder;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use twined::event::{Inputs, RunId, Timestamp};
use twined::runner::process::folder::{Folder, Life};
use twined::runner::process::record::{Asked, How, Order, Plan};
use twined::runner::process::{Options, ProcessRunner, Service, StartError};
use twined::runner::{EndReason, RunPhase, Runner, RunnerError};
use uuid::Uuid;

mod crashes;
mod ends;
mod inputs;

/// Appends the run's name to `$WORLD/ran`, then waits for `$WORLD/go`.
const WAITS: &str = "test/waits:1.0";
const WAITS_SCRIPT: &str = "basename $TWINED_RUN >> $WORLD/ran
    until [ -e $WORLD/go ]; do sleep 0.05; done";

const TWINED: &str = env!("CARGO_BIN_EXE_twined");

/// A network's folder, with services that are scripts.
struct World {
    folder: PathBuf,
    options: Options,
    services: Vec<Service>,
    /// Removes the folder, where it is ours to remove.
    _temporary: Option<tempfile::TempDir>,
}

// === impl World ===

impl World {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut world = Self::at(temporary.path());
        world._temporary = Some(temporary);
        world
    }

    fn at(folder: &Path) -> Self {
        let folder = folder.canonicalize().unwrap();
        let options = Options {
            runs: folder.join("runs"),
            logs: folder.join("logs"),
            max_runs: 4,
            supervisor: TWINED.into(),
            inherited: std::env::vars_os().collect(),
            environment: vec![("WORLD".to_owned(), folder.to_str().unwrap().to_owned())],
            passed: Vec::new(),
            shim: None,
        };
        Self { folder, options, services: Vec::new(), _temporary: None }
            .service(GOOD, "echo hello")
            .service(BAD, "echo alas; exit 3")
            .service(ENDLESS, "while :; do sleep 1; done")
            .service(WAITS, WAITS_SCRIPT)
    }

    /// Adds a service whose every question runs a script of the shell.
    fn service(self, sruid: &str, script: &str) -> Self {
        self.program(sruid, &["sh", "-c", script, "script"])
    }

    fn program(mut self, sruid: &str, command: &[&str]) -> Self {
        let folder = self.folder.join("services").join(sruid.replace(['/', ':'], "-"));
        fs::create_dir_all(&folder).unwrap();
        let command = command.iter().map(Into::into).collect();
        self.services.push(Service { sruid: sruid.parse().unwrap(), folder, command });
        self
    }

    fn slots(mut self, max_runs: usize) -> Self {
        self.options.max_runs = max_runs;
        self
    }

    fn service_folder(&self, sruid: &str) -> &Path {
        let service = self.services.iter().find(|service| service.sruid.as_str() == sruid);
        &service.unwrap().folder
    }

    async fn start(&self) -> ProcessRunner {
        ProcessRunner::start(self.options.clone(), self.services.clone()).await.unwrap()
    }

    fn run_folder(&self, run: RunId) -> Folder {
        Folder::of(&self.options.runs, run)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Lets all that waits for it go on.
    fn go(&self) {
        fs::write(self.file("go"), "").unwrap();
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a file of so many lines, and gives them.
    async fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        wait_until(|| self.lines(name).len() >= count).await;
        self.lines(name)
    }

    async fn wait_for_pid(&self, name: &str) -> Pid {
        let line = self.wait_for_lines(name, 1).await.remove(0);
        Pid::from_raw(line.parse().unwrap()).unwrap()
    }
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain");
        sleep(Duration::from_millis(5)).await;
    }
}

fn is_there(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_runner_keeps_every_promise() {
    let world = World::new();
    let runner = world.start().await;
    every_promise(&runner).await;

    let left: Vec<_> = fs::read_dir(&world.options.runs).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_take_turns_in_the_order_of_their_launches() {
    let world =
        World::new().slots(1).service("test/order:1.0", "basename $TWINED_RUN >> $WORLD/ran");
    let runner = world.start().await;
    let first = Ask::new(WAITS);
    first.launch(&runner).await.unwrap();
    world.wait_for_lines("ran", 1).await;

    let asks: Vec<_> = (0..5).map(|_| Ask::new("test/order:1.0")).collect();
    for ask in &asks {
        ask.launch(&runner).await.unwrap();
    }
    let now = Watch::new(&runner).now(&runner).await;
    assert!(asks.iter().all(|ask| {
        now.get(&ask.run).is_none_or(|state| matches!(state.phase, RunPhase::Queued { .. }))
    }));
    world.go();

    let mut watch = Watch::new(&runner);
    for ask in &asks {
        watch.end(ask.run).await;
    }
    let expected: Vec<_> =
        [&first].into_iter().chain(&asks).map(|ask| ask.run.to_string()).collect();
    assert_eq!(world.lines("ran"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_asked_by_one_that_runs_does_not_wait_for_its_slot() {
    let world = World::new().slots(1);
    let runner = world.start().await;
    let parent = Ask::new(WAITS);
    let stranger = Ask::new(GOOD);
    let child = Ask { parent_question: Some(parent.run.question), ..Ask::new(ENDLESS) };
    let grandchild = Ask { parent_question: Some(child.run.question), ..Ask::new(GOOD) };
    for ask in [&parent, &stranger, &child, &grandchild] {
        ask.launch(&runner).await.unwrap();
    }

    let mut watch = Watch::new(&runner);
    watch.end(grandchild.run).await;
    watch.running(child.run).await;
    assert!(matches!(watch.now(&runner).await[&stranger.run].phase, RunPhase::Queued { .. }));

    // The child's end frees no slot, for it held none.
    runner.cancel(child.run.question).await.unwrap();
    watch.end(child.run).await;
    assert!(matches!(watch.now(&runner).await[&stranger.run].phase, RunPhase::Queued { .. }));
    world.go();
    watch.end(stranger.run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_stops_ends_what_runs_and_keeps_what_waits() {
    let world = World::new().slots(1);
    let runner = world.start().await;
    let (runs, waits) = (Ask::new(ENDLESS), Ask::new(GOOD));
    runs.launch(&runner).await.unwrap();
    waits.launch(&runner).await.unwrap();
    let mut watch = Watch::new(&runner);
    watch.running(runs.run).await;

    runner.interrupt().await;

    let end = watch.end(runs.run).await;
    assert_eq!(end.reason, EndReason::Interrupted);
    assert!(matches!(watch.now(&runner).await[&waits.run].phase, RunPhase::Queued { .. }));
    runner.stop().await;
    assert!(matches!(waits.launch(&runner).await, Err(RunnerError::Unavailable { .. })));

    let next = world.start().await;
    assert_eq!(Watch::new(&next).end(waits.run).await.reason, EndReason::Exited);
    assert_eq!(Watch::new(&next).end(runs.run).await.at, end.at);
}

#[tokio::test]
async fn the_gauge_of_live_runs_counts_the_processes() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().slots(1);
    let runner = world.start().await;
    let (runs, waits) = (Ask::new(WAITS), Ask::new(WAITS));
    runs.launch(&runner).await.unwrap();
    waits.launch(&runner).await.unwrap();
    let _monitor = gauge::monitor(runner.states()).await;

    gauge::wait_for(&recorder, [1, 0, 1]).await;
    world.go();
    gauge::wait_for(&recorder, [0, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_runs_has_one_runner() {
    let world = World::new();
    let runner = world.start().await;
    let second = ProcessRunner::start(world.options.clone(), world.services.clone()).await;
    assert!(matches!(second, Err(StartError::InUse(_))));
    drop(runner);
    world.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_written_down_is_unavailable() {
    let world = World::new();
    let runner = world.start().await;
    fs::remove_dir_all(&world.options.runs).unwrap();
    let ask = Ask::new(GOOD);
    let error = ask.launch(&runner).await.unwrap_err();
    assert!(matches!(error, RunnerError::Unavailable { verb: "launch", .. }), "{error:?}");

    fs::create_dir(&world.options.runs).unwrap();
    assert_eq!(ask.end(&runner).await.reason, EndReason::Exited);
}
