//! Many questions are handled at once, and the events of one question in order.
//!
//! The waiting deliveries of one question are its lane. One worker at a time takes deliveries from
//! it. A lane exists while it has deliveries or its worker is busy, so there are never more lanes
//! than deliveries in flight.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// The lanes, by key.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: Mutex<HashMap<String, VecDeque<T>>>,
}

/// The one worker of a lane.
#[derive(Debug)]
pub(super) struct Worker<'a, T> {
    lanes: &'a Lanes<T>,
    key: &'a str,
}

// === impl Lanes ===

impl<T> Lanes<T> {
    /// No lanes.
    pub(super) fn new() -> Self {
        Self { lanes: Mutex::new(HashMap::new()) }
    }

    /// Puts an item at the end of its lane. True where the lane is new and needs a worker.
    #[must_use = "a new lane without a worker never empties"]
    pub(super) fn push(&self, key: &str, item: T) -> bool {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(key) {
            lane.push_back(item);
            return false;
        }
        lanes.insert(key.to_owned(), VecDeque::from([item]));
        true
    }

    /// The worker of a new lane.
    pub(super) fn worker<'a>(&'a self, key: &'a str) -> Worker<'a, T> {
        Worker { lanes: self, key }
    }

    /// Drops all waiting items.
    pub(super) fn clear(&self) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

// === impl Worker ===

impl<T> Worker<'_, T> {
    /// Takes up to `most` items from the front of the lane. None where it is empty: the lane is
    /// then removed, and its worker must end.
    pub(super) fn take(&self, most: usize) -> Option<Vec<T>> {
        let mut lanes = self.lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut lane) = lanes.entry(self.key.to_owned()) else { return None };
        if lane.get().is_empty() {
            lane.remove();
            return None;
        }
        let lane = lane.get_mut();
        Some(lane.drain(..most.min(lane.len())).collect())
    }
}

impl<T> Drop for Worker<'_, T> {
    /// Removes the lane of a worker that panics: it would never empty.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner).remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_keeps_its_order_and_is_removed_when_it_is_empty() {
        let lanes = Lanes::new();
        let worker = lanes.worker("a");
        assert!(lanes.push("a", 1));
        assert!(!lanes.push("a", 2));
        assert!(lanes.push("b", 9));
        assert!(!lanes.push("a", 3));

        assert_eq!(worker.take(2), Some(vec![1, 2]));
        assert!(!lanes.push("a", 4), "its worker is at work");
        assert_eq!(worker.take(9), Some(vec![3, 4]));
        assert_eq!(worker.take(9), None);
        assert!(lanes.push("a", 5), "a new lane");
    }

    #[test]
    fn a_lane_is_removed_with_a_worker_that_panics() {
        let lanes = Lanes::new();
        assert!(lanes.push("a", 1));

        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let _worker = lanes.worker("a");
                panic!("on purpose");
            });
            assert!(worker.join().is_err());
        });

        assert!(lanes.push("a", 2), "a new lane, with a new worker");
    }
}
