//! `twined ask`: asks one question, and prints its answer on stdout.

use crate::chain::Chain;
use crate::cli::network::{NetworkArgs, TopicConnection};
use crate::cli::{
    FAILED, Failure, INTERRUPTED, NOT_FOUND, OK, TIMED_OUT, UNREACHABLE, USAGE, interrupted,
    terminal,
};
use crate::event::encode::NewQuestion;
use crate::event::{Event, Kind, Sruid, SruidBuf, Timestamp, decode};
use crate::pubsub::subscriber::FlowControl;
use crate::pubsub::{Admin, CallError, Connection, Delivery, Publisher, Subscriber};
use crate::sdk::ROOT_PARENT;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::io::Read;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the subscription for the answer is checked, and how many checks in a row may fail: the
/// network may be restarting.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const MAX_FAILED_CHECKS: u32 = 3;

/// Ask a question, wait, and print the answer
///
/// The answer is one line of JSON on stdout, `{"output_values": …, "output_manifest": …}`; the
/// service's logs and exceptions go to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined ask octue/example:local -i '{\"n\": 3}'\n  \
    twined ask octue/example:local -i - < values.json | jq .output_values")]
pub(super) struct Args {
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

    /// Seconds to wait for the answer [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Do not print the service's logs
    #[arg(long)]
    no_logs: bool,

    #[command(flatten)]
    network: NetworkArgs,
}

/// A question to ask.
#[derive(Debug)]
pub(super) struct QuestionRequest<'a> {
    pub question_uuid: Uuid,
    pub recipient: Sruid<'a>,
    /// Whether the service sends its logs.
    pub forward_logs: bool,
    pub input_values: Option<&'a RawValue>,
    pub input_manifest: Option<&'a RawValue>,
}

/// How a question ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QuestionOutcome {
    /// With a result: its event's JSON, without the kind.
    Answered(String),
    /// With an exception of this type.
    Failed { exception_type: String },
}

/// Why a question has no outcome.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// A call of Pub/Sub failed.
    #[error("failed to ask the question")]
    Call(#[from] CallError),
    /// The subscription for the answer is gone.
    #[error(
        "the network was restarted before an answer came: if the question is answered, the answer is \
         in the network's event store"
    )]
    Restarted,
}

/// The fields of an exception that are printed.
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

/// Asks a question and prints its answer.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let Args { sruid, input_values, input_manifest, question_uuid, timeout, no_logs, network } =
        args;
    let input_values = input_values.map(values).transpose()?;
    let input_manifest = input_manifest.map(|text| json("--input-manifest", text)).transpose()?;
    let topic = network.topic_connection().await?;
    let question = QuestionRequest {
        question_uuid: question_uuid.unwrap_or_else(Uuid::new_v4),
        recipient: sruid.as_sruid(),
        forward_logs: !no_logs,
        input_values: input_values.as_deref(),
        input_manifest: input_manifest.as_deref(),
    };
    let asking = ask(&topic, &question, show);
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
            delete_subscription(&topic, question.question_uuid).await;
            return Ok(INTERRUPTED);
        }
    };
    match ended {
        Some(QuestionOutcome::Answered(answer)) => {
            terminal::answer(&answer).map_err(Failure::failed)?;
            Ok(OK)
        }
        Some(QuestionOutcome::Failed { exception_type }) if exception_type == "ServiceNotFound" => {
            Ok(NOT_FOUND)
        }
        Some(QuestionOutcome::Failed { .. }) => Ok(FAILED),
        None => {
            delete_subscription(&topic, question.question_uuid).await;
            let uuid = question.question_uuid;
            terminal::note(&format!("twined: no answer to question {uuid} within the timeout"));
            Ok(TIMED_OUT)
        }
    }
}

/// Asks a question and waits for its end. `show` gets every event of its child.
///
/// # Errors
///
/// If the question cannot be asked, or the network ends before an answer comes.
pub(super) async fn ask(
    topic_connection: &TopicConnection,
    question: &QuestionRequest<'_>,
    mut show: impl FnMut(&Event<'_>),
) -> Result<QuestionOutcome, AskError> {
    let TopicConnection { connection, topic } = topic_connection;
    let QuestionRequest { question_uuid, recipient, forward_logs, input_values, input_manifest } =
        *question;
    let admin = Admin::new(connection);
    let answers = subscription(question_uuid);
    let filter = format!(
        "attributes.recipient = \"{ROOT_PARENT}\" AND attributes.question_uuid = \"{question_uuid}\" \
         AND attributes.sender_type = \"CHILD\""
    );
    admin.ensure_subscription(&answers, topic, &filter).await?;
    let question = NewQuestion {
        question_uuid,
        sender: Sruid::parse(ROOT_PARENT).expect("the name is valid"),
        recipient,
        datetime: Timestamp::now(),
        forward_logs,
        input_values,
        input_manifest,
    };
    if let Err(error) = Publisher::new(connection, topic).publish(question.encode()).await {
        // The first error matters; an emulator that is gone has no subscriptions.
        let _ = admin.delete_subscription(&answers).await;
        return Err(error.into());
    }
    let outcome = tokio::select! {
        outcome = receive(connection, &answers, &mut show) => outcome,
        error = until_unreachable(&admin, &answers) => return Err(error),
    };
    delete_subscription(topic_connection, question_uuid).await;
    Ok(outcome)
}

/// Returns when an answer can no longer come.
async fn until_unreachable(admin: &Admin, answers: &str) -> AskError {
    let mut failed_checks = 0;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        match admin.has_subscription(answers).await {
            Ok(true) => failed_checks = 0,
            Ok(false) => return AskError::Restarted,
            Err(_) if failed_checks + 1 < MAX_FAILED_CHECKS => failed_checks += 1,
            Err(error) => return AskError::Call(error),
        }
    }
}

/// Receives events until a terminal one.
async fn receive(
    connection: &Connection,
    answers: &str,
    show: &mut impl FnMut(&Event<'_>),
) -> QuestionOutcome {
    let stop = CancellationToken::new();
    let (sender, mut deliveries) = mpsc::channel::<Delivery>(64);
    let subscriber = Subscriber::new(connection, answers, FlowControl::default()).await;
    let subscriber = subscriber.expect("a client of an emulator needs no credentials");
    let receiving = subscriber.run(sender, stop.clone());
    // Later messages are acknowledged too: the stream ends only when none is in flight.
    let handling = async {
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
                    terminal::note(&format!("twined: message ignored: {}", Chain(&error)));
                }
            }
        }
        outcome
    };
    let ((), outcome) = tokio::join!(receiving, handling);
    outcome.expect("the outcome stops the subscriber")
}

fn terminal_event(event: &Event<'_>) -> Option<QuestionOutcome> {
    match &event.kind {
        Kind::Result => Some(QuestionOutcome::Answered(event.json_without_kind())),
        Kind::Exception => {
            let Exception { exception_type, .. } =
                serde_json::from_str(event.data).unwrap_or_default();
            Some(QuestionOutcome::Failed { exception_type })
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

/// Prints an event of a child.
pub(super) fn show(event: &Event<'_>) {
    let sender = event.attributes.sender;
    match &event.kind {
        Kind::LogRecord => {
            let record = serde_json::from_str(event.data).map(|line: LogLine| line.log_record);
            let LogRecord { msg, levelname, name } = record.unwrap_or_default();
            let line = format!("[{sender} | {levelname} | {name}] {msg}");
            terminal::note(&terminal::safe(&line));
        }
        Kind::MonitorMessage => {
            let line = format!("[{sender} | monitor message] {}", event.json_without_kind());
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

/// The name of the subscription for the answer, as the SDK would name it.
fn subscription(question_uuid: Uuid) -> String {
    let person = Sruid::parse(ROOT_PARENT).expect("the name is valid").subscription();
    format!("{person}.answers.{question_uuid}")
}

/// Deletes the subscription for the answer. The question itself continues.
async fn delete_subscription(topic: &TopicConnection, question_uuid: Uuid) {
    let admin = Admin::new(&topic.connection);
    if let Err(error) = admin.delete_subscription(&subscription(question_uuid)).await {
        terminal::note(&format!("twined: {}", error.chain()));
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match &error {
            // For example a question that is too large for Pub/Sub.
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
