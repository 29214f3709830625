//! The hot path: the cost of every message before any I/O.
//!
//! `cargo bench --bench dispatch`

#![expect(missing_docs, reason = "criterion's macros make functions without any")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::HashMap;
use std::hint::black_box;
use twined::event::encode::{self, EventBody, NewQuestion};
use twined::event::{Sruid, Timestamp, decode};
use twined::pipeline::action::Action;
use twined::runner::LaunchRequest;
use twined::runner::kubernetes::job::{Gate, JobDefaults, JobRequest, manifest};
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::store::Row;
use uuid::Uuid;

/// The attributes that the SDK gives an event of a question that another question asked.
fn attributes(sender_type: &str) -> HashMap<String, String> {
    let (sender, recipient) = ("octue/wind-speed:0.1.2", "octue/elevation:1.20.3");
    [
        ("uuid", "a3a0e0a2-7c1e-4c7e-8a52-b3d0a5d0b001"),
        ("datetime", "2024-04-11T10:46:48.236064+00:00"),
        ("question_uuid", "2f1b8f3c-6ec5-4bb1-9a3b-0d6a1f0f6c11"),
        ("parent_question_uuid", "81f35b28-068b-4314-9eeb-e55e60d0fe8a"),
        ("originator_question_uuid", "81f35b28-068b-4314-9eeb-e55e60d0fe8a"),
        ("parent", sender),
        ("originator", "local/local:local"),
        ("sender", sender),
        ("recipient", recipient),
        ("sender_type", sender_type),
        ("sender_sdk_version", "0.69.1"),
        ("retry_count", "0"),
        ("forward_logs", "1"),
        ("save_diagnostics", "SAVE_DIAGNOSTICS_ON_CRASH"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// The JSON of an event, of about `bytes` bytes.
fn data(kind: &str, bytes: usize) -> String {
    let value = r#"{"longitude": -1.8263, "latitude": 51.1789},"#;
    let field = if kind == "question" { "input_values" } else { "output_values" };
    let values = value.repeat(bytes.saturating_sub(60) / value.len() + 1);
    format!(
        r#"{{"kind": "{kind}", "{field}": {{"locations": [{}]}}}}"#,
        values.trim_end_matches(',')
    )
}

fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_to_action_and_row");
    let heartbeat = || r#"{"kind": "heartbeat"}"#.to_owned();
    let log = || {
        r#"{"kind": "log_record", "log_record": {"name": "app", "msg": "at step 12", "args": null,
            "levelname": "INFO", "levelno": 20, "pathname": "/app/app.py", "filename": "app.py",
            "lineno": 12, "funcName": "run", "created": 1712832408.236, "process": 7}}"#
            .to_owned()
    };
    for (name, sender_type, data) in [
        ("heartbeat", "CHILD", heartbeat()),
        ("log_record", "CHILD", log()),
        ("question/600", "PARENT", data("question", 600)),
        ("question/64KiB", "PARENT", data("question", 64 * 1024)),
        ("result/600", "CHILD", data("result", 600)),
        ("result/1MiB", "CHILD", data("result", 1024 * 1024)),
        ("question with NaN/600", "PARENT", data("question", 590).replace("51.1789}]", "NaN}]")),
    ] {
        let attributes = attributes(sender_type);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let event = decode(black_box(data.as_bytes()), &attributes).expect("an event");
                let action = Action::for_event(&event);
                black_box(&action);
                black_box(Row::new(&event, &attributes, "1234567890", "2f1b8f3c"));
            });
        });
    }
    group.finish();
}

/// The cost of a question, up to the request body for the API server.
fn dispatch_to_job(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode_to_row_and_job");
    let settings = NetworkSettings::read(SETTINGS, ServiceFields::default()).expect("settings");
    let network = JobDefaults {
        namespace: "default".into(),
        images: "europe-west9-docker.pkg.dev/octue-twined-services/octue-twined-services".into(),
        topic: "main.octue.twined.services".into(),
        environment: Vec::new(),
    };
    for (name, bytes) in [("question/600", 600), ("question/64KiB", 64 * 1024)] {
        let data = data("question", bytes);
        let attributes = attributes("PARENT");
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let event = decode(black_box(data.as_bytes()), &attributes).expect("an event");
                black_box(Row::new(&event, &attributes, "1234567890", "2f1b8f3c"));
                let Action::Launch(run, inputs) = Action::for_event(&event) else {
                    panic!("no launch")
                };
                let recipient = event.attributes.recipient.to_buf();
                let service = settings.service(&recipient);
                let order = JobRequest {
                    launch: LaunchRequest {
                        run,
                        recipient: &recipient,
                        parent_question: event.attributes.parent_question_uuid,
                        attributes: &attributes,
                        inputs,
                    },
                    service: &service,
                    network: &network,
                    gate: Gate::for_service(&settings, &service),
                    depth: 1,
                    launched: Timestamp(0),
                    nonce: 0,
                };
                let job = manifest(&order).expect("a Job");
                serde_json::to_vec(&job).expect("a Job is JSON")
            });
        });
    }
    group.finish();
}

/// Typical settings of a network.
const SETTINGS: &str = "
allow: [\"octue/*\"]
defaults:
  cpus: {cap: 8}
  memory: {cap: 64Gi}
  service_account: octue
  queue: main
rules:
  - {services: [\"octue/wind-*\"], deadline: 1d}
";

fn encode_events(criterion: &mut Criterion) {
    let question = attributes("PARENT");
    criterion.bench_function("encode/heartbeat", |bencher| {
        bencher
            .iter(|| encode::response(&question, Uuid::nil(), Timestamp(0), &EventBody::Heartbeat));
    });
    let sender = Sruid::parse("local/local:local").expect("an SRUID");
    let ask = NewQuestion {
        question_uuid: Uuid::nil(),
        sender,
        recipient: sender,
        datetime: Timestamp(0),
        forward_logs: true,
        input_values: None,
        input_manifest: None,
    };
    criterion.bench_function("encode/question", |bencher| bencher.iter(|| ask.encode()));
}

fn sruid(criterion: &mut Criterion) {
    for (name, text) in [
        ("usual", "octue/wind-speed-service:0.12.3".to_owned()),
        // The SDK's regular expression takes exponential time for this.
        ("hostile", format!("{}!", "a".repeat(200))),
    ] {
        criterion.bench_function(&format!("sruid/{name}"), |bencher| {
            bencher.iter(|| Sruid::parse(black_box(&text)).is_ok());
        });
    }
}

criterion_group!(benches, dispatch, dispatch_to_job, encode_events, sruid);
criterion_main!(benches);
