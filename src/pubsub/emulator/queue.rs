//! The backlog of one subscription, as a state machine: no tasks, no clock, no locks.
//!
//! ```text
//!            push                take                 ack
//!   (none) ────────► Ready ────────────────► Leased ───────► (none)
//!                      ▲                        │
//!                      │      back-off ends     │ nack, deadline
//!                      └──────── Paused ◄───────┘
//! ```
//!
//! A message with an ordering key stands in the lane of its key. Only the first that waits in a
//! lane is offered; while some of a lane are out, only to the puller that has them. When one of
//! them comes back, all later ones of its lane come back with it, acked or not: Pub/Sub promises
//! the order anew from there on.
//!
//! Every method that takes `now` first lets happen what was due until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ack_id::AckId;
use super::memory::Share;
use lane::Lane;

mod lane;

#[cfg(test)]
mod tests;

/// How a queue treats its messages.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Whether messages of one ordering key keep their order.
    pub ordering: bool,
    /// How long a message is kept that nobody acks, from its publishing on.
    pub retention: Duration,
    /// How long a message rests that came back; none: not at all.
    pub backoff: Option<Backoff>,
}

/// Doubles from `minimum` at the first return up to `maximum`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub minimum: Duration,
    pub maximum: Duration,
}

/// Who takes messages: one stream, or one call of `Pull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Puller(pub u64);

/// How much a puller takes at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// At most so many messages now.
    pub messages: usize,
    /// At most so many bytes now, unless a single message is larger.
    pub bytes: usize,
    /// Nothing while so many messages are out with this puller.
    pub outstanding_messages: usize,
    /// Nothing while so many bytes are out with this puller.
    pub outstanding_bytes: usize,
    /// How long the puller has to ack.
    pub lease: Duration,
}

/// One message on its way to a puller.
#[derive(Debug)]
pub(super) struct Delivery {
    pub ack_id: AckId,
    pub message: bytes::Bytes,
}

#[derive(Debug)]
pub(super) struct Queue {
    rules: Rules,
    id: u64,
    next_place: u64,
    /// All messages, by their place: the order of publishing.
    entries: BTreeMap<u64, Entry>,
    lanes: HashMap<Arc<str>, Lane>,
    /// What anybody may take: messages without a key, and the first of each lane that is whole.
    free: BTreeSet<u64>,
    /// What one puller alone may take: the first of each lane of which it has some.
    bound: HashMap<Puller, BTreeSet<u64>>,
    loads: HashMap<Puller, Load>,
    /// When leases and back-offs end.
    timers: BTreeSet<(Instant, u64)>,
    news: bool,
}

#[derive(Debug)]
struct Entry {
    share: Share,
    deliveries: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Paused {
        until: Instant,
    },
    Leased {
        until: Instant,
        puller: Puller,
    },
    /// Kept until everything before it in its lane is acked: it may have to be sent again.
    Acked,
}

/// What is out with one puller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

// === impl Queue ===

impl Queue {
    /// Makes an empty queue. `id` goes into its ack ids.
    pub fn new(id: u64, rules: Rules) -> Self {
        Self {
            rules,
            id,
            next_place: 0,
            entries: BTreeMap::new(),
            lanes: HashMap::new(),
            free: BTreeSet::new(),
            bound: HashMap::new(),
            loads: HashMap::new(),
            timers: BTreeSet::new(),
            news: false,
        }
    }

    /// Adds a message at the end.
    pub fn push(&mut self, share: Share) {
        let place = self.next_place;
        self.next_place += 1;
        let key = self.rules.ordering.then(|| share.ordering_key.clone()).flatten();
        self.entries.insert(place, Entry { share, deliveries: 0, state: State::Ready });
        match key {
            None => self.offer_free(place),
            Some(key) => {
                let lane = self.lanes.entry(Arc::clone(&key)).or_default();
                lane.waiting.push_back(place);
                if lane.waiting.len() == 1 {
                    self.offer(&key);
                }
            }
        }
    }

    /// Leases to `puller` what it may have now, oldest first.
    pub fn take(&mut self, puller: Puller, want: &Want, now: Instant) -> Vec<Delivery> {
        self.pass(now);
        let news = self.news;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        while deliveries.len() < want.messages && !self.is_full(puller, want) {
            let Some(place) = self.first_for(puller) else { break };
            let length = self.entries[&place].share.encoded.len();
            if !deliveries.is_empty() && bytes + length > want.bytes {
                break;
            }
            bytes += length;
            deliveries.push(self.lease(place, puller, now + want.lease));
        }
        // What a lease offers next, it offers to this puller alone.
        self.news = news;
        deliveries
    }

    /// Forgets the messages of these deliveries. An id that is not out any more changes nothing.
    pub fn ack(&mut self, ids: &[AckId], now: Instant) {
        self.pass(now);
        for id in ids {
            let Some((until, puller)) = self.leased(id) else { continue };
            self.unlease(id.place, until, puller);
            match self.key(id.place) {
                None => drop(self.entries.remove(&id.place)),
                Some(key) => self.ack_in_lane(&key, id.place),
            }
            // Somebody may wait for room under its limits.
            self.news = true;
        }
    }

    /// Gives these deliveries until `now + lease`; or none, which is a nack. An id that is not
    /// out any more changes nothing.
    pub fn extend(&mut self, ids: &[AckId], lease: Duration, now: Instant) {
        self.pass(now);
        for id in ids {
            let Some((until, puller)) = self.leased(id) else { continue };
            if lease.is_zero() {
                self.give_back(id.place, now);
                continue;
            }
            self.timers.remove(&(until, id.place));
            let until = now + lease;
            self.timers.insert((until, id.place));
            self.entry(id.place).state = State::Leased { until, puller };
        }
    }

    /// Lets happen what was due until `now`: leases and back-offs end, old messages go.
    pub fn pass(&mut self, now: Instant) {
        while let Some((until, place)) = self.timers.first().copied().filter(|(due, _)| *due <= now)
        {
            match self.entry(place).state {
                State::Leased { .. } => self.give_back(place, now),
                State::Paused { .. } => {
                    self.timers.remove(&(until, place));
                    self.entry(place).state = State::Ready;
                    self.offer_again(place);
                }
                State::Ready | State::Acked => unreachable!("only what waits for a time has one"),
            }
        }
        while let Some(place) = self.outdated(now) {
            self.expire(place);
        }
    }

    /// When the next lease or back-off ends, if nothing else happens before.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(until, _)| *until)
    }

    /// Whether, since this was last asked, somebody who waits may have got something to take.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// How many times a message was delivered, this delivery included.
    pub fn deliveries(&self, id: &AckId) -> u32 {
        self.entries.get(&id.place).map_or(0, |entry| entry.deliveries)
    }

    /// The oldest message, if nobody acked it in time.
    fn outdated(&self, now: Instant) -> Option<u64> {
        let (place, entry) = self.entries.first_key_value()?;
        (entry.share.published + self.rules.retention <= now).then_some(*place)
    }

    fn is_full(&self, puller: Puller, want: &Want) -> bool {
        let load = self.loads.get(&puller).copied().unwrap_or_default();
        load.messages >= want.outstanding_messages || load.bytes >= want.outstanding_bytes
    }

    fn first_for(&self, puller: Puller) -> Option<u64> {
        let free = self.free.first();
        let bound = self.bound.get(&puller).and_then(BTreeSet::first);
        free.into_iter().chain(bound).min().copied()
    }

    fn lease(&mut self, place: u64, puller: Puller, until: Instant) -> Delivery {
        match self.key(place) {
            None => drop(self.free.remove(&place)),
            Some(key) => {
                self.withdraw(&key);
                self.lane(&key).lease_first(puller);
                self.offer(&key);
            }
        }
        self.timers.insert((until, place));
        let queue = self.id;
        let entry = self.entry(place);
        entry.state = State::Leased { until, puller };
        entry.deliveries = entry.deliveries.saturating_add(1);
        let ack_id = AckId { queue, place, delivery: entry.deliveries };
        let message = entry.share.encoded.clone();

        let load = self.loads.entry(puller).or_default();
        load.messages += 1;
        load.bytes += message.len();
        Delivery { ack_id, message }
    }

    /// Takes a lease back, and rests the message if it must.
    fn give_back(&mut self, place: u64, now: Instant) {
        let State::Leased { until, puller } = self.entry(place).state else {
            unreachable!("only what is leased comes back")
        };
        self.unlease(place, until, puller);
        self.rest(place, now);
        match self.key(place) {
            None => self.offer_again(place),
            Some(key) => self.give_back_lane(&key, place),
        }
    }

    /// Sets the state of a message that came back.
    fn rest(&mut self, place: u64, now: Instant) {
        let backoff = self.rules.backoff;
        let entry = self.entry(place);
        let pause = backoff.map_or(Duration::ZERO, |backoff| backoff.after(entry.deliveries));
        if pause.is_zero() {
            entry.state = State::Ready;
        } else {
            let until = now + pause;
            entry.state = State::Paused { until };
            self.timers.insert((until, place));
        }
    }

    /// Drops the oldest message of all.
    fn expire(&mut self, place: u64) {
        match self.entry(place).state {
            State::Leased { until, puller } => self.unlease(place, until, puller),
            State::Paused { until } => drop(self.timers.remove(&(until, place))),
            State::Ready | State::Acked => {}
        }
        match self.key(place) {
            None => drop(self.free.remove(&place)),
            Some(key) => self.expire_in_lane(&key),
        }
        self.entries.remove(&place);
    }

    /// Offers a message that became ready, if it may be taken next.
    fn offer_again(&mut self, place: u64) {
        match self.key(place) {
            Some(key) => self.offer(&key),
            None if self.entry(place).state == State::Ready => self.offer_free(place),
            None => {}
        }
    }

    fn offer_free(&mut self, place: u64) {
        self.free.insert(place);
        self.news = true;
    }

    fn unlease(&mut self, place: u64, until: Instant, puller: Puller) {
        self.timers.remove(&(until, place));
        let length = self.entry(place).share.encoded.len();
        let load = self.loads.get_mut(&puller).expect("who holds a lease has a load");
        load.messages -= 1;
        load.bytes -= length;
        if load.messages == 0 {
            self.loads.remove(&puller);
        }
    }

    /// The lease that an ack id names, if it is the message's last and still runs.
    fn leased(&self, id: &AckId) -> Option<(Instant, Puller)> {
        let entry = self.entries.get(&id.place)?;
        match entry.state {
            State::Leased { until, puller }
                if id.queue == self.id && id.delivery == entry.deliveries =>
            {
                Some((until, puller))
            }
            State::Leased { .. } | State::Ready | State::Paused { .. } | State::Acked => None,
        }
    }

    /// The lane of a message, if it stands in one.
    fn key(&self, place: u64) -> Option<Arc<str>> {
        if !self.rules.ordering {
            return None;
        }
        self.entries[&place].share.ordering_key.clone()
    }

    fn entry(&mut self, place: u64) -> &mut Entry {
        self.entries.get_mut(&place).expect("every index names entries that are there")
    }
}

// === impl Backoff ===

impl Backoff {
    fn after(self, deliveries: u32) -> Duration {
        let doublings = deliveries.saturating_sub(1).min(31);
        self.minimum.saturating_mul(1 << doublings).min(self.maximum)
    }
}
