//! The Kubernetes runner with answers that a real cluster gives only rarely.

use crate::api_server::{ApiServer, NAMESPACE};
use crate::gauge;
use crate::runner_contract::{Ask, GOOD, Watch};
use axum::http::Method;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use twined::event::{Inputs, Timestamp};
use twined::runner::kubernetes::job::{JobDefaults, annotation, label};
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::runner::kubernetes::{BackgroundWork, KubernetesOptions, KubernetesRunner};
use twined::runner::{
    Claim, Coordinator, EndReason, RunEnd, RunPhase, RunState, Runner, RunnerError,
};
use uuid::Uuid;

/// A runner without its watches.
struct TestRunner {
    server: Arc<ApiServer>,
    runner: KubernetesRunner,
    work: BackgroundWork,
}

impl TestRunner {
    fn new(settings: &str) -> Self {
        let server = Arc::<ApiServer>::default();
        let (runner, work) = replica(&server, settings, "one");
        Self { server, runner, work }
    }

    async fn launch(&self, ask: &Ask) -> Result<(), RunnerError> {
        ask.launch(&self.runner).await
    }

    fn reconcile(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.work.reconcile());
        tasks
    }

    fn watch(&self) -> Watch {
        Watch::new(&self.runner)
    }
}

fn replica(
    server: &Arc<ApiServer>,
    settings: &str,
    identity: &str,
) -> (KubernetesRunner, BackgroundWork) {
    let options = KubernetesOptions {
        defaults: JobDefaults {
            namespace: NAMESPACE.into(),
            images: "registry.test".into(),
            topic: "tests.octue.twined.services".into(),
            environment: Vec::new(),
        },
        settings: Arc::new(NetworkSettings::read(settings, ServiceFields::default()).unwrap()),
        lease_name: "twined".into(),
        identity: identity.into(),
        max_concurrent_launches: 8,
    };
    KubernetesRunner::assemble(options, server.client())
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_created_during_a_list_does_not_count_as_deleted() {
    let test = TestRunner::new("");
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();
    let mut watch = test.watch();
    let _reconciler = test.reconcile();

    test.runner.state().jobs_listed(&HashSet::new());
    tokio::time::sleep(Duration::from_secs(2)).await;

    assert!(test.runner.has(ask.run).await.unwrap());
    watch.until(ask.run, |phase| matches!(phase, RunPhase::Starting { .. })).await;
    assert!(watch.is_quiet());
}

#[tokio::test]
async fn a_missed_deletion_is_found_after_errors_of_the_api_server() {
    let test = TestRunner::new("");
    let (deleted, settled, foreign) = (Ask::new(GOOD), Ask::new(GOOD), Ask::new(GOOD));
    for ask in [&deleted, &settled, &foreign] {
        test.launch(ask).await.unwrap();
    }
    let label = |name: &str, value: &str| json!({"metadata": {"labels": {name: value}}});
    test.server.delete(&deleted.run.to_string());
    test.server.change(&settled.run.to_string(), label(label::SETTLED, "true"));
    test.server.change(&foreign.run.to_string(), label(label::TOPIC, "another"));
    test.server.fail((Method::GET, "jobs"), (500, "InternalError"), 4);
    let mut watch = test.watch();
    let _reconciler = test.reconcile();

    test.runner.state().jobs_listed(&HashSet::new());

    for ask in [&deleted, &foreign] {
        assert_eq!(watch.end(ask.run).await.cause.reason, EndReason::Deleted);
    }
    watch.until(settled.run, |phase| *phase == RunPhase::Settled).await;
}

#[tokio::test]
async fn a_job_that_is_not_found_when_it_is_stopped_was_deleted() {
    let test = TestRunner::new("waiting: 1s");
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();
    test.server.delete(&ask.run.to_string());
    let mut watch = test.watch();
    let _reconciler = test.reconcile();

    assert_eq!(watch.end(ask.run).await.cause.reason, EndReason::Deleted);
}

#[tokio::test]
async fn the_gauge_of_live_runs_counts_the_jobs() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let test = TestRunner::new("");
    let (stays, goes) = (Ask::new(GOOD), Ask::new(GOOD));
    for ask in [&stays, &goes] {
        test.launch(ask).await.unwrap();
    }
    let _monitor = gauge::monitor(test.runner.states()).await;
    gauge::wait_for(&recorder, [0, 2, 0]).await;

    let _reconciler = test.reconcile();
    test.server.delete(&goes.run.to_string());
    test.runner.state().jobs_listed(&HashSet::new());

    gauge::wait_for(&recorder, [0, 1, 0]).await;
}

// === Creates ===

/// A question that is too large for an argument.
fn large() -> Ask {
    let values = format!("{{\"n\": \"{}\"}}", "x".repeat(200_000)).leak();
    let inputs = Inputs { input_values: Some(values), ..Inputs::default() };
    Ask { inputs, ..Ask::new(GOOD) }
}

/// The answer when another client uses the quota at the same moment.
const QUOTA: (u16, &str) = (409, "Conflict");

#[tokio::test]
async fn a_job_or_secret_that_conflicts_with_a_quota_is_created_by_the_next_launch() {
    let test = TestRunner::new("");
    let ask = large();

    test.server.fail((Method::POST, "jobs"), QUOTA, 1);
    assert!(matches!(test.launch(&ask).await, Err(RunnerError::Unavailable { .. })));
    test.server.fail((Method::POST, "secrets"), QUOTA, 1);
    assert!(matches!(test.launch(&ask).await, Err(RunnerError::Unavailable { .. })));
    assert_eq!(test.server.secrets(), 0);

    test.launch(&ask).await.unwrap();
    assert_eq!(test.server.secrets(), 1);
}

// === Relaunches ===

const RETRIES: &str = "
running: {network: 1}
rules:
  - services: [\"test/*\"]
    retry: {failed: {times: 2, backoff: 1s}, waited: {times: 2, backoff: 1s}}
";

impl TestRunner {
    /// The end of a run, once it is published.
    async fn ended(&self, ask: &Ask) -> (RunState, RunEnd) {
        let mut watch = self.watch();
        let state = watch.until(ask.run, |phase| matches!(phase, RunPhase::Ended(_))).await;
        let RunPhase::Ended(end) = state.phase.clone() else { panic!("{state:?}") };
        (state, end)
    }

    /// Fails the Job of a run, and shows it to the runner.
    async fn fail(&self, ask: &Ask, name: &str) -> (RunState, RunEnd) {
        let failed = json!({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"});
        self.change(name, json!({"status": {"conditions": [failed]}}));
        let _reconciler = self.reconcile();
        self.ended(ask).await
    }

    /// Stops a run whose Job is suspended.
    async fn stop(&self, ask: &Ask) -> (RunState, RunEnd) {
        let stopped = json!({"reason": "waited", "message": "It waited.", "at": 1}).to_string();
        let name = ask.run.to_string();
        self.change(&name, json!({"metadata": {"annotations": {annotation::STOPPED: stopped}}}));
        self.ended(ask).await
    }

    fn change(&self, name: &str, change: Value) {
        self.server.change(name, change);
        let job = self.server.job(name).unwrap();
        self.runner.state().update_job(&serde_json::from_value(job).unwrap());
        self.runner.state().notify_listeners();
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_exists_when_its_relaunch_is_reported() {
    let test = TestRunner::new(RETRIES);
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();
    let (state, end) = test.fail(&ask, &ask.run.to_string()).await;

    test.server.fail((Method::POST, "jobs"), QUOTA, 1);
    test.runner.relaunch(&state, &end).await.unwrap_err();
    let relaunch = test.runner.relaunch(&state, &end).await.unwrap().unwrap();

    assert_eq!(relaunch.attempt, 1);
    assert!(test.server.job(&format!("{}-a1", ask.run)).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_job_that_owns_the_secrets_exists_until_the_last_attempt() {
    const DAY: i64 = 24 * 3600;
    let test = TestRunner::new(RETRIES);
    let ask = large();
    let names = [ask.run.to_string(), format!("{}-a1", ask.run)];
    let retention =
        || test.server.job(&names[0]).unwrap()["spec"]["ttlSecondsAfterFinished"].as_i64();
    test.launch(&ask).await.unwrap();

    let (state, end) = test.fail(&ask, &names[0]).await;
    test.runner.relaunch(&state, &end).await.unwrap().unwrap();
    // A day in the queue, a week of running, and a day of retention.
    assert!(retention() > Some(9 * DAY));
    let (state, end) = test.fail(&ask, &names[1]).await;
    test.runner.relaunch(&state, &end).await.unwrap().unwrap();

    assert!(retention() > Some(17 * DAY));
    for name in names {
        let job = test.server.job(&name).unwrap();
        assert_eq!(job["metadata"]["labels"][label::SETTLED], "true");
    }
}

#[tokio::test(start_paused = true)]
async fn the_suspended_job_of_a_previous_attempt_is_deleted() {
    let test = TestRunner::new(RETRIES);
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();
    let (state, end) = test.stop(&ask).await;

    test.runner.relaunch(&state, &end).await.unwrap().unwrap();

    assert!(test.server.job(&ask.run.to_string()).is_none());
    assert!(test.server.job(&format!("{}-a1", ask.run)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_that_owns_secrets_is_not_relaunched() {
    let test = TestRunner::new(RETRIES);
    let ask = large();
    test.launch(&ask).await.unwrap();
    let (state, end) = test.stop(&ask).await;

    assert_eq!(test.runner.relaunch(&state, &end).await.unwrap(), None);

    test.runner.settle(ask.run).await.unwrap();
    assert!(test.server.job(&ask.run.to_string()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_admitted_after_it_was_stopped_is_deleted() {
    let test = TestRunner::new(RETRIES);
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();
    test.stop(&ask).await;
    test.change(&ask.run.to_string(), json!({"spec": {"suspend": false}}));

    test.runner.settle(ask.run).await.unwrap();

    assert!(test.server.job(&ask.run.to_string()).is_none());
}

// === Claims ===

#[tokio::test(start_paused = true)]
async fn a_claim_is_taken_over_after_30_s_of_our_own_clock() {
    let test = TestRunner::new("");
    let (other, _work) = replica(&test.server, "", "other");
    let (ask, report) = (Ask::new(GOOD), Uuid::nil());
    let name = ask.run.to_string();
    test.launch(&ask).await.unwrap();
    other.state().update_job(&serde_json::from_value(test.server.job(&name).unwrap()).unwrap());
    let claims =
        async |runner: &KubernetesRunner| runner.claim_report(ask.run, report).await.unwrap();

    assert_eq!(claims(&test.runner).await, Claim::Ours);
    let claim = test.server.job(&name).unwrap()["metadata"]["annotations"][annotation::REPORT]
        .as_str()
        .unwrap()
        .to_owned();
    // The clock of the other replica is years behind.
    let year = Timestamp::now().to_string()[..4].to_owned();
    let old =
        json!({"metadata": {"annotations": {annotation::REPORT: claim.replace(&year, "2001")}}});
    test.server.change(&name, old);
    assert_eq!(claims(&other).await, Claim::Theirs);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(claims(&other).await, Claim::Theirs);
    assert_eq!(claims(&test.runner).await, Claim::Ours, "renewed");
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(claims(&other).await, Claim::Theirs);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(claims(&other).await, Claim::Ours);
    assert_eq!(claims(&test.runner).await, Claim::Theirs);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_another_change_overtakes_is_tried_again() {
    let test = TestRunner::new("");
    let ask = Ask::new(GOOD);
    test.launch(&ask).await.unwrap();

    test.server.fail((Method::PATCH, "jobs"), (409, "Conflict"), 2);

    assert_eq!(test.runner.claim_report(ask.run, Uuid::nil()).await.unwrap(), Claim::Ours);
}
