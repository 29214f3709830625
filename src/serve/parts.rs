//! The adapters of the daemon, each as it was chosen.

use crate::config::{
    ConfigError, DefaultResources, KubernetesSettings, PubsubChoice, ServeSettings, ServicesArgs,
};
use crate::event::Timestamp;
use crate::network;
use crate::pipeline::view_feed::{self, ViewFeed};
use crate::pubsub::admin::Wanted;
use crate::pubsub::{Admin, Connection, Subscriber};
use crate::registry::{Allowed, Listed, ServiceRegistry};
use crate::runner::kubernetes::job::JobDefaults;
use crate::runner::kubernetes::settings::{
    NetworkSettings, ObjectName, ResourceFields, ServiceFields,
};
use crate::runner::kubernetes::{KubernetesOptions, KubernetesRunner, KubernetesStartError};
use crate::runner::process::{self, ProcessRunner};
use crate::runner::{Coordinator, Runner};
use crate::sdk::variables as variable;
use crate::serve::replica_directory::ReplicaDirectory;
use crate::serve::{Host, ServeError, VIEW_FLOW};
use crate::store::sqlite::{self, Keep, SqliteStore};
use crate::store::{EventStore, LayeredView, View};
use crate::tasks::Tasks;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What a view keeps: more than a question usually takes, and what a small disk has room for. What
/// is older is asked of the store.
const VIEW: Keep = Keep { age: Duration::from_secs(2 * 24 * 3600), bytes: 512 << 20 };

/// What keeps events, and what was lately seen of them.
#[derive(Debug)]
pub struct Stores {
    store: SqliteStore,
    lately: SqliteStore,
    view: Arc<LayeredView>,
    /// Holds the file of the view.
    directory: ReplicaDirectory,
}

/// What runs questions.
#[derive(Debug)]
pub enum Running {
    /// Pods.
    Kubernetes(Arc<KubernetesRunner>),
    /// Processes.
    Process(Arc<ProcessRunner>),
}

/// The store, and this replica's view, which follows the topic from now on.
pub async fn open(
    settings: &ServeSettings,
    connection: &Connection,
    tasks: &mut Tasks,
) -> Result<Stores, ServeError> {
    let (data, path) = (settings.data.clone(), settings.store.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let directory = ReplicaDirectory::create(&data.join("views"))
            .map_err(|source| ServeError::Data { path: data, source })?;
        let kept = sqlite::Options { synced: false, keep: Some(VIEW), ..Default::default() };
        let store = SqliteStore::open(&path, sqlite::Options::default());
        let lately = SqliteStore::open(&directory.path().join("view.sqlite"), kept);
        Ok((store.map_err(ServeError::Store)?, lately.map_err(ServeError::Store)?, directory))
    });
    let (store, lately, directory) = opening.await.map_err(ServeError::Thread)??;
    network::watch_store(tasks, store.appended());
    network::watch_store(tasks, lately.appended());
    let since = follow(settings, connection, &lately, tasks).await?;
    let view = LayeredView::new(Arc::new(lately.clone()), Arc::new(store.clone()), since);
    Ok(Stores { store, lately, view: Arc::new(view), directory })
}

/// Has a view follow the topic, and says since when it does.
async fn follow(
    settings: &ServeSettings,
    connection: &Connection,
    lately: &SqliteStore,
    tasks: &mut Tasks,
) -> Result<watch::Receiver<Timestamp>, ServeError> {
    let admin = Admin::new(connection);
    let wanted = Wanted::view_of(&settings.topic, &settings.view_subscription());
    let subscribed = network::patiently(async || admin.subscribe(&wanted).await).await;
    // One of a replica of our name that died may be there; what it got before us is not in our view.
    subscribed.map_err(ServeError::Subscriptions)?;
    let (made, since) = watch::channel(Timestamp::now());
    let subscriber = Subscriber::new(connection, &wanted.name, VIEW_FLOW).await;
    let subscriber = subscriber.map_err(ServeError::Subscribe)?.restoring_as(admin, wanted, made);
    let feed = ViewFeed::new(Arc::new(lately.clone()), tasks.stop());
    let (sender, deliveries) = mpsc::channel(view_feed::BATCH);
    tasks.spawn("view's subscriber", subscriber.run(sender, tasks.stop()));
    tasks.spawn("view", feed.run(deliveries));
    Ok(since)
}

/// What every question is told of the network.
pub fn variables(settings: &ServeSettings, pubsub: &str) -> Vec<(String, String)> {
    let ServeSettings { topic, project, pubsub: choice, .. } = settings;
    let emulator =
        (*choice != PubsubChoice::Google).then_some((variable::PUBSUB_EMULATOR_HOST, pubsub));
    let all = [
        (variable::TOPIC_NAME, &**topic),
        (variable::GOOGLE_CLOUD_PROJECT, &**project),
        (variable::COMPUTE_PROVIDER, variable::GOOGLE_KUEUE),
    ];
    let all = all.into_iter().chain(emulator);
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The settings by service: those of the file, over what flags and the environment say.
pub fn read(kubernetes: &KubernetesSettings) -> Result<NetworkSettings, ConfigError> {
    let KubernetesSettings { service_account, queue, defaults, settings, .. } = kubernetes;
    let DefaultResources { cpus, memory, ephemeral_storage } = defaults;
    let amount = |amount| ResourceFields { default: Some(amount), ..ResourceFields::default() };
    let base = ServiceFields {
        cpus: amount(*cpus),
        memory: amount(*memory),
        ephemeral_storage: amount(*ephemeral_storage),
        service_account: Some(ObjectName(service_account.clone())),
        queue: queue.clone().map(ObjectName),
        ..ServiceFields::default()
    };
    let wrong = |source: Box<dyn Error + Send + Sync>| ConfigError::Settings {
        path: settings.clone().unwrap_or_default(),
        source,
    };
    let text = match settings {
        Some(path) => fs::read_to_string(path).map_err(|error| wrong(error.into()))?,
        None => String::new(),
    };
    NetworkSettings::read(&text, base).map_err(|error| wrong(error.into()))
}

/// What all questions that are pods have in common; `variables` are those that they are told of the
/// network.
pub fn network(
    settings: &ServeSettings,
    kubernetes: &KubernetesSettings,
    variables: Vec<(String, String)>,
) -> JobDefaults {
    // The contract's own are of each Job.
    let ours = |name: &str| [variable::TOPIC_NAME, variable::COMPUTE_PROVIDER].contains(&name);
    let environment = variables.into_iter().filter(|(name, _)| !ours(name));
    let passed = settings.variables.clone();
    JobDefaults {
        namespace: kubernetes.namespace.clone(),
        images: kubernetes.images.clone(),
        topic: settings.topic.clone(),
        // Of several of one name the last holds.
        environment: environment.chain(passed).collect::<BTreeMap<_, _>>().into_iter().collect(),
    }
}

/// Questions as pods; every revision is taken for existing.
pub async fn pods(
    settings: &ServeSettings,
    kubernetes: &KubernetesSettings,
    services: NetworkSettings,
    variables: Vec<(String, String)>,
    tasks: &mut Tasks,
) -> Result<(Running, Arc<dyn ServiceRegistry>), ServeError> {
    let KubernetesSettings { lease_name, max_concurrent_launches, .. } = kubernetes;
    let options = KubernetesOptions {
        defaults: network(settings, kubernetes, variables),
        settings: Arc::new(services),
        lease_name: lease_name.clone(),
        identity: settings.replica.clone(),
        max_concurrent_launches: *max_concurrent_launches,
    };
    let failed = |error: KubernetesStartError| ServeError::Runner(error.into());
    let client = KubernetesRunner::client().await.map_err(failed)?;
    let runner = KubernetesRunner::start(options, client, tasks).await.map_err(failed)?;
    Ok((Running::Kubernetes(Arc::new(runner)), Arc::new(Allowed)))
}

/// Questions as processes, and the revisions of the given services.
pub async fn processes(
    settings: &ServeSettings,
    args: &ServicesArgs,
    host: Host,
    variables: Vec<(String, String)>,
) -> Result<(Running, Arc<dyn ServiceRegistry>), ServeError> {
    let Host { services, inherited, program } = host;
    let listed: Listed = services.iter().map(|service| service.sruid.clone()).collect();
    let options = process::Options {
        runs: settings.data.join("runs"),
        logs: settings.data.join("logs"),
        max_runs: args.max_runs(),
        supervisor: program,
        inherited,
        environment: variables,
        passed: settings.variables.clone().into_iter().collect(),
        shim: None,
    };
    let runner = ProcessRunner::start(options, services).await;
    let runner = runner.map_err(|error| ServeError::Runner(error.into()))?;
    Ok((Running::Process(Arc::new(runner)), Arc::new(listed)))
}

// === impl Stores ===

impl Stores {
    /// What keeps every event.
    pub fn store(&self) -> Arc<dyn EventStore> {
        Arc::new(self.store.clone())
    }

    /// What was lately said.
    pub fn view(&self) -> Arc<dyn View> {
        Arc::clone(&self.view) as Arc<dyn View>
    }

    /// Writes what waits, and lets the view go.
    pub async fn close(self) {
        let Self { store, lately, view, directory } = self;
        drop(view);
        store.close().await;
        lately.close().await;
        drop(directory);
    }
}

// === impl Running ===

impl Running {
    /// The seam to it.
    pub fn runner(&self) -> Arc<dyn Runner> {
        match self {
            Self::Kubernetes(runner) => Arc::clone(runner) as Arc<dyn Runner>,
            Self::Process(runner) => Arc::clone(runner) as Arc<dyn Runner>,
        }
    }

    /// Who leads, and who reports an end.
    pub fn coordinator(&self) -> Arc<dyn Coordinator> {
        match self {
            Self::Kubernetes(runner) => Arc::clone(runner) as Arc<dyn Coordinator>,
            Self::Process(runner) => Arc::clone(runner) as Arc<dyn Coordinator>,
        }
    }

    /// Lets go of it. What runs runs on.
    pub async fn stop(self) {
        match self {
            // Its work is among the tasks of the daemon.
            Self::Kubernetes(_) => {}
            Self::Process(runner) => runner.stop().await,
        }
    }
}
