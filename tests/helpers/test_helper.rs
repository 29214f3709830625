//! The processes that tests start: some are killed, and some need environment variables of their
//! own.
//!
//! `tests/it/helper.rs` builds and starts this program; `tests/cluster/test_contract.py` does so
//! too.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it reports to a test by its output, and by panicking"
)]

use futures_util::StreamExt;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use twined::event::encode::{EventBody, OutgoingMessage};
use twined::event::{Sruid, Timestamp, decode, encode};
use twined::pubsub::preflight::questions::check_question_rights;
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Admin, Connection, Publisher, Subscriber, SubscriptionSpec};
use twined::runner::kubernetes::job::JobDefaults;
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::runner::kubernetes::{KubernetesOptions, KubernetesRunner};
use twined::store::sqlite::{Options, SqliteStore};
use twined::store::{EventLog, Row};
use twined::tasks::Tasks;
use uuid::Uuid;

#[path = "../it/runner_contract.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod runner_contract;
#[path = "../it/runner_process/test_network.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod test_network;

const PROJECT: &str = "a-project";
const TOPIC: &str = "a-topic";
const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["append-events", file, question, count] => {
            append_events(Path::new(file), question.parse().unwrap(), count.parse().unwrap()).await;
        }
        ["run-processes", folder, supervisor] => {
            run_processes(Path::new(folder), supervisor.into()).await;
        }
        ["pubsub-round-trip", endpoint] => pubsub_round_trip(endpoint).await,
        ["pubsub-check", endpoint, count] => pubsub_check(endpoint, count.parse().unwrap()).await,
        ["question-rights", endpoint, account] => question_rights(endpoint, account).await,
        ["kubernetes-contract", namespace, images] => kubernetes_contract(namespace, images).await,
        _ => panic!("unknown arguments: {arguments:?}"),
    }
}

/// Appends events of one question, eight at a time, and prints the uuid of each that is on record.
async fn append_events(file: &Path, question: u128, count: usize) {
    let store = SqliteStore::open(file, Options::default()).unwrap();
    let question = encode::NewQuestion {
        question_uuid: Uuid::from_u128(question),
        sender: Sruid::parse("local/local:local").unwrap(),
        recipient: Sruid::parse("octue/child:1.2.0").unwrap(),
        datetime: Timestamp(0),
        forward_logs: false,
        input_values: None,
        input_manifest: None,
    }
    .encode();
    let append = async |_| {
        let uuid = Uuid::new_v4();
        let heartbeat =
            encode::response(&question.attributes, uuid, Timestamp::now(), &EventBody::Heartbeat);
        let OutgoingMessage { data, attributes, ordering_key } = heartbeat.unwrap();
        let event = decode(&data, &attributes).unwrap();
        store.append(&[Row::new(&event, &attributes, "17011", &ordering_key)]).await.unwrap();
        println!("{uuid}");
    };
    futures_util::stream::iter(0..count)
        .map(append)
        .buffer_unordered(8)
        .for_each(async |()| ())
        .await;
}

/// Launches forty questions as processes, and then waits to be killed.
async fn run_processes(folder: &Path, supervisor: PathBuf) {
    let network = test_network::TestNetwork::at(folder, supervisor).slots(20);
    let runner = network.start().await;
    for ask in test_network::forty_questions() {
        ask.launch(&runner).await.unwrap();
    }
    std::fs::write(network.file("launched"), "all\n").unwrap();
    std::future::pending::<()>().await;
}

/// Creates a topic and a subscription, and publishes, receives and acknowledges one message.
async fn pubsub_round_trip(endpoint: &str) {
    let connection = Connection::google_at(endpoint, PROJECT).unwrap();
    let admin = Admin::new(&connection);
    admin.ensure_topic(TOPIC).await.unwrap();
    assert!(admin.subscribe(&SubscriptionSpec::for_view(TOPIC, "a-view")).await.unwrap());
    let publisher = Publisher::new(&connection, TOPIC);
    let message = OutgoingMessage {
        data: b"{}".into(),
        attributes: HashMap::new(),
        ordering_key: String::new(),
    };
    publisher.publish(message).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let subscriber = Subscriber::new(&connection, "a-view", FlowControl::default()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(subscriber.run(sender, stop.clone()));

    let delivery = timeout(DEADLINE, deliveries.recv()).await.unwrap().unwrap();

    assert_eq!(delivery.message.data, "{}");
    delivery.receipt.ack();
    stop.cancel();
    tasks.join_all().await;
}

/// Calls Pub/Sub, and prints how each call ended.
async fn pubsub_check(endpoint: &str, count: usize) {
    let connection = Connection::google_at(endpoint, PROJECT).unwrap();
    let admin = Admin::new(&connection);
    for _ in 0..count {
        match admin.check().await {
            Ok(()) => println!("ok"),
            Err(error) if error.is_transient() => println!("transient: {}", error.chain()),
            Err(error) => println!("final: {}", error.chain()),
        }
    }
}

/// Checks what questions of an account may do, and prints the result as JSON.
async fn question_rights(endpoint: &str, account: &str) {
    let connection = Connection::google_at(endpoint, PROJECT).unwrap();
    Admin::new(&connection).ensure_topic(TOPIC).await.unwrap();
    let check = check_question_rights(&connection, TOPIC, PROJECT, account).await;
    println!("{}", serde_json::to_string(&check).unwrap());
}

/// Checks every promise of a runner with the Kubernetes runner, on the cluster of `KUBECONFIG`.
async fn kubernetes_contract(namespace: &str, images: &str) {
    const SETTINGS: &str = "
defaults:
  cpus: {default: 100m}
  memory: {default: 64Mi}
  ephemeral_storage: {default: 16Mi}
  service_account: default
";
    let options = KubernetesOptions {
        defaults: JobDefaults {
            namespace: namespace.to_owned(),
            images: images.to_owned(),
            topic: "tests.octue.twined.services".into(),
            environment: Vec::new(),
        },
        settings: Arc::new(NetworkSettings::read(SETTINGS, ServiceFields::default()).unwrap()),
        lease_name: "contract".into(),
        identity: "the-only-one".into(),
        max_concurrent_launches: 8,
    };
    let client = KubernetesRunner::client().await.unwrap();
    let mut tasks = Tasks::new();
    let runner = KubernetesRunner::start(options, client, &mut tasks).await.unwrap();
    runner_contract::every_promise(&runner).await;
    tasks.run(async {}).await.unwrap();
    println!("every promise kept");
}
