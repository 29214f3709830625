//! The messages of `google.pubsub.v1` for which the emulator has types of its own.
//!
//! On the wire they are the same as Google's. A message is encoded once, when it is published, and
//! deliveries carry those bytes: in protobuf, a nested message is encoded like a bytes field.

use bytes::Bytes;
use google_cloud_googleapis::pubsub::v1::streaming_pull_response::SubscriptionProperties;

/// `google.protobuf.Empty`, under a path that the generated code can use.
pub(super) type Empty = ();

/// `StreamingPullRequest`, with the protocol version that newer clients send.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamingPullRequest {
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
    /// From 1 on, the client expects empty responses as heartbeats.
    #[prost(int64, tag = "10")]
    pub protocol_version: i64,
}

/// `ReceivedMessage`, with an encoded message.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ReceivedMessage {
    #[prost(string, tag = "1")]
    pub ack_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub message: Bytes,
    #[prost(int32, tag = "3")]
    pub delivery_attempt: i32,
}

/// `PullResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PullResponse {
    #[prost(message, repeated, tag = "1")]
    pub received_messages: Vec<ReceivedMessage>,
}

/// `StreamingPullResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamingPullResponse {
    #[prost(message, repeated, tag = "1")]
    pub received_messages: Vec<ReceivedMessage>,
    #[prost(message, optional, tag = "4")]
    pub subscription_properties: Option<SubscriptionProperties>,
}
