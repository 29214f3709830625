//! One Job and its pods: the phase of its run, and what is to be done about it.

use crate::event::Timestamp;
use crate::runner::cause::Cause;
use crate::runner::kubernetes::failure::{self, PodState, Stall};
use crate::runner::kubernetes::table::{Action, EVICTIONS, JobBrief, PodBrief, is_older};
use crate::runner::{EndReason, RunEnd, RunPhase, RunState};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How many pods of a Job are remembered: those that were taken away, and the last.
const PODS: usize = EVICTIONS + 2;

/// For how long a Job may have no pod, or its pod not run, before events are looked at, and how
/// often then. They cost a call each.
const LOOK: Duration = Duration::from_secs(15);

/// How soon a Job that a list left out is looked for again where the API server did not say whether
/// it is there: in microseconds.
const LOOK_AGAIN: i64 = 2_000_000;

/// How long after a pod was to be gone it is taken for gone, where its Job is over: its node is down,
/// and may never say. A kubelet that is up is late by seconds.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// A Job and its pods.
#[derive(Debug)]
pub struct Entry {
    /// The Job.
    pub job: JobBrief,
    /// Whether the Job is no more.
    pub gone: bool,
    /// Where a list of all Jobs left it out: when it is to be looked for.
    pub missed: Option<Timestamp>,
    /// Whether its pods were looked for after its end.
    pub looked: bool,
    /// Who else was seen to have claimed the report of its end, and since when that was.
    pub claim: Option<(String, Instant)>,
    /// What it waits for, as its queue says.
    pub waits: String,
    /// Why its queue will never have room for it.
    pub refused: Option<Cause>,
    /// What events say.
    pub from_events: Option<Stall>,
    /// Its pods, oldest first.
    pods: Vec<Seen>,
    /// What was told, and how many evictions with it.
    told: Option<(RunPhase, usize)>,
    /// What it is stalled by, and since when.
    stall: Option<(Stall, Timestamp)>,
    /// Until when it ran, as far as was seen here.
    ran: Option<Timestamp>,
    /// When events were last looked at.
    pub events: Timestamp,
}

#[derive(Debug)]
struct Seen {
    pod: PodBrief,
    gone: bool,
}

// === impl Entry ===

impl Entry {
    /// A Job of which no pod is known.
    pub fn new(job: JobBrief) -> Self {
        Self {
            events: job.identity.launched,
            job,
            gone: false,
            missed: None,
            looked: false,
            claim: None,
            waits: String::new(),
            refused: None,
            from_events: None,
            pods: Vec::new(),
            told: None,
            stall: None,
            ran: None,
        }
    }

    /// A pod is there, or has changed. (What a call of ours answered may be older than what the
    /// watch has said since.)
    pub fn pod(&mut self, pod: PodBrief) {
        if let Some(seen) = self.pods.iter_mut().find(|seen| seen.pod.uid == pod.uid) {
            if !is_older(&pod.version, &seen.pod.version) {
                // A list may have been made before the pod was.
                *seen = Seen { pod, gone: false };
            }
            return;
        }
        // What is said of a pod that is gone holds no longer for the next.
        self.from_events = None;
        self.pods.push(Seen { pod, gone: false });
        self.pods.sort_by_key(|seen| seen.pod.created);
        if self.pods.len() > PODS {
            self.pods.remove(0);
        }
    }

    /// A pod is there no more.
    pub fn pod_gone(&mut self, uid: Uuid) {
        if let Some(seen) = self.pods.iter_mut().find(|seen| seen.pod.uid == uid) {
            seen.gone = true;
        }
    }

    /// Whether a pod of this uid was seen.
    pub fn has(&self, uid: Uuid) -> bool {
        self.pods.iter().any(|seen| seen.pod.uid == uid)
    }

    /// Only these pods are there. Says whether that is news.
    pub fn only(&mut self, uids: &HashSet<Uuid>) -> bool {
        let missing = |seen: &&mut Seen| !seen.gone && !uids.contains(&seen.pod.uid);
        let mut news = false;
        for seen in self.pods.iter_mut().filter(missing) {
            seen.gone = true;
            news = true;
        }
        news
    }

    /// The newest pod of which something may run.
    pub fn live(&self) -> Option<&PodBrief> {
        let live = |seen: &&Seen| !seen.gone && !matches!(seen.pod.state, PodState::Ended { .. });
        self.pods.iter().rev().find(live).map(|seen| &seen.pod)
    }

    /// The state, where it is another than was told.
    pub fn tell(&mut self, now: Timestamp) -> Option<RunState> {
        let phase = self.phase(now)?;
        // An end is told once: what is seen of it later is less, for pods go before their Jobs.
        if self.has_ended() {
            return None;
        }
        let news = Some((phase, self.job.evicted.len()));
        if self.told == news {
            return None;
        }
        self.told = news;
        self.told_state()
    }

    /// Whether it was told as ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.told, Some((RunPhase::Ended(_), _)))
    }

    /// The state as it was told.
    pub fn told_state(&self) -> Option<RunState> {
        let (phase, _) = self.told.clone()?;
        Some(self.state(phase))
    }

    /// The state of a run that another daemon, or we ourselves, have dealt with.
    pub fn settled(&self) -> RunState {
        self.state(RunPhase::Settled)
    }

    fn state(&self, phase: RunPhase) -> RunState {
        let identity = &self.job.identity;
        // One more than it is started anew after is told as its end.
        let evictions = self.job.evicted.len().min(EVICTIONS);
        RunState {
            run: identity.run,
            attempt: identity.attempt,
            attributes: Arc::clone(&identity.attributes),
            evictions: u32::try_from(evictions).unwrap_or(u32::MAX),
            phase,
        }
    }

    /// How far the run is; none where that cannot be told yet.
    fn phase(&self, now: Timestamp) -> Option<RunPhase> {
        let launched = self.job.identity.launched;
        if let Some(at) = self.left_behind(now) {
            return Some(RunPhase::Ended(self.deleted(at)));
        }
        let live = self.live();
        if live.is_none() {
            if self.gone {
                return Some(RunPhase::Ended(self.deleted(now)));
            }
            if let Some(end) = &self.job.end {
                let pods = !self.pods.is_empty() || self.looked || self.never_ran();
                return pods.then(|| RunPhase::Ended(self.ended(end)));
            }
            if self.job.suspended && self.job.stopped.is_some() {
                return Some(RunPhase::Ended(self.stopped(Timestamp(0))?));
            }
        }
        let why = |text: &str| text.to_owned();
        Some(match live.map(|pod| &pod.state) {
            Some(PodState::Running { since, .. }) => RunPhase::Running { launched, since: *since },
            _ if self.job.suspended => RunPhase::Queued { since: launched, why: why(&self.waits) },
            Some(PodState::Waiting { why: text, .. }) => {
                RunPhase::Starting { since: launched, why: why(text) }
            }
            Some(PodState::Ended { .. }) | None => {
                let events = self.from_events.as_ref().map_or("", |stall| &*stall.cause.message);
                RunPhase::Starting { since: launched, why: why(events) }
            }
        })
    }

    /// Since when all of it is over but for a pod that does not go, where that is long enough.
    pub fn left_behind(&self, now: Timestamp) -> Option<Timestamp> {
        let over = match &self.job.stopped {
            Some(stopped) => Timestamp(stopped.at),
            None if self.gone => self.job.identity.launched,
            None => return None,
        };
        let at = self.live()?.deleting?.max(over);
        (now.seconds_since(at) >= LEFT_BEHIND.as_secs_f64()).then_some(at)
    }

    /// Whether it was ended before it had a pod.
    fn never_ran(&self) -> bool {
        self.job.suspended && self.job.stopped.is_some()
    }

    fn ended(&self, end: &RunEnd) -> RunEnd {
        if let Some(stopped) = self.stopped(end.at) {
            return stopped;
        }
        let recipient = self.job.identity.recipient.as_str();
        match (self.own_end(), self.pods.last()) {
            (Some(own), _) => RunEnd { at: own.at.max(end.at), ..own.clone() },
            // The Job controller saw the end of a pod that went before we did.
            (None, Some(_)) if end.reason == EndReason::Exited => {
                let started = self.pods.iter().find_map(Seen::started);
                RunEnd { started, ..end.clone() }
            }
            (None, Some(seen)) => failure::vanished_end(Some(&seen.pod.state), end.at, recipient),
            (None, None) => end.clone(),
        }
    }

    /// How the question's own end came about; none where each of its pods was taken away first.
    fn own_end(&self) -> Option<&RunEnd> {
        let stayed = |seen: &&Seen| !self.job.evicted.contains(&seen.pod.uid);
        self.pods.iter().rev().filter(stayed).find_map(Seen::own_end)
    }

    /// The end that we gave it ourselves.
    fn stopped(&self, at: Timestamp) -> Option<RunEnd> {
        let stopped = self.job.stopped.as_ref()?;
        let Cause { reason, message } = stopped.cause();
        let own = self.own_end();
        let (started, tail) = own.map_or((None, Vec::new()), |own| (own.started, own.tail.clone()));
        Some(RunEnd {
            at: at.max(Timestamp(stopped.at)),
            started: started.or_else(|| self.pods.iter().find_map(Seen::started)),
            reason,
            message,
            tail,
        })
    }

    fn deleted(&self, now: Timestamp) -> RunEnd {
        if let Some(stopped) = self.stopped(now) {
            return stopped;
        }
        RunEnd {
            at: now,
            started: self.pods.iter().find_map(Seen::started),
            reason: EndReason::Deleted,
            message: format!(
                "The Job {:?} that ran the question was deleted from the cluster, by somebody or \
                 something else than the network. Ask again if you still want the answer.",
                self.job.name
            ),
            tail: Vec::new(),
        }
    }

    /// What is to be done about it. Where it wants a look at what events say of it, this says since
    /// when: how many are had at a time is not its own affair.
    pub fn actions(
        &mut self,
        uid: Uuid,
        patience: Duration,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        if self.gone {
            return None;
        }
        if self.missed.is_some_and(|due| due <= now) {
            self.missed = Some(Timestamp(now.0 + LOOK_AGAIN));
            actions.push(Action::Job(uid));
        }
        if self.job.end.is_some() {
            if self.pods.is_empty() && !self.looked && !self.never_ran() {
                actions.push(Action::Pods(uid));
            }
            return None;
        }
        for pod in self.taken_away() {
            actions.push(Action::Evicted(uid, pod));
        }
        if self.job.stopped.is_some() {
            if !self.job.suspended && !self.job.deadline {
                actions.push(Action::Enforce(uid));
            }
            return None;
        }
        if let Some(cause) = self.hopeless(patience, now) {
            actions.push(Action::Stop(uid, cause));
            return None;
        }
        self.wants_a_look(now).then_some(self.events)
    }

    /// The pods that were taken away, and are not on record as such.
    fn taken_away(&self) -> impl Iterator<Item = Uuid> {
        self.pods
            .iter()
            .filter(|seen| seen.was_taken_away(self.job.suspended))
            .map(|seen| seen.pod.uid)
            .filter(|uid| !self.job.evicted.contains(uid))
    }

    /// Whether it is to be ended, and was not yet.
    pub fn is_hopeless(&mut self, patience: Duration, now: Timestamp) -> bool {
        let over = self.gone || self.job.end.is_some() || self.job.stopped.is_some();
        !over && self.hopeless(patience, now).is_some()
    }

    /// Why it is to be ended, where it will not come to an end by itself.
    fn hopeless(&mut self, patience: Duration, now: Timestamp) -> Option<Cause> {
        if self.job.evicted.len() > EVICTIONS {
            let times = self.job.evicted.len();
            let message = format!(
                "What the question ran on was taken away {times} times: evicted, preempted, or its \
                 machine went. It is not started again. Ask again later, or have it run where that \
                 does not happen (a node pool without spot machines, a higher priority)."
            );
            return Some(Cause::new(EndReason::Evicted, message));
        }
        if self.job.suspended
            && let Some(refused) = &self.refused
        {
            return Some(refused.clone());
        }
        if now.seconds_since(self.waits_since(now)) > patience.as_secs_f64() {
            let patience = words(patience);
            let waits =
                if self.waits.is_empty() { "It did not get its turn." } else { &self.waits };
            let message = format!(
                "The question waited for {patience}, which is all that the network allows, \
                 and did not start. {waits} Ask again when there is more room."
            );
            return Some(Cause::new(EndReason::Waited, message));
        }
        let stall = match self.live().map(|pod| &pod.state) {
            Some(PodState::Running { stall, .. }) => stall.as_ref(),
            Some(PodState::Waiting { stall: Some(stall), .. }) => Some(stall),
            _ if self.job.suspended => None,
            _ => self.from_events.as_ref(),
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
        let hopeless = now.seconds_since(since) >= stall.grace.as_secs_f64();
        let told = hopeless.then(|| stall.cause.clone());
        self.stall = Some((stall, since));
        told
    }

    /// Since when it waits: since its launch, or since what it ran on was taken away.
    fn waits_since(&mut self, now: Timestamp) -> Timestamp {
        let running = matches!(self.live(), Some(PodBrief { state: PodState::Running { .. }, .. }));
        let ended = self.pods.iter().filter_map(Seen::ran_until).max();
        // Nobody says when those ended that were gone before we came.
        let unseen = self.ran.or(ended).is_none() && !self.job.evicted.is_empty();
        if running || unseen {
            self.ran = Some(now);
        }
        let launched = self.job.identity.launched;
        [self.ran, ended].into_iter().flatten().fold(launched, Timestamp::max)
    }

    /// Whether it has had its turn for a while, and neither runs nor says why not.
    fn wants_a_look(&self, now: Timestamp) -> bool {
        let waits = match self.live().map(|pod| &pod.state) {
            Some(PodState::Waiting { stall, .. }) => stall.is_none(),
            Some(PodState::Running { .. }) => false,
            Some(PodState::Ended { .. }) | None => !self.job.suspended,
        };
        waits && now.seconds_since(self.events) >= LOOK.as_secs_f64()
    }
}

// === impl Seen ===

impl Seen {
    /// How the question's own end came about in this pod; none where it was taken away first, or
    /// has not ended.
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

    /// Until when it ran at least; none where it never did.
    fn ran_until(&self) -> Option<Timestamp> {
        match &self.pod.state {
            PodState::Ended { end, .. } => end.started.map(|_| end.at),
            PodState::Running { since, .. } => Some(*since),
            PodState::Waiting { .. } => None,
        }
    }

    /// Taken away by the cluster, or by a queue that wants its room back.
    fn was_taken_away(&self, suspended: bool) -> bool {
        match &self.pod.state {
            PodState::Ended { disrupted: true, .. } => true,
            // A Job that is suspended again has its pods deleted.
            PodState::Running { .. } => suspended && (self.gone || self.pod.deleting.is_some()),
            PodState::Ended { end, .. } => suspended && end.reason == EndReason::Deleted,
            PodState::Waiting { .. } => false,
        }
    }
}

/// A span as people say it.
fn words(span: Duration) -> String {
    let (number, unit) = match span.as_secs() {
        seconds @ 0..120 => (seconds as f64, "seconds"),
        seconds @ 120..7200 => (seconds as f64 / 60.0, "minutes"),
        seconds => (seconds as f64 / 3600.0, "hours"),
    };
    let text = format!("{number:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}
