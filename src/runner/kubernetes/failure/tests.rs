//! Objects as a cluster has them, and the message for each.

mod ended;
mod events;
mod jobs;
mod arbitrary_objects;
mod waiting;

use super::symptoms::{BRIEF, CREATED_LATER, NONE, PASSES};
use super::*;
use serde_json::{Value, json};

const SERVICE: &str = "octue/example:1.2.0";

/// One of our pods, with this status.
fn pod(status: &Value) -> Pod {
    merged(&json!({ "status": status }))
}

/// One of our pods, with these fields merged into it.
fn merged(over: &Value) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "question-0194-x7k2p",
            "namespace": "default",
            "creationTimestamp": "2026-11-25T12:00:00Z",
        },
        "spec": {
            "nodeName": "node-a",
            "restartPolicy": "Never",
            "activeDeadlineSeconds": 604_800,
            "containers": [{
                "name": "question",
                "image": "registry.example.com/octue/example:1.2.0",
                "resources": { "requests": { "cpu": "1", "memory": "512Mi" } },
            }],
        },
        "status": {},
    });
    merge(&mut pod, over);
    serde_json::from_value(pod).unwrap()
}

fn merge(onto: &mut Value, over: &Value) {
    match (onto, over) {
        (Value::Object(onto), Value::Object(over)) => {
            for (key, value) in over {
                merge(onto.entry(key).or_insert(Value::Null), value);
            }
        }
        (onto, over) => *onto = over.clone(),
    }
}

/// The status of the service's container.
fn container(state: &Value) -> Value {
    json!([{
        "name": "question",
        "image": "registry.example.com/octue/example:1.2.0",
        "imageID": "",
        "ready": false,
        "restartCount": 0,
        "state": state,
    }])
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// Asserts that a message suits a parent: one line, the service named, each part contained.
fn assert_message(case: &str, message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{case}: no {part:?} in: {message}");
    }
    assert!(message.contains(SERVICE), "{case}: {message}");
    assert!(!message.contains("  ") && !message.contains('\n'), "{case}: {message}");
    assert!(!message.ends_with('.') && !message.contains("; ;"), "{case}: {message}");
}
