//! The settings of topics and subscriptions: checked, with Google's defaults.

use std::time::Duration;

use google_cloud_googleapis::pubsub::v1 as google;
use tonic::Status;

use super::filter::Filter;
use super::queue::RedeliveryBackoff;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const ACK_DEADLINES: std::ops::RangeInclusive<i32> = 10..=600;
const DEFAULT_ACK_DEADLINE: i32 = 10;

const MIN_RETENTION: Duration = Duration::from_secs(10 * 60);
const MAX_RETENTION: Duration = DAY.saturating_mul(31);
const DEFAULT_RETENTION: Duration = DAY.saturating_mul(7);

const MIN_EXPIRATION: Duration = DAY;
const DEFAULT_EXPIRATION: Duration = DAY.saturating_mul(31);

const DEFAULT_BACKOFF: RedeliveryBackoff =
    RedeliveryBackoff { minimum: Duration::from_secs(10), maximum: Duration::from_secs(600) };

const MAX_ATTEMPTS_RANGE: std::ops::RangeInclusive<i32> = 5..=100;
const DEFAULT_MAX_ATTEMPTS: i32 = 5;

/// The settings of a subscription. Those that the emulator acts on have fields.
#[derive(Debug)]
pub(super) struct SubscriptionSettings {
    pub ack_deadline: Duration,
    pub retention: Duration,
    pub backoff: Option<RedeliveryBackoff>,
    pub enable_message_ordering: bool,
    pub counts_attempts: bool,
    /// All settings, with defaults, for answers. Names are not filled in.
    resource: google::Subscription,
}

/// The settings of a topic.
#[derive(Debug)]
pub(super) struct TopicSettings {
    resource: google::Topic,
}

// === impl SubscriptionSettings ===

impl SubscriptionSettings {
    /// Checks the settings of a request, except for names.
    pub(super) fn new(requested: google::Subscription) -> Result<(Self, Option<Filter>), Status> {
        refuse_other_kinds(&requested)?;
        let filter = filter(&requested.filter)?;
        let ack_deadline = match requested.ack_deadline_seconds {
            0 => DEFAULT_ACK_DEADLINE,
            seconds => seconds,
        };
        let retention = retention(requested.message_retention_duration)?;
        let backoff = requested.retry_policy.as_ref().map(backoff).transpose()?;
        let resource = google::Subscription {
            ack_deadline_seconds: ack_deadline,
            message_retention_duration: Some(proto(retention)),
            expiration_policy: Some(expiration(requested.expiration_policy)?),
            retry_policy: backoff.map(|backoff| google::RetryPolicy {
                minimum_backoff: Some(proto(backoff.minimum)),
                maximum_backoff: Some(proto(backoff.maximum)),
            }),
            dead_letter_policy: requested.dead_letter_policy.map(dead_letter).transpose()?,
            push_config: Some(google::PushConfig::default()),
            state: google::subscription::State::Active.into(),
            detached: false,
            ..requested
        };
        let settings = Self {
            ack_deadline: self::ack_deadline(ack_deadline)?,
            retention,
            backoff,
            enable_message_ordering: resource.enable_message_ordering,
            counts_attempts: resource.dead_letter_policy.is_some(),
            resource,
        };
        Ok((settings, filter))
    }

    /// The subscription, as an answer to a client.
    pub(super) fn describe(
        &self,
        name: String,
        topic: String,
        detached: bool,
    ) -> google::Subscription {
        google::Subscription { name, topic, detached, ..self.resource.clone() }
    }
}

// === impl TopicSettings ===

impl TopicSettings {
    /// Checks the settings of a request, except for names.
    pub(super) fn new(requested: google::Topic) -> Result<Self, Status> {
        let unsupported = [
            (requested.schema_settings.is_some(), "schema_settings"),
            (requested.ingestion_data_source_settings.is_some(), "ingestion_data_source_settings"),
            (!requested.message_transforms.is_empty(), "message_transforms"),
        ];
        refuse(&unsupported)?;
        let state = google::topic::State::Active.into();
        Ok(Self { resource: google::Topic { state, ..requested } })
    }

    /// The topic, as an answer to a client.
    pub(super) fn describe(&self, name: String) -> google::Topic {
        google::Topic { name, ..self.resource.clone() }
    }
}

/// Checks the ack deadline of a subscription or a stream, in seconds.
pub(super) fn ack_deadline(seconds: i32) -> Result<Duration, Status> {
    if !ACK_DEADLINES.contains(&seconds) {
        return Err(Status::invalid_argument(format!(
            "invalid ack deadline (ack_deadline_seconds={seconds}): expected 10 to 600"
        )));
    }
    Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

/// Checks the new ack deadline of a delivery, in seconds. 0 is a nack.
pub(super) fn new_ack_deadline(seconds: i32) -> Result<Duration, Status> {
    if !(0..=*ACK_DEADLINES.end()).contains(&seconds) {
        return Err(Status::invalid_argument(format!(
            "invalid ack deadline (ack_deadline_seconds={seconds}): expected 0 to 600"
        )));
    }
    Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

fn refuse_other_kinds(requested: &google::Subscription) -> Result<(), Status> {
    let pushes =
        requested.push_config.as_ref().is_some_and(|config| !config.push_endpoint.is_empty());
    refuse(&[
        (pushes, "push_config"),
        (requested.bigquery_config.is_some(), "bigquery_config"),
        (requested.cloud_storage_config.is_some(), "cloud_storage_config"),
        (requested.enable_exactly_once_delivery, "enable_exactly_once_delivery"),
        (!requested.message_transforms.is_empty(), "message_transforms"),
    ])
}

/// Refuses settings that are not implemented: ignoring them would change what is delivered.
fn refuse(settings: &[(bool, &str)]) -> Result<(), Status> {
    match settings.iter().find(|(is_set, _)| *is_set) {
        Some((_, name)) => Err(super::unimplemented(name)),
        None => Ok(()),
    }
}

fn filter(text: &str) -> Result<Option<Filter>, Status> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let filter = Filter::parse(text)
        .map_err(|error| Status::invalid_argument(format!("invalid filter: {error}")))?;
    Ok(Some(filter))
}

fn retention(requested: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let name = "message_retention_duration";
    let Some(retention) = requested else { return Ok(DEFAULT_RETENTION) };
    let retention = duration(name, retention)?;
    if !(MIN_RETENTION..=MAX_RETENTION).contains(&retention) {
        return Err(out_of_range(name, "10 minutes to 31 days"));
    }
    Ok(retention)
}

fn backoff(requested: &google::RetryPolicy) -> Result<RedeliveryBackoff, Status> {
    let read = |name: &str, requested: Option<prost_types::Duration>, default: Duration| {
        let read = requested.map_or(Ok(default), |requested| duration(name, requested))?;
        if read > DEFAULT_BACKOFF.maximum {
            return Err(out_of_range(name, "0 to 600 seconds"));
        }
        Ok(read)
    };
    let minimum =
        read("retry_policy.minimum_backoff", requested.minimum_backoff, DEFAULT_BACKOFF.minimum)?;
    let maximum =
        read("retry_policy.maximum_backoff", requested.maximum_backoff, DEFAULT_BACKOFF.maximum)?;
    if minimum > maximum {
        return Err(out_of_range("retry_policy.minimum_backoff", "at most maximum_backoff"));
    }
    Ok(RedeliveryBackoff { minimum, maximum })
}

fn expiration(
    requested: Option<google::ExpirationPolicy>,
) -> Result<google::ExpirationPolicy, Status> {
    let name = "expiration_policy.ttl";
    let Some(policy) = requested else {
        return Ok(google::ExpirationPolicy { ttl: Some(proto(DEFAULT_EXPIRATION)) });
    };
    if let Some(ttl) = policy.ttl
        && duration(name, ttl)? < MIN_EXPIRATION
    {
        return Err(out_of_range(name, "1 day or more"));
    }
    Ok(policy)
}

fn dead_letter(requested: google::DeadLetterPolicy) -> Result<google::DeadLetterPolicy, Status> {
    let max_delivery_attempts = match requested.max_delivery_attempts {
        0 => DEFAULT_MAX_ATTEMPTS,
        attempts => attempts,
    };
    if !MAX_ATTEMPTS_RANGE.contains(&max_delivery_attempts) {
        return Err(out_of_range("dead_letter_policy.max_delivery_attempts", "5 to 100"));
    }
    Ok(google::DeadLetterPolicy { max_delivery_attempts, ..requested })
}

fn duration(name: &str, requested: prost_types::Duration) -> Result<Duration, Status> {
    Duration::try_from(requested).map_err(|_| out_of_range(name, "a duration of 0 or more"))
}

fn out_of_range(name: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("invalid `{name}`: expected {expected}"))
}

fn proto(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("durations of settings are short")
}
