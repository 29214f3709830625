//! Which of several daemons does what need be done once.
//!
//! The Lease of one name is held by one of them at a time:
//!
//! ```text
//! nobody's, or not renewed for 8 s   ->  take   (a patch of the version that was seen, only)
//! ours                               ->  renew  every 2 s; step down 6 s after the last that worked
//! another's                          ->  look again in 2 s, or when it has run out
//! ```
//!
//! *One at a time.* A holder steps down by its own clock, counted from before the call that renewed;
//! another takes over 8 s after it first saw that renewal, by its own. So clocks may differ by years,
//! and only their rates count; what the Lease says of time is for people. Each write is of the version
//! that was seen, so of two that take at once one has it.
//!
//! *Soon.* A holder that is killed or paused is followed 10 s after its last renewal, at most; one
//! that stops gives the Lease back, and is followed at the others' next look. A holder that was
//! paused and wakes up still believes that it leads until its task runs, some milliseconds: what is
//! done by the leader must bear two, or look at the time too.
//!
//! Not built on `kube-lease-manager`: its holder goes on leading where it cannot renew, it waits up
//! to 30 s after an error, trusts the clocks of all hosts, and takes over without a version.

use crate::chain::Chain;
use crate::runner::kubernetes::call::{CallError, Calls, Verb};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long others wait for a holder that is silent. A lost Lease may delay releases by 15 s, on
/// machines that have too much to do as well.
const RUNS_OUT: Duration = Duration::from_secs(8);

/// How long a holder may lead after the last renewal that worked. What is left to [`RUNS_OUT`] is
/// for what it has in hand, and for clocks that run at other rates.
const LEADS: Duration = Duration::from_secs(6);

/// How often a holder renews, and others look: three tries before it must step down.
const LOOK: Duration = Duration::from_secs(2);

/// How long each of the two calls of a round may take: a holder that waits for a lost answer must
/// still be able to ask again.
const CALL: Duration = Duration::from_millis(1500);

/// How long a daemon that ends tries to give the Lease back: the drain has 5 s for all.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Takes and keeps a Lease, or waits for it.
#[derive(Debug)]
pub struct Leader {
    api: Api<Lease>,
    calls: Calls,
    namespace: String,
    name: String,
    election: Election,
    leads: watch::Sender<bool>,
    until: watch::Sender<Option<Instant>>,
    /// What the log said last, so that it says it once.
    said: Option<String>,
}

/// What one replica knows of the Lease. No I/O.
#[derive(Debug)]
struct Election {
    identity: String,
    /// The version that was seen last, and since when.
    seen: Option<(String, Instant)>,
    /// Until when we lead, where we do.
    until: Option<Instant>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write this, and lead if that works.
    Write(Box<Lease>),
    /// It is another's: look again then.
    Wait(Instant),
}

// === impl Leader ===

impl Leader {
    /// Of the Lease of this name. `identity` must be this replica's alone (the name of its pod).
    /// The channels say whether it leads, and until when if it hears nothing more: whoever must
    /// not act on old news, as a process does that was paused, is to look at the time as well.
    pub fn new(
        client: Client,
        calls: Calls,
        namespace: &str,
        name: &str,
        identity: &str,
    ) -> (Self, watch::Receiver<bool>, watch::Receiver<Option<Instant>>) {
        let (leads, whether) = watch::channel(false);
        let (until, until_when) = watch::channel(None);
        let election = Election { identity: identity.to_owned(), seen: None, until: None };
        let api = Api::namespaced(client, namespace);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let said = None;
        (Self { api, calls, namespace, name, election, leads, until, said }, whether, until_when)
    }

    /// Takes the Lease whenever it can be had, until `stop`; then gives it back.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                next = self.round() => next,
                () = stop.cancelled() => break,
            };
            let next = self.election.until.map_or(next, |until| next.min(until));
            tokio::select! {
                () = sleep_until(next) => self.tell(),
                () = stop.cancelled() => break,
            }
        }
        let leads = self.election.until.take().is_some();
        self.tell();
        if leads {
            self.give_back().await;
        }
    }

    /// Looks, and writes if it should; says when to look again. Never longer than we lead: a call
    /// without an answer must not hide that we do no more.
    async fn round(&mut self) -> Instant {
        let start = Instant::now();
        let latest = start + CALL + CALL;
        let end = self.election.until.map_or(latest, |until| until.min(latest));
        let result = match timeout_at(end, self.step(start)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Unavailable("no answer in time".to_owned())),
        };
        self.tell();
        match result {
            Ok(next) => {
                self.said = None;
                next
            }
            // Another was faster: it is the holder now, and its time counts from our next look.
            Err(CallError::Exists(_) | CallError::Conflict(_)) => start + LOOK,
            Err(error) => {
                self.complain(&error);
                // Never at once: an API server that is down is not to be pressed.
                Instant::now().max(start + LOOK)
            }
        }
    }

    async fn step(&mut self, start: Instant) -> Result<Instant, CallError> {
        let lease = self.calls.call(Verb::Get, self.api.get_opt(&self.name)).await?;
        let write = match self.election.step(&self.name, lease, Instant::now()) {
            Step::Wait(until) => return Ok(until.min(start + LOOK)),
            Step::Write(lease) => lease,
        };
        // Our time counts from before the call: others see its effect later at the earliest.
        let asked = Instant::now();
        let written = self.write(&write).await?;
        self.election.holds(&written, asked);
        Ok(start + LOOK)
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, CallError> {
        if lease.metadata.resource_version.is_none() {
            let params = PostParams::default();
            return self.calls.call(Verb::Create, self.api.create(&params, lease)).await;
        }
        // The version in it makes it a conflict where the Lease is not what it was.
        let (params, patch) = (PatchParams::default(), Patch::Merge(lease));
        self.calls.call(Verb::Patch, self.api.patch(&self.name, &params, &patch)).await
    }

    /// Tells who listens, where it changed.
    fn tell(&mut self) {
        if self.election.until.is_some_and(|until| Instant::now() >= until) {
            self.election.until = None;
        }
        self.until.send_replace(self.election.until);
        let leads = self.election.until.is_some();
        let changed = self.leads.send_if_modified(|told| std::mem::replace(told, leads) != leads);
        if changed {
            info!(
                lease = self.name,
                identity = self.election.identity,
                leads,
                "the leader changed"
            );
        }
    }

    /// So that the next leads at once. Where it fails, the Lease runs out.
    async fn give_back(&mut self) {
        let until = Instant::now() + GIVE_BACK;
        let given = timeout_at(until, async {
            let Some(lease) = self.calls.call(Verb::Get, self.api.get_opt(&self.name)).await?
            else {
                return Ok(());
            };
            match self.election.given_back(lease) {
                Some(lease) => self.write(&lease).await.map(drop),
                None => Ok(()),
            }
        });
        match given.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(lease = self.name, error = %Chain(&error), "failed to give the lease back");
            }
            Err(_) => debug!(lease = self.name, "failed to give the lease back in time"),
        }
    }

    fn complain(&mut self, error: &CallError) {
        let said = error.to_string();
        if self.said.as_ref() == Some(&said) {
            return;
        }
        let (lease, namespace) = (&self.name, &self.namespace);
        if matches!(error, CallError::Forbidden(_)) {
            warn!(
                lease, namespace, error = %Chain(error),
                "nobody may lead, so nothing that waits for our own limits is released: \
                 grant the daemon's service account `get`, `create` and `patch` on `leases` \
                 (group `coordination.k8s.io`) in this namespace"
            );
        } else {
            warn!(lease, namespace, error = %Chain(error), "failed to take or renew the lease");
        }
        self.said = Some(said);
    }
}

// === impl Election ===

impl Election {
    /// What to do about the Lease as it was read just now.
    fn step(&mut self, name: &str, lease: Option<Lease>, now: Instant) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            return self.write(Lease { metadata, spec: None }, true);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            Some(_) | None => {
                self.seen = Some((version, now));
                now
            }
        };
        match holder(&lease) {
            Some(holder) if holder == self.identity => self.write(lease, false),
            None => self.write(lease, true),
            Some(_) if now >= since + RUNS_OUT => self.write(lease, true),
            Some(_) => {
                // Taken from us, though we still may lead by our time: somebody changed it by hand.
                self.until = None;
                Step::Wait(since + RUNS_OUT)
            }
        }
    }

    fn write(&self, lease: Lease, taken: bool) -> Step {
        let now = MicroTime(jiff::Timestamp::now());
        let Lease { metadata, spec } = lease;
        let before = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(RUNS_OUT.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: taken.then_some(now),
            lease_transitions: taken.then(|| before.saturating_add(1)),
            ..LeaseSpec::default()
        };
        Step::Write(Box::new(patch(metadata, spec)))
    }

    /// Our write worked, that was begun at `asked`.
    fn holds(&mut self, written: &Lease, asked: Instant) {
        let version = written.metadata.resource_version.clone().unwrap_or_default();
        self.seen = Some((version, asked));
        self.until = Some(asked + LEADS);
    }

    /// What makes the Lease nobody's, where it is ours.
    fn given_back(&self, lease: Lease) -> Option<Lease> {
        if holder(&lease) != Some(&self.identity) {
            return None;
        }
        let holder_identity = Some(String::new());
        Some(patch(lease.metadata, LeaseSpec { holder_identity, ..LeaseSpec::default() }))
    }
}

/// What is to be written of a Lease, over the version that was seen. What is left out stays.
fn patch(seen: ObjectMeta, spec: LeaseSpec) -> Lease {
    let ObjectMeta { name, resource_version, .. } = seen;
    Lease {
        metadata: ObjectMeta { name, resource_version, ..Default::default() },
        spec: Some(spec),
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref();
    holder.filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(identity: &str) -> Election {
        Election { identity: identity.to_owned(), seen: None, until: None }
    }

    fn lease(holder: Option<&str>, version: &str) -> Lease {
        let metadata =
            ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        let holder_identity = holder.map(str::to_owned);
        // A clock that is years ahead: nobody looks at it.
        let renew_time = Some(MicroTime("2099-01-01T00:00:00Z".parse().unwrap()));
        let spec = LeaseSpec { holder_identity, renew_time, ..LeaseSpec::default() };
        Lease { metadata, spec: Some(spec) }
    }

    #[track_caller]
    fn written(step: Step) -> Lease {
        match step {
            Step::Write(lease) => *lease,
            Step::Wait(_) => panic!("it waits"),
        }
    }

    #[test]
    fn a_lease_that_is_not_there_or_nobodys_is_taken() {
        let mut election = election("a");
        let now = Instant::now();
        let made = written(election.step("twined", None, now));
        assert_eq!(made.metadata.name.as_deref(), Some("twined"));
        assert_eq!(made.metadata.resource_version, None);
        for nobody in [None, Some("")] {
            let taken = written(election.step("twined", Some(lease(nobody, "7")), now));
            assert_eq!(holder(&taken), Some("a"));
            assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
            let spec = taken.spec.unwrap();
            assert_eq!(spec.lease_transitions, Some(1));
            assert_eq!(spec.lease_duration_seconds, Some(8));
        }
    }

    #[test]
    fn anothers_is_taken_only_when_it_was_not_renewed_for_eight_seconds_of_ours() {
        let mut election = election("a");
        let start = Instant::now();
        let look = |election: &mut Election, version, seconds| {
            let now = start + Duration::from_secs(seconds);
            election.step("twined", Some(lease(Some("b"), version)), now)
        };
        let wait = |seconds| Step::Wait(start + Duration::from_secs(seconds));
        assert_eq!(look(&mut election, "1", 0), wait(8));
        assert_eq!(look(&mut election, "1", 7), wait(8));
        assert_eq!(look(&mut election, "2", 8), wait(16));
        assert_eq!(look(&mut election, "2", 15), wait(16));
        assert_eq!(holder(&written(look(&mut election, "2", 16))), Some("a"));
    }

    #[test]
    fn a_holder_renews_and_leads_from_before_the_call_for_less_than_others_wait() {
        let mut election = election("a");
        let now = Instant::now();
        let renewed = written(election.step("twined", Some(lease(Some("a"), "1")), now));
        assert_eq!(renewed.spec.as_ref().unwrap().lease_transitions, None);
        election.holds(&lease(Some("a"), "2"), now);
        assert_eq!(election.until, Some(now + LEADS));
        const { assert!(LEADS.as_millis() + CALL.as_millis() < RUNS_OUT.as_millis()) };

        let Step::Wait(_) = election.step("twined", Some(lease(Some("b"), "3")), now) else {
            panic!("it takes what is another's");
        };
        assert_eq!(election.until, None);
    }

    #[test]
    fn only_what_is_ours_is_given_back() {
        let election = election("a");
        assert_eq!(election.given_back(lease(Some("b"), "1")), None);
        let back = election.given_back(lease(Some("a"), "1")).unwrap();
        assert_eq!(holder(&back), None);
        assert_eq!(back.metadata.resource_version.as_deref(), Some("1"));
    }
}
