use super::*;
use serde_json::{Value, json};

/// A Workload as the API server serves it, with these conditions: type, status, reason, message.
fn workload(version: &str, conditions: &[[&str; 4]]) -> Value {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|[kind, status, reason, message]| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": "2026-11-25T20:00:05Z", "observedGeneration": 1,
            })
        })
        .collect();
    let priority_class = if version == "v1beta1" {
        json!({"priorityClassName": "", "priorityClassSource": ""})
    } else {
        json!({"priorityClassRef": {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass",
                                    "name": "high"}})
    };
    let mut workload = json!({
        "apiVersion": format!("kueue.x-k8s.io/{version}"),
        "kind": "Workload",
        "metadata": {
            "name": "job-question-1-2f1ab", "namespace": "questions", "uid": "w1",
            "creationTimestamp": "2026-11-25T20:00:00Z", "generation": 1,
            "labels": {"kueue.x-k8s.io/job-uid": "j1"},
            "finalizers": ["kueue.x-k8s.io/resource-in-use"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": "question-1", "uid": "j1",
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "active": true, "priority": 5, "queueName": "questions",
            "podSets": [{"name": "main", "count": 1, "template": {"spec": {"containers": []}}}],
        },
        "status": {"conditions": conditions},
    });
    let spec = workload["spec"].as_object_mut().unwrap();
    spec.extend(priority_class.as_object().unwrap().clone());
    workload
}

fn brief(workload: Value) -> WorkloadBrief {
    WorkloadBrief::from_object(serde_json::from_value(workload).unwrap()).unwrap()
}

fn pending(version: &str, message: &str) -> WorkloadBrief {
    brief(workload(version, &[["QuotaReserved", "False", "Pending", message]]))
}

#[test]
fn workloads_of_both_versions_are_read() {
    let message = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in \
                   flavor default, 1 more needed";
    for version in ["v1beta1", "v1beta2"] {
        let brief = pending(version, message);
        assert_eq!((&*brief.job, &*brief.queue, brief.priority), ("j1", "questions", 5));
        assert_eq!(
            brief.describe_wait(Some(3)),
            "It waits in queue `questions` behind 3 others: insufficient unused quota for cpu in \
             flavor default, 1 more needed."
        );
        assert_eq!(brief.stall(), None);
    }
    let fresh = brief(workload("v1beta2", &[]));
    assert_eq!(fresh.describe_wait(Some(0)), "It is the first in queue `questions`.");
    assert_eq!(fresh.describe_wait(Some(1)), "It waits in queue `questions` behind 1 other.");
    assert_eq!(fresh.describe_wait(None), "It waits in queue `questions`.");
}

#[test]
fn a_workload_without_a_job_is_ignored() {
    let mut pods = workload("v1beta1", &[]);
    pods["metadata"]["ownerReferences"][0]["kind"] = json!("Pod");
    assert_eq!(WorkloadBrief::from_object(serde_json::from_value(pods).unwrap()), None);
}

#[test]
fn a_request_over_the_maximum_of_every_flavor_stalls_in_both_versions() {
    let set = "couldn't assign flavors to pod set main: ";
    for (message, stalled) in [
        ("insufficient quota for cpu in flavor default, request > maximum capacity (10 > 8)", true),
        (
            "insufficient quota for cpu in flavor default, previously considered podsets requests \
             (0) + current podset request (10) > maximum capacity (8)",
            true,
        ),
        (
            "insufficient quota for cpu in flavor spot, previously considered podsets requests (0) \
             + current podset request (20) > maximum capacity (10), insufficient unused quota for \
             cpu in flavor on-demand, 20 more needed",
            false,
        ),
        (
            "insufficient quota for cpu in flavor spot, request > maximum capacity (20 > 10), \
             untolerated taint {gpu true NoSchedule <nil>} in flavor gpu",
            true,
        ),
        // Of one flavor all must fit: one resource that never does is enough.
        (
            "insufficient quota for memory in flavor default, request > maximum capacity (20Gi > \
             10Gi), insufficient unused quota for cpu in flavor default, 1 more needed",
            true,
        ),
        (
            "insufficient quota for cpu in flavor spot, request > maximum capacity (20 > 10), \
          flavor gpu not found",
            false,
        ),
        ("untolerated taint {gpu true NoSchedule <nil>} in flavor gpu", false),
        ("resource ephemeral-storage unavailable in ClusterQueue", true),
        (
            "insufficient unused quota for cpu in flavor default, 1 more needed. Pending the \
             preemption of 2 workload(s)",
            false,
        ),
    ] {
        let found = pending("v1beta1", &format!("{set}{message}")).stall();
        assert_eq!(found.is_some(), stalled, "{message}");
    }
    let message = format!(
        "{set}insufficient quota for cpu in flavor default, request > maximum \
                           capacity (10 > 8)"
    );
    let stall = pending("v1beta1", &message).stall().unwrap();
    assert_eq!((stall.cause.reason, stall.grace), (EndReason::Queue, GRACE));
    assert_eq!(
        stall.cause.message,
        "Queue `questions` can never run it: insufficient quota for cpu in flavor default, request \
         > maximum capacity (10 > 8). Ask for less, or have the queue's quota raised."
    );
}

#[test]
fn a_missing_queue_stalls_and_a_stopped_queue_does_not() {
    for (message, grace) in [
        ("LocalQueue questions doesn't exist", Some(GRACE)),
        ("ClusterQueue all doesn't exist", Some(CLUSTER_QUEUE_GRACE)),
        ("ClusterQueue all not found", Some(CLUSTER_QUEUE_GRACE)),
        ("Workload namespace doesn't match ClusterQueue selector", Some(GRACE)),
        (
            "resource validation failed: podSets.main.containers[0][cpu] requests exceed it's \
             limits",
            Some(GRACE),
        ),
        ("didn't satisfy LimitRange constraints: podSets.main[0] exceeds the max", Some(GRACE)),
        ("LocalQueue questions is inactive", None),
        ("LocalQueue questions is stopped", None),
        ("ClusterQueue  doesn't exist", None),
        ("ClusterQueue all is inactive", None),
        ("ClusterQueue all is stopped", None),
        ("Workload no longer fits after processing another workload", None),
        ("The workload has failed admission checks", None),
        ("", None),
    ] {
        let conditions = [["QuotaReserved", "False", "Inadmissible", message]];
        let brief = brief(workload("v1beta1", &conditions));
        assert_eq!(brief.stall().map(|stall| stall.grace), grace, "{message}");
    }
}

#[test]
fn deactivation_by_kueue_stalls_and_deactivation_by_a_person_waits() {
    let off = |reason, message| {
        let mut workload = workload(
            "v1beta1",
            &[["QuotaReserved", "False", "Pending", message], ["Evicted", "True", reason, message]],
        );
        workload["spec"]["active"] = json!(false);
        brief(workload)
    };
    for (reason, message, expected) in [
        (
            "DeactivatedDueToAdmissionCheck",
            "The workload is deactivated due to Admission check(s): [prov], were rejected",
            EndReason::Queue,
        ),
        (
            "DeactivatedDueToRequeuingLimitExceeded",
            "The workload is deactivated due to exceeding the maximum number of re-queuing retries",
            EndReason::NotStarted,
        ),
        (
            "DeactivatedDueToMaximumExecutionTimeExceeded",
            "The workload is deactivated due to exceeding the maximum execution time",
            EndReason::Deadline,
        ),
    ] {
        let stall = off(reason, message).stall().unwrap();
        assert_eq!(stall.cause.reason, expected);
        assert!(stall.cause.message.ends_with(&format!("(queue `questions`): {message}.")));
    }
    let held = off("Deactivated", "The workload is deactivated");
    assert_eq!(held.stall(), None);
    assert_eq!(
        held.describe_wait(Some(0)),
        "An operator holds it back from queue `questions`: The workload is deactivated."
    );
}

#[test]
fn an_evicted_workload_goes_behind_those_that_came_meanwhile() {
    let message = "Exceeded the PodsReady timeout questions/job-question-1-2f1ab";
    let conditions = [
        ["QuotaReserved", "False", "Pending", message],
        ["Evicted", "True", "PodsReadyTimeout", message],
        ["Requeued", "False", "PodsReadyTimeout", message],
    ];
    let mut workload = workload("v1beta2", &conditions);
    let created = brief(self::workload("v1beta2", &[])).order;
    assert_eq!(brief(workload.clone()).order, created + 5_000_000);
    workload["status"]["requeueState"] = json!({"count": 1, "requeueAt": "2026-11-25T20:01:05Z"});
    assert_eq!(
        brief(workload).describe_wait(Some(0)),
        format!("It was evicted from queue `questions`, and will be queued again: {message}.")
    );
}

#[test]
fn with_quota_a_workload_waits_for_its_checks_and_then_for_nothing() {
    let reserved = ["QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue all"];
    let mut checks = workload("v1beta1", &[reserved]);
    checks["status"]["admissionChecks"] = json!([
        {"name": "ready", "state": "Ready", "message": "", "lastTransitionTime": null},
        {"name": "prov", "state": "Pending", "message": "waiting for capacity"},
    ]);
    assert_eq!(
        brief(checks).describe_wait(Some(0)),
        "Its quota of queue `questions` is reserved, and it waits for checks: `prov` (waiting for capacity)."
    );
    let admitted = ["Admitted", "True", "Admitted", "The workload is admitted"];
    let brief = brief(workload("v1beta1", &[reserved, admitted]));
    assert_eq!(brief.state, WorkloadState::Admitted);
    let finished = ["Finished", "True", "Succeeded", "Job finished successfully"];
    let brief = self::brief(workload("v1beta1", &[reserved, admitted, finished]));
    assert_eq!(brief.state, WorkloadState::Finished("Job finished successfully".into()));
}

#[test]
fn a_job_that_waits_though_its_workload_is_finished_is_given_up() {
    let message = "conflict for annotations: conflict for key=kueue.x-k8s.io/workload";
    let brief = brief(workload("v1beta1", &[["Finished", "True", "FailedToStart", message]]));
    let stall = brief.stall().unwrap();
    assert_eq!((stall.cause.reason, stall.grace), (EndReason::Queue, FINISHED_GRACE));
    assert_eq!(
        stall.cause.message,
        format!("Kueue could not start it, and has given it up (queue `questions`): {message}.")
    );
    assert_eq!(brief.position(), None, "it delays no other");
}
