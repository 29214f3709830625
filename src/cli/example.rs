//! The service of `twined demo`: a child process that uses Pub/Sub as every service does.
//!
//! It counts the primes below a number, and sends monitor messages with its progress.

use crate::cli::{FAILED, Failure, OK, USAGE};
use crate::event::encode::{self, EventBody};
use crate::event::{Timestamp, attributes};
use crate::pubsub::{Connection, Publisher};
use crate::sdk::variables;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// How many monitor messages the service sends.
const STEPS: u64 = 2;

/// The largest `below`: about a second of work.
const MAX_BELOW: u64 = 10_000_000;

/// Answer one question as the service of `twined demo`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    attributes: String,

    #[arg(long)]
    input_values: Option<String>,

    #[arg(long, env = variables::PUBSUB_EMULATOR_HOST)]
    pubsub: String,

    #[arg(long, env = variables::GOOGLE_CLOUD_PROJECT)]
    project: String,

    #[arg(long, env = variables::TOPIC_NAME)]
    topic: String,
}

#[derive(Deserialize)]
struct Values {
    below: u64,
}

/// Publishes events of the question to its parent.
struct Responder {
    publisher: Publisher,
    question: HashMap<String, String>,
}

/// Answers the question.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let Args { attributes, input_values, pubsub, project, topic } = args;
    let question: HashMap<String, String> =
        serde_json::from_str(&attributes).map_err(|error| Failure::new(USAGE, error))?;
    let connection = Connection::emulator(&pubsub, &project).map_err(Failure::failed)?;
    let responder = Responder { publisher: Publisher::new(&connection, &topic), question };
    responder.publish(EventBody::DeliveryAcknowledgement).await?;
    let values = input_values.as_deref().unwrap_or("null");
    match serde_json::from_str(values) {
        Ok(Values { below }) if below <= MAX_BELOW => {
            count(&responder, below).await?;
            Ok(OK)
        }
        Ok(_) | Err(_) => {
            let message =
                format!("expected {{\"below\": N}} with N up to {MAX_BELOW}, got {values}");
            responder.publish(exception("ValueError", message)).await?;
            Ok(FAILED)
        }
    }
}

async fn count(responder: &Responder, below: u64) -> Result<(), Failure> {
    responder.log(&format!("counting the primes below {below}")).await?;
    let mut primes = 0;
    for step in 0..STEPS {
        let range = below * step / STEPS..below * (step + 1) / STEPS;
        primes += range.filter(|number| is_prime(*number)).count();
        let data = json!({ "done": (step + 1) as f64 / STEPS as f64, "primes": primes });
        responder.publish(EventBody::MonitorMessage { data }).await?;
    }
    responder.publish(EventBody::Result { output_values: json!({ "primes": primes }) }).await
}

fn is_prime(number: u64) -> bool {
    let divides = |divisor: &u64| number.is_multiple_of(*divisor);
    number >= 2 && !(2..).take_while(|divisor| divisor * divisor <= number).any(|d| divides(&d))
}

fn exception(exception_type: &str, exception_message: String) -> EventBody {
    EventBody::Exception {
        exception_type: exception_type.to_owned(),
        exception_message,
        exception_traceback: Vec::new(),
    }
}

// === impl Responder ===

impl Responder {
    async fn publish(&self, body: EventBody) -> Result<(), Failure> {
        let response = encode::response(&self.question, Uuid::new_v4(), Timestamp::now(), &body);
        let response = response.ok_or_else(|| {
            Failure::new(USAGE, "`--attributes` lacks an attribute that every question has")
        })?;
        self.publisher.publish(response).await.map_err(Failure::failed)
    }

    async fn log(&self, message: &str) -> Result<(), Failure> {
        if self.question.get(attributes::FORWARD_LOGS).map(String::as_str) != Some("1") {
            return Ok(());
        }
        self.publish(EventBody::LogRecord { log_record: record(message) }).await
    }
}

/// The fields of a Python `LogRecord` that the SDK shows.
fn record(message: &str) -> Value {
    json!({
        "msg": message,
        "args": null,
        "levelno": 20,
        "levelname": "INFO",
        "name": "demo",
        "created": Timestamp::now().0 as f64 / 1e6,
    })
}
