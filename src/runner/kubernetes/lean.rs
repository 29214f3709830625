//! Jobs and pods as the watches read them: without what nobody here looks at.
//!
//! Every object brings who manages which of its fields, a Job also the template of its pods: most of
//! what the API server sends, and of what it costs to read. Of ten thousand questions a burst of
//! watch events is a good part of our CPU.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An object of which a part was read: the rest is empty.
#[derive(Clone, Debug)]
pub struct Lean<K>(pub K);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
struct LeanJob {
    metadata: LeanMeta,
    spec: Option<LeanJobSpec>,
    status: Option<JobStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanJobSpec {
    suspend: Option<bool>,
    active_deadline_seconds: Option<i64>,
}

#[derive(Deserialize)]
struct LeanPod {
    metadata: LeanMeta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

// === impl Lean ===

impl<K> Resource for Lean<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

impl<'de> Deserialize<'de> for Lean<Job> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let LeanJob { metadata, spec, status } = LeanJob::deserialize(deserializer)?;
        let spec = spec.map(|spec| JobSpec {
            suspend: spec.suspend,
            active_deadline_seconds: spec.active_deadline_seconds,
            ..JobSpec::default()
        });
        Ok(Self(Job { metadata: metadata.into(), spec, status }))
    }
}

impl<'de> Deserialize<'de> for Lean<Pod> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let LeanPod { metadata, spec, status } = LeanPod::deserialize(deserializer)?;
        Ok(Self(Pod { metadata: metadata.into(), spec, status }))
    }
}

impl From<LeanMeta> for ObjectMeta {
    fn from(lean: LeanMeta) -> Self {
        let LeanMeta { name, namespace, uid, resource_version, labels, annotations, .. } = lean;
        let LeanMeta { creation_timestamp, deletion_timestamp, .. } = lean;
        let LeanMeta { deletion_grace_period_seconds, owner_references, .. } = lean;
        Self {
            name,
            namespace,
            uid,
            resource_version,
            labels,
            annotations,
            creation_timestamp,
            deletion_timestamp,
            deletion_grace_period_seconds,
            owner_references,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::kubernetes::watch;
    use serde_json::json;

    #[test]
    fn what_is_looked_at_is_read_the_same_and_the_rest_is_not() {
        let metadata = json!({
            "name": "question-1", "namespace": "default", "resourceVersion": "7",
            "uid": "aaaaaaaa-0000-4000-8000-000000000001",
            "labels": {"a": "b"}, "annotations": {"c": "d"},
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "deletionTimestamp": "2026-01-02T03:04:06Z", "deletionGracePeriodSeconds": 3,
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "it",
                "uid": "bbbbbbbb-0000-4000-8000-000000000001", "controller": true}],
            "managedFields": [{"manager": "us", "operation": "Update", "apiVersion": "batch/v1",
                "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {}}}],
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": "question", "image": "example"}]},
            "status": {"phase": "Pending"},
        });
        let mut whole: Pod = serde_json::from_value(pod.clone()).unwrap();
        let Lean(lean) = serde_json::from_value::<Lean<Pod>>(pod).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(lean, whole);
        assert_eq!(watch::owner(&lean.metadata), watch::owner(&whole.metadata));

        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
            "spec": {"suspend": true, "activeDeadlineSeconds": 1, "template": {"spec": {
                "containers": [{"name": "question", "image": "example"}]}}},
            "status": {"active": 1},
        });
        let mut whole: Job = serde_json::from_value(job.clone()).unwrap();
        let Lean(lean) = serde_json::from_value::<Lean<Job>>(job).unwrap();
        whole.metadata.managed_fields = None;
        whole.spec.as_mut().unwrap().template = Default::default();
        assert_eq!(lean, whole);
    }

    #[test]
    fn it_is_the_resource_that_it_is_of() {
        let path = Lean::<Pod>::url_path(&(), Some("here"));
        assert_eq!(path, Pod::url_path(&(), Some("here")));
        assert_eq!(Lean::<Job>::kind(&()), Job::kind(&()));
    }
}
