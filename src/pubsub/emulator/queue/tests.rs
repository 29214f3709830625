use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::memory::MemoryBudget;
use super::{AckId, LeasedMessage, PullLimits, Puller, Queue, QueueRules, RedeliveryBackoff};

const LEASE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);
const ME: Puller = Puller(1);
const OTHER: Puller = Puller(2);

const ALL: PullLimits = PullLimits {
    messages: usize::MAX,
    bytes: usize::MAX,
    outstanding_messages: usize::MAX,
    outstanding_bytes: usize::MAX,
    lease: LEASE,
};

/// A queue with a clock that tests advance.
struct World {
    queue: Queue,
    memory: Arc<MemoryBudget>,
    now: Instant,
}

impl World {
    fn new(ordering: bool) -> Self {
        Self::with(QueueRules { ordering, retention: HOUR, backoff: None })
    }

    fn with(rules: QueueRules) -> Self {
        let memory = MemoryBudget::new(usize::MAX);
        Self { queue: Queue::new(7, rules), memory, now: Instant::now() }
    }

    fn push(&mut self, key: &str, texts: &[&str]) {
        for text in texts {
            let mut reservation = self.memory.reserve([text.len()].into_iter()).unwrap();
            let key = (!key.is_empty()).then(|| Arc::from(key));
            let bytes = text.as_bytes().to_vec().into();
            self.queue.push(reservation.store(bytes, key, self.now).reference());
        }
    }

    fn take(&mut self, puller: Puller) -> Vec<LeasedMessage> {
        self.take_some(puller, &ALL)
    }

    fn take_some(&mut self, puller: Puller, limits: &PullLimits) -> Vec<LeasedMessage> {
        self.queue.take(puller, limits, self.now)
    }

    fn texts(&mut self, puller: Puller) -> Vec<String> {
        texts(&self.take(puller))
    }

    fn ack(&mut self, deliveries: &[LeasedMessage]) {
        self.queue.ack(&ids(deliveries), self.now);
    }

    fn nack(&mut self, deliveries: &[LeasedMessage]) {
        self.queue.extend(&ids(deliveries), Duration::ZERO, self.now);
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// Asserts that no index keeps anything.
    #[track_caller]
    fn assert_empty(&mut self) {
        self.queue.advance(self.now);
        assert_eq!(self.memory.used(), 0);
        let Queue { entries, lanes, free, bound, loads, timers, .. } = &self.queue;
        assert!(entries.is_empty() && lanes.is_empty() && free.is_empty());
        assert!(bound.is_empty() && loads.is_empty() && timers.is_empty());
    }
}

fn texts(deliveries: &[LeasedMessage]) -> Vec<String> {
    deliveries.iter().map(|d| String::from_utf8(d.message.to_vec()).unwrap()).collect()
}

fn ids(deliveries: &[LeasedMessage]) -> Vec<AckId> {
    deliveries.iter().map(|delivery| delivery.ack_id).collect()
}

#[test]
fn a_message_is_leased_to_one_puller_until_it_is_acked() {
    let mut world = World::new(false);
    world.push("", &["a", "b"]);

    let taken = world.take(ME);
    assert_eq!(texts(&taken), ["a", "b"]);
    assert!(world.take(OTHER).is_empty());

    world.ack(&taken);
    world.wait(100);
    assert!(world.take(OTHER).is_empty());
    world.assert_empty();
}

#[test]
fn a_message_returns_at_its_deadline_and_not_before() {
    let mut world = World::new(false);
    world.push("", &["a"]);
    let first = world.take(ME);
    assert_eq!(world.queue.next_timer(), Some(world.now + LEASE));

    world.wait(9);
    assert!(world.take(OTHER).is_empty());
    world.wait(1);
    let second = world.take(OTHER);

    assert_eq!(texts(&second), ["a"]);
    assert_ne!(first[0].ack_id, second[0].ack_id);
    assert_eq!(world.queue.deliveries(&second[0].ack_id), 2);
}

#[test]
fn an_ack_after_the_deadline_is_ignored() {
    let mut world = World::new(false);
    world.push("", &["a"]);
    let first = world.take(ME);
    world.wait(10);
    world.ack(&first);
    let second = world.take(ME);
    world.ack(&first);
    world.nack(&first);
    assert!(world.take(ME).is_empty());

    world.ack(&second);
    world.ack(&second);
    world.assert_empty();
}

#[test]
fn an_ack_id_of_another_queue_is_ignored() {
    let mut world = World::new(false);
    world.push("", &["a"]);
    let taken = world.take(ME);

    world.queue.ack(&[AckId { queue: 8, ..taken[0].ack_id }], world.now);
    world.wait(10);

    assert_eq!(world.texts(ME), ["a"]);
}

#[test]
fn a_lease_can_be_extended_and_shortened() {
    let mut world = World::new(false);
    world.push("", &["a"]);
    let taken = world.take(ME);
    world.queue.extend(&ids(&taken), Duration::from_secs(60), world.now);
    world.wait(59);
    assert!(world.take(OTHER).is_empty());

    world.queue.extend(&ids(&taken), Duration::from_secs(10), world.now);
    world.wait(10);
    assert_eq!(world.texts(OTHER), ["a"]);
}

#[test]
fn a_nacked_message_returns_at_once() {
    let mut world = World::new(false);
    world.push("", &["a", "b"]);
    let taken = world.take(ME);
    world.queue.take_wakeup();

    world.nack(&taken[..1]);

    assert!(world.queue.take_wakeup());
    assert_eq!(world.texts(OTHER), ["a"]);
}

#[test]
fn a_retry_policy_pauses_a_message_longer_at_each_return() {
    let backoff = Some(RedeliveryBackoff {
        minimum: Duration::from_secs(10),
        maximum: Duration::from_secs(30),
    });
    let mut world = World::with(QueueRules { ordering: false, retention: HOUR, backoff });
    world.push("", &["a"]);

    for pause in [10, 20, 30, 30] {
        let taken = world.take(ME);
        world.nack(&taken);
        world.wait(pause - 1);
        assert!(world.take(ME).is_empty());
        world.wait(1);
    }
    let taken = world.take(ME);
    world.wait(10);
    assert!(world.take(ME).is_empty(), "a passed deadline pauses it too");
    world.wait(30);
    assert_eq!(world.texts(ME), ["a"]);
    drop(taken);
}

#[test]
fn an_unacked_message_is_dropped_after_the_retention() {
    let mut world = World::new(true);
    world.push("", &["ready", "leased"]);
    world.push("key", &["a", "b", "c"]);
    let limits = PullLimits { messages: 4, ..ALL };
    let taken = world.take_some(ME, &limits);
    world.queue.extend(&ids(&taken), HOUR * 2, world.now);
    world.queue.ack(&[taken[3].ack_id], world.now);

    world.now += HOUR;

    assert!(world.take(OTHER).is_empty());
    world.assert_empty();
}

#[test]
fn a_puller_gets_no_more_than_its_limits() {
    let mut world = World::new(false);
    world.push("", &["aaaa", "bbbb", "cccc", "dddd"]);

    let two = PullLimits { messages: 2, ..ALL };
    assert_eq!(texts(&world.take_some(ME, &two)), ["aaaa", "bbbb"]);
    let seven_bytes = PullLimits { bytes: 7, ..ALL };
    assert_eq!(texts(&world.take_some(ME, &seven_bytes)), ["cccc"]);
    let one_byte = PullLimits { bytes: 1, ..ALL };
    assert_eq!(texts(&world.take_some(ME, &one_byte)), ["dddd"], "a single message always fits");
}

#[test]
fn a_full_puller_gets_more_as_it_acks() {
    let mut world = World::new(false);
    world.push("", &["aaaa", "bbbb", "cccc", "dddd"]);
    let limits = PullLimits { outstanding_messages: 2, ..ALL };

    let first = world.take_some(ME, &limits);
    assert_eq!(texts(&first), ["aaaa", "bbbb"]);
    assert!(world.take_some(ME, &limits).is_empty());
    world.queue.take_wakeup();
    world.ack(&first[..1]);
    assert!(world.queue.take_wakeup(), "an ack wakes the puller");
    assert_eq!(texts(&world.take_some(ME, &limits)), ["cccc"]);

    let limits = PullLimits { outstanding_bytes: 9, ..ALL };
    assert_eq!(texts(&world.take_some(ME, &limits)), ["dddd"]);
    world.push("", &["eeee"]);
    assert!(world.take_some(ME, &limits).is_empty());
}

#[test]
fn a_lane_is_leased_to_one_puller_at_a_time() {
    let mut world = World::new(true);
    world.push("key", &["a", "b", "c"]);
    let one = PullLimits { messages: 1, ..ALL };
    let first = world.take_some(ME, &one);

    assert!(world.take(OTHER).is_empty());
    let more = world.take_some(ME, &one);
    assert_eq!(texts(&more), ["b"]);

    world.ack(&first);
    assert!(world.take(OTHER).is_empty());
    world.ack(&more);
    assert_eq!(world.texts(OTHER), ["c"]);
}

#[test]
fn lanes_do_not_block_each_other() {
    let mut world = World::new(true);
    world.push("x", &["x1", "x2"]);
    world.push("y", &["y1"]);
    world.push("", &["z"]);
    let one = PullLimits { messages: 1, ..ALL };
    world.take_some(ME, &one);

    assert_eq!(world.texts(OTHER), ["y1", "z"]);
    assert_eq!(world.texts(ME), ["x2"]);
}

#[test]
fn a_nack_in_a_lane_returns_all_later_messages_in_order() {
    let mut world = World::new(true);
    world.push("key", &["a", "b", "c", "d"]);
    let limits = PullLimits { messages: 3, ..ALL };
    let taken = world.take_some(ME, &limits);

    world.ack(&taken[2..]);
    world.nack(&taken[1..2]);

    assert!(world.take(OTHER).is_empty(), "`a` is still leased");
    assert_eq!(world.texts(ME), ["b", "c", "d"], "acked or not");
    world.ack(&taken[..1]);
}

#[test]
fn acks_out_of_order_empty_a_lane() {
    let mut world = World::new(true);
    world.push("key", &["a", "b", "c"]);
    let taken = world.take(ME);

    world.ack(&taken[1..]);
    world.ack(&taken[..1]);

    world.assert_empty();
}

#[test]
fn a_deadline_in_a_lane_returns_all_later_messages_in_order() {
    let mut world = World::new(true);
    world.push("key", &["a", "b", "c"]);
    let taken = world.take(ME);
    world.queue.extend(&ids(&taken[1..]), Duration::from_secs(600), world.now);
    world.wait(10);

    let again = world.take(OTHER);

    assert_eq!(texts(&again), ["a", "b", "c"]);
    world.ack(&taken);
    assert!(!world.queue.entries.is_empty(), "the old ids are ignored");
    world.ack(&again);
    world.assert_empty();
}

#[test]
fn a_back_off_pauses_the_whole_lane() {
    let backoff = Some(RedeliveryBackoff {
        minimum: Duration::from_secs(10),
        maximum: Duration::from_secs(600),
    });
    let mut world = World::with(QueueRules { ordering: true, retention: HOUR, backoff });
    world.push("key", &["a", "b"]);
    let taken = world.take(ME);
    world.nack(&taken);

    world.wait(9);
    assert!(world.take(ME).is_empty());
    world.wait(1);
    assert_eq!(world.texts(ME), ["a", "b"]);
}

#[test]
fn without_ordering_keys_are_ignored() {
    let mut world = World::new(false);
    world.push("key", &["a", "b"]);
    let one = PullLimits { messages: 1, ..ALL };

    assert_eq!(texts(&world.take_some(ME, &one)), ["a"]);
    assert_eq!(texts(&world.take_some(OTHER, &one)), ["b"]);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Push { key: u8 },
        Take { puller: u64, messages: usize },
        Ack { which: usize },
        Nack { which: usize },
        Wait { seconds: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..4_u8).prop_map(|key| Op::Push { key }),
            (1..4_u64, 1..4_usize).prop_map(|(puller, messages)| Op::Take { puller, messages }),
            any::<usize>().prop_map(|which| Op::Ack { which }),
            any::<usize>().prop_map(|which| Op::Nack { which }),
            (1..15_u64).prop_map(|seconds| Op::Wait { seconds }),
        ]
    }

    /// The key and number of a delivery, whose text is `key:number`.
    fn parts(delivery: &LeasedMessage) -> (String, u32) {
        let text = String::from_utf8(delivery.message.to_vec()).unwrap();
        let (key, number) = text.split_once(':').unwrap();
        (key.to_owned(), number.parse().unwrap())
    }

    proptest! {
        /// Whatever pullers do, no message of a key is skipped, and in the end all are acked and
        /// the queue is empty.
        #[test]
        fn the_order_is_kept_and_no_message_is_lost(ops in prop::collection::vec(op(), 1..80)) {
            let mut world = World::new(true);
            let mut pushed = std::collections::HashMap::<String, u32>::new();
            let mut last = std::collections::HashMap::<String, u32>::new();
            let mut out: Vec<LeasedMessage> = Vec::new();
            let mut watch = |deliveries: &[LeasedMessage]| {
                for (key, number) in deliveries.iter().map(parts).filter(|(key, _)| key != "0") {
                    let last = last.entry(key).or_default();
                    assert!(number <= *last + 1, "{number} after {last}");
                    *last = number;
                }
            };

            for op in ops {
                match op {
                    Op::Push { key } => {
                        let number = pushed.entry(key.to_string()).or_default();
                        *number += 1;
                        let name = if key == 0 { String::new() } else { key.to_string() };
                        world.push(&name, &[&format!("{key}:{number}")]);
                    }
                    Op::Take { puller, messages } => {
                        let limits = PullLimits { messages, ..ALL };
                        let taken = world.take_some(Puller(puller), &limits);
                        watch(&taken);
                        out.extend(taken);
                    }
                    Op::Ack { which } if !out.is_empty() => {
                        let delivery = out.swap_remove(which % out.len());
                        world.ack(&[delivery]);
                    }
                    Op::Nack { which } if !out.is_empty() => {
                        let delivery = out.swap_remove(which % out.len());
                        world.nack(&[delivery]);
                    }
                    Op::Ack { .. } | Op::Nack { .. } => {}
                    Op::Wait { seconds } => world.wait(seconds),
                }
            }

            world.wait(10);
            let rest = world.take(ME);
            watch(&rest);
            world.ack(&rest);
            world.assert_empty();
        }
    }
}
