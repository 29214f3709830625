//! Topics and subscriptions as Google writes them in JSON.
//!
//! A field that is not here is refused, as Google does with one that it does not know.

use std::collections::HashMap;

use google_cloud_googleapis::pubsub::v1 as google;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::Status;

/// How a client wants its enums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Enums {
    #[default]
    Names,
    Numbers,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct TopicJson {
    name: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    labels: HashMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_retention_duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_settings: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingestion_data_source_settings: Option<Value>,
    #[serde(skip_serializing_if = "Value::is_null")]
    state: Value,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct SubscriptionJson {
    name: String,
    topic: String,
    push_config: PushJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    bigquery_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cloud_storage_config: Option<Value>,
    ack_deadline_seconds: i32,
    retain_acked_messages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_retention_duration: Option<String>,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    labels: HashMap<String, String>,
    enable_message_ordering: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_policy: Option<ExpirationJson>,
    #[serde(skip_serializing_if = "String::is_empty")]
    filter: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter_policy: Option<DeadLetterJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_policy: Option<RetryJson>,
    detached: bool,
    enable_exactly_once_delivery: bool,
    #[serde(skip_serializing_if = "Value::is_null")]
    state: Value,
}

/// More of it does not matter: a subscription with an endpoint is refused.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PushJson {
    #[serde(skip_serializing_if = "String::is_empty")]
    push_endpoint: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ExpirationJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct DeadLetterJson {
    dead_letter_topic: String,
    max_delivery_attempts: i32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RetryJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum_backoff: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_backoff: Option<String>,
}

// === impl Enums ===

impl Enums {
    fn write(self, number: i32, name: &str) -> Value {
        match self {
            Self::Names => name.into(),
            Self::Numbers => number.into(),
        }
    }
}

// === impl TopicJson ===

impl TopicJson {
    pub fn new(topic: google::Topic, enums: Enums) -> Self {
        Self {
            state: enums.write(topic.state, topic.state().as_str_name()),
            name: topic.name,
            labels: topic.labels,
            message_retention_duration: topic.message_retention_duration.map(written),
            schema_settings: None,
            ingestion_data_source_settings: None,
        }
    }

    /// What is asked for, under the name in the request's path.
    pub fn into_google(self, name: &str) -> Result<google::Topic, Status> {
        let retention = self.message_retention_duration.map(|text| read(&text)).transpose()?;
        Ok(google::Topic {
            name: name.to_owned(),
            labels: self.labels,
            message_retention_duration: retention,
            schema_settings: self.schema_settings.map(|_| Default::default()),
            ingestion_data_source_settings: self
                .ingestion_data_source_settings
                .map(|_| Default::default()),
            ..google::Topic::default()
        })
    }
}

// === impl SubscriptionJson ===

impl SubscriptionJson {
    pub fn new(asked: google::Subscription, enums: Enums) -> Self {
        Self {
            state: enums.write(asked.state, asked.state().as_str_name()),
            name: asked.name,
            topic: asked.topic,
            push_config: PushJson::default(),
            bigquery_config: None,
            cloud_storage_config: None,
            ack_deadline_seconds: asked.ack_deadline_seconds,
            retain_acked_messages: asked.retain_acked_messages,
            message_retention_duration: asked.message_retention_duration.map(written),
            labels: asked.labels,
            enable_message_ordering: asked.enable_message_ordering,
            expiration_policy: asked
                .expiration_policy
                .map(|policy| ExpirationJson { ttl: policy.ttl.map(written) }),
            filter: asked.filter,
            dead_letter_policy: asked.dead_letter_policy.map(|policy| DeadLetterJson {
                dead_letter_topic: policy.dead_letter_topic,
                max_delivery_attempts: policy.max_delivery_attempts,
            }),
            retry_policy: asked.retry_policy.map(|policy| RetryJson {
                minimum_backoff: policy.minimum_backoff.map(written),
                maximum_backoff: policy.maximum_backoff.map(written),
            }),
            detached: asked.detached,
            enable_exactly_once_delivery: asked.enable_exactly_once_delivery,
        }
    }

    /// What is asked for, under the name in the request's path.
    pub fn into_google(self, name: &str) -> Result<google::Subscription, Status> {
        let duration = |text: Option<String>| text.map(|text| read(&text)).transpose();
        let expiration_policy = match self.expiration_policy {
            Some(policy) => Some(google::ExpirationPolicy { ttl: duration(policy.ttl)? }),
            None => None,
        };
        let retry_policy = match self.retry_policy {
            Some(policy) => Some(google::RetryPolicy {
                minimum_backoff: duration(policy.minimum_backoff)?,
                maximum_backoff: duration(policy.maximum_backoff)?,
            }),
            None => None,
        };
        Ok(google::Subscription {
            name: name.to_owned(),
            topic: self.topic,
            push_config: Some(google::PushConfig {
                push_endpoint: self.push_config.push_endpoint,
                ..google::PushConfig::default()
            }),
            bigquery_config: self.bigquery_config.map(|_| Default::default()),
            cloud_storage_config: self.cloud_storage_config.map(|_| Default::default()),
            ack_deadline_seconds: self.ack_deadline_seconds,
            retain_acked_messages: self.retain_acked_messages,
            message_retention_duration: duration(self.message_retention_duration)?,
            labels: self.labels,
            enable_message_ordering: self.enable_message_ordering,
            expiration_policy,
            filter: self.filter,
            dead_letter_policy: self.dead_letter_policy.map(|policy| google::DeadLetterPolicy {
                dead_letter_topic: policy.dead_letter_topic,
                max_delivery_attempts: policy.max_delivery_attempts,
            }),
            retry_policy,
            enable_exactly_once_delivery: self.enable_exactly_once_delivery,
            ..google::Subscription::default()
        })
    }
}

/// Writes a time as JSON has it: `1.5s`.
fn written(duration: prost_types::Duration) -> String {
    duration.to_string()
}

fn read(text: &str) -> Result<prost_types::Duration, Status> {
    text.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "invalid duration `{text}`: expected seconds, as in `600s`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{read, written};

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["600s", "1.500s", "0s"] {
            assert_eq!(written(read(text).unwrap()), text);
        }
        assert!(read("10 minutes").is_err());
    }
}
