//! The events that we publish to parents: exceptions, heartbeats and log records, in the name of
//! the service that they asked.
//!
//! Pure. The uuid of a notification is derived from the run, the attempt and what happened. Its
//! data is the same whichever replica makes it, and however often, so two copies are one event.

use crate::event::attributes as name;
use crate::event::encode::{self, EventBody};
use crate::event::{OutgoingMessage, RunId, Timestamp};
use crate::runner::{Cause, EndReason, RunEnd, RunState};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// The namespace of the derived uuids. Random; must never change.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d3c_51c7_0d1e_4f5e_9a53_6ff1_6b1b_2c80);

/// How often a parent must receive an event of its question, in seconds: the interval of the SDK's
/// children. A parent gives up after 360 s without one.
pub(crate) const HEARTBEAT_INTERVAL: i64 = 120;

/// For how long calls to the runner, the registry or Pub/Sub are retried before the parent gets an
/// exception. An outage that is over by then only delays its questions.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(900);

/// The attributes of a question, as received.
pub(crate) type QuestionAttributes = HashMap<String, String>;

/// A message to publish, and its uuid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notification {
    /// Derived from the run and what happened to it.
    pub(crate) uuid: Uuid,
    /// The question that it is about.
    pub(crate) question: Uuid,
    /// The message to publish.
    pub(crate) message: OutgoingMessage,
}

/// Why a question gets an exception although no run of it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The revision does not exist.
    NoSuchRevision {
        /// The revision that was asked.
        recipient: String,
        /// The revisions of the same service that exist.
        revisions: Vec<String>,
    },
    /// The question was cancelled before it started.
    Cancelled,
    /// The runner refused it.
    Runner {
        /// The name of an exception of Python or of the SDK.
        exception: &'static str,
        /// The reason and the remedy.
        message: String,
    },
    /// The runner could not be reached.
    GivenUp {
        /// For how long the launch was retried, in minutes.
        minutes: u64,
        /// The last error.
        reason: String,
    },
    /// An external service should have answered, by its own subscription, and did not.
    StaleSubscription {
        /// The name of the subscription.
        subscription: String,
        /// For how long no event came, in seconds.
        seconds: u64,
    },
    /// The question is not a valid event.
    InvalidEvent {
        /// What is wrong with it.
        reason: String,
    },
}

/// The level of a log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLevel {
    /// Normal progress.
    Info,
    /// A failure that the daemon recovers from.
    Warning,
}

/// The subject of a notification: one attempt of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunAttempt<'a> {
    /// The run.
    pub(crate) run: RunId,
    /// The number of the runner's attempt, from 0.
    pub(crate) number: u32,
    /// The attributes of its question, as received.
    pub(crate) question: &'a QuestionAttributes,
}

/// The exception for a question that will not run. None if its attributes do not name a parent.
pub(crate) fn refusal(
    run: RunId,
    question: &QuestionAttributes,
    at: Timestamp,
    refusal: &Refusal,
) -> Option<Notification> {
    let (exception, message) = refusal.exception();
    let body = EventBody::Exception {
        exception_type: exception.to_owned(),
        exception_message: message,
        exception_traceback: Vec::new(),
    };
    RunAttempt { run, number: 0, question }.notification("refused", at, &body)
}

/// The end of a lost run. The reason and the text are the same whichever replica finds it.
pub(crate) fn lost_run_end(cancelled: bool, at: Timestamp) -> RunEnd {
    let (reason, message) = if cancelled {
        (EndReason::Cancelled, "The question was cancelled.")
    } else {
        (
            EndReason::Lost,
            "The question has no answer, and nothing of its run is left: it was deleted, or ended \
             while no daemon was running. Ask it again; if that fails too, ask the network's \
             admins who deletes its Jobs.",
        )
    };
    RunEnd { at, started: None, cause: Cause::new(reason, message), tail: Vec::new() }
}

// === impl RunAttempt ===

impl<'a> RunAttempt<'a> {
    /// The attempt that this is a state of.
    pub(crate) fn from_state(state: &'a RunState) -> Self {
        Self { run: state.run, number: state.attempt, question: &state.attributes }
    }

    /// The exception for a run that ended without a terminal event.
    pub(crate) fn exception(&self, end: &RunEnd) -> Option<Notification> {
        let body = EventBody::Exception {
            exception_type: end.cause.reason.exception().to_owned(),
            exception_message: end.cause.message.clone(),
            exception_traceback: end.tail.clone(),
        };
        self.notification("exception", end.at, &body)
    }

    /// The fence of a run that has ended: a heartbeat, published in the run's name after all events
    /// of the run. When it is on record, so are they.
    ///
    /// Each claim has a fence of its own. After a claim was taken over, its fence proves nothing:
    /// its holder may have published an exception behind it.
    pub(crate) fn fence(&self, end: &RunEnd, claim: Uuid) -> Option<Notification> {
        self.notification(&format!("ended, claimed by {claim}"), end.at, &EventBody::Heartbeat)
    }

    /// The fence of a run that seems lost. Each sweep has a fence of its own.
    pub(crate) fn sweep_fence(&self, at: Timestamp) -> Option<Notification> {
        self.notification(&format!("lost at {at}"), at, &EventBody::Heartbeat)
    }

    /// The heartbeat of a run that waits. `slot` counts the intervals since `queued`.
    pub(crate) fn waiting_heartbeat(&self, queued: Timestamp, slot: i64) -> Option<Notification> {
        let at = Timestamp(queued.0 + slot * HEARTBEAT_INTERVAL * 1_000_000);
        self.notification(&format!("waiting {slot}"), at, &EventBody::Heartbeat)
    }

    /// The heartbeat of a question whose launch is being retried. `slot` counts the intervals since
    /// the first try.
    pub(crate) fn retry_heartbeat(&self, at: Timestamp, slot: i64) -> Option<Notification> {
        self.notification(&format!("held {slot}"), at, &EventBody::Heartbeat)
    }

    /// The heartbeat of a run that has started after a wait.
    pub(crate) fn running_heartbeat(&self, since: Timestamp) -> Option<Notification> {
        self.notification(&format!("running {}", since.0), since, &EventBody::Heartbeat)
    }

    /// The heartbeat of a run whose pod was evicted for the `times`th time and is replaced. It is
    /// also a fence, behind everything that the evicted pod published.
    pub(crate) fn eviction_heartbeat(&self, at: Timestamp, times: u32) -> Option<Notification> {
        self.notification(&format!("evicted {times}"), at, &EventBody::Heartbeat)
    }

    /// The heartbeat of a run that was relaunched.
    pub(crate) fn relaunch_heartbeat(&self, at: Timestamp) -> Option<Notification> {
        self.notification("again", at, &EventBody::Heartbeat)
    }

    /// A log record for the parent; none if the parent does not want logs. The same text is always
    /// the same notification.
    pub(crate) fn log_record(
        &self,
        at: Timestamp,
        level: LogLevel,
        text: &str,
    ) -> Option<Notification> {
        if self.question.get(name::FORWARD_LOGS).map(String::as_str) != Some("1") {
            return None;
        }
        let body = EventBody::LogRecord { log_record: log_record(level, text) };
        self.notification(&format!("note {text}"), at, &body)
    }

    /// The uuid is derived from `occasion`. Replicas of other versions derive the same one, so the
    /// text of an occasion must never change.
    fn notification(
        &self,
        occasion: &str,
        at: Timestamp,
        body: &EventBody,
    ) -> Option<Notification> {
        let Self { run, number, question } = self;
        let name = match number {
            0 => format!("{run} {occasion}"),
            _ => format!("{run} {occasion} of attempt {number}"),
        };
        let uuid = Uuid::new_v5(&NAMESPACE, name.as_bytes());
        let message = encode::response(question, uuid, at, body)?;
        Some(Notification { uuid, question: run.question, message })
    }
}

/// The fields of a Python `LogRecord`. The parent's Python fills in the others. `created` is left
/// to it too (it becomes the time of receipt), so that the bytes are the same whichever replica
/// makes them.
fn log_record(level: LogLevel, text: &str) -> Value {
    let (levelno, levelname) = match level {
        LogLevel::Info => (20, "INFO"),
        LogLevel::Warning => (30, "WARNING"),
    };
    // The SDK removes text in square brackets, as names of children.
    let msg = text.replace('[', "(").replace(']', ")");
    json!({
        "msg": msg,
        "args": null,
        "exc_info": null,
        "levelno": levelno,
        "levelname": levelname,
        "name": "twined",
    })
}

// === impl Refusal ===

impl Refusal {
    /// The name and the message of the exception.
    fn exception(&self) -> (&'static str, String) {
        match self {
            Self::NoSuchRevision { recipient, revisions } if revisions.is_empty() => (
                "ServiceNotFound",
                format!(
                    "No service {recipient:?} runs in this network, and no external service of that \
                     name exists. Check the namespace, the name and the revision tag."
                ),
            ),
            Self::NoSuchRevision { recipient, revisions } => (
                "ServiceNotFound",
                format!(
                    "No revision {recipient:?} runs in this network. Revisions of this service: {}.",
                    revisions.join(", ")
                ),
            ),
            Self::Cancelled => (
                EndReason::Cancelled.exception(),
                "The question was cancelled before it started.".to_owned(),
            ),
            Self::Runner { exception, message } => (exception, message.clone()),
            Self::GivenUp { minutes, reason } => (
                "RuntimeError",
                format!(
                    "The question could not be started, and was given up after {minutes} minutes \
                     of retries: {reason}. Report this to the network's admins, and ask again later."
                ),
            ),
            Self::StaleSubscription { subscription, seconds } => (
                "ServiceNotFound",
                format!(
                    "The subscription {subscription:?} shows that a service started by hand \
                     (`octue twined service start`) answers this question, but nothing came from \
                     it for {seconds} s. If it no longer runs, delete the subscription: with \
                     google-cloud-pubsub, \
                     `SubscriberClient().delete_subscription(subscription={subscription:?})`."
                ),
            ),
            Self::InvalidEvent { reason } => {
                ("RuntimeError", format!("The question cannot be handled: {reason}."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Sruid, decode};

    fn question() -> QuestionAttributes {
        encode::NewQuestion {
            question_uuid: Uuid::from_u128(7),
            sender: Sruid::parse("local/local:local").unwrap(),
            recipient: Sruid::parse("octue/example:1.2.0").unwrap(),
            datetime: Timestamp(0),
            forward_logs: false,
            input_values: None,
            input_manifest: None,
        }
        .encode()
        .attributes
    }

    const RUN: RunId = RunId { question: Uuid::from_u128(7), retry: 0 };
    const CLAIM: Uuid = Uuid::from_u128(1);

    fn end() -> RunEnd {
        RunEnd {
            at: Timestamp(1_712_832_408_236_064),
            started: None,
            cause: Cause::new(EndReason::Killed, "The question's process was killed."),
            tail: vec!["Traceback\n".into()],
        }
    }

    fn first_attempt(question: &QuestionAttributes) -> RunAttempt<'_> {
        RunAttempt { run: RUN, number: 0, question }
    }

    #[test]
    fn a_notification_always_has_the_same_bytes() {
        let question = question();
        let attempt = first_attempt(&question);
        assert_eq!(attempt.exception(&end()), attempt.exception(&end()));
        assert_eq!(attempt.fence(&end(), CLAIM), attempt.fence(&end(), CLAIM));
        assert_ne!(attempt.fence(&end(), CLAIM), attempt.fence(&end(), Uuid::from_u128(2)));
    }

    #[test]
    fn the_uuid_of_an_occasion_never_changes() {
        let question = question();
        let first = first_attempt(&question);
        let second = RunAttempt { number: 1, ..first };
        let uuid = |notification: Option<Notification>| notification.unwrap().uuid.to_string();

        assert_eq!(uuid(first.exception(&end())), "66f435bd-8922-5918-b236-08e0d434c5e0");
        assert_eq!(uuid(second.exception(&end())), "c50d81b4-b75f-505b-8ad6-ad715f97faf1");
        assert_eq!(
            uuid(first.waiting_heartbeat(Timestamp(0), 1)),
            "bcf3312c-f047-5d3a-ba67-8606873981fe"
        );
    }

    #[test]
    fn the_uuid_depends_on_the_occasion_the_retry_and_the_attempt() {
        let question = question();
        let first = first_attempt(&question);
        let retry = RunAttempt { run: RunId { retry: 1, ..RUN }, ..first };
        let second = RunAttempt { number: 1, ..first };
        let mut uuids: Vec<_> = [
            first.exception(&end()),
            retry.exception(&end()),
            second.exception(&end()),
            first.fence(&end(), CLAIM),
            retry.fence(&end(), CLAIM),
            second.fence(&end(), CLAIM),
            first.waiting_heartbeat(Timestamp(0), 1),
            first.waiting_heartbeat(Timestamp(0), 2),
            second.waiting_heartbeat(Timestamp(0), 2),
            first.retry_heartbeat(Timestamp(0), 1),
            first.running_heartbeat(Timestamp(0)),
            first.eviction_heartbeat(Timestamp(0), 1),
            first.relaunch_heartbeat(Timestamp(0)),
            first.sweep_fence(Timestamp(0)),
            refusal(RUN, &question, Timestamp(0), &Refusal::Cancelled),
        ]
        .map(|notification| notification.unwrap().uuid)
        .into();
        let all = uuids.len();
        uuids.sort_unstable();
        uuids.dedup();
        assert_eq!(uuids.len(), all);
    }

    #[test]
    fn a_log_record_is_sent_only_on_request_and_is_one_event() {
        let mut question = question();
        let log_record = |question: &QuestionAttributes, at, text: &str| {
            first_attempt(question).log_record(Timestamp(at), LogLevel::Info, text)
        };
        assert_eq!(log_record(&question, 0, "waits"), None);

        question.insert(name::FORWARD_LOGS.into(), "1".into());
        let waits = |at| log_record(&question, at, "[a] waits").unwrap();

        let data = |at| (waits(at).uuid, waits(at).message.data);
        assert_eq!(data(0), data(9));
        let other = log_record(&question, 0, "waits for b").unwrap();
        assert_ne!(waits(0).uuid, other.uuid);
        let json: Value = serde_json::from_slice(&waits(0).message.data).unwrap();
        assert_eq!(json["kind"], "log_record");
        assert_eq!(json["log_record"]["msg"], "(a) waits");
        assert_eq!(json["log_record"]["levelno"], 20);
    }

    #[test]
    fn an_exception_is_an_event_that_the_sdk_can_raise() {
        let exception = first_attempt(&question()).exception(&end()).unwrap();

        let event = decode(&exception.message.data, &exception.message.attributes).unwrap();

        assert_eq!(event.attributes.uuid, exception.uuid);
        let json: serde_json::Value = serde_json::from_str(event.data).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "kind": "exception",
                "exception_type": "RuntimeError",
                "exception_message": "The question's process was killed.",
                "exception_traceback": ["Traceback\n"],
            })
        );
    }
}
