//! Pub/Sub out of reach: what is lost is a connection, not what is said.

use crate::pipeline::question;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use twined::pubsub::emulator::{Emulator, Options};
use twined::pubsub::subscriber::Flow;
use twined::pubsub::{Admin, Connection, Delivery, Publisher, Subscriber};
use uuid::Uuid;

/// Longer than a silent stream is believed in, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Carries connections to `target`; those that there are when it is told to freeze stay open, and
/// carry nothing any more.
async fn carry(listener: TcpListener, target: String, freeze: Arc<Notify>) {
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
async fn a_stream_whose_connection_is_dead_is_opened_anew() {
    let [pubsub, way] = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
    let (pubsub, way) = (pubsub.await.unwrap(), way.await.unwrap());
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let connection = |address: &str| Connection::emulator(address, "a-project").unwrap();
    let (direct, roundabout) = (connection(&address(&pubsub)), connection(&address(&way)));
    let freeze = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(carry(way, address(&pubsub), Arc::clone(&freeze)));
    tasks.spawn(async move {
        let _ = Emulator::new(Options::default()).serve(pubsub, std::future::pending()).await;
    });
    Admin::new(&direct).ensure_subscribed("a-subscription", "a-topic").await.unwrap();
    let publisher = Publisher::new(&direct, "a-topic");
    let subscriber = Subscriber::new(&roundabout, "a-subscription", Flow::default()).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(1);
    tasks.spawn(subscriber.run(sender, CancellationToken::new()));
    let mut comes = async |asked: Uuid| {
        publisher.publish(question(asked)).await.unwrap();
        // What is not acked by then comes again.
        loop {
            let delivery = tokio::time::timeout(DEADLINE, deliveries.recv()).await;
            let Delivery { message, receipt } = delivery.unwrap().unwrap();
            receipt.ack();
            if message.ordering_key == asked.to_string() {
                break;
            }
        }
    };
    comes(Uuid::new_v4()).await;

    freeze.notify_waiters();

    comes(Uuid::new_v4()).await;
}
