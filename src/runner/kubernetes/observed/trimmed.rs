//! Jobs and pods as the watches read them: without the fields that nothing here uses.
//!
//! Most of what the API server sends is `managedFields`, and in a Job the template of its pods. In
//! a burst of ten thousand questions, reading them would take a large part of the CPU time.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An object of which only some fields were read; the others are empty.
#[derive(Clone, Debug)]
pub(crate) struct Trimmed<K>(pub(crate) K);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrimmedMeta {
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
struct TrimmedJob {
    metadata: TrimmedMeta,
    spec: Option<TrimmedJobSpec>,
    status: Option<JobStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrimmedJobSpec {
    suspend: Option<bool>,
    active_deadline_seconds: Option<i64>,
}

#[derive(Deserialize)]
struct TrimmedPod {
    metadata: TrimmedMeta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

// === impl Trimmed ===

impl<K> Resource for Trimmed<K>
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

impl<'de> Deserialize<'de> for Trimmed<Job> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let TrimmedJob { metadata, spec, status } = TrimmedJob::deserialize(deserializer)?;
        let spec = spec.map(|spec| JobSpec {
            suspend: spec.suspend,
            active_deadline_seconds: spec.active_deadline_seconds,
            ..JobSpec::default()
        });
        Ok(Self(Job { metadata: metadata.into(), spec, status }))
    }
}

impl<'de> Deserialize<'de> for Trimmed<Pod> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let TrimmedPod { metadata, spec, status } = TrimmedPod::deserialize(deserializer)?;
        Ok(Self(Pod { metadata: metadata.into(), spec, status }))
    }
}

impl From<TrimmedMeta> for ObjectMeta {
    fn from(trimmed: TrimmedMeta) -> Self {
        let TrimmedMeta { name, namespace, uid, resource_version, labels, annotations, .. } =
            trimmed;
        let TrimmedMeta { creation_timestamp, deletion_timestamp, .. } = trimmed;
        let TrimmedMeta { deletion_grace_period_seconds, owner_references, .. } = trimmed;
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
    use crate::runner::kubernetes::observed;
    use serde_json::json;

    #[test]
    fn the_fields_that_are_used_are_read_and_the_others_are_not() {
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
        let Trimmed(trimmed) = serde_json::from_value::<Trimmed<Pod>>(pod).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(trimmed, whole);
        assert_eq!(observed::owner_job(&trimmed.metadata), observed::owner_job(&whole.metadata));

        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
            "spec": {"suspend": true, "activeDeadlineSeconds": 1, "template": {"spec": {
                "containers": [{"name": "question", "image": "example"}]}}},
            "status": {"active": 1},
        });
        let mut whole: Job = serde_json::from_value(job.clone()).unwrap();
        let Trimmed(trimmed) = serde_json::from_value::<Trimmed<Job>>(job).unwrap();
        whole.metadata.managed_fields = None;
        whole.spec.as_mut().unwrap().template = Default::default();
        assert_eq!(trimmed, whole);
    }

    #[test]
    fn a_trimmed_object_has_the_url_and_kind_of_the_whole_one() {
        let path = Trimmed::<Pod>::url_path(&(), Some("here"));
        assert_eq!(path, Pod::url_path(&(), Some("here")));
        assert_eq!(Trimmed::<Job>::kind(&()), Job::kind(&()));
    }
}
