//! The Workloads that are known, by their Jobs. Pure: time is given.

use super::Waits;
use super::workload::Brief;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How old the order of all that waits may be: a queue of thousands is asked for each, in turn.
const PLACES: Duration = Duration::from_secs(1);

/// All that is known.
#[derive(Debug, Default)]
pub struct Table {
    served: Served,
    /// By the Workload's name.
    workloads: HashMap<String, Entry>,
    /// The name of a Job's Workload, by the Job's uid.
    jobs: HashMap<String, String>,
    /// The Jobs of which something else is said now.
    changed: BTreeSet<String>,
    /// When what is said of a Workload will have been said for long enough.
    due: BTreeSet<(Instant, String)>,
    /// All that have a place, in order, as they were a moment ago.
    order: Option<(Instant, Vec<Place>)>,
    /// The names that came since the watch began anew, until all have come.
    listed: Option<HashSet<String>>,
}

/// Whether Workloads can be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// Kueue is not there.
    Absent,
    /// It may be there; we have no right to look.
    Hidden,
    /// They are watched.
    Watched,
}

#[derive(Debug)]
struct Entry {
    brief: Brief,
    /// Where it waits for quota.
    place: Option<Place>,
    /// Since when what is said now is said.
    since: Instant,
}

/// A local queue, and where in it; and the Workload's name, for no two places are one.
type Place = (Arc<str>, Reverse<i64>, i64, Arc<str>);

// === impl Table ===

impl Table {
    /// Why a Job waits.
    pub fn waits(&mut self, job: &str, queue: &str, now: Instant) -> Waits {
        let entry = self.jobs.get(job).and_then(|name| Some((name, self.workloads.get(name)?)));
        let Some((name, entry)) = entry else {
            return Waits { why: self.unknown(queue), stuck: None };
        };
        let stuck = entry.brief.stuck().filter(|stuck| now >= entry.since + stuck.patience);
        let stuck = stuck.map(|stuck| (stuck.reason, stuck.message));
        let (name, brief) = (name.clone(), entry.brief.clone());
        Waits { why: brief.why(self.ahead(&name, now)), stuck }
    }

    fn unknown(&self, queue: &str) -> String {
        match self.served {
            Served::Unknown | Served::Hidden => format!("It waits in queue `{queue}`."),
            Served::Absent => format!(
                "It waits for queue `{queue}`, but Kueue, which would let it start, is not \
                 installed in the cluster."
            ),
            Served::Watched => format!("It waits for Kueue to put it into queue `{queue}`."),
        }
    }

    /// How many that wait for quota are before one in its local queue: found, not counted, so that
    /// what came since they were put in order is told its place too.
    fn ahead(&mut self, name: &str, now: Instant) -> Option<usize> {
        let own = self.workloads.get(name)?.place.clone()?;
        let order = match self.order.take().filter(|(put, _)| now < *put + PLACES) {
            Some(order) => order,
            None => {
                let places = self.workloads.values().filter_map(|entry| entry.place.clone());
                let mut places: Vec<_> = places.collect();
                places.sort_unstable();
                (now, places)
            }
        };
        let (_, places) = self.order.insert(order);
        let of_queue = places.partition_point(|place| place.0 < own.0);
        Some(places.partition_point(|place| *place < own) - of_queue)
    }

    /// The Jobs that changed since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// When something will have been said for long enough.
    pub fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What has been said for long enough by now is a change.
    pub fn ripen(&mut self, now: Instant) {
        while self.due().is_some_and(|at| at <= now) {
            let Some((at, name)) = self.due.pop_first() else { return };
            if let Some(entry) = self.workloads.get(&name)
                && entry.due() == Some(at)
            {
                self.changed.insert(entry.brief.job.clone());
            }
        }
    }

    /// Whether Workloads can be seen. Where they cannot, what was known of them is old.
    pub fn see(&mut self, served: Served) {
        if std::mem::replace(&mut self.served, served) == served || served == Served::Watched {
            return;
        }
        self.changed.extend(self.jobs.drain().map(|(job, _)| job));
        self.workloads.clear();
        self.due.clear();
        self.order = None;
    }

    /// What the watch says.
    pub fn apply(&mut self, event: Event<DynamicObject>, now: Instant) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let (Some(listed), Some(name)) = (&mut self.listed, &object.metadata.name) {
                    listed.insert(name.clone());
                }
                self.put(object, now);
            }
            Event::InitDone => {
                self.see(Served::Watched);
                let Some(listed) = self.listed.take() else { return };
                let known = self.workloads.keys();
                let gone: Vec<_> = known.filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.remove(name));
            }
            Event::Apply(object) => self.put(object, now),
            Event::Delete(object) => self.remove(&object.metadata.name.unwrap_or_default()),
        }
    }

    fn put(&mut self, object: DynamicObject, now: Instant) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let Some(brief) = Brief::of(object) else { return self.remove(&name) };
        let before = self.workloads.get(&name);
        let since = match before {
            Some(before) if before.brief == brief => return,
            Some(before) if before.brief.stuck() == brief.stuck() => before.since,
            Some(_) | None => now,
        };
        if let Some(due) = before.and_then(Entry::due) {
            self.due.remove(&(due, name.clone()));
        }
        let place = brief
            .place()
            .map(|(queue, priority, order)| (Arc::from(queue), priority, order, Arc::from(&*name)));
        let entry = Entry { brief, place, since };
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
        // Kueue makes another where the Job has changed; that one may have come before.
        let Brief { job, .. } = entry.brief;
        if self.jobs.get(&job).is_some_and(|of_job| of_job == name) {
            self.jobs.remove(&job);
            self.changed.insert(job);
        }
    }
}

// === impl Entry ===

impl Entry {
    /// When it is told that it can never start.
    fn due(&self) -> Option<Instant> {
        self.brief.stuck().map(|stuck| self.since + stuck.patience)
    }
}

#[cfg(test)]
mod tests;
