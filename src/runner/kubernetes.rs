//! Questions as Jobs of Kubernetes.
//!
//! ```text
//! launch ─► Job ─► (its turn: Kueue's, or ours) ─► pod ─► its end ─► settle
//!            │                                      │
//!            └────────────► watch ◄─────────────────┘
//!                             │
//!                           table ─► states
//!                             └────► what is stuck is ended, evictions are put on record
//! ```
//!
//! What is, is in the cluster: a Job is a question that was launched, its annotations say all that
//! a report needs, and its label says whether its end has been dealt with. The process holds nothing
//! that it could not read again, and any number of them may run at once.
//!
//! A Job is never ended by deleting it, for then there would be nothing left to say why: the reason
//! is written on it, and its own deadline is made to pass. When its last pod has gone it is
//! finished, whoever looks; then its end is reported, by the one that claims it, and it is settled.

pub mod settings;
pub mod job;
mod inputs;
mod refusal;
mod reserved;
pub(crate) mod quantity;
mod failure;
pub mod table;
pub mod call;
pub mod lean;
pub mod watch;
pub mod kueue;
pub mod limits;
pub mod lease;
pub(crate) mod preflight;
pub mod cluster;
pub mod launch;
pub mod ends;
pub mod acts;
pub mod release;
use crate::event::RunId;
use crate::runner::{
    Claim, Coordinator, LaunchRequest, Relaunch, RunEnd, RunState, Runner, RunnerError,
};
use async_trait::async_trait;
use call::{CallError, Calls};
use cluster::Cluster;
use futures_util::stream::BoxStream;
use job::JobDefaults;
use kube::{Client, Config};
use kueue::Kueue;
use lease::Leader;
use settings::NetworkSettings;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long the API server may leave a call without a byte of its answer, before its connection is
/// given up. (A watch is given up after 35 s by itself.)
const SILENCE: Duration = Duration::from_secs(60);

/// How long a runner waits to see what is, when it starts.
const START: Duration = Duration::from_secs(60);

/// How a runner is set up.
#[derive(Debug)]
pub struct Options {
    /// What all its Jobs have in common.
    pub network: JobDefaults,
    /// What its questions may have.
    pub settings: Arc<NetworkSettings>,
    /// The name of the Lease that its replicas share.
    pub lease: String,
    /// Which of the replicas this is.
    pub identity: String,
    /// How many launches are under way at once.
    pub launches: usize,
}

/// Runs questions as Jobs.
///
/// When it is dropped or stopped, all that runs runs on.
#[derive(Debug)]
pub struct KubernetesRunner {
    cluster: Arc<Cluster>,
    held: Mutex<Held>,
    /// Cancelled when another replica may lead.
    stop: CancellationToken,
    /// Cancelled when a task has ended.
    died: CancellationToken,
}

#[derive(Debug, Default)]
struct Held {
    /// What ends by itself when it is told to.
    leading: JoinSet<()>,
    /// What goes on for ever.
    tasks: JoinSet<()>,
}

/// Why a runner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no configuration of a cluster to be found.
    #[error("no cluster is configured: run in one, or name a kubeconfig by KUBECONFIG")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("failed to make a client of the cluster")]
    Client(#[source] kube::Error),
    /// The API server does not tell what there is.
    #[error(
        "failed to see the Jobs and pods of namespace `{0}` in {seconds} s: `twined doctor` says \
         what is missing", seconds = START.as_secs()
    )]
    Blind(String),
}

// === impl KubernetesRunner ===

impl KubernetesRunner {
    /// A client of the cluster that we run in, or that the kubeconfig names.
    pub async fn client() -> Result<Client, StartError> {
        let mut config = Config::infer().await.map_err(StartError::Config)?;
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        Client::try_from(config).map_err(StartError::Client)
    }

    /// Starts to watch. When it returns, all runs that there are have been seen.
    pub async fn start(options: Options, client: Client) -> Result<Self, StartError> {
        let namespace = options.network.namespace.clone();
        let calls = Calls::new();
        let Options { lease, identity, .. } = &options;
        let (leader, leads, until) =
            Leader::new(client.clone(), calls.clone(), &namespace, lease, identity);
        let (stop, died) = (CancellationToken::new(), CancellationToken::new());
        let (mut leading, mut tasks) = (JoinSet::new(), JoinSet::new());
        let kueue = Kueue::new();
        let listen = kueue.clone();
        let listen = {
            let (client, namespace, stop) = (client.clone(), namespace.clone(), stop.clone());
            async move { listen.run(client, &namespace, stop).await }
        };
        let cluster = Cluster::new(options, client, calls, kueue, (leads, until));
        let (listed, all_jobs) = oneshot::channel();
        tasks.spawn(forever(&died, watch::jobs(Arc::clone(&cluster), listed)));
        let (listed, all_pods) = oneshot::channel();
        let pods = watch::pods(Arc::clone(&cluster), listed);
        // Pods of Jobs that are not known are forgotten soon: so the Jobs come first.
        let seen = async {
            all_jobs.await.ok()?;
            tasks.spawn(forever(&died, pods));
            all_pods.await.ok()
        };
        if !matches!(tokio::time::timeout(START, seen).await, Ok(Some(()))) {
            return Err(StartError::Blind(namespace));
        }
        leading.spawn(listen);
        tasks.spawn(forever(&died, acts::hear(Arc::clone(&cluster))));
        tasks.spawn(forever(&died, acts::act(Arc::clone(&cluster))));
        tasks.spawn(forever(&died, release::release(Arc::clone(&cluster))));
        leading.spawn(leader.run(stop.clone()));
        Ok(Self { cluster, held: Mutex::new(Held { leading, tasks }), stop, died })
    }

    /// Returns when one of its tasks has ended, which none does unless it panicked. A runner half of
    /// which is dead looks alive, so its process is to end then.
    pub async fn ended(&self) {
        self.died.cancelled().await;
    }

    /// Lets go of everything: another replica may lead at once. The streams of states end.
    pub async fn stop(&self) {
        self.stop.cancel();
        let Held { mut leading, mut tasks } =
            std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        // It gives the Lease back, and ends.
        while leading.join_next().await.is_some() {}
        self.cluster.hush();
    }
}

/// Says when a task has ended, in whatever way.
fn forever(
    died: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let died = died.clone().drop_guard();
    async move {
        task.await;
        drop(died);
    }
}

#[async_trait]
impl Runner for KubernetesRunner {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        self.cluster.launch(&launch).await
    }

    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError> {
        self.cluster.cancel(question).await.map_err(|error| failed("cancel", question, error))
    }

    async fn end_run(&self, run: RunId) -> Result<(), RunnerError> {
        self.cluster.end_run(run).await.map_err(|error| failed("end", run.question, error))
    }

    async fn relaunch(
        &self,
        state: &RunState,
        end: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        self.cluster.relaunch(state, end).await
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        self.cluster.has(run).await.map_err(|error| failed("look for", run.question, error))
    }

    async fn settle(&self, run: RunId) -> Result<(), RunnerError> {
        self.cluster.settle(run).await.map_err(|error| failed("settle", run.question, error))
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        self.cluster.listen().stream()
    }
}

#[async_trait]
impl Coordinator for KubernetesRunner {
    async fn claim_report(&self, run: RunId, report: Uuid) -> Result<Claim, RunnerError> {
        let claimed = self.cluster.claim_report(run, report).await;
        claimed.map_err(|error| failed("claim the report of", run.question, error))
    }

    fn leadership(&self) -> channel::Receiver<bool> {
        self.cluster.leads.clone()
    }
}

/// What a call's error means for the run. Only a launch can be refused for good.
fn failed(verb: &'static str, question: Uuid, error: CallError) -> RunnerError {
    RunnerError::Unavailable { verb, question, source: Box::new(error) }
}
