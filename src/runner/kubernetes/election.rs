//! Leader election: which of the replicas does the work that one must do.
//!
//! One replica at a time holds the Lease of a name:
//!
//! ```text
//! no holder, or not renewed for 8 s  ->  take   (a patch over the version that was read)
//! ours                               ->  renew  every 2 s; step down 6 s after the last success
//! another replica's                  ->  read again in 2 s, or when it expires
//! ```
//!
//! *One leader at a time.* A holder steps down by its own clock, counted from before the call that
//! renewed. Another replica takes over 8 s after it first saw that renewal, by its own clock. So
//! clocks may differ by years, and only their rates count; the times in the Lease are for people.
//! Each write is over the version that was read, so of two replicas that take the Lease at once,
//! one gets it.
//!
//! *A quick handover.* A holder that is killed or paused is replaced 10 s after its last renewal at
//! most. A holder that stops releases the Lease, and is replaced at the next read of another. A
//! holder that was paused believes for some milliseconds after it wakes that it leads: the work of
//! the leader must tolerate two leaders, or check [`Leadership::is_leading_now`].
//!
//! Why not `kube-lease-manager`: its holder goes on leading when it cannot renew. It waits for up
//! to 30 s after an error, trusts the clocks of all hosts, and takes over without checking the
//! version of the Lease.

use crate::chain::Chain;
use crate::runner::kubernetes::api::{ApiClient, ApiError};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff;
use kube::api::ObjectMeta;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How long other replicas wait for a holder that does not renew. A lost Lease may delay admissions
/// by 15 s, also on overloaded machines.
const EXPIRES_AFTER: Duration = Duration::from_secs(8);

/// How long a holder leads after its last renewal. The rest of [`EXPIRES_AFTER`] is for the work
/// that it has started, and for clocks that run at other rates.
const LEADS_FOR: Duration = Duration::from_secs(6);

/// How often a holder renews, and others read: three tries before the holder must step down.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long each of the two calls of a round may take: a holder whose call gets no answer must have
/// time for another.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a replica that ends tries to release the Lease. This must be less than the drain
/// timeout of the daemon's tasks, which is 3 s by default in `serve`.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes part in the election for one replica.
#[derive(Debug)]
pub(super) struct LeaderElection {
    // Dependencies.
    api: ApiClient,
    // Configuration.
    lease_name: String,
    // State.
    candidate: Candidate,
    leads: watch::Sender<bool>,
    until: watch::Sender<Option<Instant>>,
    /// The last error in the log: a repeated one is not logged.
    logged_error: Option<String>,
}

/// Whether this replica leads. Clones follow the same election.
#[derive(Clone, Debug)]
pub(super) struct Leadership {
    leads: watch::Receiver<bool>,
    until: watch::Receiver<Option<Instant>>,
}

/// What one replica knows of the Lease. No I/O.
#[derive(Debug)]
struct Candidate {
    identity: String,
    seen: Option<SeenVersion>,
    /// Until when it leads, if it does.
    until: Option<Instant>,
}

/// The version of the Lease that was read last.
#[derive(Debug)]
struct SeenVersion {
    version: String,
    since: Instant,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write this, and lead if that succeeds.
    Write(Box<Lease>),
    /// It is another replica's: read it again then.
    Wait(Instant),
}

// === impl Leadership ===

impl Leadership {
    /// Whether this replica leads, as far as the election task has noticed.
    pub(super) fn is_leading(&self) -> bool {
        *self.leads.borrow()
    }

    /// Whether this replica leads by the clock. A process that was paused has outdated news of the
    /// Lease, and of everything else.
    pub(super) fn is_leading_now(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until [`Self::is_leading`] changes; for ever if the election has ended.
    pub(super) async fn changed(&mut self) {
        if self.leads.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Follows [`Self::is_leading`].
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }
}

// === impl LeaderElection ===

impl LeaderElection {
    /// An election for the Lease of this name. `identity` must be this replica's alone (the name of
    /// its pod).
    pub(super) fn new(api: ApiClient, lease_name: &str, identity: &str) -> (Self, Leadership) {
        let (leads, leads_receiver) = watch::channel(false);
        let (until, until_receiver) = watch::channel(None);
        let election = Self {
            api,
            lease_name: lease_name.to_owned(),
            candidate: Candidate { identity: identity.to_owned(), seen: None, until: None },
            leads,
            until,
            logged_error: None,
        };
        (election, Leadership { leads: leads_receiver, until: until_receiver })
    }

    /// Takes the Lease whenever it is free, until `stop`; then releases it.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                next = self.round() => next,
                () = stop.cancelled() => break,
            };
            let next = self.candidate.until.map_or(next, |until| next.min(until));
            tokio::select! {
                () = sleep_until(next) => self.publish(),
                () = stop.cancelled() => break,
            }
        }
        let led = self.candidate.until.take().is_some();
        self.publish();
        if led {
            self.release().await;
        }
    }

    /// Reads the Lease, and writes it if it should. Returns when to read again. It takes no longer
    /// than the leadership lasts: a call without an answer must not hide that it ended.
    async fn round(&mut self) -> Instant {
        let start = Instant::now();
        let latest = start + CALL_TIMEOUT + CALL_TIMEOUT;
        let end = self.candidate.until.map_or(latest, |until| until.min(latest));
        let result = match timeout_at(end, self.step(start)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Unavailable("no answer in time".to_owned())),
        };
        self.publish();
        match result {
            Ok(next) => {
                self.logged_error = None;
                next
            }
            // Another replica was faster and holds the Lease: it expires counted from our next
            // read.
            Err(ApiError::AlreadyExists(_) | ApiError::Conflict(_)) => start + INTERVAL,
            Err(error) => {
                self.log_error(&error);
                // Never at once: that would burden an API server that is down.
                Instant::now().max(start + INTERVAL)
            }
        }
    }

    async fn step(&mut self, start: Instant) -> Result<Instant, ApiError> {
        let lease = self.api.get_lease(&self.lease_name).await?;
        let write = match self.candidate.step(&self.lease_name, lease, Instant::now()) {
            Step::Wait(until) => return Ok(until.min(start + INTERVAL)),
            Step::Write(lease) => lease,
        };
        // Our leadership counts from before the call: others see the renewal later than that.
        let before_write = Instant::now();
        let written = self.write(&write).await?;
        self.candidate.wrote(&written, before_write);
        Ok(start + INTERVAL)
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, ApiError> {
        if lease.metadata.resource_version.is_none() {
            return self.api.create_lease(lease).await;
        }
        // The version in the patch makes it a conflict if the Lease changed since it was read.
        self.api.patch_lease(&self.lease_name, lease).await
    }

    /// Publishes a change of the leadership.
    fn publish(&mut self) {
        if self.candidate.until.is_some_and(|until| Instant::now() >= until) {
            self.candidate.until = None;
        }
        self.until.send_replace(self.candidate.until);
        let leads = self.candidate.until.is_some();
        let changed =
            self.leads.send_if_modified(|published| std::mem::replace(published, leads) != leads);
        if changed {
            let identity = &self.candidate.identity;
            info!(lease = self.lease_name, identity, leads, "leadership changed");
        }
    }

    /// Releases the Lease, so that another replica leads at once. If it fails, the Lease expires.
    async fn release(&mut self) {
        let until = Instant::now() + RELEASE_TIMEOUT;
        let released = timeout_at(until, async {
            let Some(lease) = self.api.get_lease(&self.lease_name).await? else { return Ok(()) };
            match self.candidate.released(lease) {
                Some(lease) => self.write(&lease).await.map(drop),
                None => Ok(()),
            }
        });
        let lease = &self.lease_name;
        match released.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(lease, error = %Chain(&error), "failed to release the Lease"),
            Err(_) => debug!(lease, "failed to release the Lease in time"),
        }
    }

    fn log_error(&mut self, error: &ApiError) {
        let text = error.to_string();
        if self.logged_error.as_ref() == Some(&text) {
            return;
        }
        let (lease, namespace) = (&self.lease_name, self.api.namespace());
        if matches!(error, ApiError::Forbidden(_)) {
            warn!(
                lease, namespace, error = %Chain(error),
                "no rights on the Lease: no replica can lead, so Jobs that wait for our own limits are \
                 not admitted; grant the daemon's service account `get`, `create` and `patch` on \
                 `leases` (group `coordination.k8s.io`) in this namespace"
            );
        } else {
            warn!(lease, namespace, error = %Chain(error), "failed to take or renew the Lease");
        }
        self.logged_error = Some(text);
    }
}

// === impl Candidate ===

impl Candidate {
    /// What to do about the Lease that was just read.
    fn step(&mut self, name: &str, lease: Option<Lease>, now: Instant) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            return self.write(Lease { metadata, spec: None }, true);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some(seen) if seen.version == version => seen.since,
            Some(_) | None => {
                self.seen = Some(SeenVersion { version, since: now });
                now
            }
        };
        match holder(&lease) {
            Some(holder) if holder == self.identity => self.write(lease, false),
            None => self.write(lease, true),
            Some(_) if now >= since + EXPIRES_AFTER => self.write(lease, true),
            Some(_) => {
                // If we led by our clock, a person changed the Lease.
                self.until = None;
                Step::Wait(since + EXPIRES_AFTER)
            }
        }
    }

    fn write(&self, lease: Lease, taken: bool) -> Step {
        let now = MicroTime(jiff::Timestamp::now());
        let Lease { metadata, spec } = lease;
        let before = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(EXPIRES_AFTER.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: taken.then_some(now),
            lease_transitions: taken.then(|| before.saturating_add(1)),
            ..LeaseSpec::default()
        };
        Step::Write(Box::new(patch(metadata, spec)))
    }

    /// A write succeeded that began at `before_write`.
    fn wrote(&mut self, written: &Lease, before_write: Instant) {
        let version = written.metadata.resource_version.clone().unwrap_or_default();
        self.seen = Some(SeenVersion { version, since: before_write });
        self.until = Some(before_write + LEADS_FOR);
    }

    /// The Lease without a holder, if it is ours.
    fn released(&self, lease: Lease) -> Option<Lease> {
        if holder(&lease) != Some(&self.identity) {
            return None;
        }
        let holder_identity = Some(String::new());
        Some(patch(lease.metadata, LeaseSpec { holder_identity, ..LeaseSpec::default() }))
    }
}

/// A patch of a Lease, over the version that was read. Fields that are left out stay.
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

    fn candidate(identity: &str) -> Candidate {
        Candidate { identity: identity.to_owned(), seen: None, until: None }
    }

    fn lease(holder: Option<&str>, version: &str) -> Lease {
        let metadata =
            ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        let holder_identity = holder.map(str::to_owned);
        // A clock that is years ahead: no replica reads it.
        let renew_time = Some(MicroTime("2099-01-01T00:00:00Z".parse().unwrap()));
        let spec = LeaseSpec { holder_identity, renew_time, ..LeaseSpec::default() };
        Lease { metadata, spec: Some(spec) }
    }

    #[track_caller]
    fn written(step: Step) -> Lease {
        match step {
            Step::Write(lease) => *lease,
            Step::Wait(_) => panic!("no write"),
        }
    }

    #[test]
    fn a_lease_that_does_not_exist_or_has_no_holder_is_taken() {
        let mut candidate = candidate("a");
        let now = Instant::now();
        let made = written(candidate.step("twined", None, now));
        assert_eq!(made.metadata.name.as_deref(), Some("twined"));
        assert_eq!(made.metadata.resource_version, None);
        for nobody in [None, Some("")] {
            let taken = written(candidate.step("twined", Some(lease(nobody, "7")), now));
            assert_eq!(holder(&taken), Some("a"));
            assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
            let spec = taken.spec.unwrap();
            assert_eq!(spec.lease_transitions, Some(1));
            assert_eq!(spec.lease_duration_seconds, Some(8));
        }
    }

    #[test]
    fn the_lease_of_another_replica_is_taken_after_eight_seconds_without_a_renewal() {
        let mut candidate = candidate("a");
        let start = Instant::now();
        let read = |candidate: &mut Candidate, version, seconds| {
            let now = start + Duration::from_secs(seconds);
            candidate.step("twined", Some(lease(Some("b"), version)), now)
        };
        let wait = |seconds| Step::Wait(start + Duration::from_secs(seconds));
        assert_eq!(read(&mut candidate, "1", 0), wait(8));
        assert_eq!(read(&mut candidate, "1", 7), wait(8));
        assert_eq!(read(&mut candidate, "2", 8), wait(16));
        assert_eq!(read(&mut candidate, "2", 15), wait(16));
        assert_eq!(holder(&written(read(&mut candidate, "2", 16))), Some("a"));
    }

    #[test]
    fn a_holder_leads_from_before_its_renewal_for_less_time_than_others_wait() {
        let mut candidate = candidate("a");
        let now = Instant::now();
        let renewed = written(candidate.step("twined", Some(lease(Some("a"), "1")), now));
        assert_eq!(renewed.spec.as_ref().unwrap().lease_transitions, None);
        candidate.wrote(&lease(Some("a"), "2"), now);
        assert_eq!(candidate.until, Some(now + LEADS_FOR));
        const { assert!(LEADS_FOR.as_millis() + CALL_TIMEOUT.as_millis() < EXPIRES_AFTER.as_millis()) };

        let Step::Wait(_) = candidate.step("twined", Some(lease(Some("b"), "3")), now) else {
            panic!("it takes the Lease of another replica");
        };
        assert_eq!(candidate.until, None);
    }

    #[test]
    fn only_our_own_lease_is_released() {
        let candidate = candidate("a");
        assert_eq!(candidate.released(lease(Some("b"), "1")), None);
        let back = candidate.released(lease(Some("a"), "1")).unwrap();
        assert_eq!(holder(&back), None);
        assert_eq!(back.metadata.resource_version.as_deref(), Some("1"));
    }
}
