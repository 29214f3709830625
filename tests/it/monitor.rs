//! Ends of runs: a run without a terminal event gets one, exactly once; a run with one gets no
//! other.

use crate::pipeline::{World, question};
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twined::dependencies::Dependencies;
use twined::event::encode::{EventBody, response};
use twined::event::{OutgoingMessage, RunId, Timestamp};
use twined::monitor::Monitor;
use twined::runner::{
    Cause, Coordinator, EndReason, LaunchRequest, RunEnd, RunPhase, RunState, Runner, RunnerError,
    Settlement,
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(30);

/// A runner with one run, which has ended.
#[derive(Debug)]
struct Ended {
    state: RunState,
    settled: watch::Sender<bool>,
}

#[async_trait]
impl Runner for Ended {
    async fn launch(&self, _: LaunchRequest<'_>) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn cancel(&self, _: Uuid) -> Result<bool, RunnerError> {
        Ok(false)
    }

    async fn has(&self, _: RunId) -> Result<bool, RunnerError> {
        Ok(true)
    }

    async fn settle(&self, _: RunId) -> Result<Settlement, RunnerError> {
        self.settled.send_replace(true);
        Ok(Settlement::Ours)
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        let state = self.state.clone();
        Box::pin(futures_util::stream::iter([state]).chain(futures_util::stream::pending()))
    }
}

impl Coordinator for Ended {}

impl Ended {
    fn new(asked: &OutgoingMessage, reason: EndReason) -> Arc<Self> {
        let run = RunId { question: asked.ordering_key.parse().unwrap(), retry: 0 };
        let end = RunEnd {
            at: Timestamp::now(),
            started: None,
            cause: Cause::new(reason, "It ended."),
            tail: vec!["its last line\n".into()],
        };
        let attributes = Arc::new(asked.attributes.clone());
        let state =
            RunState { run, attempt: 0, attributes, evictions: 0, phase: RunPhase::Ended(end) };
        Arc::new(Self { state, settled: watch::Sender::new(false) })
    }

    fn question(&self) -> Uuid {
        self.state.run.question
    }

    async fn wait_until_settled(&self) {
        let mut settled = self.settled.subscribe();
        let waiting = settled.wait_for(|settled| *settled);
        tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
    }
}

/// So many monitors of one runner, until they are dropped.
fn monitors(world: &World, runner: &Arc<Ended>, count: usize) -> JoinSet<()> {
    monitors_with_late_answers(world, runner, count, Duration::ZERO)
}

/// The same, with so long a time for late answers.
fn monitors_with_late_answers(
    world: &World,
    runner: &Arc<Ended>,
    count: usize,
    late_answer_timeout: Duration,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let dependencies = Dependencies { late_answer_timeout, ..world.dependencies(runner) };
        let monitor = Monitor::new(dependencies, CancellationToken::new());
        tasks.spawn(monitor.run());
    }
    tasks
}

/// A question whose run has ended for this reason.
async fn ended(reason: EndReason) -> (World, OutgoingMessage, Arc<Ended>) {
    let asked = question(Uuid::new_v4());
    let runner = Ended::new(&asked, reason);
    (World::new(0, None, 0).await, asked, runner)
}

fn answer(asked: &OutgoingMessage) -> OutgoingMessage {
    let body = EventBody::Result { output_values: serde_json::json!(7) };
    response(&asked.attributes, Uuid::new_v4(), Timestamp::now(), &body).unwrap()
}

async fn kinds(world: &World, uuid: Uuid) -> Vec<String> {
    let mut kinds: Vec<_> = world.stored(uuid).await.into_iter().map(|event| event.kind).collect();
    kinds.sort_unstable();
    kinds
}

#[tokio::test]
async fn a_run_that_ended_silently_gets_one_exception_from_any_number_of_monitors() {
    let (world, asked, runner) = ended(EndReason::Killed).await;
    world.publisher.publish(asked).await.unwrap();
    let _monitors = monitors(&world, &runner, 2);

    world.work_until(runner.wait_until_settled()).await;

    // Each publishes a fence of its own, and the same exception to the byte.
    let mut found = kinds(&world, runner.question()).await;
    found.retain(|kind| kind != "heartbeat");
    assert_eq!(found, ["exception", "question"]);
}

#[tokio::test]
async fn a_late_answer_of_a_run_without_an_error_is_its_only_terminal_event() {
    let (world, asked, runner) = ended(EndReason::Exited).await;
    let result = answer(&asked);
    world.publisher.publish(asked).await.unwrap();
    let _monitors = monitors_with_late_answers(&world, &runner, 2, DEADLINE);

    let late = async {
        // Longer than a run with an error gets.
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.publisher.publish(result).await.unwrap();
        runner.wait_until_settled().await;
    };
    world.work_until(late).await;

    assert_eq!(kinds(&world, runner.question()).await, ["question", "result"]);
}

#[tokio::test]
async fn a_run_with_an_error_gets_no_time_for_a_late_answer() {
    let (world, asked, runner) = ended(EndReason::Failed).await;
    world.publisher.publish(asked).await.unwrap();
    let _monitors = monitors_with_late_answers(&world, &runner, 1, 2 * DEADLINE);

    world.work_until(runner.wait_until_settled()).await;

    assert_eq!(kinds(&world, runner.question()).await, ["exception", "heartbeat", "question"]);
}

#[tokio::test]
async fn an_answer_that_is_still_on_its_way_is_waited_for() {
    // Given a run that has answered and ended, while nobody reads the subscription,
    let (world, asked, runner) = ended(EndReason::Exited).await;
    let result = answer(&asked);
    world.publisher.publish(asked).await.unwrap();
    world.publisher.publish(result).await.unwrap();

    // when a monitor handles the end, for longer than its grace period,
    let _monitors = monitors(&world, &runner, 1);
    tokio::time::timeout(Duration::from_secs(1), runner.wait_until_settled()).await.unwrap_err();
    assert!(world.stored(runner.question()).await.is_empty());

    // then it publishes nothing but the fence, and settles the run when the pipeline goes on.
    world.work_until(runner.wait_until_settled()).await;
    let found = kinds(&world, runner.question()).await;
    assert!(!found.contains(&"exception".to_owned()), "{found:?}");
    assert!(found.contains(&"result".to_owned()), "{found:?}");
}
