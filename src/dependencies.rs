//! What a root gives to the pipeline and the monitor.

use crate::cancellations::CancellationQueue;
use crate::pubsub::Publisher;
use crate::routing::Router;
use crate::runner::{Coordinator, Runner};
use crate::store::{EventLog, History, View};
use std::sync::Arc;
use std::time::Duration;

/// The adapters that a root has chosen, and what is used with them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dependencies {
    /// Runs questions.
    pub runner: Arc<dyn Runner>,
    /// Divides the reports and the leader's work between replicas.
    pub coordinator: Arc<dyn Coordinator>,
    /// This replica's view of recent events.
    pub view: Arc<dyn View>,
    /// Records every event.
    pub log: Arc<dyn EventLog>,
    /// Everything that was ever recorded.
    pub history: Arc<dyn History>,
    /// Finds out who answers a question.
    pub router: Arc<Router>,
    /// The cancellations that this replica has put on record.
    pub cancellations: Arc<CancellationQueue>,
    /// Publishes to the network's topic.
    pub publisher: Publisher,
    /// How long to wait for the answer of a run that ended without an error. Pub/Sub keeps the
    /// order of events only within one region, so an answer may arrive behind a fence.
    pub late_answer_timeout: Duration,
}
