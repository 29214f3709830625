//! The event store of a daemon, and the view of its replica.

use super::data_folder::DataError;
use super::replica_directory::ReplicaDirectory;
use super::{DaemonError, retry_at_start};
use crate::event::Timestamp;
use crate::pipeline::view_feed::{self, ViewFeed};
use crate::pubsub::subscriber::FlowControl;
use crate::pubsub::{Admin, Connection, Subscriber, SubscriptionSpec};
use crate::store::sqlite::{self, Keep, SqliteStore};
use crate::store::{EventLog, History, LayeredView, View};
use crate::tasks::Tasks;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

/// What a view keeps: longer than most questions take, and as much as a small disk can hold. Older
/// events are read from the store.
const VIEW_LIMITS: Keep = Keep { age: Duration::from_secs(2 * 24 * 3600), bytes: 512 << 20 };

/// How much may be in flight on its way into the view. It is only stored, which is fast.
const VIEW_FLOW: FlowControl = FlowControl { messages: 1_000, bytes: 16 * 1024 * 1024 };

/// The view of a replica that shares its subscription with others.
#[derive(Clone, Debug)]
pub(crate) struct ViewSettings<'a> {
    /// The network's Pub/Sub.
    pub(crate) connection: &'a Connection,
    /// The network's topic.
    pub(crate) topic: &'a str,
    /// The subscription of the view.
    pub(crate) subscription: String,
    /// The data folder of this host.
    pub(crate) data: PathBuf,
}

/// The event store, and a view of recent events.
#[derive(Debug)]
pub(crate) struct Stores {
    store: SqliteStore,
    replica: Option<ReplicaView>,
}

/// A view of its own, which follows the topic.
#[derive(Debug)]
struct ReplicaView {
    recent: SqliteStore,
    view: Arc<LayeredView>,
    admin: Admin,
    subscription: String,
    /// Holds the file of `recent`.
    directory: ReplicaDirectory,
}

// === impl Stores ===

impl Stores {
    /// Opens the store at `path`. With settings for a view, opens one that follows the topic from
    /// now on; else the store is the view.
    pub(super) async fn open(
        tasks: &mut Tasks,
        path: &Path,
        view: Option<ViewSettings<'_>>,
    ) -> Result<Self, DaemonError> {
        let (path, data) = (path.to_owned(), view.as_ref().map(|view| view.data.clone()));
        let opening = tokio::task::spawn_blocking(move || {
            // Before the store, whose file may be in a folder that this creates.
            let directory = data.map(create_directory).transpose()?;
            let store = SqliteStore::open(&path, sqlite::Options::default());
            let recent = directory.as_ref().map(open_recent).transpose();
            let (store, recent) = (store.map_err(DaemonError::Store)?, recent?);
            Ok((store, recent.zip(directory)))
        });
        let (store, recent) = opening.await.map_err(DaemonError::Thread)??;
        watch_store(tasks, store.appended());
        let Some((view, (recent, directory))) = view.zip(recent) else {
            return Ok(Self { store, replica: None });
        };
        watch_store(tasks, recent.appended());
        let since = follow(tasks, &view, &recent).await?;
        let layered = LayeredView::new(Arc::new(recent.clone()), Arc::new(store.clone()), since);
        let ViewSettings { connection, subscription, .. } = view;
        let (view, admin) = (Arc::new(layered), Admin::new(connection));
        let replica = ReplicaView { recent, view, admin, subscription, directory };
        Ok(Self { store, replica: Some(replica) })
    }

    /// Records events.
    pub(super) fn log(&self) -> Arc<dyn EventLog> {
        Arc::new(self.store.clone())
    }

    /// Everything that was ever recorded.
    pub(super) fn history(&self) -> Arc<dyn History> {
        Arc::new(self.store.clone())
    }

    /// The view.
    pub(super) fn view(&self) -> Arc<dyn View> {
        match &self.replica {
            Some(ReplicaView { view, .. }) => Arc::clone(view) as Arc<dyn View>,
            None => Arc::new(self.store.clone()),
        }
    }

    /// Writes what is queued, and deletes the view and its subscription.
    pub(super) async fn close(self) {
        let Self { store, replica } = self;
        let Some(replica) = replica else { return store.close().await };
        let ReplicaView { recent, view, admin, subscription, directory } = replica;
        drop(view);
        let closing = async {
            store.close().await;
            recent.close().await;
            drop(directory);
        };
        let deleting = async {
            if let Err(error) = admin.delete_subscription(&subscription).await {
                let error = error.chain();
                warn!(error, subscription, "view's subscription not deleted: expires in a day");
            }
        };
        tokio::join!(closing, deleting);
    }
}

fn create_directory(data: PathBuf) -> Result<ReplicaDirectory, DaemonError> {
    let created = ReplicaDirectory::create(&data.join("views"));
    created.map_err(|source| DaemonError::Data(DataError::Folder { path: data, source }))
}

fn open_recent(directory: &ReplicaDirectory) -> Result<SqliteStore, DaemonError> {
    let options = sqlite::Options { synced: false, keep: Some(VIEW_LIMITS), ..Default::default() };
    let path = directory.path().join("view.sqlite");
    SqliteStore::open(&path, options).map_err(DaemonError::Store)
}

/// Subscribes a view to the topic. The value is the time since when the view is complete.
async fn follow(
    tasks: &mut Tasks,
    view: &ViewSettings<'_>,
    recent: &SqliteStore,
) -> Result<watch::Receiver<Timestamp>, DaemonError> {
    let admin = Admin::new(view.connection);
    let spec = SubscriptionSpec::for_view(view.topic, &view.subscription);
    let subscribed = retry_at_start(async || admin.subscribe(&spec).await).await;
    // It may exist, from a killed replica of our name. What it received before is not in our view.
    subscribed.map_err(DaemonError::Subscriptions)?;
    let (created, since) = watch::channel(Timestamp::now());
    let subscriber = Subscriber::new(view.connection, &spec.name, VIEW_FLOW).await;
    let subscriber = subscriber.map_err(DaemonError::Subscribe)?;
    let subscriber = subscriber.recreating(admin, spec, Some(created));
    let feed = ViewFeed::new(Arc::new(recent.clone()), tasks.stop());
    let (sender, deliveries) = mpsc::channel(view_feed::BATCH);
    tasks.spawn("view's subscriber", subscriber.run(sender, tasks.stop()));
    tasks.spawn("view", feed.run(deliveries));
    Ok(since)
}

/// Ends the daemon when the thread of a store ends: without it no event can be stored.
fn watch_store(tasks: &mut Tasks, mut appended: watch::Receiver<u64>) {
    let stop = tasks.stop();
    tasks.spawn("store", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = async { while appended.changed().await.is_ok() {} } => {
                error!("thread of the event store ended");
            }
        }
    });
}
