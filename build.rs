//! Generates the server side of `google.pubsub.v1` for the emulator.
//!
//! The message types come from the crate `google_cloud_googleapis`, which has clients only. The
//! emulator has its own types for four messages (see `pubsub/emulator/wire.rs`). protoc is not
//! needed.

use tonic_build::manual::{Builder, Method, Service};

const GOOGLE: &str = "::google_cloud_googleapis::pubsub::v1";
const OWN: &str = "crate::pubsub::emulator::wire";
const EMPTY: &str = "crate::pubsub::emulator::wire::Empty";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    Builder::new().build_client(false).compile(&[publisher(), subscriber()]);
}

fn publisher() -> Service {
    let unary = |name: &str, output: &str| method(name, &request_type(name), output).build();
    Service::builder()
        .name("Publisher")
        .package("google.pubsub.v1")
        .method(method("CreateTopic", &google("Topic"), &google("Topic")).build())
        .method(unary("UpdateTopic", &google("Topic")))
        .method(unary("Publish", &google("PublishResponse")))
        .method(unary("GetTopic", &google("Topic")))
        .method(unary("ListTopics", &google("ListTopicsResponse")))
        .method(unary("ListTopicSubscriptions", &google("ListTopicSubscriptionsResponse")))
        .method(unary("ListTopicSnapshots", &google("ListTopicSnapshotsResponse")))
        .method(unary("DeleteTopic", EMPTY))
        .method(unary("DetachSubscription", &google("DetachSubscriptionResponse")))
        .build()
}

fn subscriber() -> Service {
    let unary = |name: &str, output: &str| method(name, &request_type(name), output).build();
    let subscription = google("Subscription");
    Service::builder()
        .name("Subscriber")
        .package("google.pubsub.v1")
        .method(method("CreateSubscription", &subscription, &subscription).build())
        .method(unary("GetSubscription", &subscription))
        .method(unary("UpdateSubscription", &subscription))
        .method(unary("ListSubscriptions", &google("ListSubscriptionsResponse")))
        .method(unary("DeleteSubscription", EMPTY))
        .method(unary("ModifyAckDeadline", EMPTY))
        .method(unary("Acknowledge", EMPTY))
        .method(unary("Pull", &own("PullResponse")))
        .method(streaming_pull())
        .method(unary("ModifyPushConfig", EMPTY))
        .method(unary("GetSnapshot", &google("Snapshot")))
        .method(unary("ListSnapshots", &google("ListSnapshotsResponse")))
        .method(unary("CreateSnapshot", &google("Snapshot")))
        .method(unary("UpdateSnapshot", &google("Snapshot")))
        .method(unary("DeleteSnapshot", EMPTY))
        .method(unary("Seek", &google("SeekResponse")))
        .build()
}

fn streaming_pull() -> Method {
    method("StreamingPull", &own("StreamingPullRequest"), &own("StreamingPullResponse"))
        .client_streaming()
        .server_streaming()
        .build()
}

fn method(name: &str, input: &str, output: &str) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(snake_case(name))
        .route_name(name)
        .input_type(input)
        .output_type(output)
        .codec_path("tonic_prost::ProstCodec")
}

fn request_type(name: &str) -> String {
    google(&format!("{name}Request"))
}

fn google(message: &str) -> String {
    format!("{GOOGLE}::{message}")
}

fn own(message: &str) -> String {
    format!("{OWN}::{message}")
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
