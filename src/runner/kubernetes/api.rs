//! Typed calls of the API server: what their errors mean, and how they are counted.
//!
//! ```text
//! call(verb, future) -> at most 20 s -> counted and timed -> the answer, or an ApiError
//! ```
//!
//! An [`ApiError`] is divided by what the caller must do: give up (`Invalid`), read the object
//! again (`AlreadyExists`, `Conflict`, `NotFound`), or try again later (`Forbidden`,
//! `Unavailable`). A missing permission and an exhausted quota are `Forbidden`: an operator can
//! correct both, so a question is retried for a while before it fails.
//!
//! No call is retried here: only the caller knows whether it may be repeated.

mod metrics;
#[cfg(test)]
mod tests;

use crate::runner::RunnerError;
use crate::runner::kubernetes::job::{self, JobDefaults, label};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
pub(super) use metrics::watch_restarts;
use metrics::{Metrics, ResponseCode};
use serde_json::Value;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// How long one call may take. The API server gives up on a write after 34 s. A call that timed out
/// may have been done: a caller that repeats it must expect that.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The label by which Kubernetes names the Job of a pod.
pub(super) const JOB_NAME_LABEL: &str = "batch.kubernetes.io/job-name";

/// How many events of one object are read.
const EVENT_LIMIT: u32 = 50;

/// Calls the API server about the objects of one namespace and one network. Clones share their
/// metrics.
#[derive(Clone)]
pub(super) struct ApiClient {
    client: Client,
    namespace: Arc<str>,
    /// Selects the Jobs and pods of the network.
    selector: Arc<str>,
    /// The value of [`label::TOPIC`].
    topic: Arc<str>,
    metrics: Arc<Metrics>,
}

/// What a call does: the verbs of a Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Create,
    Get,
    List,
    Patch,
    Delete,
}

/// Why a call of the API server failed, divided by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// 400 or 422: the same request would be refused again.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// 409 `AlreadyExists`.
    #[error("an object of that name exists: {0}")]
    AlreadyExists(String),
    /// Any other 409: the object changed after it was read. On a create it is the namespace's
    /// quota, which others used at the same moment: the object was not created.
    #[error("conflict with another change: {0}")]
    Conflict(String),
    /// 404: the object does not exist, or its namespace does not.
    #[error("not found: {0}")]
    NotFound(String),
    /// 401 or 403: a permission is missing, or a quota is exhausted. To be tried again.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// 429, 5xx, no answer in time, no connection, or an answer that cannot be read. The call may
    /// have been done. To be tried again.
    #[error("API server unavailable: {0}")]
    Unavailable(String),
}

// === impl ApiClient ===

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl ApiClient {
    /// Calls about the namespace and the topic of `defaults`.
    pub(super) fn new(client: Client, defaults: &JobDefaults) -> Self {
        let topic = job::label_value(&defaults.topic);
        let selector = format!("{}={},{}={topic}", label::MANAGED_BY, job::MANAGER, label::TOPIC);
        Self {
            client,
            namespace: defaults.namespace.as_str().into(),
            selector: selector.into(),
            topic: topic.into(),
            metrics: Arc::new(Metrics::new()),
        }
    }

    /// The client, for watches: their calls are not counted.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of all objects.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The value of [`label::TOPIC`] of this network's Jobs.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Selects the Jobs of this network that are not settled.
    pub(super) fn unsettled_selector(&self) -> String {
        format!("{},!{}", self.selector, label::SETTLED)
    }

    /// Objects of one kind in the namespace, for a watch.
    pub(super) fn objects<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    // --- Jobs

    /// Creates a Job.
    pub(super) async fn create_job(&self, job: &Job) -> Result<Job, ApiError> {
        let (jobs, params) = (self.objects(), PostParams::default());
        self.call(Verb::Create, jobs.create(&params, job)).await
    }

    /// The Job of this name, if there is one.
    pub(super) async fn get_job(&self, name: &str) -> Result<Option<Job>, ApiError> {
        self.call(Verb::Get, self.objects().get_opt(name)).await
    }

    /// The Jobs of a question, settled or not.
    pub(super) async fn jobs_of(&self, question: Uuid) -> Result<Vec<Job>, ApiError> {
        self.list(self.question_params(question)).await
    }

    /// Changes a Job by a merge patch.
    pub(super) async fn patch_job(&self, name: &str, patch: &Value) -> Result<Job, ApiError> {
        let (jobs, params) = (self.objects(), PatchParams::default());
        self.call(Verb::Patch, jobs.patch(name, &params, &Patch::Merge(patch))).await
    }

    /// Deletes a Job and its pods, but not a later Job of the same name.
    pub(super) async fn delete_job(&self, name: &str, uid: Uuid) -> Result<(), ApiError> {
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let params = DeleteParams::background().preconditions(preconditions);
        match self.call(Verb::Delete, self.objects::<Job>().delete(name, &params)).await {
            Ok(_) => Ok(()),
            // Another Job has the name.
            Err(ApiError::Conflict(message)) => Err(ApiError::NotFound(message)),
            Err(error) => Err(error),
        }
    }

    // --- pods

    /// The pods of a question that have not ended. Those of a Job that was deleted without its pods
    /// are among them.
    pub(super) async fn live_pods_of(&self, question: Uuid) -> Result<Vec<Pod>, ApiError> {
        let live = "status.phase!=Succeeded,status.phase!=Failed";
        self.list(self.question_params(question).fields(live)).await
    }

    /// The pods of a Job.
    pub(super) async fn pods_of_job(&self, job: &str) -> Result<Vec<Pod>, ApiError> {
        self.list(ListParams::default().labels(&format!("{JOB_NAME_LABEL}={job}"))).await
    }

    // --- what belongs to them

    /// Creates a Secret.
    pub(super) async fn create_secret(&self, secret: &Secret) -> Result<(), ApiError> {
        let (secrets, params) = (self.objects(), PostParams::default());
        self.call(Verb::Create, secrets.create(&params, secret)).await.map(drop)
    }

    /// The events about an object.
    pub(super) async fn events_about(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Vec<Event>, ApiError> {
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name}");
        self.list(ListParams::default().fields(&fields).limit(EVENT_LIMIT)).await
    }

    // --- Leases

    /// The Lease of this name, if there is one.
    pub(super) async fn get_lease(&self, name: &str) -> Result<Option<Lease>, ApiError> {
        self.call(Verb::Get, self.objects().get_opt(name)).await
    }

    /// Creates a Lease.
    pub(super) async fn create_lease(&self, lease: &Lease) -> Result<Lease, ApiError> {
        let (leases, params) = (self.objects(), PostParams::default());
        self.call(Verb::Create, leases.create(&params, lease)).await
    }

    /// Changes a Lease by a merge patch.
    pub(super) async fn patch_lease(&self, name: &str, lease: &Lease) -> Result<Lease, ApiError> {
        let (leases, params) = (self.objects(), PatchParams::default());
        self.call(Verb::Patch, leases.patch(name, &params, &Patch::Merge(lease))).await
    }

    fn question_params(&self, question: Uuid) -> ListParams {
        let selector = format!("{},{}={question}", self.selector, label::QUESTION);
        ListParams::default().labels(&selector)
    }

    async fn list<K>(&self, params: ListParams) -> Result<Vec<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + fmt::Debug + serde::de::DeserializeOwned,
    {
        Ok(self.call(Verb::List, self.objects().list(&params)).await?.items)
    }

    async fn call<T>(
        &self,
        verb: Verb,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        timed_call(&self.metrics, verb, call).await
    }
}

/// Awaits a call for [`CALL_TIMEOUT`] at most, and counts it.
async fn timed_call<T>(
    metrics: &Metrics,
    verb: Verb,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    let start = Instant::now();
    let (code, result) = match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => (ResponseCode::OK, Ok(answer)),
        Ok(Err(error)) => (ResponseCode::from_error(&error), Err(ApiError::from(error))),
        Err(_) => {
            let seconds = CALL_TIMEOUT.as_secs();
            let message = format!("no answer to `{}` in {seconds} s", verb.label());
            (ResponseCode::TIMEOUT, Err(ApiError::Unavailable(message)))
        }
    };
    metrics.record(verb, code, start.elapsed());
    result
}

// === impl Verb ===

impl Verb {
    /// Every verb, in the order of the variants.
    const ALL: [Self; 5] = [Self::Create, Self::Get, Self::List, Self::Patch, Self::Delete];

    /// The name that a Role uses.
    fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

// === impl ApiError ===

impl ApiError {
    /// The error of the runner call that needed this API call.
    pub(super) fn into_runner_error(self, verb: &'static str, question: Uuid) -> RunnerError {
        RunnerError::Unavailable { verb, question, source: Box::new(self) }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unavailable(with_sources(&error));
        };
        let message = if status.message.is_empty() {
            format!("{} {}", status.code, status.reason)
        } else {
            status.message.clone()
        };
        match status.code {
            400 | 422 => Self::Invalid(message),
            401 | 403 => Self::Forbidden(message),
            404 => Self::NotFound(message),
            409 if status.reason == "AlreadyExists" => Self::AlreadyExists(message),
            409 => Self::Conflict(message),
            _ => Self::Unavailable(message),
        }
    }
}

/// An error with its sources, each text once: the errors of kube repeat their sources.
fn with_sources(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
