//! What a runner makes of answers that a real cluster gives only now and then.

use crate::api_server::{ApiServer, NAMESPACE};
use crate::runner_contract::{Ask, GOOD, Watch};
use axum::http::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use twined::event::{Inputs, SruidBuf, Timestamp};
use twined::runner::kubernetes::Options;
use twined::runner::kubernetes::acts;
use twined::runner::kubernetes::call::Calls;
use twined::runner::kubernetes::cluster::Cluster;
use twined::runner::kubernetes::job::{JobDefaults, annotation, label};
use twined::runner::kubernetes::kueue::Kueue;
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::runner::{Claim, EndReason, LaunchRequest, RunEnd, RunPhase, RunState, RunnerError};
use uuid::Uuid;

/// A runner without its watches.
struct World {
    server: Arc<ApiServer>,
    cluster: Arc<Cluster>,
}

impl World {
    fn new(settings: &str) -> Self {
        let server = Arc::<ApiServer>::default();
        let cluster = replica(&server, settings, "one");
        Self { server, cluster }
    }

    async fn launch(&self, ask: &Ask) -> Result<(), RunnerError> {
        let recipient: SruidBuf = ask.recipient.parse().unwrap();
        let launch = LaunchRequest {
            run: ask.run,
            recipient: &recipient,
            parent_question: ask.parent_question,
            attributes: &ask.attributes,
            inputs: ask.inputs,
        };
        self.cluster.launch(&launch).await
    }

    fn acts(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(acts::act(Arc::clone(&self.cluster)));
        tasks
    }

    fn watch(&self) -> Watch {
        Watch::over(self.cluster.listen().stream())
    }
}

fn replica(server: &Arc<ApiServer>, settings: &str, identity: &str) -> Arc<Cluster> {
    let options = Options {
        network: JobDefaults {
            namespace: NAMESPACE.into(),
            images: "registry.test".into(),
            topic: "tests.octue.twined.services".into(),
            environment: Vec::new(),
        },
        settings: Arc::new(NetworkSettings::read(settings, ServiceFields::default()).unwrap()),
        lease: "twined".into(),
        identity: identity.into(),
        launches: 8,
    };
    let leads = (watch::channel(true).1, watch::channel(None).1);
    Cluster::new(options, server.client(), Calls::new(), Kueue::new(), leads)
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_made_while_all_were_listed_is_not_taken_for_deleted() {
    let world = World::new("");
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();
    let mut watch = world.watch();
    let _acts = world.acts();

    world.cluster.jobs_are(&HashSet::new());
    tokio::time::sleep(Duration::from_secs(2)).await;

    assert!(world.cluster.has(ask.run).await.unwrap());
    watch.until(ask.run, |phase| matches!(phase, RunPhase::Starting { .. })).await;
    assert!(watch.is_quiet());
}

#[tokio::test]
async fn a_job_that_went_while_nobody_saw_is_missed_though_the_api_server_fails_for_a_while() {
    let world = World::new("");
    let (deleted, settled, strangers) = (Ask::of(GOOD), Ask::of(GOOD), Ask::of(GOOD));
    for ask in [&deleted, &settled, &strangers] {
        world.launch(ask).await.unwrap();
    }
    let label = |name: &str, value: &str| json!({"metadata": {"labels": {name: value}}});
    world.server.delete(&deleted.run.to_string());
    world.server.change(&settled.run.to_string(), label(label::SETTLED, "true"));
    world.server.change(&strangers.run.to_string(), label(label::TOPIC, "another"));
    world.server.fail((Method::GET, "jobs"), (500, "InternalError"), 4);
    let mut watch = world.watch();
    let _acts = world.acts();

    world.cluster.jobs_are(&HashSet::new());

    for ask in [&deleted, &strangers] {
        assert_eq!(watch.end(ask.run).await.reason, EndReason::Deleted);
    }
    watch.until(settled.run, |phase| *phase == RunPhase::Settled).await;
}

#[tokio::test]
async fn a_job_that_is_not_there_when_it_is_to_be_ended_was_deleted() {
    let world = World::new("waiting: 1s");
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();
    world.server.delete(&ask.run.to_string());
    let mut watch = world.watch();
    let _acts = world.acts();

    assert_eq!(watch.end(ask.run).await.reason, EndReason::Deleted);
}

// === Made, or not ===

/// A question that no argument holds.
fn large() -> Ask {
    let values = format!("{{\"n\": \"{}\"}}", "x".repeat(200_000)).leak();
    let inputs = Inputs { input_values: Some(values), ..Inputs::default() };
    Ask { inputs, ..Ask::of(GOOD) }
}

/// What a quota answers where others use it at the same moment.
const QUOTA: (u16, &str) = (409, "Conflict");

#[tokio::test]
async fn what_a_quota_does_not_let_be_made_at_once_is_not_taken_for_made() {
    let world = World::new("");
    let ask = large();

    world.server.fail((Method::POST, "jobs"), QUOTA, 1);
    assert!(matches!(world.launch(&ask).await, Err(RunnerError::Unavailable { .. })));
    world.server.fail((Method::POST, "secrets"), QUOTA, 1);
    assert!(matches!(world.launch(&ask).await, Err(RunnerError::Unavailable { .. })));
    assert_eq!(world.server.secrets(), 0);

    world.launch(&ask).await.unwrap();
    assert_eq!(world.server.secrets(), 1);
}

// === Run again ===

const RETRIES: &str = "
running: {network: 1}
rules:
  - services: [\"test/*\"]
    retry: {failed: {times: 2, backoff: 1s}, waited: {times: 2, backoff: 1s}}
";

impl World {
    /// How a run ended that was seen to.
    async fn ended(&self, ask: &Ask) -> (RunState, RunEnd) {
        let mut watch = self.watch();
        let state = watch.until(ask.run, |phase| matches!(phase, RunPhase::Ended(_))).await;
        let RunPhase::Ended(end) = state.phase.clone() else { panic!("{state:?}") };
        (state, end)
    }

    /// A run fails, as the watch sees it.
    async fn fail(&self, ask: &Ask, name: &str) -> (RunState, RunEnd) {
        let failed = json!({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"});
        self.see(name, json!({"status": {"conditions": [failed]}}));
        let _acts = self.acts();
        self.ended(ask).await
    }

    /// A run is ended while it waits for its turn.
    async fn stop(&self, ask: &Ask) -> (RunState, RunEnd) {
        let stopped = json!({"reason": "waited", "message": "It waited.", "at": 1}).to_string();
        let name = ask.run.to_string();
        self.see(&name, json!({"metadata": {"annotations": {annotation::STOPPED: stopped}}}));
        self.ended(ask).await
    }

    fn see(&self, name: &str, change: Value) {
        self.server.change(name, change);
        let job = self.server.job(name).unwrap();
        self.cluster.saw_job(&serde_json::from_value(job).unwrap());
        self.cluster.tell();
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_is_made_before_the_run_is_told_to_run_again() {
    let world = World::new(RETRIES);
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();
    let (state, end) = world.fail(&ask, &ask.run.to_string()).await;

    world.server.fail((Method::POST, "jobs"), QUOTA, 1);
    world.cluster.relaunch(&state, &end).await.unwrap_err();
    let again = world.cluster.relaunch(&state, &end).await.unwrap().unwrap();

    assert_eq!(again.attempt, 1);
    assert!(world.server.job(&format!("{}-a1", ask.run)).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_job_whose_secrets_all_attempts_have_is_kept_for_the_last() {
    const DAY: i64 = 24 * 3600;
    let world = World::new(RETRIES);
    let ask = large();
    let names = [ask.run.to_string(), format!("{}-a1", ask.run)];
    let kept = || world.server.job(&names[0]).unwrap()["spec"]["ttlSecondsAfterFinished"].as_i64();
    world.launch(&ask).await.unwrap();

    let (state, end) = world.fail(&ask, &names[0]).await;
    world.cluster.relaunch(&state, &end).await.unwrap().unwrap();
    // It waits for a day and runs for a week, and is kept for a day.
    assert!(kept() > Some(9 * DAY));
    let (state, end) = world.fail(&ask, &names[1]).await;
    world.cluster.relaunch(&state, &end).await.unwrap().unwrap();

    assert!(kept() > Some(17 * DAY));
    for name in names {
        let job = world.server.job(&name).unwrap();
        assert_eq!(job["metadata"]["labels"][label::SETTLED], "true");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_waits_no_more_when_the_next_attempt_does() {
    let world = World::new(RETRIES);
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();
    let (state, end) = world.stop(&ask).await;

    world.cluster.relaunch(&state, &end).await.unwrap().unwrap();

    assert!(world.server.job(&ask.run.to_string()).is_none());
    assert!(world.server.job(&format!("{}-a1", ask.run)).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_and_owns_secrets_is_not_run_again() {
    let world = World::new(RETRIES);
    let ask = large();
    world.launch(&ask).await.unwrap();
    let (state, end) = world.stop(&ask).await;

    assert_eq!(world.cluster.relaunch(&state, &end).await.unwrap(), None);

    world.cluster.settle(ask.run).await.unwrap();
    assert!(world.server.job(&ask.run.to_string()).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_got_its_turn_after_it_was_ended_is_not_left_to_run() {
    let world = World::new(RETRIES);
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();
    world.stop(&ask).await;
    world.see(&ask.run.to_string(), json!({"spec": {"suspend": false}}));

    world.cluster.settle(ask.run).await.unwrap();

    assert!(world.server.job(&ask.run.to_string()).is_none());
}

// === Who reports ===

#[tokio::test(start_paused = true)]
async fn a_claim_is_taken_over_when_it_was_seen_for_long_enough_whatever_clock_made_it() {
    let world = World::new("");
    let other = replica(&world.server, "", "other");
    let (ask, report) = (Ask::of(GOOD), Uuid::nil());
    let name = ask.run.to_string();
    world.launch(&ask).await.unwrap();
    other.saw_job(&serde_json::from_value(world.server.job(&name).unwrap()).unwrap());
    let claims = |cluster: &Arc<Cluster>| {
        let cluster = Arc::clone(cluster);
        async move { cluster.claim_report(ask.run, report).await.unwrap() }
    };

    assert_eq!(claims(&world.cluster).await, Claim::Ours);
    let claim = world.server.job(&name).unwrap()["metadata"]["annotations"][annotation::REPORT]
        .as_str()
        .unwrap()
        .to_owned();
    // Its clock is years behind.
    let year = Timestamp::now().to_string()[..4].to_owned();
    let old =
        json!({"metadata": {"annotations": {annotation::REPORT: claim.replace(&year, "2001")}}});
    world.server.change(&name, old);
    assert_eq!(claims(&other).await, Claim::Theirs);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(claims(&other).await, Claim::Theirs);
    assert_eq!(claims(&world.cluster).await, Claim::Ours, "made anew");
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(claims(&other).await, Claim::Theirs);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(claims(&other).await, Claim::Ours);
    assert_eq!(claims(&world.cluster).await, Claim::Theirs);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_changed_while_its_report_was_claimed_is_looked_at_again() {
    let world = World::new("");
    let ask = Ask::of(GOOD);
    world.launch(&ask).await.unwrap();

    world.server.fail((Method::PATCH, "jobs"), (409, "Conflict"), 2);

    assert_eq!(world.cluster.claim_report(ask.run, Uuid::nil()).await.unwrap(), Claim::Ours);
}
