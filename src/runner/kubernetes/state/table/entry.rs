//! One Job and its pods: the phase of its run, and what must be done about it.

use crate::event::Timestamp;
use crate::runner::kubernetes::failure::{self, PodState, Stall};
use crate::runner::kubernetes::observed::{ObservedJob, ObservedPod};
use crate::runner::kubernetes::state::table::{JobAction, MAX_EVICTIONS, is_older};
use crate::runner::{Cause, EndReason, RunEnd, RunPhase, RunState};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How many pods of a Job are remembered: the evicted ones and the last.
const MAX_PODS: usize = MAX_EVICTIONS + 2;

/// How long a Job may have no pod, or a pod that does not run, before its Kubernetes events are
/// read, and the time between two reads. Each read is a call.
const EVENT_READ_INTERVAL: Duration = Duration::from_secs(15);

/// The time after which a Job that was not in a list is looked up again, in microseconds, if the
/// API server did not answer the last lookup.
const FIND_INTERVAL: i64 = 2_000_000;

/// How long after its deletion was due a pod counts as gone, if its Job was stopped or is gone. Its
/// node is down, and may never confirm the deletion; a kubelet that works does so within seconds.
const ABANDON_AFTER: Duration = Duration::from_secs(60);

/// A Job and its pods.
#[derive(Debug)]
pub(super) struct JobEntry {
    pub(super) job: ObservedJob,
    /// Whether the Job no longer exists.
    pub(super) is_gone: bool,
    /// Whether the watch showed that it is deleted or settled.
    pub(super) left_watch: bool,
    /// When to look up the Job, if a list of all Jobs left it out.
    pub(super) find_after: Option<Timestamp>,
    /// Whether its pods were listed after its end.
    pub(super) pods_looked_up: bool,
    /// The claim of another replica on the report of its end, and when it was first seen.
    pub(super) claim: Option<(String, Instant)>,
    /// What it waits for, as its queue or our own limits report.
    pub(super) waits_for: String,
    /// Why its queue will never admit it.
    pub(super) refusal: Option<Cause>,
    /// Why it makes no progress, as its Kubernetes events report.
    pub(super) event_stall: Option<Stall>,
    /// When its Kubernetes events were last read.
    pub(super) events_read_at: Timestamp,
    /// Its pods, oldest first.
    pods: Vec<SeenPod>,
    published: Option<Published>,
    /// The present stall, and when it began.
    stall: Option<(Stall, Timestamp)>,
    /// Until when it ran, as far as was seen here.
    ran_until: Option<Timestamp>,
}

/// The state that listeners have.
#[derive(Clone, Debug, PartialEq)]
struct Published {
    phase: RunPhase,
    evictions: usize,
}

#[derive(Debug)]
struct SeenPod {
    pod: ObservedPod,
    is_gone: bool,
}

// === impl JobEntry ===

impl JobEntry {
    /// A Job without pods.
    pub(super) fn new(job: ObservedJob) -> Self {
        Self {
            events_read_at: job.identity.launched,
            job,
            is_gone: false,
            left_watch: false,
            find_after: None,
            pods_looked_up: false,
            claim: None,
            waits_for: String::new(),
            refusal: None,
            event_stall: None,
            pods: Vec::new(),
            published: None,
            stall: None,
            ran_until: None,
        }
    }

    // --- pods

    /// A pod exists, or has changed. (The answer to a call of ours may be older than what the watch
    /// showed meanwhile.)
    pub(super) fn update_pod(&mut self, pod: ObservedPod) {
        if let Some(seen) = self.pods.iter_mut().find(|seen| seen.pod.uid == pod.uid) {
            if !is_older(&pod.resource_version, &seen.pod.resource_version) {
                // A list may have been made before the pod was created.
                *seen = SeenPod { pod, is_gone: false };
            }
            return;
        }
        // Kubernetes events about a previous pod do not hold for the next.
        self.event_stall = None;
        self.pods.push(SeenPod { pod, is_gone: false });
        self.pods.sort_by_key(|seen| seen.pod.created);
        if self.pods.len() > MAX_PODS {
            self.pods.remove(0);
        }
    }

    /// A pod is gone.
    pub(super) fn mark_pod_gone(&mut self, uid: Uuid) {
        if let Some(seen) = self.pods.iter_mut().find(|seen| seen.pod.uid == uid) {
            seen.is_gone = true;
        }
    }

    /// Whether a pod of this uid was seen.
    pub(super) fn has_pod(&self, uid: Uuid) -> bool {
        self.pods.iter().any(|seen| seen.pod.uid == uid)
    }

    /// A list of all pods had exactly these. Returns whether one of this Job is gone since.
    pub(super) fn pods_listed(&mut self, uids: &HashSet<Uuid>) -> bool {
        let missing = |seen: &&mut SeenPod| !seen.is_gone && !uids.contains(&seen.pod.uid);
        let mut changed = false;
        for seen in self.pods.iter_mut().filter(missing) {
            seen.is_gone = true;
            changed = true;
        }
        changed
    }

    /// The newest pod of which something may run.
    pub(super) fn live_pod(&self) -> Option<&ObservedPod> {
        let is_live =
            |seen: &&SeenPod| !seen.is_gone && !matches!(seen.pod.state, PodState::Ended { .. });
        self.pods.iter().rev().find(is_live).map(|seen| &seen.pod)
    }

    // --- the state of its run

    /// The state of its run, if it differs from the published one. The caller must publish it.
    pub(super) fn take_change(&mut self, now: Timestamp) -> Option<RunState> {
        let phase = self.phase(now)?;
        // An end is published once. Later views of it show less, because pods are deleted before
        // their Jobs.
        if self.has_ended() {
            return None;
        }
        let present = Some(Published { phase, evictions: self.job.evicted_pods.len() });
        if self.published == present {
            return None;
        }
        self.published = present;
        self.published_state()
    }

    /// Whether its end was published.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.published, Some(Published { phase: RunPhase::Ended(_), .. }))
    }

    /// The state that listeners have.
    pub(super) fn published_state(&self) -> Option<RunState> {
        let Published { phase, .. } = self.published.clone()?;
        Some(self.state(phase))
    }

    /// The state of a run whose end this or another replica has dealt with.
    pub(super) fn settled_state(&self) -> RunState {
        self.state(RunPhase::Settled)
    }

    fn state(&self, phase: RunPhase) -> RunState {
        let identity = &self.job.identity;
        // The last eviction is the end of the run, and reported as such.
        let evictions = self.job.evicted_pods.len().min(MAX_EVICTIONS);
        RunState {
            run: identity.run,
            attempt: identity.attempt,
            attributes: Arc::clone(&identity.attributes),
            evictions: u32::try_from(evictions).unwrap_or(u32::MAX),
            phase,
        }
    }

    /// The phase of the run; none while its Job is finished and its pods are unknown.
    fn phase(&self, now: Timestamp) -> Option<RunPhase> {
        let launched = self.job.identity.launched;
        if let Some(at) = self.abandoned_at(now) {
            return Some(RunPhase::Ended(self.deleted_end(at)));
        }
        let live = self.live_pod();
        if live.is_none() {
            if self.is_gone {
                return Some(RunPhase::Ended(self.deleted_end(now)));
            }
            if let Some(end) = &self.job.end {
                let is_known = !self.pods.is_empty() || self.pods_looked_up || self.never_started();
                return is_known.then(|| RunPhase::Ended(self.end(end)));
            }
            if self.never_started() {
                return Some(RunPhase::Ended(self.stopped_end(Timestamp(0))?));
            }
        }
        Some(match live.map(|pod| &pod.state) {
            Some(PodState::Running { since, .. }) => RunPhase::Running { launched, since: *since },
            _ if self.job.suspended => {
                RunPhase::Queued { since: launched, why: self.waits_for.clone() }
            }
            Some(PodState::Waiting { why, .. }) => {
                RunPhase::Starting { since: launched, why: why.clone() }
            }
            Some(PodState::Ended { .. }) | None => {
                let stall = self.event_stall.as_ref();
                let why = stall.map(|stall| stall.cause.message.clone()).unwrap_or_default();
                RunPhase::Starting { since: launched, why }
            }
        })
    }

    /// When the run ended, if its Job was stopped or is gone, and its only live pod should have
    /// been deleted long ago.
    pub(super) fn abandoned_at(&self, now: Timestamp) -> Option<Timestamp> {
        let over_at = match &self.job.stopped {
            Some(stopped) => Timestamp(stopped.at),
            None if self.is_gone => self.job.identity.launched,
            None => return None,
        };
        let at = self.live_pod()?.deletion?.max(over_at);
        (now.seconds_since(at) >= ABANDON_AFTER.as_secs_f64()).then_some(at)
    }

    /// Whether it was stopped before it was admitted: then it has no pods.
    fn never_started(&self) -> bool {
        self.job.suspended && self.job.stopped.is_some()
    }

    fn end(&self, end: &RunEnd) -> RunEnd {
        if let Some(stopped) = self.stopped_end(end.at) {
            return stopped;
        }
        let recipient = self.job.identity.recipient.as_str();
        match (self.own_end(), self.pods.last()) {
            (Some(own), _) => RunEnd { at: own.at.max(end.at), ..own.clone() },
            // The Job controller saw the end of a pod that was deleted before we saw its end.
            (None, Some(_)) if end.cause.reason == EndReason::Exited => {
                let started = self.pods.iter().find_map(SeenPod::started);
                RunEnd { started, ..end.clone() }
            }
            (None, Some(seen)) => failure::vanished_end(Some(&seen.pod.state), end.at, recipient),
            (None, None) => end.clone(),
        }
    }

    /// How the service itself ended; none if each of its pods was evicted before that.
    fn own_end(&self) -> Option<&RunEnd> {
        let was_kept = |seen: &&SeenPod| !self.job.evicted_pods.contains(&seen.pod.uid);
        self.pods.iter().rev().filter(was_kept).find_map(SeenPod::own_end)
    }

    /// The end of a Job that we stopped.
    fn stopped_end(&self, at: Timestamp) -> Option<RunEnd> {
        let stopped = self.job.stopped.as_ref()?;
        let own = self.own_end();
        let (started, tail) = own.map_or((None, Vec::new()), |own| (own.started, own.tail.clone()));
        Some(RunEnd {
            at: at.max(Timestamp(stopped.at)),
            started: started.or_else(|| self.pods.iter().find_map(SeenPod::started)),
            cause: stopped.cause(),
            tail,
        })
    }

    fn deleted_end(&self, now: Timestamp) -> RunEnd {
        if let Some(stopped) = self.stopped_end(now) {
            return stopped;
        }
        let message = format!(
            "The Job {:?} that ran the question was deleted by another client of the cluster \
             than the network. Ask again if you still want the answer.",
            self.job.name
        );
        RunEnd {
            at: now,
            started: self.pods.iter().find_map(SeenPod::started),
            cause: Cause::new(EndReason::Deleted, message),
            tail: Vec::new(),
        }
    }

    // --- what must be done

    /// Adds the actions on it. If its Kubernetes events should be read again, returns when they
    /// were last read: the table decides for which Jobs that is done.
    pub(super) fn actions(
        &mut self,
        uid: Uuid,
        queue_timeout: Duration,
        now: Timestamp,
        actions: &mut Vec<JobAction>,
    ) -> Option<Timestamp> {
        if self.is_gone {
            return None;
        }
        if self.find_after.is_some_and(|due| due <= now) {
            self.find_after = Some(Timestamp(now.0 + FIND_INTERVAL));
            actions.push(JobAction::FindJob { job: uid });
        }
        if self.job.end.is_some() {
            if self.pods.is_empty() && !self.pods_looked_up && !self.never_started() {
                actions.push(JobAction::FindPods { job: uid });
            }
            return None;
        }
        for pod in self.unrecorded_evictions() {
            actions.push(JobAction::RecordEviction { job: uid, pod });
        }
        if self.job.stopped.is_some() {
            if !self.job.suspended && !self.job.has_deadline {
                actions.push(JobAction::EnforceStop { job: uid });
            }
            return None;
        }
        if let Some(cause) = self.stop_cause(queue_timeout, now) {
            actions.push(JobAction::Stop { job: uid, cause });
            return None;
        }
        self.should_read_events(now).then_some(self.events_read_at)
    }

    /// The evicted pods that the Job's annotation does not list yet.
    fn unrecorded_evictions(&self) -> impl Iterator<Item = Uuid> {
        self.pods
            .iter()
            .filter(|seen| seen.was_evicted(self.job.suspended))
            .map(|seen| seen.pod.uid)
            .filter(|uid| !self.job.evicted_pods.contains(uid))
    }

    /// Whether it must be stopped, and is not yet.
    pub(super) fn must_stop(&mut self, queue_timeout: Duration, now: Timestamp) -> bool {
        let is_over = self.is_gone || self.job.end.is_some() || self.job.stopped.is_some();
        !is_over && self.stop_cause(queue_timeout, now).is_some()
    }

    /// Why it must be stopped; none while it may still make progress.
    fn stop_cause(&mut self, queue_timeout: Duration, now: Timestamp) -> Option<Cause> {
        let evictions = self.job.evicted_pods.len();
        if evictions > MAX_EVICTIONS {
            let message = format!(
                "The question's pod was evicted {evictions} times: by its machine, for another pod, \
                 or with its machine. It is not started again. Ask again later, or have it run where \
                 that does not happen (a node pool without spot machines, a higher priority)."
            );
            return Some(Cause::new(EndReason::Evicted, message));
        }
        if self.job.suspended
            && let Some(refusal) = &self.refusal
        {
            return Some(refusal.clone());
        }
        if now.seconds_since(self.waits_since(now)) > queue_timeout.as_secs_f64() {
            let timeout = duration_text(queue_timeout);
            let waits_for =
                if self.waits_for.is_empty() { "It was not admitted." } else { &self.waits_for };
            let message = format!(
                "The question waited for {timeout}, which is all that the network allows, \
                 and did not start. {waits_for} Ask again when fewer questions wait."
            );
            return Some(Cause::new(EndReason::Waited, message));
        }
        self.lasting_stall(now)
    }

    /// The cause of a stall that has lasted for its grace.
    fn lasting_stall(&mut self, now: Timestamp) -> Option<Cause> {
        let stall = match self.live_pod().map(|pod| &pod.state) {
            Some(PodState::Running { stall, .. }) => stall.as_ref(),
            Some(PodState::Waiting { stall: Some(stall), .. }) => Some(stall),
            _ if self.job.suspended => None,
            _ => self.event_stall.as_ref(),
        };
        let Some(stall) = stall.cloned() else {
            self.stall = None;
            return None;
        };
        let (stall, since) = match self.stall.take() {
            Some((before, since)) => {
                let stall = stall.after(Some(before.clone()));
                let since = if stall.cause.reason == before.cause.reason { since } else { now };
                (stall, since)
            }
            None => (stall, now),
        };
        let is_over = now.seconds_since(since) >= stall.grace.as_secs_f64();
        let cause = is_over.then(|| stall.cause.clone());
        self.stall = Some((stall, since));
        cause
    }

    /// The time since which it waits: its launch, or its last eviction.
    fn waits_since(&mut self, now: Timestamp) -> Timestamp {
        let running =
            self.live_pod().is_some_and(|it| matches!(it.state, PodState::Running { .. }));
        let ended = self.pods.iter().filter_map(SeenPod::ran_until).max();
        // The time is not known at which a pod ended that was evicted before this replica started.
        let is_unseen = self.ran_until.or(ended).is_none() && !self.job.evicted_pods.is_empty();
        if running || is_unseen {
            self.ran_until = Some(now);
        }
        let launched = self.job.identity.launched;
        [self.ran_until, ended].into_iter().flatten().fold(launched, Timestamp::max)
    }

    /// Whether it has been admitted for a while, does not run, and does not show why.
    fn should_read_events(&self, now: Timestamp) -> bool {
        let waits = match self.live_pod().map(|pod| &pod.state) {
            Some(PodState::Waiting { stall, .. }) => stall.is_none(),
            Some(PodState::Running { .. }) => false,
            Some(PodState::Ended { .. }) | None => !self.job.suspended,
        };
        waits && now.seconds_since(self.events_read_at) >= EVENT_READ_INTERVAL.as_secs_f64()
    }
}

// === impl SeenPod ===

impl SeenPod {
    /// How the service itself ended in this pod; none where the pod was evicted first, or has not
    /// ended.
    fn own_end(&self) -> Option<&RunEnd> {
        match &self.pod.state {
            PodState::Ended { end, disrupted: false } => Some(end),
            PodState::Ended { .. } | PodState::Waiting { .. } | PodState::Running { .. } => None,
        }
    }

    fn started(&self) -> Option<Timestamp> {
        match &self.pod.state {
            PodState::Ended { end, .. } => end.started,
            PodState::Running { since, .. } => Some(*since),
            PodState::Waiting { .. } => None,
        }
    }

    /// A time until which it ran at least; none if it never ran.
    fn ran_until(&self) -> Option<Timestamp> {
        match &self.pod.state {
            PodState::Ended { end, .. } => end.started.map(|_| end.at),
            PodState::Running { since, .. } => Some(*since),
            PodState::Waiting { .. } => None,
        }
    }

    /// Whether the cluster evicted it, or its queue suspended its Job again.
    fn was_evicted(&self, suspended: bool) -> bool {
        match &self.pod.state {
            PodState::Ended { disrupted: true, .. } => true,
            // The pods of a Job that is suspended again are deleted.
            PodState::Running { .. } => suspended && (self.is_gone || self.pod.deletion.is_some()),
            PodState::Ended { end, .. } => suspended && end.cause.reason == EndReason::Deleted,
            PodState::Waiting { .. } => false,
        }
    }
}

/// A duration for people.
fn duration_text(duration: Duration) -> String {
    let (number, unit) = match duration.as_secs() {
        seconds @ 0..120 => (seconds as f64, "seconds"),
        seconds @ 120..7200 => (seconds as f64 / 60.0, "minutes"),
        seconds => (seconds as f64 / 3600.0, "hours"),
    };
    let text = format!("{number:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}
