//! What is known of the cluster, and who is notified of changes.
//!
//! ```text
//! watches, answers to our calls ─► table ─► states of runs ─► listeners
//! ```

mod table;

use crate::event::{RunId, Timestamp};
use crate::runner::kubernetes::observed::{self, ObservedJob, ObservedPod};
use crate::runner::states::{Listeners, Mailbox};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
pub(super) use table::{GatedJobs, JobAction, RunTable};
use tokio::sync::Notify;
use uuid::Uuid;

/// The runs that are not settled, and the listeners to their states.
#[derive(Debug)]
pub struct ClusterState {
    inner: Mutex<Inner>,
    /// Wakes the admission: a Job that waits may be admitted after a change.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    table: RunTable,
    listeners: Listeners,
}

// === impl ClusterState ===

impl ClusterState {
    /// Nothing is known yet. A run that does not start within `queue_timeout` ends.
    pub(super) fn new(queue_timeout: Duration) -> Arc<Self> {
        let inner = Inner { table: RunTable::new(queue_timeout), listeners: Listeners::default() };
        Arc::new(Self { inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Reads or changes the table, under its lock. Changed states are published by the next
    /// [`Self::notify_listeners`].
    pub(super) fn table<T>(&self, access: impl FnOnce(&mut RunTable) -> T) -> T {
        access(&mut self.inner().table)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock is no problem: no change leaves the table inconsistent when it panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the states that changed.
    pub fn notify_listeners(&self) {
        let mut inner = self.inner();
        let Inner { table, listeners } = &mut *inner;
        let changes = table.take_changes(Timestamp::now());
        for state in &changes {
            listeners.notify(state);
        }
        if !changes.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Adds a listener, which gets the current states first.
    pub fn listen(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut inner = self.inner();
        let states = inner.table.states();
        inner.listeners.add(&mailbox, states.into_iter());
        mailbox
    }

    /// Waits for a published change. (For one task: a change wakes one waiter.)
    pub(super) async fn wait_for_change(&self) {
        self.changed.notified().await;
    }

    // --- Jobs

    /// A Job exists, or has changed.
    pub fn update_job(&self, job: &Job) {
        if let Some(observed) = ObservedJob::from_job(job) {
            self.table(|table| table.update_job(observed));
        }
    }

    /// A call of ours created or found a Job: listeners need not wait for the watch.
    pub(super) fn job_launched(&self, job: &Job) {
        if !observed::is_settled(job) {
            self.update_job(job);
            self.notify_listeners();
        }
    }

    /// A call of ours changed a Job. A Job that is no longer known stays unknown.
    pub(super) fn job_patched(&self, job: &Job) {
        let is_known = |uid| self.table(|table| table.get(uid).is_some());
        if observed::uid(&job.metadata).is_some_and(is_known) {
            self.job_launched(job);
        }
    }

    /// A Job was deleted, or settled and so left the watch. `job` is its last version.
    pub(super) fn job_left_watch(&self, job: &Job) {
        let Some(uid) = observed::uid(&job.metadata) else { return };
        self.table(|table| table.job_left_watch(uid, Timestamp::now()));
        // The last version supersedes what late answers to our calls may still show.
        if self.table(|table| table.get(uid).is_some()) {
            self.update_job(job);
        }
        if observed::is_settled(job) {
            self.job_settled(uid);
        } else {
            self.job_gone(uid);
        }
    }

    /// A Job is gone. A Job that was stopped is deleted by the replica that has dealt with its end,
    /// so its run is settled. Any other Job was deleted by another client, so its run ends.
    pub(super) fn job_gone(&self, uid: Uuid) {
        let was_stopped =
            |table: &mut RunTable| table.get(uid).is_some_and(|known| known.job.stopped.is_some());
        if self.table(was_stopped) {
            self.job_settled(uid);
        } else {
            self.table(|table| table.mark_job_gone(uid));
        }
    }

    /// The end of a Job has been dealt with.
    pub(super) fn job_settled(&self, uid: Uuid) {
        let mut inner = self.inner();
        if let Some(state) = inner.table.remove_settled(uid, Timestamp::now()) {
            inner.listeners.notify(&state);
            self.changed.notify_one();
        }
    }

    /// A list of all Jobs begins.
    pub(super) fn job_list_started(&self) {
        self.table(RunTable::job_list_started);
    }

    /// A list of all Jobs had exactly these.
    pub fn jobs_listed(&self, uids: &HashSet<Uuid>) {
        self.table(|table| table.jobs_listed(uids, Timestamp::now()));
    }

    /// The known Jobs of a run.
    pub(super) fn jobs_of(&self, run: RunId) -> Vec<ObservedJob> {
        self.table(|table| table.jobs_of(run))
    }

    /// A Job that still exists.
    pub(super) fn existing_job(&self, uid: Uuid) -> Option<ObservedJob> {
        self.table(|table| table.get(uid).filter(|known| known.exists).map(|it| it.job.clone()))
    }

    // --- pods

    /// A pod exists, or has changed.
    pub(super) fn update_pod(&self, pod: &Pod) {
        let Some(owner) = self.owner_of(pod) else { return };
        let recipient =
            self.table(|table| table.get(owner).map(|known| known.job.identity.recipient.clone()));
        let image = || {
            let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
            container.and_then(|container| container.image.clone()).unwrap_or_default()
        };
        let service = recipient.map_or_else(image, |recipient| recipient.to_string());
        if let Some(observed) = ObservedPod::from_pod(pod, &service) {
            self.table(|table| table.update_pod(owner, observed, Timestamp::now()));
        }
    }

    /// A pod was deleted. Its last version may be the only one that shows its end.
    pub(super) fn pod_deleted(&self, pod: &Pod) {
        self.update_pod(pod);
        if let (Some(owner), Some(uid)) = (self.owner_of(pod), observed::uid(&pod.metadata)) {
            self.table(|table| table.mark_pod_gone(owner, uid));
        }
    }

    /// A list of all pods had exactly these.
    pub(super) fn pods_listed(&self, uids: &HashSet<Uuid>) {
        self.table(|table| table.pods_listed(uids));
    }

    /// The Job of a pod. If the Job was deleted without its pods (`--cascade=orphan`), they run on
    /// and no longer name it: then the table knows to which Job the pod belonged.
    fn owner_of(&self, pod: &Pod) -> Option<Uuid> {
        let metadata = &pod.metadata;
        observed::owner_job(metadata).or_else(|| {
            observed::uid(metadata).and_then(|uid| self.table(|table| table.job_of_pod(uid)))
        })
    }
}
