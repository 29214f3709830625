//! What may be asked of a topic and of a subscription, checked, with Google's defaults.

use std::time::Duration;

use google_cloud_googleapis::pubsub::v1 as google;
use tonic::Status;

use super::filter::Filter;
use super::queue::Backoff;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const ACK_DEADLINES: std::ops::RangeInclusive<i32> = 10..=600;
const DEFAULT_ACK_DEADLINE: i32 = 10;

const SHORTEST_RETENTION: Duration = Duration::from_secs(10 * 60);
const LONGEST_RETENTION: Duration = DAY.saturating_mul(31);
const DEFAULT_RETENTION: Duration = DAY.saturating_mul(7);

const SHORTEST_LIFE: Duration = DAY;
const DEFAULT_LIFE: Duration = DAY.saturating_mul(31);

const DEFAULT_BACKOFF: Backoff =
    Backoff { minimum: Duration::from_secs(10), maximum: Duration::from_secs(600) };

const ATTEMPTS: std::ops::RangeInclusive<i32> = 5..=100;
const DEFAULT_ATTEMPTS: i32 = 5;

/// A subscription's settings, and what the emulator acts on, in its own types.
#[derive(Debug)]
pub(super) struct Settings {
    pub ack_deadline: Duration,
    pub retention: Duration,
    pub backoff: Option<Backoff>,
    pub enable_message_ordering: bool,
    pub counts_attempts: bool,
    /// As they were asked for, defaults filled in, names left out.
    told: google::Subscription,
}

/// A topic's settings.
#[derive(Debug)]
pub(super) struct TopicSettings {
    told: google::Topic,
}

// === impl Settings ===

impl Settings {
    /// Checks what a request asks for. Names are looked at elsewhere.
    pub fn new(asked: google::Subscription) -> Result<(Self, Option<Filter>), Status> {
        refuse_other_deliveries(&asked)?;
        let filter = filter(&asked.filter)?;
        let ack_deadline = match asked.ack_deadline_seconds {
            0 => DEFAULT_ACK_DEADLINE,
            seconds => seconds,
        };
        let retention = retention(asked.message_retention_duration)?;
        let backoff = asked.retry_policy.as_ref().map(backoff).transpose()?;
        let told = google::Subscription {
            ack_deadline_seconds: ack_deadline,
            message_retention_duration: Some(proto(retention)),
            expiration_policy: Some(expiration(asked.expiration_policy)?),
            retry_policy: backoff.map(|backoff| google::RetryPolicy {
                minimum_backoff: Some(proto(backoff.minimum)),
                maximum_backoff: Some(proto(backoff.maximum)),
            }),
            dead_letter_policy: asked.dead_letter_policy.map(dead_letter).transpose()?,
            push_config: Some(google::PushConfig::default()),
            state: google::subscription::State::Active.into(),
            detached: false,
            ..asked
        };
        let settings = Self {
            ack_deadline: self::ack_deadline(ack_deadline)?,
            retention,
            backoff,
            enable_message_ordering: told.enable_message_ordering,
            counts_attempts: told.dead_letter_policy.is_some(),
            told,
        };
        Ok((settings, filter))
    }

    /// What a client is told of them.
    pub fn describe(&self, name: String, topic: String, detached: bool) -> google::Subscription {
        google::Subscription { name, topic, detached, ..self.told.clone() }
    }
}

// === impl TopicSettings ===

impl TopicSettings {
    /// Checks what a request asks for. Names are looked at elsewhere.
    pub fn new(asked: google::Topic) -> Result<Self, Status> {
        let later = [
            (asked.schema_settings.is_some(), "schema_settings"),
            (asked.ingestion_data_source_settings.is_some(), "ingestion_data_source_settings"),
            (!asked.message_transforms.is_empty(), "message_transforms"),
        ];
        refuse(&later)?;
        let state = google::topic::State::Active.into();
        Ok(Self { told: google::Topic { state, ..asked } })
    }

    /// What a client is told of them.
    pub fn describe(&self, name: String) -> google::Topic {
        google::Topic { name, ..self.told.clone() }
    }
}

/// Checks an ack deadline in seconds, as a subscription or a stream has it.
pub(super) fn ack_deadline(seconds: i32) -> Result<Duration, Status> {
    if !ACK_DEADLINES.contains(&seconds) {
        return Err(Status::invalid_argument(format!(
            "invalid ack deadline given (ack_deadline_seconds={seconds}): expected 10 to 600"
        )));
    }
    Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

/// Checks a new ack deadline of a delivery, where 0 is a nack.
pub(super) fn new_ack_deadline(seconds: i32) -> Result<Duration, Status> {
    if !(0..=*ACK_DEADLINES.end()).contains(&seconds) {
        return Err(Status::invalid_argument(format!(
            "invalid ack deadline given (ack_deadline_seconds={seconds}): expected 0 to 600"
        )));
    }
    Ok(Duration::from_secs(u64::from(seconds.unsigned_abs())))
}

fn refuse_other_deliveries(asked: &google::Subscription) -> Result<(), Status> {
    let pushes = asked.push_config.as_ref().is_some_and(|config| !config.push_endpoint.is_empty());
    refuse(&[
        (pushes, "push_config"),
        (asked.bigquery_config.is_some(), "bigquery_config"),
        (asked.cloud_storage_config.is_some(), "cloud_storage_config"),
        (asked.enable_exactly_once_delivery, "enable_exactly_once_delivery"),
        (!asked.message_transforms.is_empty(), "message_transforms"),
    ])
}

/// A setting that would change what is delivered is refused rather than forgotten.
fn refuse(settings: &[(bool, &str)]) -> Result<(), Status> {
    match settings.iter().find(|(is_set, _)| *is_set) {
        Some((_, name)) => {
            Err(Status::unimplemented(format!("this emulator does not yet have `{name}`")))
        }
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

fn retention(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let name = "message_retention_duration";
    let Some(retention) = asked else { return Ok(DEFAULT_RETENTION) };
    let retention = duration(name, retention)?;
    if !(SHORTEST_RETENTION..=LONGEST_RETENTION).contains(&retention) {
        return Err(out_of_range(name, "10 minutes to 31 days"));
    }
    Ok(retention)
}

fn backoff(asked: &google::RetryPolicy) -> Result<Backoff, Status> {
    let read = |name: &str, asked: Option<prost_types::Duration>, default: Duration| {
        let read = asked.map_or(Ok(default), |asked| duration(name, asked))?;
        if read > DEFAULT_BACKOFF.maximum {
            return Err(out_of_range(name, "0 to 600 seconds"));
        }
        Ok(read)
    };
    let minimum =
        read("retry_policy.minimum_backoff", asked.minimum_backoff, DEFAULT_BACKOFF.minimum)?;
    let maximum =
        read("retry_policy.maximum_backoff", asked.maximum_backoff, DEFAULT_BACKOFF.maximum)?;
    if minimum > maximum {
        return Err(out_of_range("retry_policy.minimum_backoff", "no more than maximum_backoff"));
    }
    Ok(Backoff { minimum, maximum })
}

fn expiration(asked: Option<google::ExpirationPolicy>) -> Result<google::ExpirationPolicy, Status> {
    let name = "expiration_policy.ttl";
    let Some(policy) = asked else {
        return Ok(google::ExpirationPolicy { ttl: Some(proto(DEFAULT_LIFE)) });
    };
    if let Some(life) = policy.ttl
        && duration(name, life)? < SHORTEST_LIFE
    {
        return Err(out_of_range(name, "a day or more"));
    }
    Ok(policy)
}

fn dead_letter(asked: google::DeadLetterPolicy) -> Result<google::DeadLetterPolicy, Status> {
    let max_delivery_attempts = match asked.max_delivery_attempts {
        0 => DEFAULT_ATTEMPTS,
        attempts => attempts,
    };
    if !ATTEMPTS.contains(&max_delivery_attempts) {
        return Err(out_of_range("dead_letter_policy.max_delivery_attempts", "5 to 100"));
    }
    Ok(google::DeadLetterPolicy { max_delivery_attempts, ..asked })
}

fn duration(name: &str, asked: prost_types::Duration) -> Result<Duration, Status> {
    Duration::try_from(asked).map_err(|_| out_of_range(name, "no negative time"))
}

fn out_of_range(name: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("invalid `{name}`: expected {expected}"))
}

fn proto(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("a month fits")
}
