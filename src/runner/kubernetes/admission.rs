//! Admits Jobs that wait for our own limits. Only the leader does.
//!
//! The running Jobs are counted from what the API server shows, and the queue consists of suspended
//! Jobs in the cluster: a new leader goes on where the last one stopped.

mod limits;

use crate::chain::Chain;
use crate::runner::kubernetes::api::ApiError;
use crate::runner::kubernetes::election::Leadership;
use crate::runner::kubernetes::job_writer::JobWriter;
use crate::runner::kubernetes::observed::ObservedJob;
use crate::runner::kubernetes::settings::{NetworkSettings, RunningLimits};
use crate::runner::kubernetes::state::{ClusterState, GatedJobs};
use futures_util::StreamExt;
use limits::{Decision, GatedJob, HeldJob, Limits};
use serde_json::json;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

/// How often a pass is made although nothing changed: an earlier admission may have failed.
const INTERVAL: Duration = Duration::from_secs(5);

/// The least pause between two passes: a pass goes over all Jobs that wait.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// The pause after a pass, as a multiple of its duration. So passes take at most a fifth of one
/// processor, also with tens of thousands of Jobs that wait and runs that end all the time.
const PAUSE_FACTOR: u32 = 4;

/// How long a new leader waits before its first pass: its watch must first show what the last
/// leader admitted.
const HANDOVER: Duration = Duration::from_millis(500);

/// How many Jobs are admitted at once.
const MAX_CONCURRENT_ADMISSIONS: usize = 16;

/// Admits Jobs while this replica leads.
#[derive(Debug)]
pub(super) struct Admission {
    // Dependencies.
    jobs: JobWriter,
    state: Arc<ClusterState>,
    leadership: Leadership,
    // Configuration.
    settings: Arc<NetworkSettings>,
}

// === impl Admission ===

impl Admission {
    pub(super) fn new(
        jobs: JobWriter,
        state: Arc<ClusterState>,
        leadership: Leadership,
        settings: Arc<NetworkSettings>,
    ) -> Self {
        Self { jobs, state, leadership, settings }
    }

    /// Admits for ever.
    pub(super) async fn run(mut self) {
        let mut was_leading = false;
        loop {
            tokio::select! {
                _ = timeout(INTERVAL, self.state.wait_for_change()) => {}
                () = self.leadership.changed() => {}
            }
            let is_leading = self.leadership.is_leading_now();
            if !std::mem::replace(&mut was_leading, is_leading) && is_leading {
                sleep(HANDOVER).await;
            }
            let duration =
                if self.leadership.is_leading_now() { self.pass().await } else { Duration::ZERO };
            sleep(MIN_PAUSE.max(duration * PAUSE_FACTOR)).await;
        }
    }

    /// Admits the Jobs that the limits allow. Returns how long the decision took.
    async fn pass(&self) -> Duration {
        let start = Instant::now();
        let (waiting, running, limits) = self.read();
        if waiting.is_empty() {
            return start.elapsed();
        }
        let decision = limits::decide(&waiting, &running, &limits);
        self.record_holding_limits(&decision);
        let duration = start.elapsed();
        futures_util::stream::iter(decision.admitted)
            .for_each_concurrent(MAX_CONCURRENT_ADMISSIONS, |job| self.admit(job))
            .await;
        self.state.notify_listeners();
        duration
    }

    /// The Jobs that wait, those that run, and the limits. All are empty if no Job waits.
    fn read(&self) -> (Vec<GatedJob>, Vec<GatedJob>, Limits) {
        let RunningLimits { network, tree } = self.settings.running;
        let mut limits = Limits {
            network: network.and_then(NonZeroU32::new),
            tree: tree.and_then(NonZeroU32::new),
            ..Limits::default()
        };
        self.state.table(|table| {
            let GatedJobs { waiting, running } = table.gated();
            if waiting.is_empty() {
                return (Vec::new(), Vec::new(), limits);
            }
            for job in &waiting {
                let recipient = &job.identity.recipient;
                let service = recipient.as_sruid().service();
                if !limits.services.contains_key(service)
                    && let Some(limit) = self.settings.service(recipient).running
                    && let Some(limit) = NonZeroU32::new(limit)
                {
                    limits.services.insert(service.to_owned(), limit);
                }
            }
            let gated = |jobs: Vec<&ObservedJob>| jobs.into_iter().map(gated_job).collect();
            (gated(waiting), gated(running), limits)
        })
    }

    async fn admit(&self, job: &GatedJob) {
        if !self.leadership.is_leading_now() {
            return;
        }
        let patch = json!({ "spec": { "suspend": false } });
        match self.jobs.patch(&job.job, &patch).await {
            Ok(()) | Err(ApiError::NotFound(_)) => {}
            Err(error) => {
                let error = Chain(&error);
                warn!(
                    question = %job.question, service = job.service,
                    job = job.job, %error, "failed to admit a Job"
                );
            }
        }
    }

    /// Writes to the table which limit holds each of the other Jobs, for the logs of their parents.
    fn record_holding_limits(&self, decision: &Decision<'_>) {
        let reasons = decision
            .held
            .iter()
            .map(|HeldJob { job, limit }| (job.job.as_str(), limit.to_string()))
            .collect();
        self.state.table(|table| table.set_holding_limits(&reasons));
    }
}

fn gated_job(job: &ObservedJob) -> GatedJob {
    let identity = &job.identity;
    GatedJob {
        job: job.name.clone(),
        question: identity.run.question,
        parent: identity.parent_question,
        tree: identity.originator_question,
        service: identity.recipient.as_sruid().service().to_owned(),
        launched: identity.launched,
    }
}
