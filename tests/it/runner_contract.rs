//! The promises of every runner.

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;
use twined::event::{Inputs, RunId, Sruid, SruidBuf, Timestamp, encode};
use twined::runner::{EndReason, LaunchRequest, RunEnd, RunPhase, RunState, Runner, RunnerError};
use uuid::Uuid;

/// Far longer than any step takes, so that a test fails if it hangs, and not if it is slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A service that prints `hello` and exits without an error.
pub(crate) const GOOD: &str = "test/good:1.0";
/// A service that prints `alas` and exits with status 3.
pub(crate) const BAD: &str = "test/bad:1.0";
/// A service that runs until it is stopped.
pub(crate) const ENDLESS: &str = "test/endless:1.0";

/// A question that a test launches.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub run: RunId,
    pub recipient: &'static str,
    pub parent_question: Option<Uuid>,
    pub attributes: HashMap<String, String>,
    pub inputs: Inputs<'static>,
}

/// A listener that remembers the last state of each run.
pub(crate) struct Watch {
    states: BoxStream<'static, RunState>,
    last: HashMap<RunId, RunState>,
}

// === impl Ask ===

impl Ask {
    /// A new question.
    pub(crate) fn new(recipient: &'static str) -> Self {
        let question = Uuid::new_v4();
        Self {
            run: RunId { question, retry: 0 },
            recipient,
            parent_question: None,
            attributes: attributes(question, recipient),
            inputs: Inputs::default(),
        }
    }

    pub(crate) async fn launch(&self, runner: &dyn Runner) -> Result<(), RunnerError> {
        let recipient: SruidBuf = self.recipient.parse().unwrap();
        let launch = LaunchRequest {
            run: self.run,
            recipient: &recipient,
            parent_question: self.parent_question,
            attributes: &self.attributes,
            inputs: self.inputs,
        };
        runner.launch(launch).await
    }

    /// Launches it and waits for its end.
    pub(crate) async fn end(&self, runner: &dyn Runner) -> RunEnd {
        self.launch(runner).await.unwrap();
        Watch::new(runner).end(self.run).await
    }
}

/// The attributes that the SDK gives a question.
fn attributes(question: Uuid, recipient: &str) -> HashMap<String, String> {
    let parent = Sruid::parse("local/local:local").unwrap();
    encode::NewQuestion {
        question_uuid: question,
        sender: parent,
        recipient: Sruid::parse(recipient).unwrap(),
        datetime: Timestamp(0),
        forward_logs: false,
        input_values: None,
        input_manifest: None,
    }
    .encode()
    .attributes
}

// === impl Watch ===

impl Watch {
    pub(crate) fn new(runner: &dyn Runner) -> Self {
        Self::over(runner.states())
    }

    pub(crate) fn over(states: BoxStream<'static, RunState>) -> Self {
        Self { states, last: HashMap::new() }
    }

    /// Waits until the phase of a run satisfies a condition.
    pub(crate) async fn until(
        &mut self,
        run: RunId,
        condition: impl Fn(&RunPhase) -> bool,
    ) -> RunState {
        let wait = async {
            loop {
                if let Some(state) = self.last.get(&run).filter(|state| condition(&state.phase)) {
                    return state.clone();
                }
                let state = self.states.next().await.expect("the runner runs");
                self.last.insert(state.run, state);
            }
        };
        match timeout(DEADLINE, wait).await {
            Ok(state) => state,
            Err(_) => panic!("the state of {run} did not come in time: {:?}", self.last.get(&run)),
        }
    }

    pub(crate) async fn running(&mut self, run: RunId) -> RunState {
        self.until(run, |phase| matches!(phase, RunPhase::Running { .. })).await
    }

    pub(crate) async fn end(&mut self, run: RunId) -> RunEnd {
        let state = self.until(run, |phase| matches!(phase, RunPhase::Ended(_))).await;
        match state.phase {
            RunPhase::Ended(end) => end,
            other => panic!("{other:?}"),
        }
    }

    /// Whether there is no further state at present.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.states.next().now_or_never().is_none()
    }

    /// Waits for the next state, and returns its run.
    pub(crate) async fn any(&mut self) -> RunId {
        let state = timeout(DEADLINE, self.states.next()).await.unwrap().unwrap();
        let run = state.run;
        self.last.insert(run, state);
        run
    }

    /// The last state of each run by now.
    pub(crate) async fn now(&mut self, runner: &dyn Runner) -> HashMap<RunId, RunState> {
        // The runner answers after it has dealt with all earlier calls.
        runner.cancel(Uuid::nil()).await.unwrap();
        while let Some(Some(state)) = self.states.next().now_or_never() {
            self.last.insert(state.run, state);
        }
        self.last.clone()
    }
}

/// Checks every promise, one after the other. The runner must have no runs, room for two at least,
/// and the three services.
pub(crate) async fn every_promise(runner: &dyn Runner) {
    a_run_ends_like_its_process(runner).await;
    a_run_is_created_once(runner).await;
    a_late_listener_misses_nothing_that_is_not_settled(runner).await;
    a_question_is_cancelled_with_all_its_runs(runner).await;
    a_question_to_an_unknown_service_is_refused_or_ends(runner).await;
    assert!(Watch::new(runner).now(runner).await.is_empty());
}

async fn a_run_ends_like_its_process(runner: &dyn Runner) {
    for (recipient, reason, line) in
        [(GOOD, EndReason::Exited, "hello\n"), (BAD, EndReason::Failed, "alas\n")]
    {
        let ask = Ask::new(recipient);
        let end = ask.end(runner).await;
        assert_eq!(end.cause.reason, reason);
        // Kubernetes reports no output of a pod that succeeded.
        assert!(
            end.tail == [line] || reason == EndReason::Exited && end.tail.is_empty(),
            "{end:?}"
        );
        assert!(end.started.unwrap() <= end.at);
        assert!(end.cause.message.contains(recipient), "{}", end.cause.message);
        runner.settle(ask.run).await.unwrap();
    }
}

async fn a_run_is_created_once(runner: &dyn Runner) {
    let ask = Ask::new(ENDLESS);
    let (first, second) = tokio::join!(ask.launch(runner), ask.launch(runner));
    first.and(second).unwrap();
    let mut watch = Watch::new(runner);
    let RunPhase::Running { since, .. } = watch.running(ask.run).await.phase else { panic!() };

    ask.launch(runner).await.unwrap();
    let state = Watch::new(runner).running(ask.run).await;
    assert!(
        matches!(state.phase, RunPhase::Running { since: unchanged, .. } if unchanged == since)
    );

    assert!(runner.cancel(ask.run.question).await.unwrap());
    let at = watch.end(ask.run).await.at;
    ask.launch(runner).await.unwrap();
    assert_eq!(Watch::new(runner).end(ask.run).await.at, at);
    runner.settle(ask.run).await.unwrap();
}

async fn a_late_listener_misses_nothing_that_is_not_settled(runner: &dyn Runner) {
    let (ended, running) = (Ask::new(GOOD), Ask::new(ENDLESS));
    ended.end(runner).await;
    running.launch(runner).await.unwrap();

    let mut late = Watch::new(runner);
    late.running(running.run).await;
    let state = late.until(ended.run, |phase| matches!(phase, RunPhase::Ended(_))).await;
    assert_eq!(*state.attributes, ended.attributes);

    runner.settle(ended.run).await.unwrap();
    runner.settle(ended.run).await.unwrap();
    // A run that has not ended is not forgotten.
    runner.settle(running.run).await.unwrap();
    let mut later = Watch::new(runner);
    later.running(running.run).await;
    assert_eq!(later.now(runner).await.len(), 1);

    runner.cancel(running.run.question).await.unwrap();
    later.end(running.run).await;
    runner.settle(running.run).await.unwrap();
}

async fn a_question_is_cancelled_with_all_its_runs(runner: &dyn Runner) {
    let first = Ask::new(ENDLESS);
    let mut retry = Ask { run: RunId { retry: 1, ..first.run }, ..first.clone() };
    retry.attributes.insert("retry_count".to_owned(), "1".to_owned());
    first.launch(runner).await.unwrap();
    retry.launch(runner).await.unwrap();

    assert!(!runner.cancel(Uuid::new_v4()).await.unwrap());
    assert!(runner.cancel(first.run.question).await.unwrap());

    let mut watch = Watch::new(runner);
    for run in [first.run, retry.run] {
        assert_eq!(watch.end(run).await.cause.reason, EndReason::Cancelled);
    }
    assert!(!runner.cancel(first.run.question).await.unwrap());
    for run in [first.run, retry.run] {
        runner.settle(run).await.unwrap();
    }
}

/// Some runners refuse the launch, others end the run when it starts.
async fn a_question_to_an_unknown_service_is_refused_or_ends(runner: &dyn Runner) {
    let ask = Ask::new("test/nobody:1.0");
    let (exception, message) = match ask.launch(runner).await {
        Err(RunnerError::Refused { question, exception, message }) => {
            assert_eq!(question, ask.run.question);
            (exception, message)
        }
        Ok(()) => {
            let end = Watch::new(runner).end(ask.run).await;
            runner.settle(ask.run).await.unwrap();
            (end.cause.reason.exception(), end.cause.message)
        }
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(exception, "ServiceNotFound");
    assert!(message.contains(ask.recipient), "{message}");
}
