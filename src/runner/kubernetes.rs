//! Runs each question as a Kubernetes Job.
//!
//! ```text
//! launch ─► Job ─► admission (Kueue's, or ours) ─► pod ─► its end ─► settle
//!            │                                      │
//!            └───────────► watches ◄────────────────┘
//!                             │
//!                           state ─► states of runs, to listeners
//!                             └────► actions: stop what is stalled, record evictions
//! ```
//!
//! All state is in the cluster. A Job exists for each launched question. Its annotations hold all
//! that a report needs, and a label marks it as settled. The process holds nothing that it could
//! not read again, so any number of replicas may run at once.
//!
//! A Job is never ended by deleting it, because then no object would be left that holds the cause.
//! Instead the cause is written to the Job, and its deadline is set to one that has passed. The Job
//! is finished when its last pod is gone. One replica claims the report of its end, publishes it,
//! and settles the Job.
//!
//! The modules form layers; each names only those below it:
//!
//! ```text
//! kubernetes       owns all of these; implements Runner and Coordinator
//! launcher, canceller, settler, claims, reconciler, admission, queue_updates, watches
//! job_writer       changes Jobs, and keeps the state up to date
//! state            what is known of the cluster; listeners
//! observed         a Job and a pod, in brief
//! election, kueue  which replica leads; what Kueue reports
//! preflight        the checks of the cluster before the start
//! api              typed calls of the API server
//! job, settings    what is written to a Job
//! failure          why a run makes no progress, or why it ended
//! ```

mod admission;
mod api;
mod canceller;
mod claims;
mod election;
mod failure;
mod inputs;
pub mod job;
mod job_writer;
mod kueue;
mod launcher;
mod observed;
pub(crate) mod preflight;
pub(crate) mod quantity;
mod queue_updates;
mod reconciler;
mod refusal;
mod reserved;
pub mod settings;
mod settler;
pub mod state;
mod watches;

use crate::event::RunId;
use crate::runner::{
    Claim, Coordinator, LaunchRequest, Relaunch, RunEnd, RunState, Runner, RunnerError, Settlement,
};
use crate::tasks::Tasks;
use admission::Admission;
use api::{ApiClient, ApiError};
use async_trait::async_trait;
use canceller::Canceller;
use claims::ReportClaims;
use election::{LeaderElection, Leadership};
use futures_util::stream::BoxStream;
use job::JobDefaults;
use job_writer::JobWriter;
use kube::{Client, Config};
use kueue::Kueue;
use launcher::Launcher;
use reconciler::Reconciler;
use settings::NetworkSettings;
use settler::Settler;
use state::ClusterState;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

/// How long a connection to the API server may be silent during a call before it is closed. (A
/// watch is reopened after 35 s of silence anyway.)
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a starting runner waits for the lists of all Jobs and pods.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How a runner is set up.
#[derive(Debug)]
pub struct KubernetesOptions {
    /// What all its Jobs have in common.
    pub defaults: JobDefaults,
    /// What each service may have.
    pub settings: Arc<NetworkSettings>,
    /// The name of the Lease that all replicas share.
    pub lease_name: String,
    /// The name of this replica, which no other may have: the name of its pod.
    pub identity: String,
    /// How many Jobs are created at once.
    pub max_concurrent_launches: usize,
}

/// Runs questions as Jobs. When it is dropped, all runs go on.
#[derive(Debug)]
pub struct KubernetesRunner {
    state: Arc<ClusterState>,
    launcher: Launcher,
    canceller: Canceller,
    settler: Settler,
    claims: ReportClaims,
    leadership: Leadership,
}

/// What a runner does in the background.
#[derive(Debug)]
pub struct BackgroundWork {
    api: ApiClient,
    state: Arc<ClusterState>,
    reconciler: Reconciler,
    admission: Admission,
    election: LeaderElection,
}

/// Why a runner could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesStartError {
    /// There is no configuration of a cluster.
    #[error("no cluster is configured: run in one, or name a kubeconfig by KUBECONFIG")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("failed to create a client of the cluster")]
    Client(#[source] kube::Error),
    /// The API server did not list all Jobs and pods.
    #[error(
        "failed to list the Jobs and pods of namespace `{namespace}` in {seconds} s: `twined doctor` \
         shows what is missing", seconds = START_TIMEOUT.as_secs()
    )]
    List {
        /// The namespace.
        namespace: String,
    },
}

// === impl KubernetesRunner ===

impl KubernetesRunner {
    /// A client of the cluster that the process runs in, or that the kubeconfig names.
    pub async fn client() -> Result<Client, KubernetesStartError> {
        let mut config = Config::infer().await.map_err(KubernetesStartError::Config)?;
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        Client::try_from(config).map_err(KubernetesStartError::Client)
    }

    /// Starts a runner, whose work goes on in `tasks`. When it returns, all existing runs are in
    /// its state.
    pub async fn start(
        options: KubernetesOptions,
        client: Client,
        tasks: &mut Tasks,
    ) -> Result<Self, KubernetesStartError> {
        let (runner, work) = Self::assemble(options, client);
        work.start(tasks).await?;
        Ok(runner)
    }

    /// A runner and its work, which has not started.
    pub fn assemble(options: KubernetesOptions, client: Client) -> (Self, BackgroundWork) {
        let KubernetesOptions { defaults, settings, .. } = options;
        let KubernetesOptions { lease_name, identity, max_concurrent_launches, .. } = options;
        let api = ApiClient::new(client, &defaults);
        let state = ClusterState::new(settings.waiting);
        let (election, leadership) = LeaderElection::new(api.clone(), &lease_name, &identity);
        let admission = Admission::new(
            JobWriter::new(api.clone(), Arc::clone(&state)),
            Arc::clone(&state),
            leadership.clone(),
            Arc::clone(&settings),
        );
        let work = BackgroundWork {
            api: api.clone(),
            state: Arc::clone(&state),
            reconciler: Reconciler::new(api.clone(), Arc::clone(&state)),
            admission,
            election,
        };
        let launcher = Launcher::new(
            api.clone(),
            Arc::clone(&state),
            settings,
            defaults,
            max_concurrent_launches,
        );
        let claims =
            ReportClaims::new(api.clone(), Arc::clone(&state), leadership.clone(), identity);
        let runner = Self {
            launcher,
            canceller: Canceller::new(api.clone(), Arc::clone(&state)),
            settler: Settler::new(api, Arc::clone(&state)),
            claims,
            leadership,
            state,
        };
        (runner, work)
    }

    /// What is known of the cluster.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }
}

// === impl BackgroundWork ===

impl BackgroundWork {
    /// Starts the work, after all existing Jobs and pods are in the state.
    async fn start(self, tasks: &mut Tasks) -> Result<(), KubernetesStartError> {
        let Self { api, state, reconciler, admission, election } = self;
        Self::watch(&api, &state, tasks).await?;
        let kueue = Kueue::new();
        let queue_updates = queue_updates::follow_queues(kueue.clone(), state);
        let (client, stop) = (api.client(), tasks.stop());
        tasks.spawn("kueue watch", async move { kueue.run(client, api.namespace(), stop).await });
        tasks.spawn_endless("queue updates", queue_updates);
        tasks.spawn_endless("reconciler", reconciler.run());
        tasks.spawn_endless("admission", admission.run());
        let stop = tasks.stop();
        tasks.spawn("leader election", election.run(stop));
        Ok(())
    }

    async fn watch(
        api: &ApiClient,
        state: &Arc<ClusterState>,
        tasks: &mut Tasks,
    ) -> Result<(), KubernetesStartError> {
        let (listed, all_jobs) = oneshot::channel();
        let jobs = watches::watch_jobs(api.clone(), Arc::clone(state), listed);
        tasks.spawn_endless("job watch", jobs);
        let (listed, all_pods) = oneshot::channel();
        let pods = watches::watch_pods(api.clone(), Arc::clone(state), listed);
        let listed = async {
            // The Jobs come first, because pods of unknown Jobs are soon forgotten.
            all_jobs.await.ok()?;
            tasks.spawn_endless("pod watch", pods);
            all_pods.await.ok()
        };
        match tokio::time::timeout(START_TIMEOUT, listed).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => {
                Err(KubernetesStartError::List { namespace: api.namespace().to_owned() })
            }
        }
    }

    /// Reconciles for ever, and does nothing else.
    pub fn reconcile(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reconciler.clone().run()
    }
}

#[async_trait]
impl Runner for KubernetesRunner {
    async fn launch(&self, launch: LaunchRequest<'_>) -> Result<(), RunnerError> {
        self.launcher.launch(&launch).await
    }

    async fn cancel(&self, question: Uuid) -> Result<bool, RunnerError> {
        self.canceller.cancel(question).await.map_err(failed("cancel", question))
    }

    async fn end_run(&self, run: RunId) -> Result<(), RunnerError> {
        self.canceller.end_run(run).await.map_err(failed("end", run.question))
    }

    async fn relaunch(
        &self,
        state: &RunState,
        end: &RunEnd,
    ) -> Result<Option<Relaunch>, RunnerError> {
        // Boxed because it is large: it holds two Jobs across its calls.
        Box::pin(self.launcher.relaunch(state, end)).await
    }

    async fn has(&self, run: RunId) -> Result<bool, RunnerError> {
        self.settler.has(run).await.map_err(failed("look up", run.question))
    }

    async fn settle(&self, run: RunId) -> Result<Settlement, RunnerError> {
        self.settler.settle(run).await.map_err(failed("settle", run.question))
    }

    fn states(&self) -> BoxStream<'static, RunState> {
        self.state.listen().stream()
    }
}

#[async_trait]
impl Coordinator for KubernetesRunner {
    async fn claim_report(&self, run: RunId, report: Uuid) -> Result<Claim, RunnerError> {
        let claimed = self.claims.claim(run, report).await;
        claimed.map_err(failed("claim the report of", run.question))
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leadership.subscribe()
    }
}

fn failed(verb: &'static str, question: Uuid) -> impl FnOnce(ApiError) -> RunnerError {
    move |error| error.into_runner_error(verb, question)
}
