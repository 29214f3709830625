//! The messages of one ordering key.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{MessageState, Puller, Queue};

/// Sequence numbers in order: all of `sent` come before all of `waiting`.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// The puller that has `sent`; `None` if that is empty.
    holder: Option<Puller>,
    /// Leased or acked; the first is leased.
    sent: VecDeque<u64>,
    /// Ready or paused.
    pub waiting: VecDeque<u64>,
}

// === impl Lane ===

impl Lane {
    /// Leases the first waiting message to `puller`.
    pub(super) fn lease_first(&mut self, puller: Puller) {
        let sequence = self.waiting.pop_front().expect("only waiting messages are offered");
        self.sent.push_back(sequence);
        self.holder = Some(puller);
    }

    fn pop_sent(&mut self) {
        self.sent.pop_front();
        if self.sent.is_empty() {
            self.holder = None;
        }
    }
}

// === impl Queue ===

impl Queue {
    pub(super) fn lane(&mut self, key: &str) -> &mut Lane {
        self.lanes.get_mut(key).expect("a message with a key has a lane")
    }

    /// Offers the first waiting message of a lane, if it is ready.
    pub(super) fn offer(&mut self, key: &str) {
        let lane = &self.lanes[key];
        let Some(first) = lane.waiting.front().copied() else { return };
        if self.entries[&first].state != MessageState::Ready {
            return;
        }
        match lane.holder {
            None => self.offer_free(first),
            Some(holder) => {
                self.bound.entry(holder).or_default().insert(first);
                self.must_wake = true;
            }
        }
    }

    /// Withdraws the offer of a lane, before the lane changes.
    pub(super) fn withdraw(&mut self, key: &str) {
        let lane = &self.lanes[key];
        let Some(first) = lane.waiting.front() else { return };
        match lane.holder {
            None => drop(self.free.remove(first)),
            Some(holder) => {
                if let Some(bound) = self.bound.get_mut(&holder) {
                    bound.remove(first);
                    if bound.is_empty() {
                        self.bound.remove(&holder);
                    }
                }
            }
        }
    }

    pub(super) fn ack_in_lane(&mut self, key: &Arc<str>, sequence: u64) {
        self.entry(sequence).state = MessageState::Acked;
        self.withdraw(key);
        self.drop_acked(key);
        self.update(key);
    }

    /// Puts a returned message, and those sent after it, before all waiting messages.
    pub(super) fn return_to_lane(&mut self, key: &Arc<str>, sequence: u64) {
        self.withdraw(key);
        let lane = self.lane(key);
        let from = lane.sent.partition_point(|sent| *sent < sequence);
        let returned = lane.sent.split_off(from);
        if lane.sent.is_empty() {
            lane.holder = None;
        }
        for sequence in returned.iter().rev() {
            self.lane(key).waiting.push_front(*sequence);
        }
        for later in returned.into_iter().skip(1) {
            if let MessageState::Leased { until, puller } = self.entry(later).state {
                self.unlease(later, until, puller);
            }
            self.entry(later).state = MessageState::Ready;
        }
        self.update(key);
    }

    /// Removes the oldest message from its lane.
    pub(super) fn expire_in_lane(&mut self, key: &Arc<str>) {
        self.withdraw(key);
        let lane = self.lane(key);
        if lane.sent.is_empty() {
            lane.waiting.pop_front();
        } else {
            lane.pop_sent();
            self.drop_acked(key);
        }
        self.update(key);
    }

    /// Drops the acked messages at the head of a lane.
    fn drop_acked(&mut self, key: &Arc<str>) {
        while let Some(first) = self.lane(key).sent.front().copied()
            && self.entry(first).state == MessageState::Acked
        {
            self.entries.remove(&first);
            self.lane(key).pop_sent();
        }
    }

    /// Offers the next message of a changed lane, or removes an empty lane.
    fn update(&mut self, key: &Arc<str>) {
        let lane = self.lane(key);
        if lane.sent.is_empty() && lane.waiting.is_empty() {
            self.lanes.remove(key);
        } else {
            self.offer(key);
        }
    }
}
