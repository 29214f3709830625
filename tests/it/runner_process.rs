//! Runs questions as child processes, which are scripts of the shell.

use crate::gauge;
use crate::runner_contract::{Ask, ENDLESS, GOOD, Watch, every_promise};
use metrics_exporter_prometheus::PrometheusBuilder;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;
use twined::event::{Inputs, RunId, Timestamp};
use twined::runner::process::records::{ChildCommand, Outcome, RunSpec, StopRequest};
use twined::runner::process::run_folder::{RunFolder, SupervisorState};
use twined::runner::process::{ProcessRunner, StartError};
use twined::runner::{EndReason, RunPhase, Runner, RunnerError};
use uuid::Uuid;

mod crashes;
mod ends;
mod inputs;
mod test_network;
use test_network::{TestNetwork, WAITS, WAITS_SCRIPT, forty_questions, wait_until};

const TWINED: &str = env!("CARGO_BIN_EXE_twined");

impl TestNetwork {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut network = Self::at(temporary.path(), TWINED.into());
        network.temporary = Some(temporary);
        network
    }
}

fn exists(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_runner_keeps_every_promise() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    every_promise(&runner).await;

    let remaining: Vec<_> = fs::read_dir(&network.options.runs).unwrap().collect();
    assert_eq!(remaining.len(), 1, "only the lock: {remaining:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_start_in_the_order_of_their_launches() {
    let network = TestNetwork::new()
        .slots(1)
        .service("test/order:1.0", "basename $TWINED_RUN >> $NETWORK/ran");
    let runner = network.start().await;
    let first = Ask::new(WAITS);
    first.launch(&runner).await.unwrap();
    network.wait_for_lines("ran", 1).await;

    let asks: Vec<_> = (0..5).map(|_| Ask::new("test/order:1.0")).collect();
    for ask in &asks {
        ask.launch(&runner).await.unwrap();
    }
    let now = Watch::new(&runner).now(&runner).await;
    assert!(asks.iter().all(|ask| {
        now.get(&ask.run).is_none_or(|state| matches!(state.phase, RunPhase::Queued { .. }))
    }));
    network.go();

    let mut watch = Watch::new(&runner);
    for ask in &asks {
        watch.end(ask.run).await;
    }
    let expected: Vec<_> =
        [&first].into_iter().chain(&asks).map(|ask| ask.run.to_string()).collect();
    assert_eq!(network.lines("ran"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_parent_runs_does_not_wait_for_a_slot() {
    let network = TestNetwork::new().slots(1);
    let runner = network.start().await;
    let parent = Ask::new(WAITS);
    let other = Ask::new(GOOD);
    let child = Ask { parent_question: Some(parent.run.question), ..Ask::new(ENDLESS) };
    let grandchild = Ask { parent_question: Some(child.run.question), ..Ask::new(GOOD) };
    for ask in [&parent, &other, &child, &grandchild] {
        ask.launch(&runner).await.unwrap();
    }

    let mut watch = Watch::new(&runner);
    watch.end(grandchild.run).await;
    watch.running(child.run).await;
    assert!(matches!(watch.now(&runner).await[&other.run].phase, RunPhase::Queued { .. }));

    // The child's end frees no slot, because it held none.
    runner.cancel(child.run.question).await.unwrap();
    watch.end(child.run).await;
    assert!(matches!(watch.now(&runner).await[&other.run].phase, RunPhase::Queued { .. }));
    network.go();
    watch.end(other.run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_stops_ends_active_runs_and_leaves_queued_ones() {
    let network = TestNetwork::new().slots(1);
    let runner = network.start().await;
    let (runs, waits) = (Ask::new(ENDLESS), Ask::new(GOOD));
    runs.launch(&runner).await.unwrap();
    waits.launch(&runner).await.unwrap();
    let mut watch = Watch::new(&runner);
    watch.running(runs.run).await;

    runner.interrupt().await;

    let end = watch.end(runs.run).await;
    assert_eq!(end.cause.reason, EndReason::Interrupted);
    assert!(matches!(watch.now(&runner).await[&waits.run].phase, RunPhase::Queued { .. }));
    runner.stop().await;
    assert!(matches!(waits.launch(&runner).await, Err(RunnerError::Unavailable { .. })));

    let next = network.start().await;
    assert_eq!(Watch::new(&next).end(waits.run).await.cause.reason, EndReason::Exited);
    assert_eq!(Watch::new(&next).end(runs.run).await.at, end.at);
}

#[tokio::test]
async fn the_gauge_of_live_runs_counts_the_processes() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let network = TestNetwork::new().slots(1);
    let runner = network.start().await;
    let (runs, waits) = (Ask::new(WAITS), Ask::new(WAITS));
    runs.launch(&runner).await.unwrap();
    waits.launch(&runner).await.unwrap();
    let _monitor = gauge::monitor(runner.states()).await;

    gauge::wait_for(&recorder, [1, 0, 1]).await;
    network.go();
    gauge::wait_for(&recorder, [0, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runners_cannot_share_a_folder_of_runs() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    let second = ProcessRunner::start(network.options.clone(), network.services.clone()).await;
    assert!(matches!(second, Err(StartError::InUse(_))));
    drop(runner);
    network.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_stored_is_unavailable() {
    let network = TestNetwork::new();
    let runner = network.start().await;
    fs::remove_dir_all(&network.options.runs).unwrap();
    let ask = Ask::new(GOOD);
    let error = ask.launch(&runner).await.unwrap_err();
    assert!(matches!(error, RunnerError::Unavailable { verb: "launch", .. }), "{error:?}");

    fs::create_dir(&network.options.runs).unwrap();
    assert_eq!(ask.end(&runner).await.cause.reason, EndReason::Exited);
}
