//! `twined ask`: one question, and its answer alone on stdout.

use crate::chain::Chain;
use crate::cli::network::{NetworkArgs, Place};
use crate::cli::{
    FAILED, Failure, INTERRUPTED, NOT_FOUND, OK, TIMED_OUT, UNREACHABLE, USAGE, interrupted,
    terminal,
};
use crate::event::encode::Ask;
use crate::event::{Event, Kind, Sruid, SruidBuf, Timestamp, decode};
use crate::pubsub::subscriber::FlowControl;
use crate::pubsub::{Admin, CallError, Delivery, Publisher, Subscriber};
use crate::sdk::PERSON;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::io::Read;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often it is seen whether an answer can still come, and how many times in a row the network
/// may be silent: it may be restarting.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOKS: u32 = 3;

/// Ask a question, wait, and print the answer
///
/// The answer is one line of JSON on stdout, `{"output_values": …, "output_manifest": …}`; the
/// service's logs and exceptions go to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined ask octue/example:local -i '{\"n\": 3}'\n  \
    twined ask octue/example:local -i - < values.json | jq .output_values")]
pub struct Args {
    /// Service revision to ask, `<namespace>/<name>:<revision tag>`
    sruid: SruidBuf,

    /// Input values as JSON; `-` reads them from stdin
    #[arg(short = 'i', long, value_name = "JSON")]
    input_values: Option<String>,

    /// Input manifest as JSON
    #[arg(short = 'm', long, value_name = "JSON")]
    input_manifest: Option<String>,

    /// UUID of the question [default: a new one]
    #[arg(long)]
    question_uuid: Option<Uuid>,

    /// Give up after so many seconds [default: wait for as long as it takes]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Leave out the service's logs
    #[arg(long)]
    no_logs: bool,

    #[command(flatten)]
    network: NetworkArgs,
}

/// A question as it is asked here.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Names it.
    pub question_uuid: Uuid,
    /// Who is asked.
    pub recipient: Sruid<'a>,
    /// Whether its logs are wanted.
    pub forward_logs: bool,
    /// Any JSON.
    pub input_values: Option<&'a RawValue>,
    /// An object that describes datasets.
    pub input_manifest: Option<&'a RawValue>,
}

/// How a question ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result: its event's JSON, without the kind.
    Answered(String),
    /// With an exception, of this type.
    Failed {
        /// The name of its type.
        exception_type: String,
    },
}

/// Why a question has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Pub/Sub does not do what it is asked.
    #[error("failed to ask")]
    Call(#[from] CallError),
    /// The network does not know us any more.
    #[error(
        "the network was started anew while the question waited: if it is answered, the answer is \
         in the network's event store"
    )]
    Restarted,
}

/// The fields of an exception that a person reads.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exception {
    exception_type: String,
    exception_message: String,
    exception_traceback: Vec<String>,
}

#[derive(Deserialize)]
struct LogLine {
    log_record: LogRecord,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogRecord {
    msg: String,
    levelname: String,
    name: String,
}

/// Asks, as the command line says.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Args { sruid, input_values, input_manifest, question_uuid, timeout, no_logs, network } =
        args;
    let input_values = input_values.map(values).transpose()?;
    let input_manifest = input_manifest.map(|text| json("--input-manifest", text)).transpose()?;
    let place = network.place().await?;
    let asked = Asked {
        question_uuid: question_uuid.unwrap_or_else(Uuid::new_v4),
        recipient: sruid.as_sruid(),
        forward_logs: !no_logs,
        input_values: input_values.as_deref(),
        input_manifest: input_manifest.as_deref(),
    };
    let asking = ask(&place, &asked, show);
    let limit = async {
        match timeout {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        outcome = asking => Some(outcome?),
        () = limit => None,
        () = interrupted() => {
            forget(&place, asked.question_uuid).await;
            return Ok(INTERRUPTED);
        }
    };
    match ended {
        Some(Outcome::Answered(answer)) => {
            terminal::answer(&answer).map_err(Failure::failed)?;
            Ok(OK)
        }
        Some(Outcome::Failed { exception_type }) if exception_type == "ServiceNotFound" => {
            Ok(NOT_FOUND)
        }
        Some(Outcome::Failed { .. }) => Ok(FAILED),
        None => {
            forget(&place, asked.question_uuid).await;
            let uuid = asked.question_uuid;
            terminal::note(&format!("twined: no answer to question {uuid} in the time given"));
            Ok(TIMED_OUT)
        }
    }
}

/// Asks a question and waits for its end. Everything that its child says on the way is shown.
///
/// # Errors
///
/// Where the question cannot be asked, or the network goes while it is waited for.
pub async fn ask(
    place: &Place,
    asked: &Asked<'_>,
    mut show: impl FnMut(&Event<'_>),
) -> Result<Outcome, AskError> {
    let Place { connection, topic } = place;
    let Asked { question_uuid, recipient, forward_logs, input_values, input_manifest } = *asked;
    let admin = Admin::new(connection);
    let answers = subscription(question_uuid);
    let filter = format!(
        "attributes.recipient = \"{PERSON}\" AND attributes.question_uuid = \"{question_uuid}\" \
         AND attributes.sender_type = \"CHILD\""
    );
    admin.ensure_subscription(&answers, topic, &filter).await?;
    let question = Ask {
        question_uuid,
        sender: Sruid::parse(PERSON).expect("a name of ours is right"),
        recipient,
        datetime: Timestamp::now(),
        forward_logs,
        input_values,
        input_manifest,
    };
    if let Err(error) = Publisher::new(connection, topic).publish(question.encode()).await {
        // The first error is what matters, and an emulator that is gone has no subscriptions.
        let _ = admin.delete_subscription(&answers).await;
        return Err(error.into());
    }
    let outcome = tokio::select! {
        outcome = receive(place, &answers, &mut show) => outcome,
        lost = lose(&admin, &answers) => return Err(lost),
    };
    forget(place, question_uuid).await;
    Ok(outcome)
}

/// Returns when no answer can come any more.
async fn lose(admin: &Admin, answers: &str) -> AskError {
    let mut silent = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match admin.has_subscription(answers).await {
            Ok(true) => silent = 0,
            Ok(false) => return AskError::Restarted,
            Err(_) if silent + 1 < LOOKS => silent += 1,
            Err(error) => return AskError::Call(error),
        }
    }
}

/// Takes what comes until a terminal event does.
async fn receive(place: &Place, answers: &str, show: &mut impl FnMut(&Event<'_>)) -> Outcome {
    let stop = CancellationToken::new();
    let (sender, mut deliveries) = mpsc::channel::<Delivery>(64);
    let subscriber = Subscriber::new(&place.connection, answers, FlowControl::default()).await;
    let subscriber = subscriber.expect("a client of an emulator needs nothing that can be missing");
    let receiving = subscriber.run(sender, stop.clone());
    // What comes after the end is taken too: the stream ends only when nothing of it is in hand.
    let taking = async {
        let mut outcome = None;
        while let Some(Delivery { message, receipt }) = deliveries.recv().await {
            receipt.ack();
            if outcome.is_some() {
                continue;
            }
            match decode(&message.data, &message.attributes) {
                Ok(event) => {
                    show(&event);
                    outcome = terminal_event(&event);
                    if outcome.is_some() {
                        stop.cancel();
                    }
                }
                Err(error) => {
                    terminal::note(&format!("twined: passed over a message: {}", Chain(&error)));
                }
            }
        }
        outcome
    };
    let ((), outcome) = tokio::join!(receiving, taking);
    outcome.expect("the subscriber runs until it is stopped, which is after the outcome")
}

fn terminal_event(event: &Event<'_>) -> Option<Outcome> {
    match &event.kind {
        Kind::Result => Some(Outcome::Answered(event.said())),
        Kind::Exception => {
            let Exception { exception_type, .. } =
                serde_json::from_str(event.data).unwrap_or_default();
            Some(Outcome::Failed { exception_type })
        }
        Kind::Question(_)
        | Kind::Cancellation
        | Kind::DeliveryAcknowledgement
        | Kind::Heartbeat
        | Kind::LogRecord
        | Kind::MonitorMessage
        | Kind::Other(_) => None,
    }
}

/// Shows what a child says to the one who asked.
pub fn show(event: &Event<'_>) {
    let sender = event.attributes.sender;
    match &event.kind {
        Kind::LogRecord => {
            let record = serde_json::from_str(event.data).map(|line: LogLine| line.log_record);
            let LogRecord { msg, levelname, name } = record.unwrap_or_default();
            let line = format!("[{sender} | {levelname} | {name}] {msg}");
            terminal::note(&terminal::safe(&line));
        }
        Kind::MonitorMessage => {
            let line = format!("[{sender} | monitor message] {}", event.said());
            terminal::note(&terminal::safe(&line));
        }
        Kind::Exception => {
            let exception: Exception = serde_json::from_str(event.data).unwrap_or_default();
            let Exception { exception_type, exception_message, exception_traceback } = exception;
            let traceback = exception_traceback.concat();
            if !traceback.is_empty() {
                terminal::note(&terminal::safe(traceback.trim_end()));
            }
            terminal::note(&terminal::safe(&format!("{exception_type}: {exception_message}")));
        }
        Kind::Question(_)
        | Kind::Cancellation
        | Kind::DeliveryAcknowledgement
        | Kind::Heartbeat
        | Kind::Result
        | Kind::Other(_) => {}
    }
}

/// The subscription that brings the answers, named as the SDK does.
fn subscription(question_uuid: Uuid) -> String {
    let person = Sruid::parse(PERSON).expect("a name of ours is right").subscription();
    format!("{person}.answers.{question_uuid}")
}

/// Leaves nothing behind of a question that is no longer waited for. It goes on.
async fn forget(place: &Place, question_uuid: Uuid) {
    let admin = Admin::new(&place.connection);
    if let Err(error) = admin.delete_subscription(&subscription(question_uuid)).await {
        terminal::note(&format!("twined: {}", error.chain()));
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match &error {
            // The question is larger than Pub/Sub takes, say.
            AskError::Call(call) if call.is_refused() => Self::new(USAGE, error),
            AskError::Call(_) | AskError::Restarted => Self::new(UNREACHABLE, error),
        }
    }
}

fn values(text: String) -> Result<Box<RawValue>, Failure> {
    if text != "-" {
        return json("--input-values", text);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Failure::failed)?;
    json("--input-values", text)
}

fn json(flag: &str, text: String) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(text.trim().to_owned())
        .map_err(|error| Failure::new(USAGE, format!("`{flag}` is not JSON: {error}")))
}
