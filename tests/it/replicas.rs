//! Several monitors of the same runs, and every state that a runner may report.

use crate::pipeline::{World, pass, passing, question};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use metrics_exporter_prometheus::PrometheusBuilder;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twined::event::encode::{EventBody, response};
use twined::event::{Digest, OutgoingMessage, RunId, Timestamp};
use twined::monitor::Monitor;
use twined::runner::states::{Listeners, Mailbox};
use twined::runner::{
    Cause, Claim, Coordinator, EndReason, LaunchRequest, Relaunch, RunEnd, RunPhase, RunState,
    Runner, RunnerError, Settlement,
};
use twined::store::{EventCursor, UnansweredQuestion, View};
use uuid::Uuid;

/// By the test's clock, which some tests advance by minutes.
const DEADLINE: Duration = Duration::from_secs(300);

/// After how long a claim is taken over.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// What all replicas share.
#[derive(Debug, Default)]
struct Cluster {
    listeners: Mutex<Listeners>,
    states: Mutex<HashMap<RunId, RunState>>,
    claims: Mutex<HashMap<RunId, (usize, Instant)>>,
    /// The calls, each with the number of the replica.
    calls: watch::Sender<Vec<(usize, &'static str)>>,
    relaunch: Option<Relaunch>,
    /// How long a relaunch takes.
    pause: Duration,
    /// Whether every relaunch fails.
    is_full: bool,
    /// Makes replicas settle a run at the same time.
    settling: Option<Barrier>,
}

/// The runner of one replica.
#[derive(Debug)]
struct Replica {
    number: usize,
    cluster: Arc<Cluster>,
    leads: watch::Sender<bool>,
}

#[async_trait]
impl Runner for Replica {
    async fn launch(&self, _: LaunchRequest<'_>) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn cancel(&self, _: Uuid) -> Result<bool, RunnerError> {
        self.record_call("cancel");
        Ok(true)
    }

    async fn end_run(&self, _: RunId) -> Result<(), RunnerError> {
        self.record_call("end");
        Ok(())
    }

    async fn relaunch(
        &self,
        state: &RunState,
        _: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        self.record_call("relaunch");
        tokio::time::sleep(self.cluster.pause).await;
        if self.cluster.is_full {
            let (question, source) = (state.run.question, "its quota is full".into());
            return Err(RunnerError::Unavailable { verb: "relaunch", question, source });
        }
        Ok(self.cluster.relaunch.clone())
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        Ok(self.cluster.states.lock().unwrap().contains_key(&run))
    }

    async fn settle(&self, run: RunId) -> Result<Settlement, RunnerError> {
        if let Some(settling) = &self.cluster.settling {
            settling.wait().await;
        }
        self.record_call("settle");
        let settled = self.cluster.states.lock().unwrap().remove(&run);
        let Some(state) = settled else { return Ok(Settlement::Theirs) };
        self.cluster.set(RunState { phase: RunPhase::Settled, ..state });
        Ok(Settlement::Ours)
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        let mailbox = Arc::new(Mailbox::default());
        let states = self.cluster.states.lock().unwrap();
        self.cluster.listeners.lock().unwrap().add(&mailbox, states.values().cloned());
        mailbox.stream()
    }
}

#[async_trait]
impl Coordinator for Replica {
    async fn claim_report(&self, run: RunId, _: Uuid) -> Result<Claim, RunnerError> {
        let mut claims = self.cluster.claims.lock().unwrap();
        let mine = (self.number, Instant::now());
        match claims.get(&run) {
            Some((other, since)) if *other != self.number && since.elapsed() < CLAIM_TIMEOUT => {
                Ok(Claim::Theirs)
            }
            _ => {
                claims.insert(run, mine);
                Ok(Claim::Ours)
            }
        }
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
}

impl Replica {
    fn record_call(&self, verb: &'static str) {
        self.cluster.calls.send_modify(|calls| calls.push((self.number, verb)));
    }
}

impl Cluster {
    fn set(&self, state: RunState) {
        if state.phase != RunPhase::Settled {
            self.states.lock().unwrap().insert(state.run, state.clone());
        }
        self.listeners.lock().unwrap().notify(&state);
    }

    fn count(&self, verb: &str) -> usize {
        self.calls.borrow().iter().filter(|(_, other)| *other == verb).count()
    }

    async fn wait_for_call(&self, verb: &str) {
        self.wait_for_calls(verb, 1).await;
    }

    async fn wait_for_calls(&self, verb: &str, count: usize) {
        let mut calls = self.calls.subscribe();
        let called = calls
            .wait_for(|calls| calls.iter().filter(|(_, other)| *other == verb).count() >= count);
        tokio::time::timeout(DEADLINE, called).await.unwrap().unwrap();
    }

    async fn wait_until_settled(&self) {
        self.wait_for_call("settle").await;
    }
}

/// Replicas of one network.
struct Replicas {
    replicas: Vec<Arc<Replica>>,
    _tasks: JoinSet<()>,
}

impl Replicas {
    fn start(world: &World, cluster: &Arc<Cluster>, leads: &[bool]) -> Self {
        let replica = |(number, leads): (usize, &bool)| {
            let (cluster, leads) = (Arc::clone(cluster), watch::Sender::new(*leads));
            Arc::new(Replica { number, cluster, leads })
        };
        let replicas: Vec<_> = leads.iter().enumerate().map(replica).collect();
        let mut tasks = JoinSet::new();
        for replica in &replicas {
            let dependencies = world.dependencies(replica);
            tasks.spawn(Monitor::new(dependencies, CancellationToken::new()).run());
        }
        Self { replicas, _tasks: tasks }
    }
}

fn asks_for_logs(uuid: Uuid) -> OutgoingMessage {
    let mut asked = question(uuid);
    asked.attributes.insert("forward_logs".into(), "1".into());
    asked
}

fn state(asked: &OutgoingMessage, phase: RunPhase) -> RunState {
    let run = RunId { question: asked.ordering_key.parse().unwrap(), retry: 0 };
    let attributes = Arc::new(asked.attributes.clone());
    RunState { run, attempt: 0, attributes, evictions: 0, phase }
}

fn ended(asked: &OutgoingMessage, reason: EndReason) -> RunState {
    let message = "It ended.".to_owned();
    let at = Timestamp::now();
    state(
        asked,
        RunPhase::Ended(RunEnd {
            at,
            started: None,
            cause: Cause::new(reason, message),
            tail: vec![],
        }),
    )
}

fn seconds_ago(seconds: i64) -> Timestamp {
    Timestamp(Timestamp::now().0 - seconds * 1_000_000)
}

async fn publish(world: &World, asked: &OutgoingMessage, body: &EventBody) {
    let published = response(&asked.attributes, Uuid::new_v4(), Timestamp::now(), body).unwrap();
    world.publisher.publish(published).await.unwrap();
}

fn result() -> EventBody {
    EventBody::Result { output_values: serde_json::json!(7) }
}

fn exception() -> EventBody {
    EventBody::Exception {
        exception_type: "ValueError".into(),
        exception_message: "no".into(),
        exception_traceback: vec![],
    }
}

async fn kinds(world: &World, uuid: Uuid) -> Vec<String> {
    let mut kinds: Vec<_> = world.stored(uuid).await.into_iter().map(|event| event.kind).collect();
    kinds.sort_unstable();
    kinds
}

/// Waits until what is on record is as wanted.
async fn wait_for(world: &World, uuid: Uuid, wanted: &[&str]) {
    let mut appended = world.store.appended();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = kinds(world, uuid).await;
        if found == wanted {
            return;
        }
        let changed = tokio::time::timeout_at(deadline, appended.changed()).await;
        changed.unwrap_or_else(|_| panic!("{found:?}, not {wanted:?}")).unwrap();
    }
}

#[tokio::test]
async fn one_of_three_replicas_publishes_an_end_once_on_the_wire() {
    let world = World::new(0, None, 0).await;
    let wire = world.wire().await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let cluster = Arc::new(Cluster::default());
    cluster.set(ended(&asked, EndReason::Killed));
    world.publisher.publish(asked).await.unwrap();

    let _replicas = Replicas::start(&world, &cluster, &[false, true, false]);
    world.work_until(cluster.wait_until_settled()).await;

    assert_eq!(kinds(&world, uuid).await, ["exception", "heartbeat", "question"]);
    assert_eq!(wire.kinds(3).await, ["exception", "heartbeat", "question"]);
    assert_eq!(*cluster.calls.borrow(), [(claimant(&cluster), "relaunch"), (1, "settle")]);
}

fn claimant(cluster: &Cluster) -> usize {
    cluster.claims.lock().unwrap().values().next().unwrap().0
}

#[tokio::test]
async fn the_claim_of_a_replica_that_died_is_taken_over() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let cluster = Arc::new(Cluster::default());
    let state = ended(&asked, EndReason::Killed);
    let start = Instant::now();
    cluster.claims.lock().unwrap().insert(state.run, (9, start));
    cluster.set(state);
    world.publisher.publish(asked).await.unwrap();

    let _replicas = Replicas::start(&world, &cluster, &[true]);
    world.work_until(passing(cluster.wait_until_settled())).await;

    assert!(start.elapsed() >= CLAIM_TIMEOUT);
    assert_eq!(kinds(&world, uuid).await, ["exception", "heartbeat", "question"]);
}

#[tokio::test]
async fn a_follower_leaves_it_to_the_leader_to_settle() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let cluster = Arc::new(Cluster::default());
    world.publisher.publish(asked.clone()).await.unwrap();
    publish(&world, &asked, &result()).await;
    let replicas = Replicas::start(&world, &cluster, &[false, false]);

    world
        .work_until(async {
            wait_for(&world, uuid, &["question", "result"]).await;
            cluster.set(ended(&asked, EndReason::Exited));
            let early = cluster.wait_for_call("settle");
            tokio::time::timeout(Duration::from_secs(1), early).await.unwrap_err();
            replicas.replicas[1].leads.send_replace(true);
            cluster.wait_until_settled().await;
        })
        .await;

    assert_eq!(*cluster.calls.borrow(), [(1, "settle")]);
    assert_eq!(kinds(&world, uuid).await, ["question", "result"]);
}

#[tokio::test]
async fn an_end_is_counted_once_though_every_replica_takes_itself_for_the_leader() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let settling = Some(Barrier::new(3));
    let cluster = Arc::new(Cluster { settling, ..Cluster::default() });
    world.publisher.publish(asked.clone()).await.unwrap();
    publish(&world, &asked, &result()).await;
    let _replicas = Replicas::start(&world, &cluster, &[true, true, true]);

    world
        .work_until(async {
            wait_for(&world, uuid, &["question", "result"]).await;
            cluster.set(ended(&asked, EndReason::Exited));
            cluster.wait_for_calls("settle", 3).await;
            // What follows a call needs no more than a few turns of the executor.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        })
        .await;

    let rendered = recorder.handle().render();
    assert!(rendered.contains("twined_questions_total{outcome=\"answered\"} 1\n"), "{rendered}");
}

#[tokio::test]
async fn a_relaunched_run_gets_log_records_and_no_exception() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = asks_for_logs(uuid);
    let relaunch = Some(Relaunch { attempt: 1, message: "It runs again with 2Gi.".into() });
    let cluster = Arc::new(Cluster { relaunch, ..Cluster::default() });
    let first = ended(&asked, EndReason::Memory);
    cluster.set(first.clone());
    world.publisher.publish(asked.clone()).await.unwrap();
    let _replicas = Replicas::start(&world, &cluster, &[true, false]);

    world
        .work_until(async {
            let published = ["heartbeat", "heartbeat", "log_record", "question"];
            wait_for(&world, uuid, &published).await;
            assert_eq!((cluster.count("relaunch"), cluster.count("settle")), (1, 0));

            // The second attempt answers, and that is all.
            publish(&world, &asked, &result()).await;
            cluster.set(RunState { attempt: 1, ..ended(&asked, EndReason::Exited) });
            cluster.wait_until_settled().await;
        })
        .await;

    let found = kinds(&world, uuid).await;
    assert!(!found.contains(&"exception".to_owned()), "{found:?}");
    assert_eq!(cluster.count("relaunch"), 1);
}

#[tokio::test]
async fn a_run_that_waits_for_its_relaunch_has_heartbeats() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let relaunch = Some(Relaunch { attempt: 1, message: "It runs again.".into() });
    let pause = Duration::from_secs(200);
    let cluster = Arc::new(Cluster { relaunch, pause, ..Cluster::default() });
    cluster.set(ended(&asked, EndReason::Memory));
    world.publisher.publish(asked.clone()).await.unwrap();
    let _replicas = Replicas::start(&world, &cluster, &[true]);

    // The fence, one while it waits, and one when it is relaunched.
    let published = ["heartbeat", "heartbeat", "heartbeat", "question"];
    world.work_until(passing(wait_for(&world, uuid, &published))).await;
}

#[tokio::test]
async fn a_relaunch_that_fails_for_long_is_given_up() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let cluster = Arc::new(Cluster { is_full: true, ..Cluster::default() });
    cluster.set(ended(&asked, EndReason::Memory));
    world.publisher.publish(asked).await.unwrap();
    let _replicas = Replicas::start(&world, &cluster, &[true]);

    world
        .work_until(async {
            // The first has failed.
            cluster.wait_for_calls("relaunch", 2).await;
            pass(Duration::from_secs(800)).await;
            let early = cluster.wait_until_settled();
            tokio::time::timeout(Duration::from_secs(1), early).await.unwrap_err();
            pass(Duration::from_secs(100)).await;
            cluster.wait_until_settled().await;
        })
        .await;

    let found = kinds(&world, uuid).await;
    assert_eq!(found.iter().filter(|kind| *kind == "exception").count(), 1, "{found:?}");
}

#[tokio::test]
async fn a_run_with_an_exception_of_its_own_is_not_relaunched() {
    // Given a run whose exception is still on its way when it has ended,
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let relaunch = Some(Relaunch { attempt: 1, message: String::new() });
    let cluster = Arc::new(Cluster { relaunch, ..Cluster::default() });
    cluster.set(ended(&asked, EndReason::Failed));
    world.publisher.publish(asked.clone()).await.unwrap();
    publish(&world, &asked, &exception()).await;

    // when a monitor handles the end, for longer than its grace period,
    let _replicas = Replicas::start(&world, &cluster, &[true]);
    let settled = cluster.wait_until_settled();
    tokio::time::timeout(Duration::from_secs(1), settled).await.unwrap_err();
    world.work_until(cluster.wait_until_settled()).await;

    // then it is settled, and nothing more.
    assert_eq!(*cluster.calls.borrow(), [(0, "settle")]);
    let found = kinds(&world, uuid).await;
    assert_eq!(found.iter().filter(|kind| *kind == "exception").count(), 1, "{found:?}");
}

#[tokio::test]
async fn a_waiting_run_has_heartbeats_from_the_leader_whichever_replica_leads() {
    let world = World::new(0, None, 0).await;
    let wire = world.wire().await;
    let uuid = Uuid::new_v4();
    let asked = asks_for_logs(uuid);
    let cluster = Arc::new(Cluster::default());
    let (since, why) = (seconds_ago(125), "It waits for 3 others.".to_owned());
    cluster.set(state(&asked, RunPhase::Queued { since, why }));
    world.publisher.publish(asked.clone()).await.unwrap();
    let replicas = Replicas::start(&world, &cluster, &[true, false]);

    world
        .work_until(async {
            wait_for(&world, uuid, &["heartbeat", "log_record", "question"]).await;
            // Another takes over: it publishes nothing twice in the same interval.
            replicas.replicas[0].leads.send_replace(false);
            replicas.replicas[1].leads.send_replace(true);
            let (launched, since) = (since, seconds_ago(0));
            cluster.set(state(&asked, RunPhase::Running { launched, since }));
            let published = ["heartbeat", "heartbeat", "log_record", "question"];
            wait_for(&world, uuid, &published).await;
        })
        .await;

    let stored = world.stored(uuid).await;
    let note = stored.iter().find(|event| event.kind == "log_record").unwrap();
    assert!(note.data.contains("It waits for 3 others."), "{}", note.data);
    assert_eq!(wire.kinds(4).await, ["heartbeat", "heartbeat", "log_record", "question"]);
}

#[tokio::test]
async fn an_eviction_is_logged_and_a_run_that_has_answered_before_is_ended() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = asks_for_logs(uuid);
    let cluster = Arc::new(Cluster::default());
    let waits = || RunPhase::Starting { since: seconds_ago(5), why: String::new() };
    world.publisher.publish(asked.clone()).await.unwrap();
    let _replicas = Replicas::start(&world, &cluster, &[true, false]);

    world
        .work_until(async {
            cluster.set(RunState { evictions: 1, ..state(&asked, waits()) });
            wait_for(&world, uuid, &["heartbeat", "log_record", "question"]).await;
            assert_eq!(cluster.count("end"), 0);

            publish(&world, &asked, &result()).await;
            cluster.set(RunState { evictions: 2, ..state(&asked, waits()) });
            cluster.wait_for_call("end").await;
        })
        .await;

    assert_eq!(*cluster.calls.borrow(), [(0, "end")]);
}

#[tokio::test]
async fn a_run_that_is_seen_after_its_cancellation_is_cancelled() {
    let world = World::new(0, None, 0).await;
    let uuid = Uuid::new_v4();
    let asked = question(uuid);
    let cluster = Arc::new(Cluster::default());
    world.publisher.publish(asked.clone()).await.unwrap();
    world.publisher.publish(World::cancellation(&asked)).await.unwrap();
    let _replicas = Replicas::start(&world, &cluster, &[true]);

    world
        .work_until(async {
            wait_for(&world, uuid, &["cancellation", "question"]).await;
            let waits = RunPhase::Queued { since: seconds_ago(0), why: String::new() };
            cluster.set(state(&asked, waits));
            cluster.wait_for_call("cancel").await;
        })
        .await;
}

#[tokio::test]
async fn an_unanswered_question_without_a_run_gets_an_exception() {
    let (lost, answered, outside) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let world = World::new(0, None, 0).await;
    let mut elsewhere = question(outside);
    elsewhere.attributes.insert("recipient".into(), "octue/other:1.0.0".into());
    let asked = [question(lost), question(answered), elsewhere];
    for asked in &asked {
        let attributes = &asked.attributes;
        world.store.unanswered.lock().unwrap().push(UnansweredQuestion {
            run: RunId { question: asked.ordering_key.parse().unwrap(), retry: 0 },
            attributes: attributes.clone(),
            recipient: attributes["recipient"].parse().unwrap(),
            cancelled: false,
            cursor: EventCursor {
                datetime: Timestamp(0),
                question: Uuid::nil(),
                event: Uuid::nil(),
                digest: Digest([0; 16]),
            },
        });
    }
    // Its answer is on its way: no pipeline runs yet.
    publish(&world, &asked[1], &result()).await;
    let cluster = Arc::new(Cluster::default());
    let wire = world.wire().await;

    // Two fences are published, and only then does a pipeline start.
    let _replicas = Replicas::start(&world, &cluster, &[true, false]);
    assert_eq!(passing(wire.kinds(2)).await, ["heartbeat", "heartbeat"]);
    world
        .work_until(async {
            let mut appended = world.store.appended();
            while kinds(&world, lost).await != ["exception", "heartbeat"] {
                appended.changed().await.unwrap();
            }
            while kinds(&world, answered).await != ["heartbeat", "result"] {
                appended.changed().await.unwrap();
            }
        })
        .await;

    assert!(world.stored(lost).await.iter().any(|event| event.data.contains("nothing of its run")));
    assert!(world.stored(outside).await.is_empty());
}
