//! What we know of the cluster, and who is told of it.
//!
//! The watches put in what they see; the states that follow from it are told to whoever listens.

use crate::event::{RunId, Timestamp};
use crate::runner::RunState;
use crate::runner::kubernetes::Options;
use crate::runner::kubernetes::call::{CallError, Calls, Verb};
use crate::runner::kubernetes::job::{self, Templates, label};
use crate::runner::kubernetes::kueue::Kueue;
use crate::runner::kubernetes::table::{JobBrief, Table};
use crate::runner::kubernetes::watch;
use crate::runner::states::{Listeners, Mailbox};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore, watch as channel};
use tokio::time::Instant;
use uuid::Uuid;

/// What the tasks of a runner share.
pub struct Cluster {
    /// How it is set up.
    pub options: Options,
    /// The API server.
    pub client: Client,
    /// How it is called.
    pub calls: Calls,
    /// What Kueue says.
    pub kueue: Kueue,
    /// What the Jobs of each service have in common.
    pub templates: Templates,
    /// Bounds the launches under way.
    pub launches: Semaphore,
    /// Whether we do what need be done once.
    pub leads: channel::Receiver<bool>,
    /// Until when, unless the Lease is renewed.
    pub until: channel::Receiver<Option<Instant>>,
    /// That something changed which may let Jobs have their turn.
    pub turn: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Table,
    listeners: Listeners,
}

// === impl Cluster ===

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Nothing is known yet.
    pub fn new(
        options: Options,
        client: Client,
        calls: Calls,
        kueue: Kueue,
        (leads, until): (channel::Receiver<bool>, channel::Receiver<Option<Instant>>),
    ) -> Arc<Self> {
        let table = Table::new(options.settings.waiting);
        Arc::new(Self {
            templates: Templates::default(),
            launches: Semaphore::new(options.launches),
            options,
            client,
            calls,
            kueue,
            leads,
            until,
            turn: Notify::new(),
            inner: Mutex::new(Inner { table, listeners: Listeners::default() }),
        })
    }

    /// What selects the Jobs of this network that are not settled.
    pub fn selector(&self) -> String {
        format!("{},!{}", self.all_selector(), label::SETTLED)
    }

    /// What selects the Jobs of this network.
    pub fn all_selector(&self) -> String {
        let topic = job::label_value(&self.options.network.topic);
        format!("{}={},{}={topic}", label::MANAGED_BY, job::MANAGER, label::TOPIC)
    }

    /// Jobs, of our namespace.
    pub fn jobs(&self) -> Api<Job> {
        self.api()
    }

    /// Pods, of our namespace.
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Events, of our namespace.
    pub fn events(&self) -> Api<Event> {
        self.api()
    }

    /// Secrets, of our namespace.
    pub fn secrets(&self) -> Api<Secret> {
        self.api()
    }

    /// Objects of some kind, of our namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.options.network.namespace)
    }

    /// Looks at, or changes, what is known. (The lock is held for no longer than it takes.)
    pub fn table<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut self.inner().table)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all that changed.
    pub fn tell(&self) {
        let mut inner = self.inner();
        let Inner { table, listeners } = &mut *inner;
        let changes = table.changes(Timestamp::now());
        for state in &changes {
            listeners.tell(state);
        }
        if !changes.is_empty() {
            self.turn.notify_one();
        }
    }

    /// Takes in a listener, with what is.
    pub fn listen(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut inner = self.inner();
        let states = inner.table.states();
        inner.listeners.add(&mailbox, states.into_iter());
        mailbox
    }

    /// Nothing more is told.
    pub fn hush(&self) {
        self.inner().listeners = Listeners::default();
    }

    fn tell_settled(&self, state: Option<RunState>) {
        if let Some(state) = state {
            self.inner().listeners.tell(&state);
            self.turn.notify_one();
        }
    }

    // --- what the watches see

    /// A Job is there, or has changed.
    pub fn saw_job(&self, job: &Job) {
        if let Some(brief) = watch::job_brief(job) {
            self.table(|table| table.job(brief));
        }
    }

    /// A Job is as a call of ours made it, or found it: told before the watch does.
    pub fn made_job(&self, job: &Job) {
        let settled =
            job.metadata.labels.as_ref().is_some_and(|all| all.contains_key(label::SETTLED));
        if !settled {
            self.saw_job(job);
            self.tell();
        }
    }

    /// A Job is as a call of ours changed it. One that is not known any more stays so.
    pub fn changed_job(&self, job: &Job) {
        let known = |uid| self.table(|table| table.get(uid).is_some());
        if watch::uid(&job.metadata).is_some_and(known) {
            self.made_job(job);
        }
    }

    /// A Job is there no more, or no longer one that we watch.
    pub fn lost_job(&self, job: &Job) {
        let Some(uid) = watch::uid(&job.metadata) else { return };
        let settled =
            job.metadata.labels.as_ref().is_some_and(|all| all.contains_key(label::SETTLED));
        // Its last version is later than what calls of ours may still answer of it.
        if self.table(|table| table.get(uid).is_some()) {
            self.saw_job(job);
        }
        self.job_left(uid, settled);
    }

    /// A Job left. One that we ended is deleted by whoever dealt with its end; any other by a
    /// stranger.
    pub fn job_left(&self, uid: Uuid, settled: bool) {
        let ended =
            |table: &mut Table| table.get(uid).is_some_and(|(job, _)| job.stopped.is_some());
        if settled || self.table(ended) {
            self.forget(uid);
        } else {
            self.table(|table| table.job_gone(uid));
        }
    }

    /// A Job is settled.
    pub fn forget(&self, uid: Uuid) {
        let state = self.table(|table| table.settled(uid));
        self.tell_settled(state);
    }

    /// All the Jobs that there are were listed.
    pub fn jobs_are(&self, seen: &HashSet<Uuid>) {
        self.table(|table| table.jobs_are(seen));
    }

    /// Sees whether a Job is there that a list left out.
    pub async fn look_for_job(&self, uid: Uuid, name: &str) -> Result<(), CallError> {
        match self.calls.call(Verb::Get, self.jobs().get_opt(name)).await? {
            Some(job) if watch::uid(&job.metadata) == Some(uid) => self.found_job(uid, &job),
            Some(_) | None => self.job_left(uid, false),
        }
        Ok(())
    }

    fn found_job(&self, uid: Uuid, job: &Job) {
        let labels = job.metadata.labels.as_ref();
        let label = |name| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        let topic = job::label_value(&self.options.network.topic);
        if label(label::SETTLED).is_some() {
            self.forget(uid);
        } else if label(label::TOPIC) == Some(&topic) && job::identify(job).is_some() {
            self.saw_job(job);
        } else {
            self.job_left(uid, false);
        }
    }

    /// A pod is there, or has changed.
    pub fn saw_pod(&self, pod: &Pod) {
        let Some(owner) = self.owner(pod) else { return };
        let recipient =
            self.table(|table| table.get(owner).map(|(job, _)| job.identity.recipient.clone()));
        let image = || {
            let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
            container.and_then(|container| container.image.clone()).unwrap_or_default()
        };
        let named = recipient.map_or_else(image, |recipient| recipient.to_string());
        if let Some(brief) = watch::pod_brief(pod, &named) {
            self.table(|table| table.pod(owner, brief, Timestamp::now()));
        }
    }

    /// A pod is there no more. What it said last may be its end.
    pub fn lost_pod(&self, pod: &Pod) {
        self.saw_pod(pod);
        if let (Some(owner), Some(uid)) = (self.owner(pod), watch::uid(&pod.metadata)) {
            self.table(|table| table.pod_gone(owner, uid));
        }
    }

    /// The Job that a pod is of. One whose Job was deleted without it (`--cascade=orphan`) does not
    /// say so any more, but runs on.
    fn owner(&self, pod: &Pod) -> Option<Uuid> {
        let metadata = &pod.metadata;
        watch::owner(metadata)
            .or_else(|| watch::uid(metadata).and_then(|uid| self.table(|table| table.job_of(uid))))
    }

    /// All the pods that there are were seen.
    pub fn pods_are(&self, seen: &HashSet<Uuid>) {
        self.table(|table| table.pods_are(seen));
    }

    // --- what is asked of the cluster

    /// The Jobs of a question that are there, settled or not, as the API server says.
    pub async fn jobs_of(&self, question: Uuid) -> Result<Vec<Job>, CallError> {
        let selector = format!("{},{}={question}", self.all_selector(), label::QUESTION);
        let list = ListParams::default().labels(&selector);
        Ok(self.calls.call(Verb::List, self.jobs().list(&list)).await?.items)
    }

    /// The pods of a question of which something may run, as the API server says: those of a Job
    /// that was deleted without them too.
    pub async fn live_pods_of(&self, question: Uuid) -> Result<Vec<Pod>, CallError> {
        let selector = format!("{},{}={question}", self.all_selector(), label::QUESTION);
        let live = "status.phase!=Succeeded,status.phase!=Failed";
        let list = ListParams::default().labels(&selector).fields(live);
        Ok(self.calls.call(Verb::List, self.pods().list(&list)).await?.items)
    }

    /// The pods of a Job, as the API server says: they are taken in.
    pub async fn see_pods_of(&self, job: &str) -> Result<(), CallError> {
        let list = ListParams::default().labels(&format!("{}={job}", watch::JOB_NAME));
        let pods = self.calls.call(Verb::List, self.pods().list(&list)).await?;
        pods.iter().for_each(|pod| self.saw_pod(pod));
        Ok(())
    }

    /// The Jobs of a run that the watch has seen.
    pub fn known(&self, run: RunId) -> Vec<JobBrief> {
        self.table(|table| table.jobs_of(run))
    }
}
