//! What a parent will read: exceptions and heartbeats in the name of the one that he asked.
//!
//! Pure. A report is named by its cause: its uuid is derived from the run and from what happened
//! to it, and its bytes are the same however often it is made, so that two are one.

use crate::event::encode::{self, Body};
use crate::event::{Outgoing, RunId, Timestamp};
use crate::runner::{End, Reason};
use std::collections::HashMap;
use uuid::Uuid;

/// The namespace of the uuids that are derived here. Made once, at random; never to change.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d3c_51c7_0d1e_4f5e_9a53_6ff1_6b1b_2c80);

/// How often a child must be heard of, in seconds: the habit of the SDK's children. A parent
/// gives up after 360 s of silence.
pub const HEARTBEAT_INTERVAL: i64 = 120;

/// The attributes of a question, as they came.
type Question = HashMap<String, String>;

/// A message to publish, and its uuid.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Derived from its cause.
    pub uuid: Uuid,
    /// What to publish.
    pub message: Outgoing,
}

/// What stands in the way of a question before there is a run of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No revision of that name.
    NoSuchRevision {
        /// What was asked.
        recipient: String,
        /// The revisions of that service that there are.
        revisions: Vec<String>,
    },
    /// It was cancelled before it started.
    Cancelled,
    /// The runner will not run it.
    Runner {
        /// The name of an exception of Python or of the SDK.
        exception: &'static str,
        /// Why, and what to do.
        message: String,
    },
    /// A service outside the network should have answered, by its own subscription, and did not.
    StaleSubscription {
        /// Its name.
        subscription: String,
        /// For how long nothing came, in seconds.
        seconds: u64,
    },
    /// The question is no event that can be handled.
    NotAnEvent {
        /// Why.
        reason: String,
    },
}

/// Says that a run has ended without a word of its own.
pub fn ended(run: RunId, question: &Question, end: &End) -> Option<Report> {
    let body = Body::Exception {
        exception_type: end.reason.exception().to_owned(),
        exception_message: end.message.clone(),
        exception_traceback: end.tail.clone(),
    };
    make(run, "exception", question, end.at, &body)
}

/// The fence behind a run that has ended: published in its name after all that it published
/// itself, it comes back after all of that is on record.
pub fn fence(run: RunId, question: &Question, end: &End) -> Option<Report> {
    make(run, "ended", question, end.at, &Body::Heartbeat)
}

/// Says that a run which waits is not lost. `slot` counts the intervals since `queued`.
pub fn waiting(run: RunId, question: &Question, queued: Timestamp, slot: i64) -> Option<Report> {
    let at = Timestamp(queued.0 + slot * HEARTBEAT_INTERVAL * 1_000_000);
    make(run, &format!("waiting {slot}"), question, at, &Body::Heartbeat)
}

/// Says that a question will not be run.
pub fn refused(
    run: RunId,
    question: &Question,
    at: Timestamp,
    refusal: &Refusal,
) -> Option<Report> {
    let (exception, message) = refusal.words();
    let body = Body::Exception {
        exception_type: exception.to_owned(),
        exception_message: message,
        exception_traceback: Vec::new(),
    };
    make(run, "refused", question, at, &body)
}

fn make(
    run: RunId,
    cause: &str,
    question: &Question,
    at: Timestamp,
    body: &Body,
) -> Option<Report> {
    let uuid = Uuid::new_v5(&NAMESPACE, format!("{run} {cause}").as_bytes());
    let message = encode::response(question, uuid, at, body)?;
    Some(Report { uuid, message })
}

// === impl Refusal ===

impl Refusal {
    /// The exception's name, and its words.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::NoSuchRevision { recipient, revisions } if revisions.is_empty() => (
                "ServiceNotFound",
                format!(
                    "No service {recipient:?} runs in this network, and none of that name runs \
                     outside it. Check the namespace, the name and the revision tag."
                ),
            ),
            Self::NoSuchRevision { recipient, revisions } => (
                "ServiceNotFound",
                format!(
                    "No revision {recipient:?} runs in this network; of that service there is: {}.",
                    revisions.join(", ")
                ),
            ),
            Self::Cancelled => (
                Reason::Cancelled.exception(),
                "The question was cancelled before it started.".to_owned(),
            ),
            Self::Runner { exception, message } => (exception, message.clone()),
            Self::StaleSubscription { subscription, seconds } => (
                "ServiceNotFound",
                format!(
                    "The subscription {subscription:?} says that a service started by hand \
                     (`octue twined service start`) answers this question, but nothing came from \
                     it for {seconds} s. If it no longer runs, delete the subscription: with \
                     google-cloud-pubsub, \
                     `SubscriberClient().delete_subscription(subscription={subscription:?})`."
                ),
            ),
            Self::NotAnEvent { reason } => {
                ("RuntimeError", format!("The question cannot be handled: {reason}."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Sruid, decode};

    fn question() -> Question {
        encode::Ask {
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

    fn end() -> End {
        End {
            at: Timestamp(1_712_832_408_236_064),
            started: None,
            reason: Reason::Killed,
            message: "The question's process was killed.".into(),
            tail: vec!["Traceback\n".into()],
        }
    }

    #[test]
    fn a_report_is_the_same_to_the_byte_however_often_it_is_made() {
        assert_eq!(ended(RUN, &question(), &end()), ended(RUN, &question(), &end()));
        assert_eq!(fence(RUN, &question(), &end()), fence(RUN, &question(), &end()));
    }

    #[test]
    fn what_happened_to_a_run_and_its_retry_names_the_report() {
        let retry = RunId { retry: 1, ..RUN };
        let question = question();
        let mut uuids: Vec<_> = [
            ended(RUN, &question, &end()),
            ended(retry, &question, &end()),
            fence(RUN, &question, &end()),
            waiting(RUN, &question, Timestamp(0), 1),
            waiting(RUN, &question, Timestamp(0), 2),
            refused(RUN, &question, Timestamp(0), &Refusal::Cancelled),
        ]
        .map(|report| report.unwrap().uuid)
        .into();
        uuids.sort_unstable();
        uuids.dedup();
        assert_eq!(uuids.len(), 6);
    }

    #[test]
    fn a_report_is_an_event_with_a_python_exception() {
        let report = ended(RUN, &question(), &end()).unwrap();

        let event = decode(&report.message.data, &report.message.attributes).unwrap();

        assert_eq!(event.attributes.uuid, report.uuid);
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
