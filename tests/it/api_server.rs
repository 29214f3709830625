//! The part of an API server that the calls of a runner need: Jobs by name, Secrets, no pods. It
//! fails when a test asks for it, as a real cluster does only rarely. Its normal behaviour is
//! tested on a real cluster, in `tests/cluster`.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use kube::Client;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use uuid::Uuid;

pub(crate) const NAMESPACE: &str = "twined";
const JOBS: &str = "/apis/batch/v1/namespaces/twined/jobs";

#[derive(Debug, Default)]
pub(crate) struct ApiServer {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<String, Value>,
    secrets: usize,
    version: u64,
    /// By method and resource.
    faults: HashMap<(Method, &'static str), Fault>,
}

/// What calls get instead of an answer.
#[derive(Debug)]
struct Fault {
    code: u16,
    reason: &'static str,
    /// How many more calls get it.
    left: usize,
}

type Answer = Result<Value, (u16, &'static str)>;

impl ApiServer {
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let answer = async |State(server): State<Arc<Self>>, method, uri: Uri, body: Bytes| {
            let answer = server.inner().answer(&method, &uri, &body);
            let (code, body) = match answer {
                Ok(object) => (200, object),
                Err((code, reason)) => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}});
                    (
                        code,
                        with(status, json!({"status": "Failure", "reason": reason, "code": code})),
                    )
                }
            };
            (StatusCode::from_u16(code).unwrap(), body.to_string())
        };
        let router = Router::new().fallback(answer).with_state(Arc::clone(self));
        Client::new(router, NAMESPACE)
    }

    /// The next calls of a method on `jobs` or `secrets` fail, so many times.
    pub(crate) fn fail(
        &self,
        call: (Method, &'static str),
        fault: (u16, &'static str),
        times: usize,
    ) {
        let (code, reason) = fault;
        self.inner().faults.insert(call, Fault { code, reason, left: times });
    }

    pub(crate) fn job(&self, name: &str) -> Option<Value> {
        self.inner().jobs.get(name).cloned()
    }

    pub(crate) fn secrets(&self) -> usize {
        self.inner().secrets
    }

    /// Another client changes a Job.
    pub(crate) fn change(&self, name: &str, patch: Value) {
        self.inner().patch(name, patch).unwrap();
    }

    /// Another client deletes a Job.
    pub(crate) fn delete(&self, name: &str) {
        self.inner().jobs.remove(name).unwrap();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl Inner {
    fn answer(&mut self, method: &Method, uri: &Uri, body: &Bytes) -> Answer {
        let name = uri.path().strip_prefix(JOBS).map(|name| name.trim_start_matches('/'));
        let resource = if name.is_some() { "jobs" } else { "secrets" };
        if let Some(Fault { code, reason, left }) = self.faults.get_mut(&(method.clone(), resource))
            && *left > 0
        {
            *left -= 1;
            return Err((*code, *reason));
        }
        let body = || serde_json::from_slice::<Value>(body).unwrap();
        match (method.as_str(), name) {
            ("POST", Some("")) => self.create(body()),
            ("GET", Some("")) => {
                let items = self.jobs.values();
                Ok(json!({"metadata": {}, "items": items.collect::<Vec<_>>()}))
            }
            ("GET", Some(name)) => self.jobs.get(name).cloned().ok_or((404, "NotFound")),
            ("PATCH", Some(name)) => self.patch(name, body()),
            ("DELETE", Some(name)) => self.jobs.remove(name).ok_or((404, "NotFound")),
            ("POST", None) => {
                self.secrets += 1;
                Ok(body())
            }
            _ => Ok(json!({"metadata": {}, "items": []})),
        }
    }

    fn create(&mut self, job: Value) -> Answer {
        let name = job["metadata"]["name"].as_str().unwrap().to_owned();
        if self.jobs.contains_key(&name) {
            return Err((409, "AlreadyExists"));
        }
        self.version += 1;
        let made = json!({"uid": Uuid::new_v4(), "resourceVersion": self.version.to_string()});
        let job = with(job, json!({ "metadata": made }));
        self.jobs.insert(name, job.clone());
        Ok(job)
    }

    fn patch(&mut self, name: &str, patch: Value) -> Answer {
        let job = self.jobs.get_mut(name).ok_or((404, "NotFound"))?;
        let (held, now) =
            (&patch["metadata"]["resourceVersion"], &job["metadata"]["resourceVersion"]);
        if !held.is_null() && held != now {
            return Err((409, "Conflict"));
        }
        self.version += 1;
        let version = json!({"metadata": {"resourceVersion": self.version.to_string()}});
        *job = with(with(job.take(), patch), version);
        Ok(job.clone())
    }
}

/// A merge patch.
fn with(mut object: Value, patch: Value) -> Value {
    match (&mut object, patch) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                let field = fields.remove(&name).unwrap_or_default();
                if !change.is_null() {
                    fields.insert(name, with(field, change));
                }
            }
            object
        }
        (_, patch) => patch,
    }
}
