//! What the pipeline and the monitor are given by the root that starts them.

use crate::pubsub::{Admin, Publisher};
use crate::registry::ServiceRegistry;
use crate::runner::{Coordinator, Runner};
use crate::store::{EventStore, View};
use std::sync::Arc;
use std::time::Duration;

/// The adapters that a root has chosen, and what they need to be used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dependencies {
    /// Runs questions.
    pub runner: Arc<dyn Runner>,
    /// Divides the reports and the leader's work between replicas.
    pub coordinator: Arc<dyn Coordinator>,
    /// Recent events of the questions that run here.
    pub view: Arc<dyn View>,
    /// Keeps every event.
    pub store: Arc<dyn EventStore>,
    /// Knows which revisions exist.
    pub registry: Arc<dyn ServiceRegistry>,
    /// Knows which subscriptions exist.
    pub admin: Admin,
    /// Publishes to the network's topic.
    pub publisher: Publisher,
    /// Whether a subscription that is named like a service of ours wins over it: then somebody
    /// started that service by hand, and its questions are not ours.
    pub subscriptions_first: bool,
    /// For how long an answer may be late, after the end of a run that ended without an error.
    /// Pub/Sub keeps the order of events only of one region, so an answer may arrive behind a fence.
    pub late_answers: Duration,
}
