//! Who answers a question: a run of ours or an external service.
//!
//! An external service is one that a person started with `octue twined service start`. It has a
//! subscription of its own, which has the name of the revision.

mod external;
use crate::event::Sruid;
use crate::pubsub::{Admin, CallError};
use crate::registry::{RegistryError, ServiceRegistry};
pub(crate) use external::ExternalServices;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// For how long the absence of a subscription is remembered, so that only the first question of a
/// burst looks it up: Pub/Sub allows a project 100 of these calls a second
/// (<https://cloud.google.com/pubsub/quotas>). The presence of one is not remembered, because its
/// service may delete it at any moment.
const ABSENCE_REMEMBERED: Duration = Duration::from_secs(2);

/// Decides who answers a question.
#[derive(Debug)]
pub struct Router {
    registry: Arc<dyn ServiceRegistry>,
    admin: Admin,
    external_services_win: bool,
    absent: AbsentSubscriptions,
}

/// Who answers a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// A run of ours.
    Runner,
    /// An external service, which receives the question by the subscription of this name.
    External(String),
    /// No service. These revisions of the service exist.
    Nobody(Vec<String>),
}

/// Why the router could not determine who answers. Try again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoutingError {
    /// The registry could not be reached.
    #[error("failed to look up the service revision")]
    Registry(#[source] RegistryError),
    /// Pub/Sub did not answer whether there is a subscription.
    #[error("failed to look up the subscription of an external service")]
    Subscription(#[source] CallError),
}

/// The subscriptions that did not exist a moment ago.
#[derive(Debug, Default)]
struct AbsentSubscriptions {
    lookups: Mutex<HashMap<String, Arc<Lookup>>>,
}

/// One lookup of a subscription.
#[derive(Debug)]
struct Lookup {
    since: Instant,
    absent: OnceCell<()>,
}

// === impl Router ===

impl Router {
    /// A router that knows the revisions of `registry`. `external_services_win` makes an external
    /// service win over a service of ours that has the same name.
    pub fn new(
        registry: Arc<dyn ServiceRegistry>,
        admin: Admin,
        external_services_win: bool,
    ) -> Self {
        Self { registry, admin, external_services_win, absent: AbsentSubscriptions::default() }
    }

    /// Who answers a question to this revision.
    pub(crate) async fn answerer(&self, recipient: Sruid<'_>) -> Result<Answerer, RoutingError> {
        let subscription = recipient.subscription();
        if self.has_revision(recipient).await? {
            return Ok(match self.is_external(&subscription).await? {
                true => Answerer::External(subscription),
                false => Answerer::Runner,
            });
        }
        // Not from the cache, because the parent gets an exception if there is no subscription.
        let exists = self.admin.has_subscription(&subscription).await;
        if exists.map_err(RoutingError::Subscription)? {
            return Ok(Answerer::External(subscription));
        }
        let revisions = self.registry.tags(recipient.service()).await;
        let name = |tag: &String| format!("{}:{tag}", recipient.service());
        Ok(Answerer::Nobody(revisions.map_err(RoutingError::Registry)?.iter().map(name).collect()))
    }

    /// Whether a run of ours answers questions to this revision.
    pub(crate) async fn is_ours(&self, recipient: Sruid<'_>) -> Result<bool, RoutingError> {
        Ok(self.has_revision(recipient).await?
            && !self.is_external(&recipient.subscription()).await?)
    }

    async fn has_revision(&self, revision: Sruid<'_>) -> Result<bool, RoutingError> {
        self.registry.has(revision).await.map_err(RoutingError::Registry)
    }

    /// Whether an external service wins over the service of ours that has the same name.
    async fn is_external(&self, subscription: &str) -> Result<bool, RoutingError> {
        if !self.external_services_win {
            return Ok(false);
        }
        let look_up = || self.admin.has_subscription(subscription);
        self.absent.exists(subscription, look_up).await.map_err(RoutingError::Subscription)
    }
}

// === impl AbsentSubscriptions ===

impl AbsentSubscriptions {
    /// Whether a subscription exists: false if a lookup of the last 2 s found none, else the result
    /// of `look_up`. Callers share a lookup that is under way, but do not wait for it longer than 2
    /// s: it may fail, and so may the next one.
    async fn exists<E, F>(&self, name: &str, look_up: impl Fn() -> F) -> Result<bool, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        let lookup = self.lookup(name);
        let absent = lookup.absent.get_or_try_init(async || match look_up().await {
            Ok(false) => Ok(()),
            found => Err(found),
        });
        match tokio::time::timeout(ABSENCE_REMEMBERED, absent).await {
            Ok(Ok(())) => Ok(false),
            Ok(Err(found)) => found,
            Err(_) => look_up().await,
        }
    }

    /// The lookup of the last 2 s, or a new one.
    fn lookup(&self, name: &str) -> Arc<Lookup> {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if !lookups.get(name).is_some_and(|lookup| lookup.is_recent()) {
            lookups.retain(|_, lookup| lookup.is_recent());
            let lookup = Lookup { since: Instant::now(), absent: OnceCell::new() };
            lookups.insert(name.to_owned(), Arc::new(lookup));
        }
        Arc::clone(&lookups[name])
    }
}

// === impl Lookup ===

impl Lookup {
    fn is_recent(&self) -> bool {
        self.since.elapsed() < ABSENCE_REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_a_lookup_and_only_an_absence_is_remembered() {
        let (absent, lookups) = (AbsentSubscriptions::default(), Cell::new(0));
        let exists = async |name: &str, found: Result<bool, ()>| {
            let look_up = async || {
                lookups.set(lookups.get() + 1);
                tokio::time::sleep(Duration::from_millis(100)).await;
                found
            };
            absent.exists(name, look_up).await
        };

        let both = tokio::join!(exists("one", Ok(false)), exists("one", Ok(true)));
        assert_eq!((both, lookups.get()), ((Ok(false), Ok(false)), 1));
        assert_eq!((exists("two", Ok(true)).await, lookups.get()), (Ok(true), 2), "another name");
        let deleted = exists("two", Ok(false)).await;
        assert_eq!((deleted, lookups.get()), (Ok(false), 3), "presence is not remembered");

        tokio::time::advance(ABSENCE_REMEMBERED).await;
        assert_eq!((exists("one", Err(())).await, lookups.get()), (Err(()), 4), "absence expires");
        assert_eq!((exists("one", Ok(true)).await, lookups.get()), (Ok(true), 5), "so do errors");
    }
}
