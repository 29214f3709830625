//! What a parent will read: exceptions, heartbeats and lines of a log, in the name of the one that
//! he asked.
//!
//! Pure. A report is named by its cause: its uuid is derived from the run, from which attempt at
//! it, and from what happened to it, and its data is the same whoever makes it, however often, so
//! that two are one.

use crate::event::attributes as name;
use crate::event::encode::{self, Body};
use crate::event::{Outgoing, RunId, Timestamp};
use crate::runner::{End, Reason, RunState};
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// The namespace of the uuids that are derived here. Made once, at random; never to change.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d3c_51c7_0d1e_4f5e_9a53_6ff1_6b1b_2c80);

/// How often a child must be heard of, in seconds: the habit of the SDK's children. A parent
/// gives up after 360 s of silence.
pub const HEARTBEAT_INTERVAL: i64 = 120;

/// The attributes of a question, as they came.
pub type Question = HashMap<String, String>;

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
    /// The runner could not be reached.
    Held {
        /// For how long it was tried, in minutes.
        minutes: u64,
        /// What stood in the way.
        reason: String,
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

/// How serious a line of an asker's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Something went wrong, and is being put right.
    Warning,
}

/// Names what is said of a run: the run, and which attempt at it.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The run.
    pub run: RunId,
    /// Which attempt of the runner's own, from 0.
    pub attempt: u32,
    /// The attributes of its question, as they came.
    pub question: &'a Question,
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
    About { run, attempt: 0, question }.say("refused", at, &body)
}

/// How a question ended of whose run nothing is left. Whoever finds it so says the same.
pub fn vanished(cancelled: bool, at: Timestamp) -> End {
    let (reason, message) = if cancelled {
        (Reason::Cancelled, "The question was cancelled.")
    } else {
        (
            Reason::Lost,
            "The question has no answer, and nothing of its run is left: it was deleted, or ended \
             while nobody looked. Ask it again; if that goes wrong too, ask the network's admins \
             who deletes its Jobs.",
        )
    };
    End { at, started: None, reason, message: message.to_owned(), tail: Vec::new() }
}

// === impl About ===

impl<'a> About<'a> {
    /// What a state is about.
    pub fn of(state: &'a RunState) -> Self {
        Self { run: state.run, attempt: state.attempt, question: &state.attributes }
    }

    /// Says that the run has ended without a word of its own.
    pub fn ended(&self, end: &End) -> Option<Report> {
        let body = Body::Exception {
            exception_type: end.reason.exception().to_owned(),
            exception_message: end.message.clone(),
            exception_traceback: end.tail.clone(),
        };
        self.say("exception", end.at, &body)
    }

    /// The fence behind a run that has ended: published in its name after all that it published
    /// itself, it comes back after all of that is on record.
    ///
    /// Each claim has a fence of its own: that of a claim which was taken over came before what its
    /// holder may have said meanwhile.
    pub fn fence(&self, end: &End, claim: Uuid) -> Option<Report> {
        self.say(&format!("ended, claimed by {claim}"), end.at, &Body::Heartbeat)
    }

    /// The fence behind a run that is not to be found, of one look for it.
    pub fn lost(&self, at: Timestamp) -> Option<Report> {
        self.say(&format!("lost at {at}"), at, &Body::Heartbeat)
    }

    /// Says that the run, which waits, is not lost. `slot` counts the intervals since `queued`.
    pub fn waiting(&self, queued: Timestamp, slot: i64) -> Option<Report> {
        let at = Timestamp(queued.0 + slot * HEARTBEAT_INTERVAL * 1_000_000);
        self.say(&format!("waiting {slot}"), at, &Body::Heartbeat)
    }

    /// Says that the question is not lost, though it cannot be launched yet. `slot`
    /// counts the intervals for which it is held.
    pub fn held(&self, at: Timestamp, slot: i64) -> Option<Report> {
        self.say(&format!("held {slot}"), at, &Body::Heartbeat)
    }

    /// Says that the run waits no longer.
    pub fn running(&self, since: Timestamp) -> Option<Report> {
        self.say(&format!("running {}", since.0), since, &Body::Heartbeat)
    }

    /// Says that the run goes on though what it ran on was taken away, for the `times`th time. It
    /// is a fence too: behind all that the run had published by then.
    pub fn evicted(&self, at: Timestamp, times: u32) -> Option<Report> {
        self.say(&format!("evicted {times}"), at, &Body::Heartbeat)
    }

    /// Says that the run is to be run again.
    pub fn again(&self, at: Timestamp) -> Option<Report> {
        self.say("again", at, &Body::Heartbeat)
    }

    /// A line for the asker's log, made `at` a moment; none where the asker wants none. Said again
    /// it is the same line.
    pub fn note(&self, at: Timestamp, level: Level, text: &str) -> Option<Report> {
        if self.question.get(name::FORWARD_LOGS).map(String::as_str) != Some("1") {
            return None;
        }
        let body = Body::LogRecord { log_record: log_record(level, text) };
        self.say(&format!("note {text}"), at, &body)
    }

    fn say(&self, what: &str, at: Timestamp, body: &Body) -> Option<Report> {
        let Self { run, attempt, question } = self;
        let cause = match attempt {
            0 => format!("{run} {what}"),
            _ => format!("{run} {what} of attempt {attempt}"),
        };
        let uuid = Uuid::new_v5(&NAMESPACE, cause.as_bytes());
        let message = encode::response(question, uuid, at, body)?;
        Some(Report { uuid, message })
    }
}

/// The fields of a Python `LogRecord`. The asker's Python fills in the others, `created` too: the
/// moment in which it hears of it, so that the bytes here are the same whoever says it.
fn log_record(level: Level, text: &str) -> Value {
    let (levelno, levelname) = match level {
        Level::Info => (20, "INFO"),
        Level::Warning => (30, "WARNING"),
    };
    // The SDK takes what is in square brackets for the names of children, and cuts it off.
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
            Self::Held { minutes, reason } => (
                "RuntimeError",
                format!(
                    "The question could not be started, and was given up after {minutes} minutes \
                     of trying: {reason}. Tell the network's admins, and ask again later."
                ),
            ),
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
    const CLAIM: Uuid = Uuid::from_u128(1);

    fn end() -> End {
        End {
            at: Timestamp(1_712_832_408_236_064),
            started: None,
            reason: Reason::Killed,
            message: "The question's process was killed.".into(),
            tail: vec!["Traceback\n".into()],
        }
    }

    fn about(question: &Question) -> About<'_> {
        About { run: RUN, attempt: 0, question }
    }

    #[test]
    fn a_report_is_the_same_to_the_byte_however_often_it_is_made() {
        let question = question();
        let about = about(&question);
        assert_eq!(about.ended(&end()), about.ended(&end()));
        assert_eq!(about.fence(&end(), CLAIM), about.fence(&end(), CLAIM));
        assert_ne!(about.fence(&end(), CLAIM), about.fence(&end(), Uuid::from_u128(2)));
    }

    #[test]
    fn what_happened_to_a_run_its_retry_and_its_attempt_names_the_report() {
        let question = question();
        let first = about(&question);
        let retry = About { run: RunId { retry: 1, ..RUN }, ..first };
        let again = About { attempt: 1, ..first };
        let mut uuids: Vec<_> = [
            first.ended(&end()),
            retry.ended(&end()),
            again.ended(&end()),
            first.fence(&end(), CLAIM),
            retry.fence(&end(), CLAIM),
            again.fence(&end(), CLAIM),
            first.waiting(Timestamp(0), 1),
            first.waiting(Timestamp(0), 2),
            again.waiting(Timestamp(0), 2),
            first.running(Timestamp(0)),
            first.evicted(Timestamp(0), 1),
            first.again(Timestamp(0)),
            first.lost(Timestamp(0)),
            refused(RUN, &question, Timestamp(0), &Refusal::Cancelled),
        ]
        .map(|report| report.unwrap().uuid)
        .into();
        let all = uuids.len();
        uuids.sort_unstable();
        uuids.dedup();
        assert_eq!(uuids.len(), all);
    }

    #[test]
    fn a_note_is_for_who_wants_logs_and_is_one_line_whoever_says_it() {
        let mut question = question();
        assert_eq!(about(&question).note(Timestamp(0), Level::Info, "waits"), None);

        question.insert(name::FORWARD_LOGS.into(), "1".into());
        let note = |at| about(&question).note(Timestamp(at), Level::Info, "[a] waits").unwrap();

        assert_eq!((note(0).uuid, note(0).message.data), (note(9).uuid, note(9).message.data));
        let other = about(&question).note(Timestamp(0), Level::Info, "waits for b").unwrap();
        assert_ne!(note(0).uuid, other.uuid);
        let json: Value = serde_json::from_slice(&note(0).message.data).unwrap();
        assert_eq!(json["kind"], "log_record");
        assert_eq!(json["log_record"]["msg"], "(a) waits");
        assert_eq!(json["log_record"]["levelno"], 20);
    }

    #[test]
    fn a_report_is_an_event_with_a_python_exception() {
        let report = about(&question()).ended(&end()).unwrap();

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
