//! Pods that have ended.

use super::*;

/// How the container ended: its exit code, reason and message.
fn terminated(code: i32, reason: &str, message: &str) -> Value {
    container(&json!({ "terminated": {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-11-25T12:00:10Z",
        "finishedAt": "2026-11-25T12:01:00Z",
    }}))
}

fn failed(code: i32, reason: &str, message: &str) -> Pod {
    pod(&json!({ "phase": "Failed", "containerStatuses": terminated(code, reason, message) }))
}

fn by_kubelet(reason: &str, message: &str) -> Pod {
    pod(&json!({ "phase": "Failed", "reason": reason, "message": message }))
}

fn taken(reason: &str, message: &str) -> Pod {
    pod(&json!({
        "phase": "Failed",
        "conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2026-11-25T12:00:58Z",
        }],
        "containerStatuses": terminated(143, "Error", "bye\n"),
    }))
}

fn pod_end(case: &str, pod: &Pod, reason: EndReason, disrupted: bool, parts: &[&str]) -> RunEnd {
    let state = pod_state(pod, SERVICE);
    let PodState::Ended { end, disrupted: was } = state else { panic!("{case}: {state:?}") };
    assert_eq!((end.cause.reason, was), (reason, disrupted), "{case}: {}", end.cause.message);
    assert_message(case, &end.cause.message, parts);
    end
}

#[test]
fn each_end_of_a_container_has_its_message() {
    for (code, why, message, reason, parts) in [
        (3, "Error", "boom\n", EndReason::Failed, &["exit code 3", "last lines"][..]),
        (1, "Error", "Traceback\n", EndReason::Failed, &["exit code 1;"]),
        (0, "Completed", "", EndReason::Exited, &["exit code 0", "without a result", "returns"]),
        (
            137,
            "OOMKilled",
            "",
            EndReason::Memory,
            &["requested 512Mi", "`node-a` ran out", "`memory`"],
        ),
        (0, "OOMKilled", "", EndReason::Memory, &["a process of", "the rest ended"]),
        (137, "Error", "", EndReason::Killed, &["SIGKILL", "137", "memory"]),
        (139, "Error", "", EndReason::Killed, &["SIGSEGV", "machine code"]),
        (134, "Error", "", EndReason::Killed, &["SIGABRT", "last lines"]),
        (143, "Error", "", EndReason::Killed, &["SIGTERM", "asked it to stop"]),
        (132, "Error", "", EndReason::Killed, &["SIGILL", "another processor"]),
        (159, "Error", "", EndReason::Killed, &["SIGSYS", "system call"]),
        (192, "Error", "", EndReason::Killed, &["signal 64", "another signal"]),
        (255, "Error", "", EndReason::Failed, &["exit code 255"]),
        (126, "Error", "", EndReason::NotStarted, &["cannot be executed", "126"]),
        (127, "Error", "sh: octue: not found\n", EndReason::NotStarted, &["does not exist", "127"]),
        (
            255,
            "Error",
            "exec /usr/bin/python: exec format error",
            EndReason::Image,
            &["processor", "--platform"],
        ),
        (
            1,
            "Error",
            "exec /bin/octue: argument list too long\n",
            EndReason::NotStarted,
            &["longer than the system allows"],
        ),
        (
            255,
            "Error",
            "exec /bin/octue: no such file or directory",
            EndReason::NotStarted,
            &["`#!` line"],
        ),
        (
            1,
            "Error",
            "Traceback:\nOSError: [Errno 8] Exec format error: 'tool'",
            EndReason::Failed,
            &["exit code 1"],
        ),
        (
            137,
            "ContainerStatusUnknown",
            "The container could not be located when the pod was terminated",
            EndReason::Lost,
            &["does not know how", "restarted"],
        ),
    ] {
        pod_end(why, &failed(code, why, message), reason, false, parts);
    }
}

#[test]
fn a_container_that_could_not_start_is_explained_by_its_runtime() {
    let containerd = "failed to create containerd task: failed to create shim task: OCI runtime \
                      create failed: runc create failed: unable to start container process: error \
                      during container init: ";
    for (reason, message, expected, parts) in [
        (
            "StartError",
            r#"exec: "octue": executable file not found in $PATH: unknown"#,
            EndReason::NotStarted,
            &["command is not in it", "entry point"][..],
        ),
        (
            "StartError",
            r#"exec: "/app/run": stat /app/run: no such file or directory: unknown"#,
            EndReason::NotStarted,
            &["command is not in it", "/app/run"],
        ),
        (
            "ContainerCannotRun",
            r#"exec: "/app/run": permission denied: unknown"#,
            EndReason::NotStarted,
            &["may not be executed"],
        ),
        (
            "StartError",
            "exec /usr/bin/octue: argument list too long: unknown",
            EndReason::NotStarted,
            &["longer than the system allows"],
        ),
        (
            "StartError",
            r#"chdir to cwd ("/srv") set in config.json failed: no such file or directory"#,
            EndReason::NotStarted,
            &["working directory", "image `registry.example.com/octue/example:1.2.0`"],
        ),
        (
            "StartError",
            r#"error mounting "/var/lib/kubelet/x" to rootfs at "/etc/y": not a directory"#,
            EndReason::Volume,
            &["a volume cannot be put"],
        ),
        (
            "StartError",
            "container init was OOM-killed (memory limit too low?): unknown",
            EndReason::Memory,
            &["requested 512Mi"],
        ),
        (
            "StartError",
            "something of a new kind",
            EndReason::NotStarted,
            &["something of a new kind"],
        ),
    ] {
        let state = json!({ "terminated": {
            "exitCode": 128,
            "reason": reason,
            "message": format!("{containerd}{message}"),
            "startedAt": "1970-01-01T00:00:00Z",
            "finishedAt": "2026-11-25T12:01:00Z",
        }});
        let pod = pod(&json!({ "phase": "Failed", "containerStatuses": container(&state) }));

        let end = pod_end(message, &pod, expected, false, parts);

        assert_eq!((end.started, end.tail.len()), (None, 0), "{message}");
    }
}

#[test]
fn a_memory_limit_is_reported_with_its_number() {
    let pod = merged(&json!({
        "spec": { "containers": [{
            "name": "question",
            "resources": { "requests": { "memory": "512Mi" }, "limits": { "memory": "1Gi" } },
        }]},
        "status": { "phase": "Failed", "containerStatuses": terminated(137, "OOMKilled", "") },
    }));

    let end = pod_end("limit", &pod, EndReason::Memory, false, &[]);

    assert_eq!(
        end.cause.message,
        "`octue/example:1.2.0` was killed for the memory that it took (exit code 137): its limit \
         is 1Gi, and it requested 512Mi; ask again with more `memory`, or raise the limit in the \
         service's settings"
    );
}

#[test]
fn an_eviction_is_no_failure() {
    for (reason, message, parts) in [
        (
            "PreemptionByScheduler",
            "default-scheduler: preempting to accommodate a higher priority pod",
            &["higher priority"][..],
        ),
        ("EvictionByEvictionAPI", "Eviction API: evicting", &["drained", "`node-a`"]),
        (
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
            &["not answer"],
        ),
        ("DeletionByPodGC", "PodGC: node no longer exists", &["no longer exists"]),
        (
            "TerminationByKubelet",
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. \
             Container question was using 3Gi, request is 512Mi, has larger consumption of memory. ",
            &["low on memory", "was using 3Gi", "more `memory`"],
        ),
        (
            "TerminationByKubelet",
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: \
             500Mi. Container question was using 9Gi, request is 1Gi, has larger consumption of \
             ephemeral-storage. ",
            &["low on disk", "9Gi", "`ephemeral_storage`"],
        ),
        (
            "TerminationByKubelet",
            "Pod was terminated in response to imminent node shutdown.",
            &["was shut down"],
        ),
        (
            "TerminationByKubelet",
            "Pod was preempted by Kubelet to accommodate a critical pod.",
            &["critical pod"],
        ),
        (
            "WorkloadPreempted",
            "Kueue: preempted",
            &["something in the cluster", "Kueue: preempted"],
        ),
    ] {
        let end = pod_end(reason, &taken(reason, message), EndReason::Evicted, true, parts);
        assert_eq!(end.tail, ["bye\n"], "{reason}");
    }
}

#[test]
fn a_success_during_an_eviction_is_a_success() {
    let pod = pod(&json!({
        "phase": "Succeeded",
        "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC" }],
        "containerStatuses": terminated(0, "Completed", ""),
    }));
    pod_end("good", &pod, EndReason::Exited, false, &[]);
}

#[test]
fn a_pod_that_the_kubelet_ends_or_refuses_has_its_message() {
    for (why, message, reason, parts) in [
        (
            "Evicted",
            r#"Container question exceeded its local ephemeral storage limit "1Gi". "#,
            EndReason::Storage,
            &["limit \"1Gi\"", "`ephemeral_storage`"][..],
        ),
        (
            "Evicted",
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
            EndReason::Storage,
            &["containers 2Gi"],
        ),
        (
            "Evicted",
            r#"Usage of EmptyDir volume "scratch" exceeds the limit "100Mi". "#,
            EndReason::Storage,
            &["scratch", "100Mi", "volume"],
        ),
        (
            "Evicted",
            "Pod was rejected: The node had condition: [DiskPressure]. ",
            EndReason::Evicted,
            &["low on disk", "ask again"],
        ),
        (
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
            EndReason::Deadline,
            &["deadline of 604800 s", "did not start", "settings"],
        ),
        (
            "Preempting",
            "Preempted in order to admit critical pod",
            EndReason::Evicted,
            &["critical"],
        ),
        (
            "NodeShutdown",
            "Pod was rejected: Pod was rejected as the node is shutting down.",
            EndReason::Evicted,
            &["not taken by", "shut down", "ask again"],
        ),
        (
            "Terminated",
            "Pod was terminated in response to imminent node shutdown.",
            EndReason::Evicted,
            &["shut down"],
        ),
        (
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 3900, \
             capacity: 4000",
            EndReason::Unschedulable,
            &["enough `cpu`", "capacity: 4000", "ask again"],
        ),
        (
            "OutOfmemory",
            "Node didn't have enough resource: memory",
            EndReason::Unschedulable,
            &["memory"],
        ),
        (
            "OutOfpods",
            "Node didn't have enough resource: pods",
            EndReason::Unschedulable,
            &["pods"],
        ),
        (
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node \
             affinity/selector",
            EndReason::Unschedulable,
            &["node selector"],
        ),
        ("TaintToleration", "Pod was rejected: ...", EndReason::Unschedulable, &["tolerations"]),
        (
            "UnexpectedAdmissionError",
            "Pod was rejected: Allocate failed due to requested number of devices unavailable for \
             nvidia.com/gpu. Requested: 1, Available: 0, which is unexpected",
            EndReason::NotStarted,
            &["UnexpectedAdmissionError", "Available: 0"],
        ),
        (
            "TopologyAffinityError",
            "Resources cannot be allocated",
            EndReason::NotStarted,
            &["refused"],
        ),
        (
            "VolumeAttachmentLimitExceeded",
            "Pod was rejected: node has reached its limit",
            EndReason::Volume,
            &["no more volumes"],
        ),
        ("NodeLost", "Node node-a is unresponsive", EndReason::Evicted, &["does not answer"]),
    ] {
        pod_end(why, &by_kubelet(why, message), reason, false, parts);
    }
}

#[test]
fn an_exceeded_deadline_is_reported_with_its_number() {
    let pod = pod(&json!({
        "phase": "Failed",
        "reason": "DeadlineExceeded",
        "containerStatuses": terminated(143, "Error", "almost\n"),
    }));
    let parts = ["ran for longer than its deadline of 604800 s"];
    let end = pod_end("deadline", &pod, EndReason::Deadline, false, &parts);
    assert_eq!(end.tail, ["almost\n"]);
}

#[test]
fn a_deletion_counts_only_if_it_came_before_the_end() {
    let of = |deletion: &str, grace, code| {
        merged(&json!({
            "metadata": { "deletionTimestamp": deletion, "deletionGracePeriodSeconds": grace },
            "status": { "phase": "Failed", "containerStatuses": terminated(code, "Error", "x\n") },
        }))
    };
    let deleted = |deletion: &str, code| of(deletion, 3, code);
    let end = pod_end(
        "hand",
        &deleted("2026-11-25T12:01:00Z", 143),
        EndReason::Deleted,
        false,
        &["hand"],
    );
    assert_eq!(end.tail, ["x\n"]);
    // The last version of the pod: the container ended within the second of the deletion request.
    pod_end("last", &of("2026-11-25T12:01:01Z", 0, 143), EndReason::Deleted, false, &["hand"]);
    pod_end(
        "later",
        &deleted("2026-11-25T12:05:00Z", 3),
        EndReason::Failed,
        false,
        &["exit code 3"],
    );

    let never = merged(&json!({
        "metadata": { "deletionTimestamp": "2026-11-25T12:05:00Z" },
        "status": { "phase": "Failed" },
    }));
    pod_end("never ran", &never, EndReason::Deleted, false, &[]);
}

#[test]
fn a_failed_init_container_is_named_and_its_output_reported() {
    let with = |reason: &str, code: i32| {
        merged(&json!({
            "spec": { "initContainers": [{ "name": "fetch", "image": "busybox" }] },
            "status": {
                "phase": "Failed",
                "initContainerStatuses": [{
                    "name": "fetch", "image": "busybox", "imageID": "", "ready": false,
                    "restartCount": 0,
                    "state": { "terminated": {
                        "exitCode": code, "reason": reason, "message": "no bucket\n",
                        "finishedAt": "2026-11-25T12:00:30Z",
                    }},
                }],
                "containerStatuses": container(&json!({ "waiting": { "reason": "PodInitializing" } })),
            },
        }))
    };
    let parts = ["init container `fetch`", "exit code 2", "was not started"];
    let end = pod_end("init", &with("Error", 2), EndReason::NotStarted, false, &parts);
    assert_eq!((end.started, end.at), (None, at("2026-11-25T12:00:30Z")));
    assert_eq!(end.tail, ["no bucket\n"]);
    pod_end(
        "init",
        &with("OOMKilled", 137),
        EndReason::Memory,
        false,
        &["`fetch`", "requested no memory"],
    );
}

#[test]
fn a_sidecar_that_failed_beside_a_success_is_named() {
    let mut statuses = terminated(0, "Completed", "");
    let mut proxy = terminated(1, "Error", "")[0].clone();
    proxy["name"] = json!("istio-proxy");
    statuses.as_array_mut().unwrap().push(proxy);
    let pod = pod(&json!({ "phase": "Failed", "containerStatuses": statuses }));
    pod_end(
        "proxy",
        &pod,
        EndReason::Exited,
        false,
        &["beside it", "`istio-proxy`", "exit code 1"],
    );
}

#[test]
fn the_service_is_the_default_container_or_else_the_first() {
    let statuses = |first: i32, second: i32| {
        let mut proxy = terminated(first, "Error", "")[0].clone();
        proxy["name"] = json!("proxy");
        json!([proxy, terminated(second, "Error", "")[0]])
    };
    let pod = merged(&json!({
        "metadata": { "annotations": { "kubectl.kubernetes.io/default-container": "question" } },
        "spec": { "containers": [{ "name": "proxy" }, { "name": "question" }] },
        "status": { "phase": "Failed", "containerStatuses": statuses(4, 5) },
    }));
    pod_end("named", &pod, EndReason::Failed, false, &["exit code 5"]);
}

#[test]
fn a_pod_without_any_report_is_lost_or_has_succeeded() {
    pod_end("lost", &pod(&json!({ "phase": "Failed" })), EndReason::Lost, false, &["nobody knows"]);
    pod_end("well", &pod(&json!({ "phase": "Succeeded" })), EndReason::Exited, false, &["code 0"]);
}

#[test]
fn an_end_has_the_same_time_for_every_observer() {
    let end = pod_end("ended", &failed(3, "Error", "a\nb"), EndReason::Failed, false, &[]);
    assert_eq!(end.started, Some(at("2026-11-25T12:00:10Z")));
    assert_eq!(end.at, at("2026-11-25T12:01:00Z"));
    assert_eq!(end.tail, ["a\n", "b\n"]);
    let end = pod_end("taken", &by_kubelet("OutOfcpu", ""), EndReason::Unschedulable, false, &[]);
    assert_eq!(end.at, at("2026-11-25T12:00:00Z"));
}

#[test]
fn the_tail_of_an_output_is_bounded() {
    let long = "é".repeat(100_000) + "\n" + &"line\n".repeat(500);
    let end = pod_end("long", &failed(3, "Error", &long), EndReason::Failed, false, &[]);
    assert_eq!(end.tail.len(), 80);
    let end =
        pod_end("wide", &failed(3, "Error", &"é".repeat(100_000)), EndReason::Failed, false, &[]);
    assert!(end.tail.concat().len() <= 64 * 1024 + 1);
}
