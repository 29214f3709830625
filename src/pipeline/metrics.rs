//! The metrics of the pipeline. Handles are made once, and every counter starts at zero.

use crate::event::Kind;
use crate::pipeline::disposition::Disposition;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// The reasons for which messages are rejected: a closed set.
const REJECTED: [&str; 5] = ["data", "attribute", "store", "runner", "pubsub"];

/// The handles of all metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    received: HashMap<&'static str, Counter>,
    age: HashMap<&'static str, Histogram>,
    rejected: HashMap<&'static str, Counter>,
    ack: Counter,
    retry: Counter,
    reject: Counter,
    refused: Counter,
    /// Seconds to decode one message.
    pub(super) decode: Histogram,
    /// Seconds until a batch of one question is on record.
    pub(super) append: Histogram,
    /// Seconds to act on one event.
    pub(super) act: Histogram,
    in_flight: Gauge,
    oldest: Gauge,
    received_at: Mutex<ReceivedAt>,
}

/// When each delivery in flight was received, by a number in the order of receipt.
#[derive(Debug, Default)]
struct ReceivedAt {
    last: u64,
    deliveries: BTreeMap<u64, Instant>,
}

/// Counts a delivery for as long as it is in flight.
#[derive(Debug)]
pub(super) struct InFlightGauge {
    number: u64,
    metrics: Arc<Metrics>,
}

// === impl InFlightGauge ===

impl Drop for InFlightGauge {
    fn drop(&mut self) {
        self.metrics.in_flight.decrement(1.0);
        self.metrics.received_at().deliveries.remove(&self.number);
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers all of them.
    pub(super) fn new() -> Self {
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
            received_at: Mutex::default(),
        }
    }

    /// Counts a delivery that was received just now.
    pub(super) fn in_flight(self: &Arc<Self>) -> InFlightGauge {
        self.in_flight.increment(1.0);
        let mut received_at = self.received_at();
        received_at.last += 1;
        let number = received_at.last;
        received_at.deliveries.insert(number, Instant::now());
        InFlightGauge { number, metrics: Arc::clone(self) }
    }

    /// Updates the age of the oldest delivery in flight.
    pub(super) fn update_oldest(&self) {
        let oldest = self.received_at().deliveries.first_key_value().map(|(_, at)| at.elapsed());
        self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
    }

    fn received_at(&self) -> MutexGuard<'_, ReceivedAt> {
        self.received_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event was received.
    pub(super) fn received(&self, kind: &'static str) {
        if let Some(counter) = self.received.get(kind) {
            counter.increment(1);
        }
    }

    /// An event was handled, this many seconds after it was published.
    pub(super) fn age(&self, kind: &'static str, seconds: f64) {
        if let Some(histogram) = self.age.get(kind) {
            histogram.record(seconds);
        }
    }

    /// A message was rejected.
    pub(super) fn rejected(&self, reason: &'static str) {
        if let Some(counter) = self.rejected.get(reason) {
            counter.increment(1);
        }
    }

    /// A question was refused.
    pub(super) fn refused(&self) {
        self.refused.increment(1);
    }

    /// A delivery was answered, or will be retried.
    pub(super) fn disposed(&self, disposition: Disposition) {
        match disposition {
            Disposition::Ack => self.ack.increment(1),
            Disposition::Retry => self.retry.increment(1),
            Disposition::Reject => self.reject.increment(1),
        }
    }
}

fn describe() {
    describe_counter!("twined_events_received_total", "Events decoded, redeliveries included");
    describe_counter!("twined_events_rejected_total", "Messages that can never be handled");
    describe_counter!(
        "twined_deliveries_total",
        "Deliveries by their answer; `retry` counts each retry"
    );
    describe_counter!("twined_questions_total", "Questions by outcome");
    describe_gauge!("twined_deliveries_in_flight", "Deliveries in flight");
    describe_gauge!(
        "twined_oldest_delivery_age_seconds",
        Unit::Seconds,
        "Age of the oldest delivery in flight"
    );
    describe_histogram!(
        "twined_event_handling_seconds",
        Unit::Seconds,
        "Duration of each stage of handling an event"
    );
    describe_histogram!(
        "twined_event_age_seconds",
        Unit::Seconds,
        "From the publication of an event to its ack"
    );
}
