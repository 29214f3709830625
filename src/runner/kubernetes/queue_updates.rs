//! Writes to the state what Kueue reports of the Jobs that wait in its queues.

use crate::runner::kubernetes::kueue::Kueue;
use crate::runner::kubernetes::state::ClusterState;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// How often the positions of all queued Jobs are read, for the logs of their parents.
const POSITION_INTERVAL: Duration = Duration::from_secs(30);

/// Follows Kueue, for ever.
pub(super) async fn follow_queues(kueue: Kueue, state: Arc<ClusterState>) {
    loop {
        let queued = match timeout(POSITION_INTERVAL, kueue.changed()).await {
            Ok(changed) => {
                let uids = changed.iter().filter_map(|uid| uid.parse().ok());
                let queued = |uid| Some((uid, state.table(|table| table.queue_of(uid))?));
                uids.filter_map(queued).collect()
            }
            // Positions change without a notification.
            Err(_) => state.table(|table| table.queued()),
        };
        update(&kueue, &state, queued);
        state.notify_listeners();
    }
}

/// Reads the status of Jobs, each with its queue.
fn update(kueue: &Kueue, state: &ClusterState, queued: Vec<(Uuid, String)>) {
    let statuses: Vec<_> = queued
        .into_iter()
        .map(|(uid, queue)| (uid, kueue.queue_status(&uid.to_string(), &queue)))
        .collect();
    state.table(|table| {
        for (uid, status) in statuses {
            table.set_queue_status(uid, &status.why, status.refusal);
        }
    });
}
