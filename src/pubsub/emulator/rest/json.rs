//! Topics and subscriptions in Google's JSON.
//!
//! Unknown fields are refused, as Google does.

use std::collections::HashMap;

use google_cloud_googleapis::pubsub::v1 as google;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::Status;

/// The format of enums, which the client chooses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum EnumFormat {
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

/// The other fields do not matter: a subscription with an endpoint is refused.
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

// === impl EnumFormat ===

impl EnumFormat {
    fn write(self, number: i32, name: &str) -> Value {
        match self {
            Self::Names => name.into(),
            Self::Numbers => number.into(),
        }
    }
}

// === impl TopicJson ===

impl TopicJson {
    pub(super) fn new(topic: google::Topic, enums: EnumFormat) -> Self {
        Self {
            state: enums.write(topic.state, topic.state().as_str_name()),
            name: topic.name,
            labels: topic.labels,
            message_retention_duration: topic.message_retention_duration.map(format_duration),
            schema_settings: None,
            ingestion_data_source_settings: None,
        }
    }

    /// The requested resource, with the name in the request's path.
    pub(super) fn into_google(self, name: &str) -> Result<google::Topic, Status> {
        let retention =
            self.message_retention_duration.map(|text| parse_duration(&text)).transpose()?;
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
    pub(super) fn new(subscription: google::Subscription, enums: EnumFormat) -> Self {
        Self {
            state: enums.write(subscription.state, subscription.state().as_str_name()),
            name: subscription.name,
            topic: subscription.topic,
            push_config: PushJson::default(),
            bigquery_config: None,
            cloud_storage_config: None,
            ack_deadline_seconds: subscription.ack_deadline_seconds,
            retain_acked_messages: subscription.retain_acked_messages,
            message_retention_duration: subscription
                .message_retention_duration
                .map(format_duration),
            labels: subscription.labels,
            enable_message_ordering: subscription.enable_message_ordering,
            expiration_policy: subscription
                .expiration_policy
                .map(|policy| ExpirationJson { ttl: policy.ttl.map(format_duration) }),
            filter: subscription.filter,
            dead_letter_policy: subscription.dead_letter_policy.map(|policy| DeadLetterJson {
                dead_letter_topic: policy.dead_letter_topic,
                max_delivery_attempts: policy.max_delivery_attempts,
            }),
            retry_policy: subscription.retry_policy.map(|policy| RetryJson {
                minimum_backoff: policy.minimum_backoff.map(format_duration),
                maximum_backoff: policy.maximum_backoff.map(format_duration),
            }),
            detached: subscription.detached,
            enable_exactly_once_delivery: subscription.enable_exactly_once_delivery,
        }
    }

    /// The requested resource, with the name in the request's path.
    pub(super) fn into_google(self, name: &str) -> Result<google::Subscription, Status> {
        let duration = |text: Option<String>| text.map(|text| parse_duration(&text)).transpose();
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

/// Formats a duration: `1.5s`.
fn format_duration(duration: prost_types::Duration) -> String {
    duration.to_string()
}

fn parse_duration(text: &str) -> Result<prost_types::Duration, Status> {
    text.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "invalid duration `{text}`: expected seconds, for example `600s`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{format_duration, parse_duration};

    #[test]
    fn a_duration_is_formatted_as_it_was_parsed() {
        for text in ["600s", "1.500s", "0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert!(parse_duration("10 minutes").is_err());
    }
}
