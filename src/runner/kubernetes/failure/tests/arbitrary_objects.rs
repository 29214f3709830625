//! Arbitrary objects: none of them causes a panic.

use super::*;
use proptest::prelude::*;

/// Arbitrary texts, with known fragments among them.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        prop::sample::select(vec![
            "",
            "Failed",
            "Succeeded",
            "Unknown",
            "Pending",
            "Running",
            "Evicted",
            "OOMKilled",
            "StartError",
            "ErrImagePull",
            "ImagePullBackOff",
            "CrashLoopBackOff",
            "OutOf",
            "question",
            "CreateContainerError",
            "DisruptionTarget",
            "PodScheduled",
            "Unschedulable",
            "True",
            "False",
            "FailedMount",
            "FailedCreate",
            "Failed to pull image \"",
            "Always",
            "Complete",
            "NotTriggerScaleUp",
            "DeadlineExceeded",
            "TerminationByKubelet",
            "\u{0}\u{1b}[31m\r\n",
        ])
        .prop_map(str::to_owned),
        "[ \\PC]{0,40}(not found|timeout|secret|no such host|memory|taint)[ \\PC]{0,900}",
    ]
}

fn time() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        prop::sample::select(vec![
            "0001-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "2026-11-25T12:00:00Z",
            "9999-12-30T22:00:00Z",
        ])
        .prop_map(|time| json!(time)),
    ]
}

fn state() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        time().prop_map(|time| json!({ "running": { "startedAt": time } })),
        (text(), text()).prop_map(|(reason, message)| {
            json!({ "waiting": { "reason": reason, "message": message } })
        }),
        (any::<i32>(), any::<Option<i32>>(), text(), text(), time(), time()).prop_map(
            |(code, signal, reason, message, started, finished)| {
                json!({ "terminated": {
                    "exitCode": code, "signal": signal, "reason": reason, "message": message,
                    "startedAt": started, "finishedAt": finished,
                }})
            }
        ),
    ]
}

fn status() -> impl Strategy<Value = Value> {
    (text(), text(), any::<i32>(), state(), state()).prop_map(
        |(name, image, count, state, last)| {
            json!({
                "name": name, "image": image, "imageID": "", "ready": false, "restartCount": count,
                "state": state, "lastState": last,
            })
        },
    )
}

fn condition() -> impl Strategy<Value = Value> {
    (text(), text(), text(), text(), time()).prop_map(|(kind, status, reason, message, time)| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": time,
        })
    })
}

fn odd_pod() -> impl Strategy<Value = Value> {
    let several = || prop::collection::vec(status(), 0..3);
    let conditions = prop::collection::vec(condition(), 0..3);
    let spec = (prop::collection::vec(text(), 0..3), text(), any::<Option<i64>>());
    let whole = (text(), text(), text(), time(), any::<Option<i64>>());
    (several(), several(), conditions, spec, whole).prop_map(
        |(inits, mains, conditions, (names, node, deadline), whole)| {
            let (phase, reason, message, deletion, grace) = whole;
            let containers: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
            json!({
                "metadata": { "deletionTimestamp": deletion, "deletionGracePeriodSeconds": grace },
                "spec": {
                    "nodeName": node, "activeDeadlineSeconds": deadline,
                    "containers": containers, "initContainers": containers,
                },
                "status": {
                    "phase": phase, "reason": reason, "message": message,
                    "conditions": conditions, "initContainerStatuses": inits,
                    "containerStatuses": mains,
                },
            })
        },
    )
}

proptest! {
    #[test]
    fn every_pod_has_a_bounded_message(pod in odd_pod(), service in text()) {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let state = pod_state(&pod, &service);
        let end = vanished_end(Some(&state), Timestamp(0), &service);
        prop_assert!(end.cause.message.len() < 40_000);
        prop_assert!(end.tail.len() <= 80);
        prop_assert!(end.tail.concat().len() <= 64 * 1024 + 1);
    }

    #[test]
    fn every_event_and_job_is_read(
        reason in text(),
        message in text(),
        condition in condition(),
        kind in text(),
    ) {
        let event: Event = serde_json::from_value(json!({
            "metadata": {}, "involvedObject": { "kind": kind },
            "reason": reason, "message": message,
        })).unwrap();
        event_stall(&event, "a/b:c");
        shows_progress(&event);
        let job = json!({ "status": { "conditions": [condition] } });
        job_end(&serde_json::from_value(job).unwrap(), "a/b:c");
    }
}

#[test]
fn an_empty_pod_waits() {
    let state = pod_state(&Pod::default(), SERVICE);
    assert!(matches!(state, PodState::Waiting { scheduled: false, stall: None, .. }), "{state:?}");
}
