//! Gives Jobs that wait for our own limits their turn. The leader's chore.
//!
//! Who runs is counted from what the API server says, so a new leader goes on where the last one
//! was, and the queue is in the cluster and survives us.

use crate::chain::Chain;
use crate::runner::kubernetes::call::CallError;
use crate::runner::kubernetes::cluster::Cluster;
use crate::runner::kubernetes::limits::{self, Limit, Limits, Place};
use crate::runner::kubernetes::settings::RunningLimits;
use crate::runner::kubernetes::table::JobBrief;
use futures_util::StreamExt;
use serde_json::json;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

/// How often it is looked for whose turn it is although nothing changed: a release may have failed.
const EVERY: Duration = Duration::from_secs(5);

/// The least time between two looks: a look goes over all that waits.
const PAUSE: Duration = Duration::from_millis(50);

/// How many times longer than the look before it a pause is: where tens of thousands wait, and
/// runs end all the time, one processor in five is all that looks take.
const REST: u32 = 4;

/// How long a new leader waits: what the last one let go a moment ago is to be seen first.
const NEWS: Duration = Duration::from_millis(500);

/// How many Jobs are released at once.
const AT_ONCE: usize = 16;

/// Releases, for ever.
pub async fn release(cluster: Arc<Cluster>) {
    let mut leads = cluster.leads.clone();
    let mut led = false;
    loop {
        tokio::select! {
            // No word for so long: time for a look all the same.
            _ = timeout(EVERY, cluster.turn.notified()) => {}
            changed = leads.changed() => if changed.is_err() {
                sleep(EVERY).await;
            },
        }
        if !std::mem::replace(&mut led, cluster.leads_now()) && led {
            sleep(NEWS).await;
        }
        let took = if cluster.leads_now() { cluster.release().await } else { Duration::ZERO };
        sleep(PAUSE.max(took * REST)).await;
    }
}

// === impl Cluster ===

impl Cluster {
    /// Whether we lead by the time that it is. A process that was paused has old news, of the
    /// Lease as of what runs.
    fn leads_now(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Gives their turn to all whose it is. Says how long the look took.
    async fn release(&self) -> Duration {
        let start = Instant::now();
        let RunningLimits { network, tree } = self.options.settings.running;
        let mut limits = Limits {
            network: network.and_then(NonZeroU32::new),
            tree: tree.and_then(NonZeroU32::new),
            ..Limits::default()
        };
        let (waiting, running) = self.table(|table| {
            let (waiting, running) = table.gated();
            for job in &waiting {
                let recipient = &job.identity.recipient;
                let service = recipient.as_sruid().service();
                if !limits.services.contains_key(service)
                    && let Some(limit) = self.options.settings.service(recipient).running
                {
                    limits
                        .services
                        .extend(NonZeroU32::new(limit).map(|it| (service.to_owned(), it)));
                }
            }
            let places = |jobs: Vec<&JobBrief>| jobs.into_iter().map(place).collect::<Vec<_>>();
            if waiting.is_empty() { Default::default() } else { (places(waiting), places(running)) }
        });
        if waiting.is_empty() {
            return start.elapsed();
        }
        let turns = limits::turns(&waiting, &running, &limits);
        self.say_why(&turns.held);
        let took = start.elapsed();
        futures_util::stream::iter(turns.release)
            .for_each_concurrent(AT_ONCE, async |place| {
                if !self.leads_now() {
                    return;
                }
                let turn = json!({ "spec": { "suspend": false } });
                match self.patch(&place.job, turn).await {
                    Ok(()) | Err(CallError::Gone(_)) => {}
                    Err(error) => {
                        let error = Chain(&error);
                        warn!(job = place.job, %error, "failed to release a Job");
                    }
                }
            })
            .await;
        self.tell();
        took
    }

    /// What the others wait for, for the logs of their askers.
    fn say_why(&self, held: &[(&Place, Limit)]) {
        let words = held.iter().map(|(place, limit)| (place.job.as_str(), limit.to_string()));
        let words = words.collect();
        self.table(|table| table.hold(&words));
    }
}

fn place(job: &JobBrief) -> Place {
    let identity = &job.identity;
    Place {
        job: job.name.clone(),
        question: identity.run.question,
        parent: identity.parent_question,
        tree: identity.originator_question,
        service: identity.recipient.as_sruid().service().to_owned(),
        launched: identity.launched,
    }
}
