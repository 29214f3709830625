//! Every run that is not settled, and what must be done about it. Pure.
//!
//! ```text
//! Jobs ──► entries ──► phase  ──► published where it changed
//! pods ──►         └─► action ──► stop what is stalled, record an eviction, look something up
//! ```
//!
//! An entry holds what a Job and its pods show. The phase of a run and the actions on it follow
//! from its entry alone, so every replica comes to the same result at any time. An action is
//! returned again until the entry shows that it was done.

mod entry;
mod removed;
#[cfg(test)]
mod tests;

use crate::event::{RunId, Timestamp};
use crate::runner::kubernetes::failure::Stall;
use crate::runner::kubernetes::observed::{ObservedJob, ObservedPod};
use crate::runner::{Cause, RunState};
use entry::JobEntry;
use removed::RemovedJobs;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How often a run may be evicted; the next eviction ends it.
const MAX_EVICTIONS: usize = 3;

/// For how many Jobs Kubernetes events are read at a time. Each read is a call, and thousands of
/// pods may wait for nodes at once.
const MAX_EVENT_READS: usize = 8;

/// How long a pod is remembered whose Job is not known yet. One watch is never so far behind the
/// other. A Job that stays unknown for longer is settled, or not ours.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// What must be done about a Job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JobAction {
    /// Stop it, for a cause for which Kubernetes does not end it.
    Stop { job: Uuid, cause: Cause },
    /// Set its deadline: it was stopped while it was suspended, and admitted later.
    EnforceStop { job: Uuid },
    /// Record that one of its pods was evicted.
    RecordEviction { job: Uuid, pod: Uuid },
    /// Find out whether it exists: a list of all Jobs left it out.
    FindJob { job: Uuid },
    /// Find its pods: it is finished, and no pod of it was ever seen.
    FindPods { job: Uuid },
    /// Read its Kubernetes events, or those of its pod: it is admitted and does not run.
    ReadEvents { job: Uuid },
}

/// A Job in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownJob<'a> {
    /// Its last version.
    pub(crate) job: &'a ObservedJob,
    /// Whether it still exists.
    pub(crate) exists: bool,
}

/// The Jobs that matter to our own limits.
#[derive(Debug, Default)]
pub(crate) struct GatedJobs<'a> {
    /// Those that wait for the limits.
    pub(crate) waiting: Vec<&'a ObservedJob>,
    /// Those that count towards the limits: all that are admitted and not finished.
    pub(crate) running: Vec<&'a ObservedJob>,
}

/// Every run that is not settled.
#[derive(Debug)]
pub(crate) struct RunTable {
    /// By the uid of the Job.
    entries: HashMap<Uuid, JobEntry>,
    /// The Jobs of each run, in the order in which they were seen.
    runs: HashMap<RunId, Vec<Uuid>>,
    /// The Jobs that were removed because they are settled. What still shows them is outdated.
    removed: RemovedJobs,
    /// Pods whose Job is not known, by the uid of the Job.
    orphaned_pods: HashMap<Uuid, OrphanedPods>,
    /// How long a run may wait before it is stopped.
    queue_timeout: Duration,
    /// The Jobs that changed since the last [`Self::take_changes`].
    changed: HashSet<Uuid>,
}

#[derive(Debug)]
struct OrphanedPods {
    since: Timestamp,
    pods: Vec<ObservedPod>,
}

// === impl JobAction ===

impl JobAction {
    /// The Job that it is about.
    pub(crate) fn job(&self) -> Uuid {
        match self {
            Self::Stop { job, .. }
            | Self::EnforceStop { job }
            | Self::RecordEviction { job, .. }
            | Self::FindJob { job }
            | Self::FindPods { job }
            | Self::ReadEvents { job } => *job,
        }
    }
}

// === impl RunTable ===

impl RunTable {
    /// An empty table. A run that waits for longer than `queue_timeout` is stopped.
    pub(crate) fn new(queue_timeout: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            runs: HashMap::new(),
            removed: RemovedJobs::default(),
            orphaned_pods: HashMap::new(),
            queue_timeout,
            changed: HashSet::new(),
        }
    }

    // --- what is observed

    /// A Job exists, or has changed. (The answer to a call of ours may be older than what the watch
    /// showed meanwhile.)
    pub(crate) fn update_job(&mut self, job: ObservedJob) {
        let uid = job.uid;
        if self.removed.contains(uid) {
            return;
        }
        self.changed.insert(uid);
        if let Some(entry) = self.entries.get_mut(&uid) {
            if !is_older(&job.resource_version, &entry.job.resource_version) {
                entry.job = job;
                // A list may have been made before the Job was created.
                entry.is_gone = false;
                entry.find_after = None;
            }
            return;
        }
        self.runs.entry(job.identity.run).or_default().push(uid);
        let mut entry = JobEntry::new(job);
        for pod in self.orphaned_pods.remove(&uid).into_iter().flat_map(|orphaned| orphaned.pods) {
            entry.update_pod(pod);
        }
        self.entries.insert(uid, entry);
    }

    /// A Job is gone, though it was not settled. Its pods may still run.
    pub(crate) fn mark_job_gone(&mut self, uid: Uuid) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.is_gone = true;
            self.changed.insert(uid);
        }
    }

    /// The watch showed that a Job is deleted or settled.
    pub(crate) fn job_left_watch(&mut self, uid: Uuid, now: Timestamp) {
        self.removed.left_watch(uid, now);
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.left_watch = true;
        }
    }

    /// A list of all Jobs begins.
    pub(crate) fn job_list_started(&mut self) {
        self.removed.list_started();
    }

    /// A list of all Jobs had exactly these. The others must be looked up: they were deleted or
    /// settled unseen, or created while the list was made.
    pub(crate) fn jobs_listed(&mut self, uids: &HashSet<Uuid>, now: Timestamp) {
        self.removed.listed(uids, now);
        for (uid, entry) in &mut self.entries {
            if !entry.is_gone && !uids.contains(uid) {
                entry.find_after = Some(Timestamp(0));
            }
        }
    }

    /// Removes a settled Job: its run is reported no more. Returns the last state of the run, where
    /// no other Job of it is left.
    pub(crate) fn remove_settled(&mut self, uid: Uuid, now: Timestamp) -> Option<RunState> {
        let entry = self.entries.remove(&uid)?;
        self.changed.remove(&uid);
        self.removed.insert(uid, entry.left_watch, now);
        let run = entry.job.identity.run;
        let jobs = self.runs.get_mut(&run)?;
        jobs.retain(|other| *other != uid);
        if !jobs.is_empty() {
            return None;
        }
        self.runs.remove(&run);
        Some(entry.settled_state())
    }

    /// A pod exists, or has changed.
    pub(crate) fn update_pod(&mut self, owner: Uuid, pod: ObservedPod, now: Timestamp) {
        match self.entries.get_mut(&owner) {
            Some(entry) => {
                entry.update_pod(pod);
                self.changed.insert(owner);
            }
            None => {
                let orphaned = || OrphanedPods { since: now, pods: Vec::new() };
                let OrphanedPods { pods, .. } =
                    self.orphaned_pods.entry(owner).or_insert_with(orphaned);
                pods.retain(|other| other.uid != pod.uid);
                pods.push(pod);
            }
        }
    }

    /// A pod is gone.
    pub(crate) fn mark_pod_gone(&mut self, owner: Uuid, pod: Uuid) {
        if let Some(OrphanedPods { pods, .. }) = self.orphaned_pods.get_mut(&owner) {
            pods.retain(|other| other.uid != pod);
        }
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.mark_pod_gone(pod);
            self.changed.insert(owner);
        }
    }

    /// A list of all pods had exactly these: the others are gone.
    pub(crate) fn pods_listed(&mut self, uids: &HashSet<Uuid>) {
        for (uid, entry) in &mut self.entries {
            if entry.pods_listed(uids) {
                self.changed.insert(*uid);
            }
        }
        self.orphaned_pods.retain(|_, OrphanedPods { pods, .. }| {
            pods.retain(|pod| uids.contains(&pod.uid));
            !pods.is_empty()
        });
    }

    /// The pods of one Job were listed: a pod that is not known by now does not exist.
    pub(crate) fn pods_looked_up(&mut self, uid: Uuid) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pods_looked_up = true;
            self.changed.insert(uid);
        }
    }

    /// Why a Job makes no progress, as its Kubernetes events report.
    pub(crate) fn set_event_stall(&mut self, uid: Uuid, stall: Option<Stall>) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.event_stall = stall;
            self.changed.insert(uid);
        }
    }

    /// What the queue of a Job reports: what the Job waits for, and why it can never be admitted.
    pub(crate) fn set_queue_status(&mut self, uid: Uuid, why: &str, refusal: Option<Cause>) {
        if let Some(entry) = self.entries.get_mut(&uid)
            && (entry.waits_for != why || entry.refusal != refusal)
        {
            why.clone_into(&mut entry.waits_for);
            entry.refusal = refusal;
            self.changed.insert(uid);
        }
    }

    /// Which of our limits holds the Jobs of these names.
    pub(crate) fn set_holding_limits(&mut self, reasons: &HashMap<&str, String>) {
        for (uid, entry) in &mut self.entries {
            if let Some(why) = reasons.get(&*entry.job.name)
                && entry.waits_for != *why
            {
                entry.waits_for.clone_from(why);
                self.changed.insert(*uid);
            }
        }
    }

    /// How long ago a claim on the report of a Job was first seen here. A renewed claim counts as a
    /// new one. The time in the claim is not used, because it is from another host's clock.
    pub(crate) fn claim_age(&mut self, uid: Uuid, claim: &str, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(&uid) else { return Duration::ZERO };
        match &entry.claim {
            Some((known, since)) if known == claim => now.duration_since(*since),
            Some(_) | None => {
                entry.claim = Some((claim.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    // --- what is derived

    /// The states that changed since the last call. Of a run with several Jobs, the last attempt
    /// counts.
    pub(crate) fn take_changes(&mut self, now: Timestamp) -> Vec<RunState> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|uid| self.take_change(uid, now)).collect()
    }

    fn take_change(&mut self, uid: Uuid, now: Timestamp) -> Option<RunState> {
        let run = self.entries.get(&uid)?.job.identity.run;
        if self.latest(run)? != uid {
            return None;
        }
        self.entries.get_mut(&uid)?.take_change(now)
    }

    /// The published state of every run.
    pub(crate) fn states(&self) -> Vec<RunState> {
        let latest = self.runs.keys().filter_map(|run| self.latest(*run));
        latest.filter_map(|uid| self.entries.get(&uid)?.published_state()).collect()
    }

    /// What must be done now.
    pub(crate) fn actions(&mut self, now: Timestamp) -> Vec<JobAction> {
        let timeout = i64::try_from(ORPHAN_TIMEOUT.as_micros()).unwrap_or(i64::MAX);
        self.orphaned_pods.retain(|_, orphaned| now.0 - orphaned.since.0 < timeout);
        self.removed.prune(now);
        let (mut actions, mut event_reads) = (Vec::new(), Vec::new());
        for (uid, entry) in &mut self.entries {
            let read_last = entry.actions(*uid, self.queue_timeout, now, &mut actions);
            event_reads.extend(read_last.map(|at| (at, *uid)));
            // A phase can change by the mere passing of time, which no watch shows.
            if entry.abandoned_at(now).is_some() {
                self.changed.insert(*uid);
            }
        }
        event_reads.sort_unstable();
        for (_, uid) in event_reads.into_iter().take(MAX_EVENT_READS) {
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.events_read_at = now;
                actions.push(JobAction::ReadEvents { job: uid });
            }
        }
        actions
    }

    /// Whether a Job must still be stopped: it may have made progress since that was decided.
    pub(crate) fn must_stop(&mut self, uid: Uuid, now: Timestamp) -> bool {
        let entry = self.entries.get_mut(&uid);
        entry.is_some_and(|entry| entry.must_stop(self.queue_timeout, now))
    }

    /// The Job of a run's last attempt.
    pub(crate) fn latest(&self, run: RunId) -> Option<Uuid> {
        let jobs = self.runs.get(&run)?.iter();
        jobs.copied()
            .max_by_key(|uid| self.entries.get(uid).map(|entry| entry.job.identity.attempt))
    }

    /// Whether the end of a run was published.
    pub(crate) fn has_ended(&self, run: RunId) -> bool {
        self.latest(run).is_some_and(|uid| self.entries.get(&uid).is_some_and(JobEntry::has_ended))
    }

    /// The Jobs of a run.
    pub(crate) fn jobs_of(&self, run: RunId) -> Vec<ObservedJob> {
        let uids = self.runs.get(&run).into_iter().flatten();
        uids.filter_map(|uid| Some(self.entries.get(uid)?.job.clone())).collect()
    }

    /// The Job of this uid.
    pub(crate) fn get(&self, uid: Uuid) -> Option<KnownJob<'_>> {
        self.entries.get(&uid).map(|entry| KnownJob { job: &entry.job, exists: !entry.is_gone })
    }

    /// The name of the newest pod of a Job that still exists.
    pub(crate) fn live_pod_name(&self, uid: Uuid) -> Option<&str> {
        self.entries.get(&uid)?.live_pod().map(|pod| &*pod.name)
    }

    /// The Job to which this pod belonged when it was seen.
    pub(crate) fn job_of_pod(&self, pod: Uuid) -> Option<Uuid> {
        self.entries.iter().find_map(|(uid, entry)| entry.has_pod(pod).then_some(*uid))
    }

    /// The depth of a question in its tree, as the Job of its first attempt records it.
    pub(crate) fn depth_of(&self, question: Uuid) -> Option<u32> {
        let first = RunId { question, retry: 0 };
        let uid = self.runs.get(&first).and_then(|jobs| jobs.first());
        uid.and_then(|uid| self.entries.get(uid)).map(|entry| entry.job.identity.depth)
    }

    /// The Jobs that wait for Kueue, each with its queue.
    pub(crate) fn queued(&self) -> Vec<(Uuid, String)> {
        let uids = self.entries.keys();
        uids.filter_map(|uid| Some((*uid, self.queue_of(*uid)?))).collect()
    }

    /// The queue of Kueue that a Job waits in.
    pub(crate) fn queue_of(&self, uid: Uuid) -> Option<String> {
        let entry = self.entries.get(&uid)?;
        let waits = entry.job.suspended && !entry.is_gone;
        waits.then(|| entry.job.queue.clone()).flatten()
    }

    /// The Jobs that matter to our own limits.
    pub(crate) fn gated(&self) -> GatedJobs<'_> {
        let live = self.entries.values().filter(|it| !it.is_gone && it.job.end.is_none());
        let mut gated = GatedJobs::default();
        for JobEntry { job, .. } in live {
            match job.suspended {
                true if job.gated && job.stopped.is_none() => gated.waiting.push(job),
                true => {}
                false => gated.running.push(job),
            }
        }
        gated
    }
}

/// Whether a resource version is older than another. Resource versions are numbers that grow:
/// always in practice, and by specification since Kubernetes 1.35. If they are no numbers, what
/// arrives last counts as newest.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}
