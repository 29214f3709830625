//! The Workloads that were seen, by their Jobs. Pure: the caller passes the time.

use super::QueueStatus;
use super::workload::WorkloadBrief;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the sorted positions are reused: in a queue of thousands each Job asks for its own.
const POSITIONS_MAX_AGE: Duration = Duration::from_secs(1);

/// All Workloads that were seen.
#[derive(Debug, Default)]
pub(super) struct WorkloadTable {
    visibility: Visibility,
    /// By the Workload's name.
    workloads: HashMap<String, WorkloadEntry>,
    /// The name of a Job's Workload, by the Job's uid.
    jobs: HashMap<String, String>,
    /// The Jobs whose report has changed.
    changed: BTreeSet<String>,
    /// When the stall of a Workload will have lasted for its grace.
    due: BTreeSet<(Instant, String)>,
    /// All positions, sorted, as they were a moment ago.
    positions: Option<(Instant, Vec<QueuePosition>)>,
    /// The names that were listed since the watch started again, until the list is complete.
    listed: Option<HashSet<String>>,
}

/// Whether we can see Workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Visibility {
    /// Not known yet.
    #[default]
    Unknown,
    /// Kueue is not installed.
    Absent,
    /// We have no right to see Workloads.
    Hidden,
    /// Workloads are watched.
    Watched,
}

#[derive(Debug)]
struct WorkloadEntry {
    brief: WorkloadBrief,
    /// Its position, while it waits for quota.
    position: Option<QueuePosition>,
    /// Since when the stall is reported that is reported now.
    since: Instant,
}

/// A local queue, the order in it, and the name of the Workload, which makes the position unique.
type QueuePosition = (Arc<str>, Reverse<i64>, i64, Arc<str>);

// === impl WorkloadTable ===

impl WorkloadTable {
    /// What its queue reports of a Job.
    pub(super) fn queue_status(&mut self, job: &str, queue: &str, now: Instant) -> QueueStatus {
        let entry = self.jobs.get(job).and_then(|name| Some((name, self.workloads.get(name)?)));
        let Some((name, entry)) = entry else {
            return QueueStatus { why: self.describe_unknown(queue), refusal: None };
        };
        let stall = entry.brief.stall().filter(|stall| now >= entry.since + stall.grace);
        let refusal = stall.map(|stall| stall.cause);
        let (name, brief) = (name.clone(), entry.brief.clone());
        QueueStatus { why: brief.describe_wait(self.ahead(&name, now)), refusal }
    }

    fn describe_unknown(&self, queue: &str) -> String {
        match self.visibility {
            Visibility::Unknown | Visibility::Hidden => format!("It waits in queue `{queue}`."),
            Visibility::Absent => format!(
                "It waits for queue `{queue}`, but Kueue, which would let it start, is not \
                 installed in the cluster."
            ),
            Visibility::Watched => format!("It waits for Kueue to put it into queue `{queue}`."),
        }
    }

    /// How many Workloads are before one in its local queue. The own position is searched for and
    /// need not be among the sorted ones: a Workload that came later gets its number too.
    fn ahead(&mut self, name: &str, now: Instant) -> Option<usize> {
        let own = self.workloads.get(name)?.position.clone()?;
        let sorted = match self.positions.take().filter(|(at, _)| now < *at + POSITIONS_MAX_AGE) {
            Some(sorted) => sorted,
            None => {
                let positions = self.workloads.values().filter_map(|entry| entry.position.clone());
                let mut positions: Vec<_> = positions.collect();
                positions.sort_unstable();
                (now, positions)
            }
        };
        let (_, positions) = self.positions.insert(sorted);
        let other_queues = positions.partition_point(|position| position.0 < own.0);
        Some(positions.partition_point(|position| *position < own) - other_queues)
    }

    /// The Jobs whose report changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// When the next stall will have lasted for its grace.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Marks the Jobs whose stall has lasted for its grace as changed.
    pub(super) fn mark_due(&mut self, now: Instant) {
        while self.due().is_some_and(|at| at <= now) {
            let Some((at, name)) = self.due.pop_first() else { return };
            if let Some(entry) = self.workloads.get(&name)
                && entry.due() == Some(at)
            {
                self.changed.insert(entry.brief.job.clone());
            }
        }
    }

    /// Notes whether we can see Workloads. What was seen before is outdated if we cannot.
    pub(super) fn set_visibility(&mut self, visibility: Visibility) {
        let before = std::mem::replace(&mut self.visibility, visibility);
        if before == visibility || visibility == Visibility::Watched {
            return;
        }
        self.changed.extend(self.jobs.drain().map(|(job, _)| job));
        self.workloads.clear();
        self.due.clear();
        self.positions = None;
    }

    /// Applies an event of the watch.
    pub(super) fn apply(&mut self, event: Event<DynamicObject>, now: Instant) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let (Some(listed), Some(name)) = (&mut self.listed, &object.metadata.name) {
                    listed.insert(name.clone());
                }
                self.upsert(object, now);
            }
            Event::InitDone => {
                self.set_visibility(Visibility::Watched);
                let Some(listed) = self.listed.take() else { return };
                let known = self.workloads.keys();
                let gone: Vec<_> = known.filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.remove(name));
            }
            Event::Apply(object) => self.upsert(object, now),
            Event::Delete(object) => self.remove(&object.metadata.name.unwrap_or_default()),
        }
    }

    fn upsert(&mut self, object: DynamicObject, now: Instant) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let Some(brief) = WorkloadBrief::from_object(object) else { return self.remove(&name) };
        let before = self.workloads.get(&name);
        let since = match before {
            Some(before) if before.brief == brief => return,
            Some(before) if before.brief.stall() == brief.stall() => before.since,
            Some(_) | None => now,
        };
        if let Some(due) = before.and_then(WorkloadEntry::due) {
            self.due.remove(&(due, name.clone()));
        }
        let position = brief
            .position()
            .map(|(queue, priority, order)| (Arc::from(queue), priority, order, Arc::from(&*name)));
        let entry = WorkloadEntry { brief, position, since };
        if let Some(due) = entry.due().filter(|due| *due > now) {
            self.due.insert((due, name.clone()));
        }
        self.changed.insert(entry.brief.job.clone());
        self.jobs.insert(entry.brief.job.clone(), name.clone());
        self.workloads.insert(name, entry);
    }

    fn remove(&mut self, name: &str) {
        let Some(entry) = self.workloads.remove(name) else { return };
        if let Some(due) = entry.due() {
            self.due.remove(&(due, name.to_owned()));
        }
        // Kueue creates another Workload where the Job has changed, and that one may have come
        // first.
        let WorkloadBrief { job, .. } = entry.brief;
        if self.jobs.get(&job).is_some_and(|of_job| of_job == name) {
            self.jobs.remove(&job);
            self.changed.insert(job);
        }
    }
}

// === impl WorkloadEntry ===

impl WorkloadEntry {
    /// When its stall will have lasted for its grace.
    fn due(&self) -> Option<Instant> {
        self.brief.stall().map(|stall| self.since + stall.grace)
    }
}

#[cfg(test)]
mod tests;
