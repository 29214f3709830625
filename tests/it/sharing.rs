//! Replicas that share one subscription: what one gives back, another has at once.

use crate::pipeline::{World, question};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twined::pubsub::subscriber::FlowControl;
use twined::pubsub::{Delivery, Subscriber};
use uuid::Uuid;

const SUBSCRIPTION: &str = "a-subscription";
/// Well below a lease, which is 10 s: what comes in this time was given back, not waited out.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A subscriber at work.
struct Replica {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
    task: JoinSet<()>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_drains_acks_what_is_done_and_gives_back_the_rest() {
    let network = World::new(0, None, 0).await;
    for _ in 0..40 {
        network.publisher.publish(question(Uuid::new_v4())).await.unwrap();
    }
    let mut first = Replica::start(&network, FlowControl::default()).await;
    let (mut done, mut held) = (HashSet::new(), Vec::new());
    for number in 0..20 {
        let delivery = first.next().await;
        match number % 2 {
            0 => {
                done.insert(delivery.message.id.clone());
                delivery.receipt.ack();
            }
            _ => held.push(delivery),
        }
    }
    let start = Instant::now();
    first.stop.cancel();
    // What is in hand is dealt with to its end, or given back; what was not taken is given back.
    let last = held.pop().unwrap();
    done.insert(last.message.id.clone());
    drop(held);
    drop(first.deliveries);
    last.receipt.ack();
    while first.task.join_next().await.is_some() {}
    assert!(start.elapsed() < AT_ONCE, "the drain took {:?}", start.elapsed());

    let mut second = Replica::start(&network, FlowControl::default()).await;
    let mut again = HashSet::new();
    while again.len() < 40 - done.len() {
        let delivery = second.next().await;
        again.insert(delivery.message.id.clone());
        delivery.receipt.ack();
    }

    assert!(start.elapsed() < AT_ONCE, "they came after {:?}", start.elapsed());
    assert!(again.is_disjoint(&done), "what was done came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_holds_no_more_than_its_flow_and_leaves_the_rest_to_others() {
    let network = World::new(0, None, 0).await;
    let flow = FlowControl { messages: 10, ..FlowControl::default() };
    let mut first = Replica::start(&network, flow).await;
    for _ in 0..30 {
        network.publisher.publish(question(Uuid::new_v4())).await.unwrap();
    }
    let held = first.next().await;

    // The first answers for nothing, so the others have what it may not hold.
    let mut second = Replica::start(&network, FlowControl::default()).await;
    for _ in 0..20 {
        second.next().await.receipt.ack();
    }
    drop(held);
}

// === impl Replica ===

impl Replica {
    async fn start(network: &World, flow: FlowControl) -> Self {
        let subscriber = Subscriber::new(&network.connection, SUBSCRIPTION, flow).await.unwrap();
        let (sender, deliveries) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(subscriber.run(sender, stop.clone()));
        Self { deliveries, stop, task }
    }

    async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(AT_ONCE, self.deliveries.recv()).await;
        next.expect("a delivery comes in time").expect("the subscriber is at work")
    }
}
