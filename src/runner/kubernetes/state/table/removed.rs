//! The Jobs that were removed from the table because their runs are settled.
//!
//! A watch lags behind our own calls, and the answer to a call may be used long after it was made.
//! Both can still show a Job that is settled. The uid of a Job is never used again, so it is
//! remembered until no outdated version of the Job can arrive.

use crate::event::Timestamp;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// For how long the answer to a call may still show a Job after the watch showed that it is
/// settled. A launch uses its answer after it has created up to 11 Secrets, at 20 s a call.
const ANSWER_AGE: Duration = Duration::from_secs(300);

/// The uids of removed Jobs.
#[derive(Debug, Default)]
pub(super) struct RemovedJobs {
    jobs: HashMap<Uuid, WatchPosition>,
}

/// Whether the watch can still show versions from before the removal.
#[derive(Clone, Copy, Debug)]
enum WatchPosition {
    /// It can. `listing`: a list of all Jobs has begun since the removal, and will end this.
    Behind { listing: bool },
    /// Since this time it cannot.
    Past(Timestamp),
}

// === impl RemovedJobs ===

impl RemovedJobs {
    /// A Job is removed. `left_watch`: the watch has already shown that it is deleted or settled.
    pub(super) fn insert(&mut self, uid: Uuid, left_watch: bool, now: Timestamp) {
        let position = match left_watch {
            true => WatchPosition::Past(now),
            false => WatchPosition::Behind { listing: false },
        };
        self.jobs.insert(uid, position);
    }

    pub(super) fn contains(&self, uid: Uuid) -> bool {
        self.jobs.contains_key(&uid)
    }

    /// The watch showed that the Job is deleted or settled.
    pub(super) fn left_watch(&mut self, uid: Uuid, now: Timestamp) {
        if let Some(position) = self.jobs.get_mut(&uid) {
            *position = WatchPosition::Past(now);
        }
    }

    /// The watch begins a list of all Jobs.
    pub(super) fn list_started(&mut self) {
        for position in self.jobs.values_mut() {
            if let WatchPosition::Behind { listing } = position {
                *listing = true;
            }
        }
    }

    /// The list has exactly these Jobs.
    pub(super) fn listed(&mut self, uids: &HashSet<Uuid>, now: Timestamp) {
        for (uid, position) in &mut self.jobs {
            if matches!(position, WatchPosition::Behind { listing: true }) && !uids.contains(uid) {
                *position = WatchPosition::Past(now);
            }
        }
    }

    /// Whether none is remembered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Forgets the Jobs of which nothing older can arrive.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.jobs.retain(|_, position| match position {
            WatchPosition::Behind { .. } => true,
            WatchPosition::Past(since) => now.seconds_since(*since) < ANSWER_AGE.as_secs_f64(),
        });
    }
}
