//! Cancellations that meet their runs in every order, at two replicas whose views and watches are
//! late.
//!
//! A test binary of its own, because it moves its clock only while all other threads of its process
//! are idle.
//!
//! Each replica has a pipeline, a monitor and a view of its own, and no way to look at the store
//! for what its view does not have yet. One scenario is one question. All scenarios have one time
//! line, and run at once: steps of 20 s, and delays of the views that are shorter and longer than a
//! step.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use twined::dependencies::Dependencies;
use twined::event::encode::{EventBody, NewQuestion, response};
use twined::event::{OutgoingMessage, RunId, Sruid, SruidBuf, Timestamp, decode};
use twined::monitor::Monitor;
use twined::pipeline::Pipeline;
use twined::pipeline::view_feed::{self, ViewFeed};
use twined::pubsub::emulator::{Emulator, EmulatorOptions};
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Admin, Connection, Delivery, Publisher, Subscriber};
use twined::registry::ListedRegistry;
use twined::routing::Router;
use twined::runner::{
    Cause, Claim, Coordinator, EndReason, LaunchRequest, RunEnd, RunPhase, RunState, Runner,
    RunnerError, Settlement,
};
use twined::store::sqlite::{self, SqliteStore};
use twined::store::{EventLog, History};
use uuid::Uuid;

const REPLICAS: usize = 2;

/// The delays of a replica's view that are tried, in seconds.
const DELAYS: [u64; 4] = [0, 1, 30, 60];

/// The time between two steps of an order.
const STEP: Duration = Duration::from_secs(20);

/// After all steps, and after the end of all delays.
const ANSWER: Duration = Duration::from_secs(220);

/// When everything is over: a run that ends late has a fence and an exception that each take a
/// minute to come into view.
const QUIET: Duration = Duration::from_secs(420);

/// After how long a claim is taken over.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// How often in a row everything must be seen idle.
const IDLE_SAMPLES: usize = 4;

const STRANGER: &str = "octue/stranger:1.0.0";

/// What happens in a scenario, a step each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The question is published.
    Ask,
    /// The cancellation is published.
    Cancel,
    /// The run is created. The launch is under way since the question was received.
    Launch,
    /// A replica's watch has the run for the first time.
    Watch(usize),
}

/// Who cancels, and whether the question is answered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ByParent,
    /// As the parent, of a question that is answered as soon as it runs.
    OfAnswered,
    ByStranger,
    /// A stranger that names itself as the parent.
    ByForger,
}

/// One question.
#[derive(Clone, Debug)]
struct Scenario {
    kind: Kind,
    order: [Step; 5],
    /// The replicas that receive the question and the cancellation.
    receivers: (usize, usize),
    asked: OutgoingMessage,
}

/// What is shared by the replicas: the runs, and when who may see them.
#[derive(Debug)]
struct Cluster {
    start: Instant,
    scenarios: HashMap<Uuid, Scenario>,
    publisher: Publisher,
    runs: Mutex<HashMap<RunId, RunState>>,
    claims: Mutex<HashMap<RunId, (usize, Instant)>>,
    watches: Vec<mpsc::UnboundedSender<RunState>>,
    /// The questions of which a run was cancelled.
    cancelled: Mutex<HashSet<Uuid>>,
    /// The questions whose run has answered.
    answered: Mutex<HashSet<Uuid>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A runner as one replica has it.
#[derive(Debug)]
struct Replica {
    number: usize,
    cluster: Arc<Cluster>,
    watch: Mutex<Option<mpsc::UnboundedReceiver<RunState>>>,
    leads: watch::Sender<bool>,
}

/// Two replicas with views of certain delays.
struct World {
    delays: [u64; REPLICAS],
    cluster: Arc<Cluster>,
    /// The uuids and kinds of the terminal events on the wire, by question.
    terminal: Arc<Mutex<HashMap<Uuid, BTreeMap<Uuid, String>>>>,
    tasks: JoinSet<()>,
    _folder: TempDir,
}

// === impl Step ===

impl Step {
    /// Every order in which a question is asked before its run is created, and a run is created
    /// before it is watched.
    fn orders() -> Vec<[Self; 5]> {
        let mut orders = Vec::new();
        for watches in [[0, 1], [1, 0]] {
            for cancelled in 0..5 {
                let [first, second] = watches.map(Self::Watch);
                let mut order = vec![Self::Ask, Self::Launch, first, second];
                order.insert(cancelled, Self::Cancel);
                orders.push(order.try_into().unwrap());
            }
        }
        orders
    }
}

// === impl Scenario ===

impl Scenario {
    fn all() -> Vec<Self> {
        let kinds = [
            (Kind::ByParent, &[(0, 0), (0, 1), (1, 0), (1, 1)][..]),
            (Kind::OfAnswered, &[(0, 1)][..]),
            (Kind::ByStranger, &[(1, 0)][..]),
            (Kind::ByForger, &[(0, 1)][..]),
        ];
        let scenario = |kind, order, receivers| Self {
            kind,
            order,
            receivers,
            asked: question(Uuid::new_v4()),
        };
        let mut all = Vec::new();
        for (kind, receivers) in kinds {
            for order in Step::orders() {
                all.extend(receivers.iter().map(|receivers| scenario(kind, order, *receivers)));
            }
        }
        all
    }

    fn question(&self) -> Uuid {
        self.asked.ordering_key.parse().unwrap()
    }

    /// When a step is, after the start.
    fn time(&self, step: Step) -> Duration {
        let number = self.order.iter().position(|other| *other == step).unwrap();
        STEP * u32::try_from(number).unwrap()
    }

    fn is_for_replica(mut message: OutgoingMessage, receiver: usize) -> OutgoingMessage {
        message.attributes.insert("receiver".into(), receiver.to_string());
        message
    }

    fn ask(&self) -> OutgoingMessage {
        Self::is_for_replica(self.asked.clone(), self.receivers.0)
    }

    fn cancel(&self) -> OutgoingMessage {
        let data = serde_json::to_vec(&EventBody::Cancellation).unwrap();
        let mut attributes = self.asked.attributes.clone();
        attributes.insert("uuid".into(), Uuid::new_v4().to_string());
        let stranger_is: &[&str] = match self.kind {
            Kind::ByParent | Kind::OfAnswered => &[],
            Kind::ByStranger => &["sender"],
            Kind::ByForger => &["sender", "parent", "originator"],
        };
        for name in stranger_is {
            attributes.insert((*name).into(), STRANGER.into());
        }
        let ordering_key = self.asked.ordering_key.clone();
        Self::is_for_replica(OutgoingMessage { data, attributes, ordering_key }, self.receivers.1)
    }

    async fn publish(self, publisher: Publisher, start: Instant) {
        for step in self.order {
            sleep_until(start + self.time(step)).await;
            match step {
                Step::Ask => publisher.publish(self.ask()).await.unwrap(),
                Step::Cancel => publisher.publish(self.cancel()).await.unwrap(),
                Step::Launch | Step::Watch(_) => {}
            }
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Changes a run, and shows it to each replica: not before its watch has the run.
    fn set(self: &Arc<Self>, state: RunState) {
        let run = state.run;
        let scenario = &self.scenarios[&run.question];
        if state.phase == RunPhase::Settled {
            self.runs.lock().unwrap().remove(&run);
        } else {
            self.runs.lock().unwrap().insert(run, state.clone());
        }
        for (number, watch) in self.watches.iter().enumerate() {
            let (cluster, watch, state) = (Arc::clone(self), watch.clone(), state.clone());
            let seen = self.start + scenario.time(Step::Watch(number));
            self.tasks.lock().unwrap().spawn(async move {
                sleep_until(seen).await;
                // A watch that is late shows the latest state alone.
                let latest = cluster.runs.lock().unwrap().get(&run).cloned();
                let _ =
                    watch.send(latest.unwrap_or(RunState { phase: RunPhase::Settled, ..state }));
            });
        }
    }

    fn end(self: &Arc<Self>, run: RunId, reason: EndReason) -> bool {
        let state = self.runs.lock().unwrap().get(&run).cloned();
        let Some(state) = state.filter(|state| !matches!(state.phase, RunPhase::Ended(_))) else {
            return false;
        };
        let message = "It ended.".to_owned();
        let end = RunEnd {
            at: Timestamp::now(),
            started: None,
            cause: Cause::new(reason, message),
            tail: vec![],
        };
        self.set(RunState { phase: RunPhase::Ended(end), ..state });
        true
    }

    /// The process of a run: it answers, and ends.
    async fn execute(self: Arc<Self>, run: RunId) {
        let scenario = &self.scenarios[&run.question];
        let body = EventBody::Result { output_values: serde_json::json!(7) };
        let result = response(&scenario.asked.attributes, Uuid::new_v4(), Timestamp::now(), &body);
        if scenario.kind != Kind::OfAnswered {
            sleep_until(self.start + ANSWER).await;
        }
        // A cancelled run answers no more.
        if self.is_live(run) {
            self.answered.lock().unwrap().insert(run.question);
            self.publisher.publish(result.unwrap()).await.unwrap();
            sleep_until(self.start + ANSWER + STEP).await;
            self.end(run, EndReason::Exited);
        }
    }

    fn is_live(&self, run: RunId) -> bool {
        let runs = self.runs.lock().unwrap();
        runs.get(&run).is_some_and(|state| !matches!(state.phase, RunPhase::Ended(_)))
    }
}

// === impl Replica ===

#[async_trait]
impl Runner for Replica {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        let run = launch.run;
        let cluster = &self.cluster;
        sleep_until(cluster.start + cluster.scenarios[&run.question].time(Step::Launch)).await;
        if cluster.runs.lock().unwrap().contains_key(&run) {
            return Ok(());
        }
        let now = Timestamp::now();
        cluster.set(RunState {
            run,
            attempt: 0,
            attributes: Arc::new(launch.attributes.clone()),
            evictions: 0,
            phase: RunPhase::Running { launched: now, since: now },
        });
        cluster.tasks.lock().unwrap().spawn(Arc::clone(cluster).execute(run));
        Ok(())
    }

    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError> {
        let is_found = self.cluster.end(RunId { question, retry: 0 }, EndReason::Cancelled);
        if is_found {
            self.cluster.cancelled.lock().unwrap().insert(question);
        }
        Ok(is_found)
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        Ok(self.cluster.runs.lock().unwrap().contains_key(&run))
    }

    async fn settle(&self, run: RunId) -> Result<Settlement, RunnerError> {
        let state = self.cluster.runs.lock().unwrap().get(&run).cloned();
        if let Some(state) = state {
            self.cluster.set(RunState { phase: RunPhase::Settled, ..state });
        }
        Ok(Settlement::Ours)
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        let watch = self.watch.lock().unwrap().take().unwrap();
        UnboundedReceiverStream::new(watch).boxed()
    }
}

#[async_trait]
impl Coordinator for Replica {
    async fn claim_report(&self, run: RunId, _: Uuid) -> Result<Claim, RunnerError> {
        let mut claims = self.cluster.claims.lock().unwrap();
        match claims.get(&run) {
            Some((other, at)) if *other != self.number && at.elapsed() < CLAIM_TIMEOUT => {
                Ok(Claim::Theirs)
            }
            _ => {
                claims.insert(run, (self.number, Instant::now()));
                Ok(Claim::Ours)
            }
        }
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
}

// === impl World ===

impl World {
    /// Two replicas, which start now, and all scenarios, which begin at `start`.
    async fn new(
        connection: &Connection,
        delays: [u64; REPLICAS],
        start: Instant,
        views_alone: bool,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let options = sqlite::Options { synced: false, ..sqlite::Options::default() };
            SqliteStore::open(&folder.path().join(name), options).unwrap()
        };
        let topic = format!("topic-{}-{}", delays[0], delays[1]);
        let admin = Admin::new(connection);
        admin.ensure_topic(&topic).await.unwrap();
        let publisher = Publisher::new(connection, &topic);
        let scenarios = Scenario::all();
        let (watches, states): (Vec<_>, Vec<_>) =
            (0..REPLICAS).map(|_| mpsc::unbounded_channel()).unzip();
        let cluster = Arc::new(Cluster {
            start,
            scenarios: scenarios.iter().map(|it| (it.question(), it.clone())).collect(),
            publisher: publisher.clone(),
            runs: Mutex::default(),
            claims: Mutex::default(),
            watches,
            cancelled: Mutex::default(),
            answered: Mutex::default(),
            tasks: Mutex::default(),
        });
        let store = open("events.sqlite");
        let mut world = Self {
            delays,
            cluster,
            terminal: Arc::default(),
            tasks: JoinSet::new(),
            _folder: tempfile::tempdir().unwrap(),
        };
        world.listen(connection, &topic).await;
        for (number, states) in states.into_iter().enumerate() {
            let view = open(&format!("view-{number}.sqlite"));
            world.feed(connection, &topic, number, &view).await;
            let dependencies =
                world.dependencies(number, states, &view, &store, connection, &topic);
            world.start(connection, &topic, number, dependencies, views_alone).await;
        }
        for scenario in scenarios {
            world.tasks.spawn(scenario.publish(publisher.clone(), start));
        }
        world._folder = folder;
        world
    }

    async fn deliveries(
        &mut self,
        connection: &Connection,
        topic: &str,
        name: &str,
        filter: &str,
    ) -> mpsc::Receiver<Delivery> {
        let name = format!("{topic}-{name}");
        Admin::new(connection).ensure_subscription(&name, topic, filter).await.unwrap();
        let subscriber = Subscriber::new(connection, &name, FlowControl::default()).await.unwrap();
        let (sender, deliveries) = mpsc::channel(view_feed::BATCH);
        self.tasks.spawn(subscriber.run(sender, CancellationToken::new()));
        deliveries
    }

    /// Notes the terminal events that parents receive.
    async fn listen(&mut self, connection: &Connection, topic: &str) {
        let mut deliveries = self.deliveries(connection, topic, "wire", "").await;
        let terminal = Arc::clone(&self.terminal);
        self.tasks.spawn(async move {
            while let Some(Delivery { message, receipt }) = deliveries.recv().await {
                receipt.ack();
                let event = decode(&message.data, &message.attributes).unwrap();
                let kind = event.kind.name();
                if ["result", "exception"].contains(&kind) {
                    let (question, uuid) = (event.attributes.question_uuid, event.attributes.uuid);
                    let mut terminal = terminal.lock().unwrap();
                    terminal.entry(question).or_default().insert(uuid, kind.to_owned());
                }
            }
        });
    }

    /// Feeds a view, so many seconds late.
    async fn feed(
        &mut self,
        connection: &Connection,
        topic: &str,
        number: usize,
        view: &SqliteStore,
    ) {
        let mut deliveries =
            self.deliveries(connection, topic, &format!("view-{number}"), "").await;
        let delay = Duration::from_secs(self.delays[number]);
        let (held, mut due) = mpsc::unbounded_channel();
        let (sender, delayed) = mpsc::channel(view_feed::BATCH);
        self.tasks.spawn(async move {
            while let Some(delivery) = deliveries.recv().await {
                let _ = held.send((Instant::now() + delay, delivery));
            }
        });
        self.tasks.spawn(async move {
            while let Some((at, delivery)) = due.recv().await {
                sleep_until(at).await;
                let _ = sender.send(delivery).await;
            }
        });
        let feed = ViewFeed::new(Arc::new(view.clone()), CancellationToken::new());
        self.tasks.spawn(feed.run(delayed));
    }

    fn dependencies(
        &self,
        number: usize,
        states: mpsc::UnboundedReceiver<RunState>,
        view: &SqliteStore,
        store: &SqliteStore,
        connection: &Connection,
        topic: &str,
    ) -> Dependencies {
        let revision: SruidBuf = "octue/example:1.0.0".parse().unwrap();
        let registry: ListedRegistry = [revision].into_iter().collect();
        let runner = Replica {
            number,
            cluster: Arc::clone(&self.cluster),
            watch: Mutex::new(Some(states)),
            leads: watch::Sender::new(number == 0),
        };
        let runner = Arc::new(runner);
        Dependencies {
            coordinator: Arc::clone(&runner) as Arc<dyn Coordinator>,
            runner,
            view: Arc::new(view.clone()),
            log: Arc::new(store.clone()) as Arc<dyn EventLog>,
            history: Arc::new(store.clone()) as Arc<dyn History>,
            router: Arc::new(Router::new(Arc::new(registry), Admin::new(connection), false)),
            cancellations: Arc::default(),
            publisher: Publisher::new(connection, topic),
            late_answer_timeout: Duration::ZERO,
        }
    }

    async fn start(
        &mut self,
        connection: &Connection,
        topic: &str,
        number: usize,
        dependencies: Dependencies,
        views_alone: bool,
    ) {
        let filter = ["attributes.receiver != \"1\"", "attributes.receiver = \"1\""][number];
        let deliveries =
            self.deliveries(connection, topic, &format!("replica-{number}"), filter).await;
        let stop = CancellationToken::new();
        let of_pipeline = match views_alone {
            // As if the replica that receives a cancellation died behind its ack.
            true => Dependencies { cancellations: Arc::default(), ..dependencies.clone() },
            false => dependencies.clone(),
        };
        let pipeline = Pipeline::new(of_pipeline, FlowControl::default(), stop.clone());
        self.tasks.spawn(pipeline.run(deliveries));
        self.tasks.spawn(Monitor::new(dependencies, stop).run());
    }

    /// What is wrong, if anything.
    fn faults(&self) -> Vec<String> {
        let (terminal, runs) = (self.terminal.lock().unwrap(), self.cluster.runs.lock().unwrap());
        let cancelled = self.cluster.cancelled.lock().unwrap();
        let answered = self.cluster.answered.lock().unwrap();
        let mut faults = Vec::new();
        for (question, scenario) in &self.cluster.scenarios {
            let terminal: Vec<_> =
                terminal.get(question).into_iter().flat_map(BTreeMap::values).collect();
            let is_live = runs.contains_key(&RunId { question: *question, retry: 0 });
            let (is_cancelled, is_answered) =
                (cancelled.contains(question), answered.contains(question));
            let must_be_answered = match scenario.kind {
                Kind::ByParent => Some(false),
                Kind::OfAnswered if scenario.time(Step::Cancel) > scenario.time(Step::Launch) => {
                    Some(true)
                }
                // The first of the answer and the end of the run is what counts.
                Kind::OfAnswered => None,
                Kind::ByStranger | Kind::ByForger => Some(true),
            };
            let expected = if is_answered { "result" } else { "exception" };
            let is_right = must_be_answered.is_none_or(|must| must == is_answered);
            if is_live || !is_right || terminal != [expected] {
                let Scenario { kind, order, receivers, .. } = scenario;
                faults.push(format!(
                    "views {:?} s late, {kind:?}, {order:?}, received by {receivers:?}: \
                     {terminal:?}, answered {is_answered}, cancelled {is_cancelled}, live {is_live}",
                    self.delays
                ));
            }
        }
        faults
    }
}

/// Runs all scenarios with all delays, and asserts how they end.
async fn run_all(views_alone: bool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        let _ =
            Emulator::new(EmulatorOptions::default()).serve(listener, std::future::pending()).await;
    });
    let connection = Connection::emulator(&address, "a-project").unwrap();
    let start = Instant::now() + Duration::from_secs(30);
    let mut worlds = Vec::new();
    for first in DELAYS {
        for second in DELAYS {
            worlds.push(World::new(&connection, [first, second], start, views_alone).await);
        }
    }

    while Instant::now() < start + QUIET {
        // Finely while there are steps, for the shortest delay is a second.
        let seconds = if Instant::now() < start + 5 * STEP { 1 } else { 5 };
        pass(Duration::from_secs(seconds)).await;
        wait_until_idle().await;
    }

    let count: usize = worlds.iter().map(|world| world.cluster.scenarios.len()).sum();
    let faults: Vec<_> = worlds.iter().flat_map(World::faults).collect();
    assert!(faults.is_empty(), "{} of {count}: {faults:#?}", faults.len());
}

/// A question to a service.
fn question(question_uuid: Uuid) -> OutgoingMessage {
    NewQuestion {
        question_uuid,
        sender: Sruid::parse("local/local:local").unwrap(),
        recipient: Sruid::parse("octue/example:1.0.0").unwrap(),
        datetime: Timestamp::now(),
        forward_logs: false,
        input_values: None,
        input_manifest: None,
    }
    .encode()
}

/// Moves the clock.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Waits until everything waits for the clock: no other thread of the process runs or waits for a
/// processor, and this one has had next to nothing to do, several times in a row. On a busy machine
/// that takes longer, and the clock, which goes on meanwhile, must not run ahead of the threads.
async fn wait_until_idle() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let mut idle = 0;
    while idle < IDLE_SAMPLES {
        // What this thread did for the last sample is counted when it parks.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = metrics.worker_total_busy_duration(0);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let busy = metrics.worker_total_busy_duration(0) - before;
        let is_idle = busy < Duration::from_millis(1) && other_threads_sleep();
        idle = if is_idle { idle + 1 } else { 0 };
    }
}

/// Whether every other thread of this process sleeps, as the kernel reports it.
fn other_threads_sleep() -> bool {
    let own = std::fs::read_link("/proc/thread-self").unwrap();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    threads.map(Result::unwrap).filter(|thread| Some(&*thread.file_name()) != own.file_name()).all(
        |thread| {
            // A thread that has ended meanwhile has no state.
            let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else { return true };
            // `<id> (<name>) <state> …`
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
        },
    )
}

/// The tests of this binary run one after the other: each would keep the other from being idle.
static ONE_AT_A_TIME: AsyncMutex<()> = AsyncMutex::const_new(());

#[tokio::test]
async fn a_cancellation_ends_its_run_in_every_order_by_late_views_alone() {
    let _alone = ONE_AT_A_TIME.lock().await;
    run_all(true).await;
}

#[tokio::test]
async fn a_cancellation_ends_its_run_in_every_order_where_a_replica_knows_it_before_its_view() {
    let _alone = ONE_AT_A_TIME.lock().await;
    run_all(false).await;
}
