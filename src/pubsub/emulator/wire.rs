//! The few messages of `google.pubsub.v1` that the emulator reads and writes in its own shape.
//!
//! The bytes on the wire are those of Google's messages. A message is encoded once, when it is
//! published, and a delivery carries those bytes: a message inside a message looks like bytes.

use bytes::Bytes;
use google_cloud_googleapis::pubsub::v1::streaming_pull_response::SubscriptionProperties;

/// `google.protobuf.Empty`, with a name that the generated code can write.
pub type Empty = ();

/// `StreamingPullRequest`, with the version that newer clients send.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingPullRequest {
    #[prost(string, tag = "1")]
    pub subscription: String,
    #[prost(string, repeated, tag = "2")]
    pub ack_ids: Vec<String>,
    #[prost(int32, repeated, packed = "false", tag = "3")]
    pub modify_deadline_seconds: Vec<i32>,
    #[prost(string, repeated, tag = "4")]
    pub modify_deadline_ack_ids: Vec<String>,
    #[prost(int32, tag = "5")]
    pub stream_ack_deadline_seconds: i32,
    #[prost(string, tag = "6")]
    pub client_id: String,
    #[prost(int64, tag = "7")]
    pub max_outstanding_messages: i64,
    #[prost(int64, tag = "8")]
    pub max_outstanding_bytes: i64,
    /// From 1 on, the client takes empty responses for a sign of life.
    #[prost(int64, tag = "10")]
    pub protocol_version: i64,
}

/// `ReceivedMessage`, its message encoded already.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReceivedMessage {
    #[prost(string, tag = "1")]
    pub ack_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub message: Bytes,
    #[prost(int32, tag = "3")]
    pub delivery_attempt: i32,
}

/// `PullResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PullResponse {
    #[prost(message, repeated, tag = "1")]
    pub received_messages: Vec<ReceivedMessage>,
}

/// `StreamingPullResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingPullResponse {
    #[prost(message, repeated, tag = "1")]
    pub received_messages: Vec<ReceivedMessage>,
    #[prost(message, optional, tag = "4")]
    pub subscription_properties: Option<SubscriptionProperties>,
}
