//! `twined demo`: a whole network, one question, and nothing left of it.

use crate::cli::ask::{Asked, Outcome, ask};
use crate::cli::network::Place;
use crate::cli::{FAILED, Failure, INTERRUPTED, OK, USAGE, interrupted, process_host, terminal};
use crate::config::{
    DEFAULT_PROJECT, DEFAULT_TOPIC, HostArgs, LocalArgs, ServicesArgs, VariablesArgs, own_program,
};
use crate::daemon::sdk_service;
use crate::event::{Event, SruidBuf};
use crate::local::{self, LocalSettings};
use crate::runner::process::ProcessService;
use crate::sdk::services;
use crate::telemetry;
use serde_json::value::RawValue;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

/// The built-in service.
const EXAMPLE: &str = "demo/primes:1.0.0";

/// What it is asked.
const QUESTION: &str = r#"{"below": 10000}"#;

/// Run a whole network, ask it one question, and show all that happens
///
/// The events go to stderr as they come, and the answer alone to stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined demo\n  \
    twined demo --python ./my-service -i '{\"n\": 3}'")]
pub struct Args {
    /// Ask the Python service in this folder, in the place of the built-in one
    #[arg(long, value_name = "DIR")]
    python: Option<PathBuf>,

    /// Input values as JSON [default: what the built-in service wants]
    #[arg(short = 'i', long, value_name = "JSON")]
    input_values: Option<String>,
}

/// Shows it.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Args { python, input_values } = args;
    let (service, default) = match python {
        Some(folder) => (python_service(&folder)?, None),
        None => (example()?, Some(QUESTION.to_owned())),
    };
    let values = input_values.or(default).map(RawValue::from_string).transpose();
    let values = values
        .map_err(|error| Failure::new(USAGE, format!("`--input-values` is not JSON: {error}")))?;
    let recipient = service.sruid.clone();
    let metrics = telemetry::install_metrics().map_err(Failure::failed)?;
    let start = Instant::now();
    let network = local::start(settings(service)?, metrics).await?;
    note(start, &format!("a network runs: {}", network.addresses().data.display()));
    let addresses = network.addresses().clone();
    let place = Place { connection: addresses.connection, topic: addresses.topic };
    let runner = network.runner();
    let (finish, finished) = oneshot::channel::<()>();
    let asked = Asked {
        question_uuid: Uuid::new_v4(),
        recipient: recipient.as_sruid(),
        forward_logs: true,
        input_values: values.as_deref(),
        input_manifest: None,
    };
    note(start, &format!("asked {recipient} question {}", asked.question_uuid));
    let asking = async {
        let to_the_end = async {
            let outcome = ask(&place, &asked, |event| show(start, event)).await;
            // The run has answered, and ends: it is settled soon after.
            runner.idle().await;
            outcome
        };
        let outcome = tokio::select! {
            outcome = to_the_end => Some(outcome),
            () = interrupted() => None,
        };
        let left = runs_left(&addresses.data);
        // Received or not: the network ends when the sender goes.
        let _ = finish.send(());
        (outcome, left)
    };
    let running = network.run(async { drop(finished.await) });
    let ((outcome, left), ended) = tokio::join!(asking, running);
    ended?;
    let Some(outcome) = outcome else { return Ok(INTERRUPTED) };
    let gone = !addresses.data.exists();
    note(start, &format!("left running: {left} runs; data folder gone: {gone}"));
    match outcome? {
        Outcome::Answered(answer) if left == 0 && gone => {
            terminal::answer(&answer).map_err(Failure::failed)?;
            Ok(OK)
        }
        Outcome::Answered(_) => Err(Failure::failed("something was left behind")),
        Outcome::Failed { .. } => Ok(FAILED),
    }
}

/// The runs that are not over, by the folders that they would have.
fn runs_left(data: &Path) -> usize {
    let folders = std::fs::read_dir(data.join("runs")).into_iter().flatten().flatten();
    folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("question-")).count()
}

fn show(start: Instant, event: &Event<'_>) {
    let said: String = event.said().chars().take(160).collect();
    let kind = event.kind.name();
    note(start, &terminal::safe(&format!("{kind:24} {}", if said == "{}" { "" } else { &said })));
}

fn note(start: Instant, line: &str) {
    terminal::note(&format!("{:>5} ms  {}", start.elapsed().as_millis(), line.trim_end()));
}

fn example() -> Result<ProcessService, Failure> {
    let program = own_program().map_err(Failure::failed)?;
    Ok(ProcessService {
        sruid: EXAMPLE.parse::<SruidBuf>().expect("a name of ours is right"),
        folder: std::env::temp_dir(),
        command: vec![program.into(), "example-service".into()],
    })
}

fn python_service(folder: &Path) -> Result<ProcessService, Failure> {
    let usage = |error| Failure::new(USAGE, error);
    let found = services::find(&[folder.to_owned()], "local").map_err(usage)?;
    let [found] = <[_; 1]>::try_from(found).map_err(|found: Vec<_>| {
        let words =
            format!("expected one service in `{}`, found {}", folder.display(), found.len());
        Failure::new(USAGE, words)
    })?;
    Ok(sdk_service(found))
}

fn settings(service: ProcessService) -> Result<LocalSettings, Failure> {
    // None of what the environment says of a network: nobody else is to find this one.
    let args = LocalArgs {
        services: ServicesArgs::default(),
        topic: DEFAULT_TOPIC.to_owned(),
        project: DEFAULT_PROJECT.to_owned(),
        data: PathBuf::new(),
        ephemeral: true,
        http_port: 0,
        pubsub_port: 0,
        pubsub: None,
        hosts: HostArgs::default(),
        variables: VariablesArgs::default(),
    };
    Ok(LocalSettings { host: process_host(vec![service])?, environment: Default::default(), args })
}
