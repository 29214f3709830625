//! What the pipeline counts. Handles are made once; every counter starts at zero.

use crate::event::Kind;
use crate::pipeline::disposition::Disposition;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// The reasons for which messages are rejected: a closed set.
const REJECTED: [&str; 5] = ["data", "attribute", "store", "runner", "pubsub"];

/// The handles.
#[derive(Debug)]
pub struct Metrics {
    received: HashMap<&'static str, Counter>,
    age: HashMap<&'static str, Histogram>,
    rejected: HashMap<&'static str, Counter>,
    ack: Counter,
    retry: Counter,
    reject: Counter,
    refused: Counter,
    /// Seconds to decode one message.
    pub decode: Histogram,
    /// Seconds until a batch of one question is on record.
    pub append: Histogram,
    /// Seconds to act on one event.
    pub act: Histogram,
    in_flight: Gauge,
    oldest: Gauge,
    /// When each delivery in hand was received, by the order of their receipt.
    hand: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

/// Counts a delivery for as long as it is in hand.
#[derive(Debug)]
pub struct InFlightGauge {
    number: u64,
    metrics: Arc<Metrics>,
}

// === impl InFlightGauge ===

impl Drop for InFlightGauge {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1.0);
        let mut hand = self.metrics.hand.lock().unwrap_or_else(PoisonError::into_inner);
        hand.1.remove(&self.number);
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers all of them.
    pub fn new() -> Self {
        describe();
        let kinds = || Kind::NAMES.into_iter().chain(["other"]);
        let zero = |counter: Counter| {
            counter.absolute(0);
            counter
        };
        let disposition =
            |name: &'static str| zero(counter!("twined_deliveries_total", "disposition" => name));
        let stage =
            |name: &'static str| histogram!("twined_event_handling_seconds", "stage" => name);
        Self {
            received: kinds()
                .map(|kind| (kind, zero(counter!("twined_events_received_total", "kind" => kind))))
                .collect(),
            age: kinds()
                .map(|kind| (kind, histogram!("twined_event_age_seconds", "kind" => kind)))
                .collect(),
            rejected: REJECTED
                .into_iter()
                .map(|reason| {
                    (reason, zero(counter!("twined_events_rejected_total", "reason" => reason)))
                })
                .collect(),
            ack: disposition("ack"),
            retry: disposition("retry"),
            reject: disposition("reject"),
            refused: zero(counter!("twined_questions_total", "outcome" => "refused")),
            decode: stage("decode"),
            append: stage("append"),
            act: stage("act"),
            in_flight: gauge!("twined_deliveries_in_flight"),
            oldest: gauge!("twined_oldest_delivery_age_seconds"),
            hand: Mutex::default(),
        }
    }

    /// A delivery was received.
    pub fn take(self: &Arc<Self>) -> InFlightGauge {
        self.in_flight.increment(1.0);
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, hand) = &mut *hand;
        *next += 1;
        hand.insert(*next, Instant::now());
        InFlightGauge { number: *next, metrics: Arc::clone(self) }
    }

    /// Brings the age of the oldest delivery up to date.
    pub fn upkeep(&self) {
        let hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = hand.1.first_key_value().map(|(_, at)| at.elapsed());
        self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
    }

    /// An event was received.
    pub fn received(&self, kind: &'static str) {
        if let Some(counter) = self.received.get(kind) {
            counter.increment(1);
        }
    }

    /// An event was dealt with, so many seconds after it was published.
    pub fn age(&self, kind: &'static str, seconds: f64) {
        if let Some(histogram) = self.age.get(kind) {
            histogram.record(seconds);
        }
    }

    /// A message was rejected.
    pub fn rejected(&self, reason: &'static str) {
        if let Some(counter) = self.rejected.get(reason) {
            counter.increment(1);
        }
    }

    /// A question was refused.
    pub fn refused(&self) {
        self.refused.increment(1);
    }

    /// A delivery was answered, or is to be tried again.
    pub fn disposed(&self, disposition: Disposition) {
        match disposition {
            Disposition::Ack => self.ack.increment(1),
            Disposition::Retry => self.retry.increment(1),
            Disposition::Reject => self.reject.increment(1),
        }
    }
}

fn describe() {
    describe_counter!("twined_events_received_total", "Events decoded, redeliveries too");
    describe_counter!("twined_events_rejected_total", "Messages that can never be handled");
    describe_counter!("twined_deliveries_total", "Deliveries, by how they were answered");
    describe_counter!("twined_questions_total", "Questions, by how they ended");
    describe_gauge!("twined_deliveries_in_flight", "Deliveries in hand");
    describe_gauge!(
        "twined_oldest_delivery_age_seconds",
        Unit::Seconds,
        "For how long the oldest delivery in hand has been there"
    );
    describe_histogram!(
        "twined_event_handling_seconds",
        Unit::Seconds,
        "How long the stages of handling an event take"
    );
    describe_histogram!(
        "twined_event_age_seconds",
        Unit::Seconds,
        "From an event's publication to the answer for it"
    );
}
