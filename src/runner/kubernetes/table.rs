//! What is known of every run that is not settled. Pure.
//!
//! ```text
//! Jobs ──► entries ──► phase  ──► told where it changed
//! pods ──►         └─► action ──► stop what is stuck, record an eviction, look closer
//! ```
//!
//! An entry is what a Job and its pods say, in brief: ten thousand live questions are to fit. Its
//! phase follows from it alone, so whoever looks, and whenever, comes to the same. What is to be
//! done about an entry follows from it too, and is done again until the entry shows that it was.

mod entry;
#[cfg(test)]
mod tests;

use crate::event::{RunId, Timestamp};
use crate::runner::cause::Cause;
use crate::runner::kubernetes::failure::{PodState, Stall};
use crate::runner::kubernetes::job::{JobIdentity, StopRecord};
use crate::runner::{RunEnd, RunState};
use entry::Entry;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How often what a run is on may be taken away before the run ends for it.
pub const EVICTIONS: usize = 3;

/// How many Jobs are looked into at a time, of those that wait: a call each, so that thousands of
/// pods that wait for machines do not cost the API server thousands of calls.
const LOOKS: usize = 8;

/// For how long a pod is remembered whose Job is not known (yet): the two watches are apart by far
/// less. Pods of Jobs that are settled are never known, and must not pile up.
const STRAYS: Duration = Duration::from_secs(60);

/// A Job, in brief.
#[derive(Clone, Debug, PartialEq)]
pub struct JobBrief {
    /// Its uid.
    pub uid: Uuid,
    /// Its name.
    pub name: String,
    /// Its resource version.
    pub version: String,
    /// What it says of itself.
    pub identity: JobIdentity,
    /// Whether it waits for its turn.
    pub suspended: bool,
    /// Whether it is we who give it its turn.
    pub gated: bool,
    /// The queue of Kueue that it waits in.
    pub queue: Option<String>,
    /// Whether the Job itself has a deadline, which it has from us only to end it.
    pub deadline: bool,
    /// Why we ended it.
    pub stopped: Option<StopRecord>,
    /// The pods that were taken away from it, as far as that is on record.
    pub evicted: Vec<Uuid>,
    /// How it is finished, as far as the Job says.
    pub end: Option<RunEnd>,
}

/// A pod, in brief.
#[derive(Clone, Debug, PartialEq)]
pub struct PodBrief {
    /// Its uid.
    pub uid: Uuid,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// By when it is to be gone, where it is being deleted.
    pub deleting: Option<Timestamp>,
    /// Its resource version.
    pub version: String,
    /// What it says.
    pub state: PodState,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// End a Job, for a reason that it does not know itself.
    Stop(Uuid, Cause),
    /// End a Job that is marked as stopped, but got its turn all the same.
    Enforce(Uuid),
    /// Put on record that a pod was taken away from a Job.
    Evicted(Uuid, Uuid),
    /// See whether a Job is there that a list of all left out.
    Job(Uuid),
    /// See what pods there are of a Job that is finished, for none was ever seen.
    Pods(Uuid),
    /// See what events say of a Job that has no pod, or of its pod that does not run.
    Events(Uuid),
}

/// All runs that are not settled.
#[derive(Debug)]
pub struct Table {
    entries: HashMap<Uuid, Entry>,
    /// The Jobs of each run.
    runs: HashMap<RunId, Vec<Uuid>>,
    /// Pods whose Job is not known (yet), and since when.
    strays: HashMap<Uuid, (Timestamp, Vec<PodBrief>)>,
    /// For how long a question may wait.
    patience: Duration,
    /// What changed since it was last asked.
    changed: HashSet<Uuid>,
}

// === impl JobBrief ===

impl JobBrief {
    /// Whether it may yet run though it was ended: it waited then, so it has no deadline.
    pub fn may_yet_run(&self) -> bool {
        self.end.is_none() && self.stopped.is_some() && (self.suspended || !self.deadline)
    }
}

// === impl Table ===

impl Table {
    /// Nothing is known. Questions may wait for so long.
    pub fn new(patience: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            runs: HashMap::new(),
            strays: HashMap::new(),
            patience,
            changed: HashSet::new(),
        }
    }

    /// A Job is there, or has changed. (What a call of ours answered may be older than what the
    /// watch has said since.)
    pub fn job(&mut self, job: JobBrief) {
        let uid = job.uid;
        self.changed.insert(uid);
        if let Some(entry) = self.entries.get_mut(&uid) {
            if !is_older(&job.version, &entry.job.version) {
                entry.job = job;
                // A list may have been made before the Job was.
                entry.gone = false;
                entry.missed = None;
            }
            return;
        }
        self.runs.entry(job.identity.run).or_default().push(uid);
        let mut entry = Entry::new(job);
        for pod in self.strays.remove(&uid).into_iter().flat_map(|(_, pods)| pods) {
            entry.pod(pod);
        }
        self.entries.insert(uid, entry);
    }

    /// A Job is there no more, though nobody settled it. Its pods may be.
    pub fn job_gone(&mut self, uid: Uuid) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.gone = true;
            self.changed.insert(uid);
        }
    }

    /// All the Jobs that there are were listed. What is not among them is to be looked for: it went
    /// or was settled while we did not see, or was made while the list was.
    pub fn jobs_are(&mut self, seen: &HashSet<Uuid>) {
        for (uid, entry) in &mut self.entries {
            if !entry.gone && !seen.contains(uid) {
                entry.missed = Some(Timestamp(0));
            }
        }
    }

    /// A Job is settled: it is told no more. Gives the run, where no other Job of it is left.
    pub fn settled(&mut self, uid: Uuid) -> Option<RunState> {
        let entry = self.entries.remove(&uid)?;
        self.changed.remove(&uid);
        let run = entry.job.identity.run;
        let jobs = self.runs.get_mut(&run)?;
        jobs.retain(|other| *other != uid);
        if !jobs.is_empty() {
            return None;
        }
        self.runs.remove(&run);
        Some(entry.settled())
    }

    /// A pod is there, or has changed.
    pub fn pod(&mut self, owner: Uuid, pod: PodBrief, now: Timestamp) {
        match self.entries.get_mut(&owner) {
            Some(entry) => {
                entry.pod(pod);
                self.changed.insert(owner);
            }
            None => {
                let (_, pods) = self.strays.entry(owner).or_insert_with(|| (now, Vec::new()));
                pods.retain(|other| other.uid != pod.uid);
                pods.push(pod);
            }
        }
    }

    /// A pod is there no more.
    pub fn pod_gone(&mut self, owner: Uuid, pod: Uuid) {
        if let Some((_, pods)) = self.strays.get_mut(&owner) {
            pods.retain(|other| other.uid != pod);
        }
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.pod_gone(pod);
            self.changed.insert(owner);
        }
    }

    /// All the pods that there are were seen: any other is gone.
    pub fn pods_are(&mut self, seen: &HashSet<Uuid>) {
        for (uid, entry) in &mut self.entries {
            if entry.only(seen) {
                self.changed.insert(*uid);
            }
        }
        self.strays.retain(|_, (_, pods)| {
            pods.retain(|pod| seen.contains(&pod.uid));
            !pods.is_empty()
        });
    }

    /// The pods of one Job were looked for: what is not known by now is not there.
    pub fn pods_looked_for(&mut self, uid: Uuid) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.looked = true;
            self.changed.insert(uid);
        }
    }

    /// What events say of a Job that does not go on; none where they say nothing.
    pub fn stalled(&mut self, uid: Uuid, stall: Option<Stall>) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.from_events = stall;
            self.changed.insert(uid);
        }
    }

    /// What its queue says of a Job that waits, where that is something else than before.
    pub fn waits(&mut self, uid: Uuid, why: &str, refused: Option<Cause>) {
        if let Some(entry) = self.entries.get_mut(&uid)
            && (entry.waits != why || entry.refused != refused)
        {
            why.clone_into(&mut entry.waits);
            entry.refused = refused;
            self.changed.insert(uid);
        }
    }

    /// The Jobs that wait for Kueue, and in which queue.
    pub fn queued(&self) -> Vec<(Uuid, String)> {
        let uids = self.entries.keys();
        uids.filter_map(|uid| Some((*uid, self.queue_of(*uid)?))).collect()
    }

    /// The queue of Kueue that a Job waits in; none where it does not wait for Kueue.
    pub fn queue_of(&self, uid: Uuid) -> Option<String> {
        let entry = self.entries.get(&uid)?;
        let waits = entry.job.suspended && !entry.gone;
        waits.then(|| entry.job.queue.clone()).flatten()
    }

    /// What holds the Jobs of these names back.
    pub fn hold(&mut self, words: &HashMap<&str, String>) {
        for (uid, entry) in &mut self.entries {
            if let Some(why) = words.get(&*entry.job.name)
                && entry.waits != *why
            {
                entry.waits.clone_from(why);
                self.changed.insert(*uid);
            }
        }
    }

    /// For how long a claim on the report of a Job has been seen here. It names the moment in which it
    /// was made, so one that is made anew is another; but that moment is of another host's clock.
    pub fn claimed(&mut self, uid: Uuid, claim: &str, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(&uid) else { return Duration::ZERO };
        match &entry.claim {
            Some((known, since)) if known == claim => now.duration_since(*since),
            Some(_) | None => {
                entry.claim = Some((claim.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    /// The states that changed since this was last asked. Of a run with several Jobs, the last
    /// speaks.
    pub fn changes(&mut self, now: Timestamp) -> Vec<RunState> {
        let changed = std::mem::take(&mut self.changed);
        let mut told = Vec::new();
        for uid in changed {
            if let Some(state) = self.change(uid, now) {
                told.push(state);
            }
        }
        told
    }

    fn change(&mut self, uid: Uuid, now: Timestamp) -> Option<RunState> {
        let run = self.entries.get(&uid)?.job.identity.run;
        if self.latest(run)? != uid {
            return None;
        }
        self.entries.get_mut(&uid)?.tell(now)
    }

    /// What has been told of every run.
    pub fn states(&self) -> Vec<RunState> {
        let latest = self.runs.keys().filter_map(|run| self.latest(*run));
        latest.filter_map(|uid| self.entries.get(&uid)?.told_state()).collect()
    }

    /// What is to be done, as far as is known now.
    pub fn actions(&mut self, now: Timestamp) -> Vec<Action> {
        let patience = i64::try_from(STRAYS.as_micros()).unwrap_or(i64::MAX);
        self.strays.retain(|_, (since, _)| now.0 - since.0 < patience);
        let (mut actions, mut looks) = (Vec::new(), Vec::new());
        for (uid, entry) in &mut self.entries {
            let wants = entry.actions(*uid, self.patience, now, &mut actions);
            looks.extend(wants.map(|since| (since, *uid)));
            // No watch says that time has passed.
            if entry.left_behind(now).is_some() {
                self.changed.insert(*uid);
            }
        }
        looks.sort_unstable();
        for (_, uid) in looks.into_iter().take(LOOKS) {
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.events = now;
                actions.push(Action::Events(uid));
            }
        }
        actions
    }

    /// Whether a Job is still to be ended: what it waited for may have come since that was decided.
    pub fn is_hopeless(&mut self, uid: Uuid, now: Timestamp) -> bool {
        let entry = self.entries.get_mut(&uid);
        entry.is_some_and(|entry| entry.is_hopeless(self.patience, now))
    }

    /// The Job of a run's last attempt.
    pub fn latest(&self, run: RunId) -> Option<Uuid> {
        let jobs = self.runs.get(&run)?.iter();
        jobs.copied()
            .max_by_key(|uid| self.entries.get(uid).map(|entry| entry.job.identity.attempt))
    }

    /// Whether a run was told as ended.
    pub fn has_ended(&self, run: RunId) -> bool {
        self.latest(run).is_some_and(|uid| self.entries.get(&uid).is_some_and(Entry::has_ended))
    }

    /// The Jobs of a run.
    pub fn jobs_of(&self, run: RunId) -> Vec<JobBrief> {
        let uids = self.runs.get(&run).into_iter().flatten();
        uids.filter_map(|uid| Some(self.entries.get(uid)?.job.clone())).collect()
    }

    /// A Job, and whether it is still there.
    pub fn get(&self, uid: Uuid) -> Option<(&JobBrief, bool)> {
        self.entries.get(&uid).map(|entry| (&entry.job, !entry.gone))
    }

    /// The name of the newest pod of a Job that is still there.
    pub fn pod_of(&self, uid: Uuid) -> Option<&str> {
        self.entries.get(&uid)?.live().map(|pod| &*pod.name)
    }

    /// The Job of which a pod was seen.
    pub fn job_of(&self, pod: Uuid) -> Option<Uuid> {
        let of = |(uid, entry): (&Uuid, &Entry)| entry.has(pod).then_some(*uid);
        self.entries.iter().find_map(of)
    }

    /// How deep a question is in its tree, as the Job of its first attempt says; none where that is
    /// not known here.
    pub fn depth(&self, question: Uuid) -> Option<u32> {
        let first = RunId { question, retry: 0 };
        let uid = self.runs.get(&first).and_then(|jobs| jobs.first());
        uid.and_then(|uid| self.entries.get(uid)).map(|entry| entry.job.identity.depth)
    }

    /// The Jobs that wait for our own limits, and those that count towards these: what has its
    /// turn and is not finished.
    pub fn gated(&self) -> (Vec<&JobBrief>, Vec<&JobBrief>) {
        let live = self.entries.values().filter(|entry| !entry.gone && entry.job.end.is_none());
        let (mut waiting, mut running) = (Vec::new(), Vec::new());
        for entry in live {
            match entry.job.suspended {
                true if entry.job.gated && entry.job.stopped.is_none() => waiting.push(&entry.job),
                true => {}
                false => running.push(&entry.job),
            }
        }
        (waiting, running)
    }
}

/// Resource versions are numbers that grow, since Kubernetes 1.35 by its word, and before that in
/// fact. Where they are not, the later word holds.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}
