//! Events of pods and Jobs.

use super::*;

fn event(reason: &str, message: &str, source: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": { "name": "x.1", "namespace": "default" },
        "involvedObject": { "kind": if reason == "FailedCreate" { "Job" } else { "Pod" } },
        "reason": reason,
        "message": message,
        "source": { "component": source },
    }))
    .unwrap()
}

#[test]
fn each_event_that_reports_a_stall_has_its_message() {
    for (why, message, reason, grace, part) in [
        (
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up (it wouldn't fit if a new node is added): 2 Insufficient cpu",
            EndReason::Unschedulable,
            PASSES,
            "fewer `cpus`",
        ),
        (
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 node(s) didn't match Pod's node affinity/selector",
            EndReason::Unschedulable,
            PASSES,
            "node selector",
        ),
        ("NotTriggerScaleUp", "of a new kind", EndReason::Unschedulable, PASSES, "of a new kind"),
        (
            "FailedScheduling",
            "0/1 nodes are available: persistentvolumeclaim \"cache\" not found",
            EndReason::Volume,
            CREATED_LATER,
            "cache",
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"key\" : secret \"api-key\" not found",
            EndReason::Volume,
            CREATED_LATER,
            "api-key",
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"places\" : configmap \"places\" not found",
            EndReason::Volume,
            CREATED_LATER,
            "ConfigMap",
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"key\" : references non-existent secret key: token",
            EndReason::Volume,
            CREATED_LATER,
            "a secret, or a key of it",
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"key\" : object \"default\"/\"k\" not registered",
            EndReason::Volume,
            PASSES,
            "cannot be mounted",
        ),
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"bucket\" : rpc error: code = PermissionDenied",
            EndReason::Volume,
            CREATED_LATER,
            "service account",
        ),
        (
            "FailedMount",
            "Unable to attach or mount volumes: unmounted volumes=[key], unattached volumes=[], \
             failed to process volumes=[]: timed out waiting for the condition",
            EndReason::Volume,
            PASSES,
            "cannot be mounted",
        ),
        (
            "FailedAttachVolume",
            "Multi-Attach error for volume \"pvc-1\" Volume is already used by pod(s) x",
            EndReason::Volume,
            PASSES,
            "one at a time",
        ),
        (
            "FailedAttachVolume",
            "AttachVolume.Attach failed",
            EndReason::Volume,
            PASSES,
            "cannot have it",
        ),
        (
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network \
             for sandbox: plugin type=\"ptp\" failed (add): no IP addresses available in range set",
            EndReason::NotStarted,
            PASSES,
            "give it a network",
        ),
        (
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: no runtime for \"gvisor\" is configured",
            EndReason::NotStarted,
            CREATED_LATER,
            "runtime class",
        ),
        (
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: runc create failed: container init was OOM-killed (memory \
             limit too low?)",
            EndReason::Memory,
            BRIEF,
            "more `memory`",
        ),
        (
            "FailedCreatePodSandBox",
            "of a new kind",
            EndReason::NotStarted,
            PASSES,
            "make its sandbox",
        ),
        ("NetworkNotReady", "network is not ready: cni", EndReason::NotStarted, PASSES, "network"),
        ("FailedPrepareDynamicResources", "no driver", EndReason::NotStarted, PASSES, "a device"),
        (
            "Failed",
            "Failed to pull image \"registry.example.com/x:1\": rpc error: code = NotFound desc = \
             failed to resolve reference: not found",
            EndReason::NoImage,
            BRIEF,
            "`registry.example.com/x:1`",
        ),
    ] {
        let stall = event_stall(&event(why, message, "kubelet"), SERVICE).unwrap();
        assert_eq!((stall.cause.reason, stall.grace), (reason, grace), "{message}");
        assert_message(message, &stall.cause.message, &[part]);
        assert_eq!(stall.vague, message.contains("unmounted volumes="), "{message}");
    }
}

#[test]
fn each_rule_that_denies_a_pod_has_its_message() {
    for (message, grace, part) in [
        (
            "exceeded quota: team, requested: requests.cpu=4, used: requests.cpu=8, limited: \
             requests.cpu=10",
            PASSES,
            "ResourceQuota",
        ),
        ("failed quota: team: must specify limits.cpu for: question", BRIEF, "wants requests"),
        (
            "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
            BRIEF,
            "pod security",
        ),
        (
            "error looking up service account default/runner: serviceaccount \"runner\" not found",
            CREATED_LATER,
            "service account that it wants",
        ),
        ("maximum cpu usage per Container is 2, but limit is 4", BRIEF, "LimitRange"),
        ("no PriorityClass with name urgent was found", CREATED_LATER, "priority class"),
        ("pod rejected: RuntimeClass \"gvisor\" not found", CREATED_LATER, "runtime class"),
        ("admission webhook \"p.example.com\" denied the request: no", BRIEF, "a policy"),
        (
            "Internal error occurred: failed calling webhook \"p.example.com\": connection refused",
            PASSES,
            "cannot decide",
        ),
        (
            "unable to create new content in namespace x because it is being terminated",
            BRIEF,
            "being deleted",
        ),
        ("Pod \"x\" is invalid: spec: Invalid value: \"4\"", BRIEF, "finds it invalid"),
        ("of a new kind", PASSES, "does not take it"),
    ] {
        let message = format!("Error creating: pods \"question-1-\" is forbidden: {message}");
        let stall =
            event_stall(&event("FailedCreate", &message, "job-controller"), SERVICE).unwrap();
        assert_eq!((stall.cause.reason, stall.grace), (EndReason::Denied, grace), "{message}");
        assert_message(&message, &stall.cause.message, &[part]);
    }
}

#[test]
fn an_autoscaler_that_cannot_help_now_stalls_nothing() {
    for message in [
        "pod didn't trigger scale-up: 1 max node group size reached, 2 Insufficient cpu",
        "pod didn't trigger scale-up: 1 in backoff after failed scale-up",
        "pod didn't trigger scale-up: 1 max cluster cpu limit reached",
    ] {
        assert_eq!(
            event_stall(&event("NotTriggerScaleUp", message, "cluster-autoscaler"), SERVICE),
            None
        );
    }
}

#[test]
fn a_full_cluster_stalls_nothing_unless_karpenter_gives_up() {
    let message = "0/3 nodes are available: 3 Insufficient cpu.";
    assert_eq!(
        event_stall(&event("FailedScheduling", message, "default-scheduler"), SERVICE),
        None
    );

    let message = "Failed to schedule pod, incompatible with nodepool \"default\", no instance type \
                satisfied resources";
    let stall = event_stall(&event("FailedScheduling", message, "karpenter"), SERVICE).unwrap();
    assert_eq!(stall.cause.reason, EndReason::Unschedulable);
}

#[test]
fn events_of_progress_report_no_stall() {
    for reason in ["TriggeredScaleUp", "Scheduled", "Pulled", "Started", "SuccessfulCreate"] {
        let event = event(reason, "", "x");
        assert!(shows_progress(&event), "{reason}");
        assert_eq!(event_stall(&event, SERVICE), None, "{reason}");
    }
    for reason in ["Pulling", "BackOff", "Killing", "Unhealthy"] {
        let event = event(reason, "Back-off pulling image", "x");
        assert!(!shows_progress(&event), "{reason}");
        assert_eq!(event_stall(&event, SERVICE), None, "{reason}");
    }
}
