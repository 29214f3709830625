//! The metrics of a store.

use crate::event::Kind;
use crate::store::sqlite::Options;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use std::time::Duration;

/// The label of unknown kinds.
const OTHER: &str = "other";
/// One for each known kind, and one for the others.
const KINDS: usize = Kind::NAMES.len() + 1;

/// How many rows of each kind were on record already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Duplicates([u64; KINDS]);

/// The handles, created once.
pub(super) struct Metrics {
    /// None for a view: its duplicates are not those of the network.
    duplicates: Option<[Counter; KINDS]>,
    append: Histogram,
    errors: Counter,
}

// === impl Duplicates ===

impl Duplicates {
    /// Counts one.
    pub(super) fn add(&mut self, kind: &str) {
        let known = Kind::NAMES.iter().position(|name| *name == kind);
        self.0[known.unwrap_or(KINDS - 1)] += 1;
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers all of them with the installed recorder, at zero.
    pub(super) fn new(options: &Options) -> Self {
        let (view, store) = match options.keep {
            Some(_) => (true, "view"),
            None => (false, "sqlite"),
        };
        describe_counter!(
            "twined_events_duplicate_total",
            "Events that were on record already when they were received"
        );
        describe_histogram!(
            "twined_store_append_seconds",
            Unit::Seconds,
            "Time from a call that appends until it is durable"
        );
        describe_counter!("twined_store_errors_total", "Event store calls that failed");
        Self {
            duplicates: (!view).then(|| {
                std::array::from_fn(|kind| {
                    let name = Kind::NAMES.get(kind).copied().unwrap_or(OTHER);
                    counter!("twined_events_duplicate_total", "kind" => name)
                })
            }),
            append: histogram!("twined_store_append_seconds", "store" => store),
            errors: counter!("twined_store_errors_total", "store" => store),
        }
    }

    /// Counts the duplicates of a commit.
    pub(super) fn duplicates(&self, found: &Duplicates) {
        for (counter, count) in self.duplicates.iter().flatten().zip(found.0) {
            if count > 0 {
                counter.increment(count);
            }
        }
    }

    /// Counts a call that appended or failed to.
    pub(super) fn append(&self, took: Duration) {
        self.append.record(took);
    }

    /// Counts a call that failed.
    pub(super) fn error(&self) {
        self.errors.increment(1);
    }
}
