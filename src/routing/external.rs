//! Questions that an external service answers. We only record their events.
//!
//! A service that is killed leaves its subscription behind, which never expires. The parents of its
//! questions would wait in vain, so they get an exception if no acknowledgement comes.

use crate::event::{RunId, Timestamp};
use crate::notifications::{self, QuestionAttributes, Refusal};
use crate::pubsub::Publisher;
use crate::store::View;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long an external service may take to acknowledge a question. The SDK does so as soon as it
/// receives one. A parent gives up after 360 s.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Waits for acknowledgements of the questions that are left to external services.
#[derive(Debug)]
pub(crate) struct ExternalServices {
    view: Arc<dyn View>,
    publisher: Publisher,
    waiting: Mutex<JoinSet<()>>,
    stop: CancellationToken,
}

// === impl ExternalServices ===

impl ExternalServices {
    /// Works until `stop`.
    pub(crate) fn new(view: Arc<dyn View>, publisher: Publisher, stop: CancellationToken) -> Self {
        Self { view, publisher, waiting: Mutex::default(), stop }
    }

    /// Waits, in the background, for an acknowledgement of a question. Where none comes in time,
    /// the parent gets an exception that explains how to delete the subscription.
    pub(crate) async fn expect_acknowledgement(
        &self,
        run: RunId,
        question: &QuestionAttributes,
        subscription: String,
    ) {
        // The first sign for operators that a subscription was left behind.
        warn!(question = %run.question, subscription, "question left to an external service");
        let (view, publisher) = (Arc::clone(&self.view), self.publisher.clone());
        let (question, stop) = (question.clone(), self.stop.clone());
        let mut waiting = self.waiting.lock().await;
        while waiting.try_join_next().is_some() {}
        waiting.spawn(async move {
            tokio::time::sleep(ACKNOWLEDGEMENT_TIMEOUT).await;
            if is_acknowledged(&*view, run).await {
                return;
            }
            let silent = run.question;
            warn!(question = %silent, subscription, "external service did not acknowledge its question");
            let seconds = ACKNOWLEDGEMENT_TIMEOUT.as_secs();
            let refusal = Refusal::StaleSubscription { subscription, seconds };
            let at = Timestamp::now();
            if let Some(exception) = notifications::refusal(run, &question, at, &refusal) {
                publisher.publish_until(exception.message, &stop).await;
            }
        });
    }

    /// Ends all waiting.
    pub(crate) async fn shutdown(&self) {
        self.waiting.lock().await.shutdown().await;
    }
}

/// True also if the view cannot be read: an exception must not be published on a guess.
async fn is_acknowledged(view: &dyn View, run: RunId) -> bool {
    match view.run_record(run).await {
        Ok(record) => record.acknowledged || record.terminal,
        Err(_) => true,
    }
}
