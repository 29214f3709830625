//! Messages that can never be handled: they are stored unchanged, with the reason, and the parent
//! of a question gets an exception.

use crate::chain::Chain;
use crate::event::attributes as name;
use crate::event::decode::is_question;
use crate::event::{RunId, Timestamp};
use crate::notifications::{self, Refusal};
use crate::pipeline::disposition::HandleError;
use crate::pipeline::{BACKOFF, Pipeline};
use crate::pubsub::Message;
use crate::store::{AppendError, RejectedMessage};
use tracing::{error, warn};
use uuid::Uuid;

/// We were stopped before it was done.
struct Stopped;

impl Pipeline {
    /// Stores a message that can never be handled, and notifies the parent if it is a question.
    /// False if we were stopped first.
    pub(super) async fn reject(&self, message: &Message, error: &HandleError) -> bool {
        let reason = Chain(error).to_string();
        warn!(id = message.id, reason, "message rejected");
        let rejecting = async {
            self.notify_parent_of_rejection(message, &reason).await?;
            self.keep_rejected(message, &reason).await
        };
        let is_done = rejecting.await.is_ok();
        if is_done {
            self.metrics.rejected(error.label());
        }
        is_done
    }

    async fn keep_rejected(&self, message: &Message, reason: &str) -> Result<(), Stopped> {
        let rejected = RejectedMessage {
            message_id: &message.id,
            ordering_key: &message.ordering_key,
            data: &message.data,
            attributes: &message.attributes,
            reason,
            at: Timestamp::now(),
        };
        let mut backoff = BACKOFF;
        loop {
            match self.dependencies.log.reject(&rejected).await {
                Ok(()) => return Ok(()),
                Err(AppendError::Refused { reason, .. }) => {
                    // It cannot be stored anywhere else. It is acked, and only this line is left.
                    error!(id = message.id, reason, "event store refused a rejected message");
                    return Ok(());
                }
                Err(error @ AppendError::Unavailable(_)) => {
                    warn!(error = %Chain(&error), "failed to record a rejected message");
                }
            }
            if !self.pause(&mut backoff).await {
                return Err(Stopped);
            }
        }
    }

    /// Publishes an exception where the message is a question that names its parent.
    async fn notify_parent_of_rejection(
        &self,
        message: &Message,
        reason: &str,
    ) -> Result<(), Stopped> {
        let attribute = |name: &str| message.attributes.get(name).map(String::as_str);
        if attribute(name::SENDER_TYPE) != Some("PARENT") || !is_question(&message.data) {
            return Ok(());
        }
        let question = attribute(name::QUESTION_UUID).unwrap_or_default();
        let retry = attribute(name::RETRY_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0);
        // An invalid message must not end a valid question that has the same uuid.
        if let Ok(question) = question.parse()
            && self.is_on_record(RunId { question, retry }).await?
        {
            return Ok(());
        }
        let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, question.as_bytes());
        let run = RunId { question: uuid, retry };
        let refusal = Refusal::InvalidEvent { reason: reason.to_owned() };
        let at = message.published.unwrap_or(Timestamp(0));
        let exception = notifications::refusal(run, &message.attributes, at, &refusal);
        let Some(exception) = exception else { return Ok(()) };
        let publisher = &self.dependencies.publisher;
        let is_published = publisher.publish_until(exception.message, &self.stop).await;
        match is_published || !self.stop.is_cancelled() {
            true => Ok(()),
            false => Err(Stopped),
        }
    }

    async fn is_on_record(&self, run: RunId) -> Result<bool, Stopped> {
        let mut backoff = BACKOFF;
        loop {
            match self.dependencies.view.run_record(run).await {
                Ok(record) => return Ok(record.question),
                Err(error) => {
                    warn!(question = %run.question, error = %Chain(&error), "failed to read the view")
                }
            }
            if !self.pause(&mut backoff).await {
                return Err(Stopped);
            }
        }
    }
}
