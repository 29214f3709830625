//! The messages of one subscription, as a state machine: no tasks, no clock, no locks.
//!
//! ```text
//!            push                take                 ack
//!   (none) ────────► Ready ────────────────► Leased ───────► (none)
//!                      ▲                        │
//!                      │      back-off ends     │ nack, deadline
//!                      └──────── Paused ◄───────┘
//! ```
//!
//! A message with an ordering key is in the lane of its key. Only the first message that waits in a
//! lane is offered; while messages of a lane are leased, only to the puller that has them. When one
//! of them returns, all later ones of its lane return with it, acked or not: Pub/Sub guarantees the
//! order again from there on.
//!
//! Every method with the parameter `now` first applies what was due until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ack_id::AckId;
use super::memory::MessageRef;
use lane::Lane;

mod lane;

#[cfg(test)]
mod tests;

/// The settings of a queue.
#[derive(Clone, Debug)]
pub(super) struct QueueRules {
    /// Whether messages of one ordering key keep their order.
    pub ordering: bool,
    /// How long an unacked message is kept after it was published.
    pub retention: Duration,
    /// The pause before a returned message is offered again.
    pub backoff: Option<RedeliveryBackoff>,
}

/// A pause that doubles with each return, from `minimum` up to `maximum`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedeliveryBackoff {
    pub minimum: Duration,
    pub maximum: Duration,
}

/// A receiver of messages: one stream, or one call of `Pull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Puller(pub u64);

/// How much a puller may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct PullLimits {
    /// The most messages of one batch.
    pub messages: usize,
    /// The most bytes of one batch. A single message may be larger.
    pub bytes: usize,
    /// No messages while the puller has leases on so many.
    pub outstanding_messages: usize,
    /// No messages while the puller has leases on so many bytes.
    pub outstanding_bytes: usize,
    /// The time that the puller has to ack.
    pub lease: Duration,
}

/// A message that was leased to a puller.
#[derive(Debug)]
pub(super) struct LeasedMessage {
    pub ack_id: AckId,
    pub message: bytes::Bytes,
}

#[derive(Debug)]
pub(super) struct Queue {
    rules: QueueRules,
    id: u64,
    next_sequence: u64,
    /// All messages, by their sequence number: the order of publishing.
    entries: BTreeMap<u64, QueueEntry>,
    lanes: HashMap<Arc<str>, Lane>,
    /// What every puller may take: messages without a key, and the first of each lane without
    /// leases.
    free: BTreeSet<u64>,
    /// What only one puller may take: the first of each lane in which it has leases.
    bound: HashMap<Puller, BTreeSet<u64>>,
    loads: HashMap<Puller, LeasedLoad>,
    /// The ends of leases and back-offs.
    timers: BTreeSet<(Instant, u64)>,
    /// Whether a waiting puller may have something to take.
    must_wake: bool,
}

#[derive(Debug)]
struct QueueEntry {
    message: MessageRef,
    deliveries: u32,
    state: MessageState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageState {
    Ready,
    Paused {
        until: Instant,
    },
    Leased {
        until: Instant,
        puller: Puller,
    },
    /// Kept until all messages before it in its lane are acked: it may have to be delivered again.
    Acked,
}

/// What is leased to one puller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LeasedLoad {
    messages: usize,
    bytes: usize,
}

// === impl Queue ===

impl Queue {
    /// An empty queue. `id` is part of its ack ids.
    pub(super) fn new(id: u64, rules: QueueRules) -> Self {
        Self {
            rules,
            id,
            next_sequence: 0,
            entries: BTreeMap::new(),
            lanes: HashMap::new(),
            free: BTreeSet::new(),
            bound: HashMap::new(),
            loads: HashMap::new(),
            timers: BTreeSet::new(),
            must_wake: false,
        }
    }

    /// Adds a message at the end.
    pub(super) fn push(&mut self, message: MessageRef) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let key = self.rules.ordering.then(|| message.ordering_key.clone()).flatten();
        self.entries
            .insert(sequence, QueueEntry { message, deliveries: 0, state: MessageState::Ready });
        match key {
            None => self.offer_free(sequence),
            Some(key) => {
                let lane = self.lanes.entry(Arc::clone(&key)).or_default();
                lane.waiting.push_back(sequence);
                if lane.waiting.len() == 1 {
                    self.offer(&key);
                }
            }
        }
    }

    /// Leases messages to `puller` within its limits, oldest first.
    pub(super) fn take(
        &mut self,
        puller: Puller,
        limits: &PullLimits,
        now: Instant,
    ) -> Vec<LeasedMessage> {
        self.advance(now);
        let must_wake = self.must_wake;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        while deliveries.len() < limits.messages && !self.is_full(puller, limits) {
            let Some(sequence) = self.first_for(puller) else { break };
            let length = self.entries[&sequence].message.encoded.len();
            if !deliveries.is_empty() && bytes + length > limits.bytes {
                break;
            }
            bytes += length;
            deliveries.push(self.lease(sequence, puller, now + limits.lease));
        }
        // The leases offered further messages to this puller only.
        self.must_wake = must_wake;
        deliveries
    }

    /// Acks deliveries. Ids of ended leases are ignored.
    pub(super) fn ack(&mut self, ids: &[AckId], now: Instant) {
        self.advance(now);
        for id in ids {
            let Some((until, puller)) = self.leased(id) else { continue };
            self.unlease(id.sequence, until, puller);
            match self.key(id.sequence) {
                None => drop(self.entries.remove(&id.sequence)),
                Some(key) => self.ack_in_lane(&key, id.sequence),
            }
            // The puller may be below its limits again.
            self.must_wake = true;
        }
    }

    /// Extends leases until `now + lease`. A lease of zero is a nack. Ids of ended leases are
    /// ignored.
    pub(super) fn extend(&mut self, ids: &[AckId], lease: Duration, now: Instant) {
        self.advance(now);
        for id in ids {
            let Some((until, puller)) = self.leased(id) else { continue };
            if lease.is_zero() {
                self.return_message(id.sequence, now);
                continue;
            }
            self.timers.remove(&(until, id.sequence));
            let until = now + lease;
            self.timers.insert((until, id.sequence));
            self.entry(id.sequence).state = MessageState::Leased { until, puller };
        }
    }

    /// Applies what was due until `now`: ends leases and back-offs, and drops expired messages.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((until, sequence)) =
            self.timers.first().copied().filter(|(due, _)| *due <= now)
        {
            match self.entry(sequence).state {
                MessageState::Leased { .. } => self.return_message(sequence, now),
                MessageState::Paused { .. } => {
                    self.timers.remove(&(until, sequence));
                    self.entry(sequence).state = MessageState::Ready;
                    self.offer_again(sequence);
                }
                MessageState::Ready | MessageState::Acked => {
                    unreachable!("only leased and paused messages have timers")
                }
            }
        }
        while let Some(sequence) = self.expired(now) {
            self.expire(sequence);
        }
    }

    /// When the next lease or back-off ends.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(until, _)| *until)
    }

    /// Whether a waiting puller may have something to take since the last call.
    pub(super) fn take_wakeup(&mut self) -> bool {
        std::mem::take(&mut self.must_wake)
    }

    /// How often a message was delivered, including this delivery.
    pub(super) fn deliveries(&self, id: &AckId) -> u32 {
        self.entries.get(&id.sequence).map_or(0, |entry| entry.deliveries)
    }

    /// The oldest message, if it is past the retention.
    fn expired(&self, now: Instant) -> Option<u64> {
        let (sequence, entry) = self.entries.first_key_value()?;
        (entry.message.published + self.rules.retention <= now).then_some(*sequence)
    }

    fn is_full(&self, puller: Puller, limits: &PullLimits) -> bool {
        let load = self.loads.get(&puller).copied().unwrap_or_default();
        load.messages >= limits.outstanding_messages || load.bytes >= limits.outstanding_bytes
    }

    fn first_for(&self, puller: Puller) -> Option<u64> {
        let free = self.free.first();
        let bound = self.bound.get(&puller).and_then(BTreeSet::first);
        free.into_iter().chain(bound).min().copied()
    }

    fn lease(&mut self, sequence: u64, puller: Puller, until: Instant) -> LeasedMessage {
        match self.key(sequence) {
            None => drop(self.free.remove(&sequence)),
            Some(key) => {
                self.withdraw(&key);
                self.lane(&key).lease_first(puller);
                self.offer(&key);
            }
        }
        self.timers.insert((until, sequence));
        let queue = self.id;
        let entry = self.entry(sequence);
        entry.state = MessageState::Leased { until, puller };
        entry.deliveries = entry.deliveries.saturating_add(1);
        let ack_id = AckId { queue, sequence, delivery: entry.deliveries };
        let message = entry.message.encoded.clone();

        let load = self.loads.entry(puller).or_default();
        load.messages += 1;
        load.bytes += message.len();
        LeasedMessage { ack_id, message }
    }

    /// Ends a lease, and offers the message again, after the back-off if there is one.
    fn return_message(&mut self, sequence: u64, now: Instant) {
        let MessageState::Leased { until, puller } = self.entry(sequence).state else {
            unreachable!("only leased messages return")
        };
        self.unlease(sequence, until, puller);
        self.pause(sequence, now);
        match self.key(sequence) {
            None => self.offer_again(sequence),
            Some(key) => self.return_to_lane(&key, sequence),
        }
    }

    /// Sets the state of a returned message.
    fn pause(&mut self, sequence: u64, now: Instant) {
        let backoff = self.rules.backoff;
        let entry = self.entry(sequence);
        let pause = backoff.map_or(Duration::ZERO, |backoff| backoff.after(entry.deliveries));
        if pause.is_zero() {
            entry.state = MessageState::Ready;
        } else {
            let until = now + pause;
            entry.state = MessageState::Paused { until };
            self.timers.insert((until, sequence));
        }
    }

    /// Drops the oldest message.
    fn expire(&mut self, sequence: u64) {
        match self.entry(sequence).state {
            MessageState::Leased { until, puller } => self.unlease(sequence, until, puller),
            MessageState::Paused { until } => drop(self.timers.remove(&(until, sequence))),
            MessageState::Ready | MessageState::Acked => {}
        }
        match self.key(sequence) {
            None => drop(self.free.remove(&sequence)),
            Some(key) => self.expire_in_lane(&key),
        }
        self.entries.remove(&sequence);
    }

    /// Offers a message that became ready, if it is next in its lane.
    fn offer_again(&mut self, sequence: u64) {
        match self.key(sequence) {
            Some(key) => self.offer(&key),
            None if self.entry(sequence).state == MessageState::Ready => self.offer_free(sequence),
            None => {}
        }
    }

    fn offer_free(&mut self, sequence: u64) {
        self.free.insert(sequence);
        self.must_wake = true;
    }

    fn unlease(&mut self, sequence: u64, until: Instant, puller: Puller) {
        self.timers.remove(&(until, sequence));
        let length = self.entry(sequence).message.encoded.len();
        let load = self.loads.get_mut(&puller).expect("a puller with a lease has a load");
        load.messages -= 1;
        load.bytes -= length;
        if load.messages == 0 {
            self.loads.remove(&puller);
        }
    }

    /// The lease of an ack id, if it has not ended.
    fn leased(&self, id: &AckId) -> Option<(Instant, Puller)> {
        let entry = self.entries.get(&id.sequence)?;
        match entry.state {
            MessageState::Leased { until, puller }
                if id.queue == self.id && id.delivery == entry.deliveries =>
            {
                Some((until, puller))
            }
            MessageState::Leased { .. }
            | MessageState::Ready
            | MessageState::Paused { .. }
            | MessageState::Acked => None,
        }
    }

    /// The key of a message's lane, if it is in one.
    fn key(&self, sequence: u64) -> Option<Arc<str>> {
        if !self.rules.ordering {
            return None;
        }
        self.entries[&sequence].message.ordering_key.clone()
    }

    fn entry(&mut self, sequence: u64) -> &mut QueueEntry {
        self.entries.get_mut(&sequence).expect("indexes contain existing entries only")
    }
}

// === impl RedeliveryBackoff ===

impl RedeliveryBackoff {
    fn after(self, deliveries: u32) -> Duration {
        let doublings = deliveries.saturating_sub(1).min(31);
        self.minimum.saturating_mul(1 << doublings).min(self.maximum)
    }
}
