//! The demo's service: a child process as any other, over the real wire.
//!
//! It counts the primes below a number, and says on the way how far it is.

use crate::cli::{FAILED, Failure, OK, USAGE};
use crate::event::encode::{self, Body};
use crate::event::{Timestamp, attributes};
use crate::pubsub::{Connection, Publisher};
use crate::sdk::variables;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use uuid::Uuid;

/// How many monitor messages it sends.
const STEPS: u64 = 2;

/// The largest number that it counts to: about a second of work.
const MOST: u64 = 10_000_000;

/// Answer one question as the demo's service
#[derive(Debug, clap::Args)]
pub struct Args {
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

/// The one who asked, and how he is told.
struct Parent {
    publisher: Publisher,
    question: HashMap<String, String>,
}

/// Answers.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Args { attributes, input_values, pubsub, project, topic } = args;
    let question: HashMap<String, String> =
        serde_json::from_str(&attributes).map_err(|error| Failure::new(USAGE, error))?;
    let connection = Connection::emulator(&pubsub, &project).map_err(Failure::failed)?;
    let parent = Parent { publisher: Publisher::new(&connection, &topic), question };
    parent.tell(Body::DeliveryAcknowledgement).await?;
    let values = input_values.as_deref().unwrap_or("null");
    match serde_json::from_str(values) {
        Ok(Values { below }) if below <= MOST => {
            count(&parent, below).await?;
            Ok(OK)
        }
        Ok(_) | Err(_) => {
            let words = format!("expected {{\"below\": N}} with N up to {MOST}, got {values}");
            parent.tell(exception("ValueError", words)).await?;
            Ok(FAILED)
        }
    }
}

async fn count(parent: &Parent, below: u64) -> Result<(), Failure> {
    parent.log(&format!("counting the primes below {below}")).await?;
    let mut primes = 0;
    for step in 0..STEPS {
        let range = below * step / STEPS..below * (step + 1) / STEPS;
        primes += range.filter(|number| is_prime(*number)).count();
        let data = json!({ "done": (step + 1) as f64 / STEPS as f64, "primes": primes });
        parent.tell(Body::MonitorMessage { data }).await?;
    }
    parent.tell(Body::Result { output_values: json!({ "primes": primes }) }).await
}

fn is_prime(number: u64) -> bool {
    let divides = |divisor: &u64| number.is_multiple_of(*divisor);
    number >= 2 && !(2..).take_while(|divisor| divisor * divisor <= number).any(|d| divides(&d))
}

fn exception(exception_type: &str, exception_message: String) -> Body {
    Body::Exception {
        exception_type: exception_type.to_owned(),
        exception_message,
        exception_traceback: Vec::new(),
    }
}

// === impl Parent ===

impl Parent {
    async fn tell(&self, body: Body) -> Result<(), Failure> {
        let response = encode::response(&self.question, Uuid::new_v4(), Timestamp::now(), &body);
        let response = response
            .ok_or_else(|| Failure::new(USAGE, "`--attributes` lacks what every question has"))?;
        self.publisher.publish(response).await.map_err(Failure::failed)
    }

    async fn log(&self, message: &str) -> Result<(), Failure> {
        if self.question.get(attributes::FORWARD_LOGS).map(String::as_str) != Some("1") {
            return Ok(());
        }
        self.tell(Body::LogRecord { log_record: record(message) }).await
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
