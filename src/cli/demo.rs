//! `twined demo`: starts a network, asks one question, and checks that nothing is left.

use crate::cli::ask::{QuestionOutcome, QuestionRequest, ask};
use crate::cli::network::TopicConnection;
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

/// Its input values.
const EXAMPLE_VALUES: &str = r#"{"below": 10000}"#;

/// Run a network on this machine, ask one question, and print its events and its answer
///
/// The events go to stderr, the answer to stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    twined demo\n  \
    twined demo --python ./my-service -i '{\"n\": 3}'")]
pub(super) struct Args {
    /// Folder of a Python service to ask [default: a built-in service]
    #[arg(long, value_name = "DIR")]
    python: Option<PathBuf>,

    /// Input values as JSON [default: those of the built-in service]
    #[arg(short = 'i', long, value_name = "JSON")]
    input_values: Option<String>,
}

/// Runs the demo.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let Args { python, input_values } = args;
    let (service, default) = match python {
        Some(folder) => (python_service(&folder)?, None),
        None => (example()?, Some(EXAMPLE_VALUES.to_owned())),
    };
    let values = input_values.or(default).map(RawValue::from_string).transpose();
    let values = values
        .map_err(|error| Failure::new(USAGE, format!("`--input-values` is not JSON: {error}")))?;
    let recipient = service.sruid.clone();
    let metrics = telemetry::install_metrics().map_err(Failure::failed)?;
    let start = Instant::now();
    let network = local::start(settings(service)?, metrics).await?;
    note(start, &format!("network started: {}", network.addresses().data.display()));
    let addresses = network.addresses().clone();
    let topic = TopicConnection { connection: addresses.connection, topic: addresses.topic };
    let runner = network.runner();
    let (finish, finished) = oneshot::channel::<()>();
    let question = QuestionRequest {
        question_uuid: Uuid::new_v4(),
        recipient: recipient.as_sruid(),
        forward_logs: true,
        input_values: values.as_deref(),
        input_manifest: None,
    };
    note(start, &format!("question {} asked of {recipient}", question.question_uuid));
    let asking = async {
        let to_the_end = async {
            let outcome = ask(&topic, &question, |event| show(start, event)).await;
            // After its answer the run ends, and is then settled.
            runner.idle().await;
            outcome
        };
        let outcome = tokio::select! {
            outcome = to_the_end => Some(outcome),
            () = interrupted() => None,
        };
        let remaining = remaining_runs(&addresses.data);
        // The network ends when the sender is dropped, too.
        let _ = finish.send(());
        (outcome, remaining)
    };
    let running = network.run(async { drop(finished.await) });
    let ((outcome, remaining), ended) = tokio::join!(asking, running);
    ended?;
    let Some(outcome) = outcome else { return Ok(INTERRUPTED) };
    let removed = !addresses.data.exists();
    note(start, &format!("network stopped: {remaining} runs left; data folder removed: {removed}"));
    match outcome? {
        QuestionOutcome::Answered(answer) if remaining == 0 && removed => {
            terminal::answer(&answer).map_err(Failure::failed)?;
            Ok(OK)
        }
        QuestionOutcome::Answered(_) => {
            Err(Failure::failed("runs or files of the network are left; see the last line above"))
        }
        QuestionOutcome::Failed { .. } => Ok(FAILED),
    }
}

/// How many runs are not settled: each has a folder.
fn remaining_runs(data: &Path) -> usize {
    let folders = std::fs::read_dir(data.join("runs")).into_iter().flatten().flatten();
    folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("question-")).count()
}

fn show(start: Instant, event: &Event<'_>) {
    let text: String = event.json_without_kind().chars().take(160).collect();
    let kind = event.kind.name();
    note(start, &terminal::safe(&format!("{kind:24} {}", if text == "{}" { "" } else { &text })));
}

fn note(start: Instant, line: &str) {
    terminal::note(&format!("{:>5} ms  {}", start.elapsed().as_millis(), line.trim_end()));
}

fn example() -> Result<ProcessService, Failure> {
    let program = own_program().map_err(Failure::failed)?;
    Ok(ProcessService {
        sruid: EXAMPLE.parse::<SruidBuf>().expect("the name is valid"),
        folder: std::env::temp_dir(),
        command: vec![program.into(), "example-service".into()],
    })
}

fn python_service(folder: &Path) -> Result<ProcessService, Failure> {
    let usage = |error| Failure::new(USAGE, error);
    let found = services::find(&[folder.to_owned()], "local").map_err(usage)?;
    let [found] = <[_; 1]>::try_from(found).map_err(|found: Vec<_>| {
        let message =
            format!("expected one service in `{}`, found {}", folder.display(), found.len());
        Failure::new(USAGE, message)
    })?;
    Ok(sdk_service(found))
}

fn settings(service: ProcessService) -> Result<LocalSettings, Failure> {
    // No setting comes from the environment: the demo's network is of its own.
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
