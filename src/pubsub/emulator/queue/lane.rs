//! The messages of one ordering key.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Puller, Queue, State};

/// Places in order of publishing: all of `sent` come before all of `waiting`.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Who has `sent`; nobody if it is empty.
    holder: Option<Puller>,
    /// Leased or acked; the first is leased.
    sent: VecDeque<u64>,
    /// Ready or paused.
    pub waiting: VecDeque<u64>,
}

// === impl Lane ===

impl Lane {
    /// Moves the first that waits to `puller`.
    pub fn lease_first(&mut self, puller: Puller) {
        let place = self.waiting.pop_front().expect("only what waits is offered");
        self.sent.push_back(place);
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

    /// Lets the first that waits in a lane be taken, if it is ready.
    pub(super) fn offer(&mut self, key: &str) {
        let lane = &self.lanes[key];
        let Some(first) = lane.waiting.front().copied() else { return };
        if self.entries[&first].state != State::Ready {
            return;
        }
        match lane.holder {
            None => self.offer_free(first),
            Some(holder) => {
                self.bound.entry(holder).or_default().insert(first);
                self.news = true;
            }
        }
    }

    /// Takes an offer back, before its lane changes.
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

    pub(super) fn ack_in_lane(&mut self, key: &Arc<str>, place: u64) {
        self.entry(place).state = State::Acked;
        self.withdraw(key);
        self.forget_acked(key);
        self.settle(key);
    }

    /// Puts a message that came back before all that wait, and with it what was sent after it.
    pub(super) fn give_back_lane(&mut self, key: &Arc<str>, place: u64) {
        self.withdraw(key);
        let lane = self.lane(key);
        let from = lane.sent.partition_point(|sent| *sent < place);
        let back = lane.sent.split_off(from);
        if lane.sent.is_empty() {
            lane.holder = None;
        }
        for place in back.iter().rev() {
            self.lane(key).waiting.push_front(*place);
        }
        for later in back.into_iter().skip(1) {
            if let State::Leased { until, puller } = self.entry(later).state {
                self.unlease(later, until, puller);
            }
            self.entry(later).state = State::Ready;
        }
        self.settle(key);
    }

    /// Takes the oldest message out of its lane.
    pub(super) fn expire_in_lane(&mut self, key: &Arc<str>) {
        self.withdraw(key);
        let lane = self.lane(key);
        if lane.sent.is_empty() {
            lane.waiting.pop_front();
        } else {
            lane.pop_sent();
            self.forget_acked(key);
        }
        self.settle(key);
    }

    /// Lets go of what is acked at the head of a lane.
    fn forget_acked(&mut self, key: &Arc<str>) {
        while let Some(first) = self.lane(key).sent.front().copied()
            && self.entry(first).state == State::Acked
        {
            self.entries.remove(&first);
            self.lane(key).pop_sent();
        }
    }

    /// Offers what a changed lane has to offer, or ends the lane.
    fn settle(&mut self, key: &Arc<str>) {
        let lane = self.lane(key);
        if lane.sent.is_empty() && lane.waiting.is_empty() {
            self.lanes.remove(key);
        } else {
            self.offer(key);
        }
    }
}
