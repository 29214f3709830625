//! Pub/Sub out of reach: a connection is lost, and no message.

use crate::pipeline::question;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twined::pubsub::emulator::{Emulator, EmulatorOptions};
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Admin, Connection, Delivery, Publisher, Subscriber};
use uuid::Uuid;

/// Longer than a silent stream is kept, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Forwards connections to `target`. On `freeze`, those that exist stay open and forward nothing
/// any more.
async fn forward(listener: TcpListener, target: String, freeze: Arc<Notify>) {
    let mut connections = JoinSet::new();
    while let Ok((mut incoming, _)) = listener.accept().await {
        let (target, freeze) = (target.clone(), Arc::clone(&freeze));
        connections.spawn(async move {
            let mut outgoing = TcpStream::connect(target).await.unwrap();
            tokio::select! {
                () = freeze.notified() => std::future::pending::<()>().await,
                _ = copy_bidirectional(&mut incoming, &mut outgoing) => {}
            }
        });
    }
}

#[tokio::test]
async fn a_stream_with_a_dead_connection_is_opened_again() {
    let [pubsub, proxy] = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
    let (pubsub, proxy) = (pubsub.await.unwrap(), proxy.await.unwrap());
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let connection = |address: &str| Connection::emulator(address, "a-project").unwrap();
    let (direct, proxied) = (connection(&address(&pubsub)), connection(&address(&proxy)));
    let freeze = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(forward(proxy, address(&pubsub), Arc::clone(&freeze)));
    tasks.spawn(async move {
        let _ =
            Emulator::new(EmulatorOptions::default()).serve(pubsub, std::future::pending()).await;
    });
    Admin::new(&direct).ensure_topic_and_subscription("a-topic", "a-subscription").await.unwrap();
    let publisher = Publisher::new(&direct, "a-topic");
    let subscriber =
        Subscriber::new(&proxied, "a-subscription", FlowControl::default()).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(1);
    tasks.spawn(subscriber.run(sender, CancellationToken::new()));
    let mut is_delivered = async |asked: Uuid| {
        publisher.publish(question(asked)).await.unwrap();
        // Messages that were not acked by then are redelivered.
        loop {
            let delivery = tokio::time::timeout(DEADLINE, deliveries.recv()).await;
            let Delivery { message, receipt } = delivery.unwrap().unwrap();
            receipt.ack();
            if message.ordering_key == asked.to_string() {
                break;
            }
        }
    };
    is_delivered(Uuid::new_v4()).await;

    freeze.notify_waiters();

    is_delivered(Uuid::new_v4()).await;
}
