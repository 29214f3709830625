//! Pods that wait, run, or are gone.

use super::*;

const IMAGE: &str = "registry.example.com/octue/example:1.2.0";

fn waiting(reason: &str, message: &str) -> Pod {
    let state = json!({ "waiting": { "reason": reason, "message": message } });
    pod(&json!({ "phase": "Pending", "containerStatuses": container(&state) }))
}

fn unscheduled(message: &str) -> Pod {
    merged(&json!({
        "spec": { "nodeName": null },
        "status": { "phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        }]},
    }))
}

fn stall(case: &str, pod: &Pod) -> Stall {
    match pod_state(pod, SERVICE) {
        PodState::Waiting { scheduled: true, stall: Some(stall), why } => {
            assert!(!why.is_empty(), "{case}");
            stall
        }
        state => panic!("{case}: {state:?}"),
    }
}

#[test]
fn each_failure_of_a_pull_has_its_message() {
    let resolve = format!(
        r#"rpc error: code = Unknown desc = failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": "#
    );
    let head = "unexpected status from HEAD request to https://registry.example.com/v2/octue/x: ";
    for (message, reason, grace, part) in [
        (format!("{resolve}{IMAGE}: not found"), EndReason::NoImage, BRIEF, "there is no such image"),
        (format!("{resolve}{head}404 Not Found"), EndReason::NoImage, BRIEF, "no such image"),
        (
            "manifest unknown: manifest unknown".to_owned(),
            EndReason::NoImage,
            BRIEF,
            "push the image",
        ),
        (
            format!(
                "{resolve}pull access denied, repository does not exist or may require \
                 authorization: server message: insufficient_scope: authorization failed"
            ),
            EndReason::Image,
            CREATED_LATER,
            "pull secret",
        ),
        (format!("{resolve}{head}401 Unauthorized"), EndReason::Image, CREATED_LATER, "does not let"),
        (format!("{resolve}{head}403 Forbidden"), EndReason::Image, CREATED_LATER, "does not let"),
        (format!("{resolve}{head}429 Too Many Requests"), EndReason::Image, PASSES, "no more pulls"),
        (format!("{resolve}{head}503 Service Unavailable"), EndReason::Image, PASSES, "be reached"),
        (
            format!(
                "{resolve}failed to do request: Head \"https://registry.example.com/v2/\": dial \
                 tcp: lookup registry.example.com: no such host"
            ),
            EndReason::Image,
            PASSES,
            "cannot be reached",
        ),
        (
            format!("{resolve}failed to authorize: dial tcp 10.0.0.1:443: i/o timeout"),
            EndReason::Image,
            PASSES,
            "cannot be reached",
        ),
        (
            "failed to pull and unpack image: no match for platform in manifest: not found"
                .to_owned(),
            EndReason::Image,
            BRIEF,
            "not built for the processor",
        ),
        (
            "failed to extract layer (application/vnd.oci.image.layer.v1.tar+gzip sha256:ab) to \
             overlayfs as \"extract-1\": gzip: invalid checksum"
                .to_owned(),
            EndReason::Image,
            Duration::from_secs(300),
            "damaged",
        ),
        (
            "failed to extract layer sha256:ab: write /var/lib: no space left on device".to_owned(),
            EndReason::Image,
            PASSES,
            "no disk left",
        ),
        (
            "media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer \
             supported since containerd v2.0, please rebuild the image"
                .to_owned(),
            EndReason::Image,
            BRIEF,
            "format",
        ),
        ("failed in a way of its own".to_owned(), EndReason::Image, PASSES, "a way of its own"),
    ] {
        // The kubelet alternates between two states.
        for (state, message) in [
            ("ErrImagePull", message.clone()),
            ("ImagePullBackOff", format!("Back-off pulling image \"{IMAGE}\": ErrImagePull: {message}")),
        ] {
            let stall = stall(&message, &waiting(state, &message));
            assert_eq!((stall.cause.reason, stall.grace), (reason, grace), "{message}");
            assert!(!stall.vague, "{message}");
            assert_message(&message, &stall.cause.message, &[part, IMAGE]);
            let named = stall.cause.message.matches(IMAGE).count();
            assert!(named <= 2, "{}", stall.cause.message);
        }
    }
}

#[test]
fn a_bare_back_off_does_not_replace_a_cause() {
    let cause = stall("cause", &waiting("ErrImagePull", "manifest unknown"));
    let bare = waiting("ImagePullBackOff", &format!("Back-off pulling image \"{IMAGE}\""));
    let bare = stall("bare", &bare);
    assert_eq!((bare.cause.reason, bare.grace, bare.vague), (EndReason::Image, PASSES, true));

    assert_eq!(bare.clone().after(Some(cause.clone())), cause);
    assert_eq!(cause.clone().after(Some(bare.clone())), cause);
    assert_eq!(bare.clone().after(None), bare);
}

#[test]
fn the_name_of_an_image_is_no_cause() {
    let image = "registry.example.com/denied/timeout-not found:1";
    let pod = merged(&json!({
        "spec": { "containers": [{ "name": "question", "image": image }] },
        "status": {
            "phase": "Pending",
            "containerStatuses": container(&json!({ "waiting": {
                "reason": "ErrImagePull",
                "message": format!("failed to resolve reference \"{image}\": manifest unknown"),
            }})),
        },
    }));
    assert_eq!(stall("name", &pod).cause.reason, EndReason::NoImage);
}

#[test]
fn each_waiting_state_has_its_message() {
    for (state, message, reason, grace, parts) in [
        (
            "InvalidImageName",
            "Failed to apply default image tag \"Octue/x\": couldn't parse image name",
            EndReason::NoImage,
            NONE,
            &["no name of an image"][..],
        ),
        (
            "ErrImageNeverPull",
            "Container image \"x\" is not present with pull policy of Never",
            EndReason::Image,
            BRIEF,
            &["`Never`"],
        ),
        (
            "RegistryUnavailable",
            "image pull failed for x because the registry is unavailable",
            EndReason::Image,
            PASSES,
            &["cannot be reached"],
        ),
        (
            "SignatureValidationFailed",
            "image pull failed for x because the signature validation failed",
            EndReason::Image,
            BRIEF,
            &["signature"],
        ),
        (
            "CreateContainerConfigError",
            "secret \"api-key\" not found",
            EndReason::Volume,
            CREATED_LATER,
            &["a secret", "api-key"],
        ),
        (
            "CreateContainerConfigError",
            "couldn't find key token in Secret default/api-key",
            EndReason::Volume,
            CREATED_LATER,
            &["a key of it", "token"],
        ),
        (
            "CreateContainerConfigError",
            "configmap \"places\" not found",
            EndReason::Volume,
            CREATED_LATER,
            &["ConfigMap", "places"],
        ),
        (
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root (pod: \"x\", container: question)",
            EndReason::NotStarted,
            BRIEF,
            &["runs as root", "USER 1000"],
        ),
        (
            "CreateContainerConfigError",
            "failed to sync secret cache: timed out waiting for the condition",
            EndReason::NotStarted,
            CREATED_LATER,
            &["cannot be had"],
        ),
        (
            "CreateContainerError",
            "container create failed: executable file `octue` not found in $PATH: No such file or \
             directory",
            EndReason::NotStarted,
            CREATED_LATER,
            &["command is not in it"],
        ),
        (
            "CreateContainerError",
            "failed to generate container spec: no command specified",
            EndReason::NotStarted,
            CREATED_LATER,
            &["it names no command"],
        ),
        ("CreateContainerError", "context deadline exceeded", EndReason::NotStarted, PASSES, &[]),
        (
            "RunContainerError",
            "exec: \"octue\": executable file not found in $PATH: unknown",
            EndReason::NotStarted,
            CREATED_LATER,
            &["entry point"],
        ),
        (
            "PostStartHookError",
            "hook message no",
            EndReason::NotStarted,
            CREATED_LATER,
            &["hook message no"],
        ),
        (
            "SomethingNew",
            "of tomorrow",
            EndReason::NotStarted,
            PASSES,
            &["SomethingNew", "of tomorrow"],
        ),
    ] {
        let stall = stall(message, &waiting(state, message));
        assert_eq!((stall.cause.reason, stall.grace), (reason, grace), "{message}");
        assert_message(message, &stall.cause.message, parts);
    }
}

#[test]
fn an_init_container_that_stalls_is_named() {
    let pod = merged(&json!({
        "spec": { "initContainers": [{ "name": "fetch", "image": "busybox:9" }] },
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [{
                "name": "fetch", "image": "busybox:9", "imageID": "", "ready": false,
                "restartCount": 0,
                "state": { "waiting": { "reason": "ErrImagePull", "message": "x: not found" } },
            }],
            "containerStatuses": container(&json!({ "waiting": { "reason": "PodInitializing" } })),
        },
    }));
    let stall = stall("init", &pod);
    assert_eq!(stall.cause.reason, EndReason::NoImage);
    assert_message("init", &stall.cause.message, &["init container `fetch`", "busybox:9"]);
}

#[test]
fn a_crash_loop_is_explained_by_the_last_end() {
    let mut statuses = container(&json!({ "waiting": { "reason": "CrashLoopBackOff" } }));
    statuses[0]["restartCount"] = json!(4);
    statuses[0]["lastState"] = json!({ "terminated": { "exitCode": 3, "reason": "Error" } });
    let pod = pod(&json!({ "phase": "Pending", "containerStatuses": statuses }));
    let stall = stall("loop", &pod);
    assert_eq!((stall.cause.reason, stall.grace), (EndReason::Failed, NONE));
    assert_message("loop", &stall.cause.message, &["exit code 3", "4 times"]);
}

#[test]
fn a_pod_that_is_being_created_does_not_stall() {
    let creating = waiting("ContainerCreating", "");
    let fresh = pod(&json!({ "phase": "Pending" }));
    for pod in [creating, fresh] {
        let state = pod_state(&pod, SERVICE);
        let PodState::Waiting { why, scheduled: true, stall: None } = state else {
            panic!("{state:?}")
        };
        assert!(why.contains("`node-a`"), "{why}");
    }
}

#[test]
fn a_pod_without_a_node_reports_what_it_waits_for() {
    for (message, parts) in [
        (
            "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 \
             Preemption is not helpful for scheduling.",
            &["not enough free CPUs", "0/3 nodes"][..],
        ),
        ("0/3 nodes are available: 3 Insufficient memory.", &["free memory"]),
        ("0/1 nodes are available: 1 Insufficient ephemeral-storage.", &["free disk"]),
        ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", &["accelerator"]),
        (
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
            &["kind that its settings want"],
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.",
            &["taint that it does not tolerate", "{gpu: yes}"],
        ),
        ("0/1 nodes are available: 1 node(s) were unschedulable.", &["closed to new pods"]),
        ("0/1 nodes are available: 1 Too many pods.", &["one more pod"]),
        ("no nodes available to schedule pods", &["no nodes at all"]),
        ("0/9 nodes are available: 9 of a new kind.", &["no node has taken it", "new kind"]),
    ] {
        let state = pod_state(&unscheduled(message), SERVICE);
        let PodState::Waiting { why, scheduled: false, stall: None } = state else {
            panic!("{message}: {state:?}")
        };
        for part in parts {
            assert!(why.contains(part), "{message}: {why}");
        }
    }
}

#[test]
fn a_missing_volume_claim_is_reported_before_the_pod_has_a_node() {
    for (message, grace) in [
        (
            "0/1 nodes are available: persistentvolumeclaim \"cache\" not found. not found",
            CREATED_LATER,
        ),
        ("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.", PASSES),
    ] {
        let state = pod_state(&unscheduled(message), SERVICE);
        let PodState::Waiting { stall: Some(stall), .. } = state else { panic!("{state:?}") };
        assert_eq!((stall.cause.reason, stall.grace), (EndReason::Volume, grace));
        assert_message(message, &stall.cause.message, &["volume claim"]);
    }
}

#[test]
fn a_pod_that_is_being_deleted_runs_until_it_is_gone() {
    let running = json!({ "running": { "startedAt": "2026-11-25T12:00:10Z" } });
    let status = json!({ "phase": "Running", "containerStatuses": container(&running) });
    let since = at("2026-11-25T12:00:10Z");
    assert_eq!(pod_state(&pod(&status), SERVICE), PodState::Running { since, stall: None });

    let going = merged(&json!({
        "metadata": { "deletionTimestamp": "2026-11-25T12:05:00Z", "deletionGracePeriodSeconds": 3 },
        "status": status,
    }));
    let state = pod_state(&going, SERVICE);
    let PodState::Running { stall: Some(stall), .. } = state else { panic!("{state:?}") };
    assert_eq!((stall.cause.reason, stall.grace), (EndReason::Deleted, Duration::from_secs(903)));
    assert_message("going", &stall.cause.message, &["`node-a` does not report that it is gone"]);
}

#[test]
fn a_lost_node_stalls_its_pods() {
    let running = json!({ "running": { "startedAt": "2026-11-25T12:00:10Z" } });
    let lost = pod(&json!({ "phase": "Unknown", "containerStatuses": container(&running) }));
    let state = pod_state(&lost, SERVICE);
    let PodState::Running { stall: Some(stall), .. } = state else { panic!("{state:?}") };
    assert_eq!((stall.cause.reason, stall.grace), (EndReason::Lost, PASSES));
    assert_message("lost", &stall.cause.message, &["out of sight"]);
}

#[test]
fn a_sidecar_that_outlives_the_service_is_named() {
    let ended = json!({ "terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": "2026-11-25T12:00:10Z",
    }});
    let mut statuses = container(&ended);
    let mut proxy = container(&json!({ "running": {} }))[0].clone();
    proxy["name"] = json!("istio-proxy");
    statuses.as_array_mut().unwrap().push(proxy);
    let state =
        pod_state(&pod(&json!({ "phase": "Running", "containerStatuses": statuses })), SERVICE);
    let PodState::Running { stall: Some(stall), .. } = state else { panic!("{state:?}") };
    assert_eq!(stall.cause.reason, EndReason::Exited);
    assert_message("sidecar", &stall.cause.message, &["`istio-proxy` still runs", "restartPolicy"]);
}

#[test]
fn a_vanished_run_is_explained_by_its_last_state() {
    let now = Timestamp(9);
    let running = PodState::Running { since: Timestamp(1), stall: None };
    let end = vanished_end(Some(&running), now, SERVICE);
    assert_eq!(
        (end.at, end.started, end.cause.reason),
        (now, Some(Timestamp(1)), EndReason::Deleted)
    );
    assert_message("ran", &end.cause.message, &["while it ran"]);

    let held = pod_state(&waiting("ErrImagePull", "manifest unknown"), SERVICE);
    let end = vanished_end(Some(&held), now, SERVICE);
    assert_eq!(end.cause.reason, EndReason::Deleted);
    assert_message("held", &end.cause.message, &["before it began", "no such image"]);

    assert_eq!(vanished_end(None, now, SERVICE).cause.reason, EndReason::Lost);

    let ended = pod_state(&pod(&json!({ "phase": "Failed" })), SERVICE);
    let PodState::Ended { end, .. } = &ended else { panic!("{ended:?}") };
    assert_eq!(&vanished_end(Some(&ended), now, SERVICE), end);
}
