//! Questions that a service outside the network answers, by a subscription of its own: we only
//! keep the events. But a service that was killed leaves its subscription, which never expires.

use crate::event::{RunId, Timestamp};
use crate::monitor::report::{self, Refusal};
use crate::pipeline::Pipeline;
use crate::pubsub::Message;
use crate::store::View;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// For how long such a service may say nothing. The SDK acknowledges a question as soon as it
/// has it; its parent gives up after 360 s.
const SILENCE: Duration = Duration::from_secs(300);

impl Pipeline {
    /// Looks, later, whether the one who should answer has said that he has the question; where
    /// he has not, tells the asker how to remove what he left behind.
    pub(super) async fn look_outside(&self, run: RunId, message: &Message, subscription: String) {
        info!(%run, subscription, "left to a service that runs outside");
        let view = Arc::clone(&self.parts.view);
        let publisher = self.parts.publisher.clone();
        let stop = self.stop.clone();
        let attributes = message.attributes.clone();
        let mut looks = self.outside.lock().await;
        while looks.try_join_next().is_some() {}
        looks.spawn(async move {
            tokio::time::sleep(SILENCE).await;
            if is_answered(&*view, run).await {
                return;
            }
            warn!(%run, subscription, "nothing came from the service that runs outside");
            let refusal = Refusal::StaleSubscription { subscription, seconds: SILENCE.as_secs() };
            if let Some(report) = report::refused(run, &attributes, Timestamp::now(), &refusal) {
                publisher.publish_until(report.message, &stop).await;
            }
        });
    }
}

/// True where it cannot be seen: an exception would be a claim.
async fn is_answered(view: &dyn View, run: RunId) -> bool {
    match view.record(run).await {
        Ok(record) => record.acknowledged || record.terminal,
        Err(_) => true,
    }
}
