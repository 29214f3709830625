//! Watches Jobs and pods without gaps.
//!
//! A watch starts with a list of all objects, and goes on with their changes. When its stream
//! breaks, ends or falls silent it is opened again at the same version, or with a new list where
//! the API server no longer has that version. Objects that were deleted in between are missing from
//! the list.

use crate::chain::Chain;
use crate::runner::kubernetes::api::{self, ApiClient, JOB_NAME_LABEL};
use crate::runner::kubernetes::observed;
use crate::runner::kubernetes::observed::trimmed::Trimmed;
use crate::runner::kubernetes::state::ClusterState;
use futures_util::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, DefaultBackoff, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::warn;

/// How long one call of a watch lasts, in seconds. A stream that is silent for 5 s longer is
/// reopened, so this bounds how long a half-open connection hides changes. A call is cheap: it
/// continues at the version where the last one ended.
const CALL_SECONDS: u32 = 30;

/// Watches Jobs, for ever. Sends to `listed` when all existing Jobs are in the state.
pub(super) async fn watch_jobs(
    api: ApiClient,
    state: Arc<ClusterState>,
    listed: oneshot::Sender<()>,
) {
    let config = Config::default().labels(&api.unsettled_selector()).timeout(CALL_SECONDS);
    let mut events = events::<Job>(api.objects(), config, "jobs");
    let mut listed = Some(listed);
    let mut uids = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => {
                uids.clear();
                state.job_list_started();
            }
            Event::InitApply(Trimmed(job)) => {
                uids.extend(observed::uid(&job.metadata));
                state.update_job(&job);
            }
            Event::InitDone => {
                state.jobs_listed(&std::mem::take(&mut uids));
                // The receiver may have given up.
                listed.take().map(|listed| listed.send(()));
            }
            Event::Apply(Trimmed(job)) => state.update_job(&job),
            Event::Delete(Trimmed(job)) => state.job_left_watch(&job),
        }
        state.notify_listeners();
    }
}

/// Watches the pods of Jobs, for ever. Sends to `listed` when all existing pods are in the state.
pub(super) async fn watch_pods(
    api: ApiClient,
    state: Arc<ClusterState>,
    listed: oneshot::Sender<()>,
) {
    let config = Config::default().labels(JOB_NAME_LABEL).timeout(CALL_SECONDS);
    let mut events = events::<Pod>(api.objects(), config, "pods");
    let mut listed = Some(listed);
    let mut uids = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => uids.clear(),
            Event::InitApply(Trimmed(pod)) => {
                uids.extend(observed::uid(&pod.metadata));
                state.update_pod(&pod);
            }
            Event::InitDone => {
                state.pods_listed(&std::mem::take(&mut uids));
                // The receiver may have given up.
                listed.take().map(|listed| listed.send(()));
            }
            Event::Apply(Trimmed(pod)) => state.update_pod(&pod),
            Event::Delete(Trimmed(pod)) => state.pod_deleted(&pod),
        }
        state.notify_listeners();
    }
}

fn events<K>(
    api: Api<Trimmed<K>>,
    config: Config,
    resource: &'static str,
) -> impl Stream<Item = Event<Trimmed<K>>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    Trimmed<K>: DeserializeOwned,
{
    let restarts = api::watch_restarts(resource);
    let events = watcher(api, config).backoff(DefaultBackoff::default());
    Box::pin(events.filter_map(move |event: watcher::Result<Event<Trimmed<K>>>| {
        let event = event
            .inspect_err(|error| {
                restarts.increment(1);
                warn!(resource, error = %Chain(error), "watch broken: reopening it");
            })
            .ok();
        std::future::ready(event)
    }))
}
