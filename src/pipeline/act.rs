//! Acts on an event that is on record. A launch that fails because the runner, the registry or
//! Pub/Sub is unavailable is retried for up to [`GIVE_UP_AFTER`].
//!
//! A question that was cancelled before its launch is refused where the view already has the
//! cancellation. Where it does not, the question is launched, and the monitor ends its run.

use crate::cancellations::Cancellation;
use crate::chain::Chain;
use crate::event::{Event, Inputs, RunId, Timestamp};
use crate::notifications::{self, GIVE_UP_AFTER, HEARTBEAT_INTERVAL, Refusal, RunAttempt};
use crate::pipeline::action::Action;
use crate::pipeline::disposition::{Disposition, HandleError};
use crate::pipeline::{BACKOFF, Pipeline};
use crate::pubsub::Message;
use crate::routing::Answerer;
use crate::runner::{LaunchRequest, RunnerError};
use crate::store::{ReadError, RunRecord};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{Instrument, debug, error, info, info_span, warn};

/// For how long after its publication a question counts as delivered for the first time: the
/// shortest time after which Pub/Sub redelivers a message of a replica that died.
const FIRST_DELIVERY: Duration = Duration::from_secs(10);

/// A question whose launch is under way, or is being retried.
struct Question<'a> {
    run: RunId,
    event: &'a Event<'a>,
    inputs: Inputs<'a>,
    message: &'a Message,
}

/// What is remembered while a launch is retried.
struct Retries {
    since: Instant,
    /// Since when the runner, the registry or Pub/Sub has been unavailable without a break.
    unavailable_since: Option<Instant>,
    /// The number of the last heartbeat interval for which the parent got a heartbeat.
    heartbeats: i64,
}

// === impl Pipeline ===

impl Pipeline {
    /// Acts on an event, with as many tries as it takes. An error is final, unless we were stopped.
    pub(super) async fn act_until_done(
        &self,
        event: &Event<'_>,
        message: &Message,
    ) -> Result<(), HandleError> {
        let start = Instant::now();
        let outcome = match Action::for_event(event) {
            Action::Launch(run, inputs) => {
                let service = event.attributes.recipient.as_str();
                let span =
                    info_span!("launch", question = %run.question, retry = run.retry, service);
                let question = Question { run, event, inputs, message };
                self.launch_until_done(&question).instrument(span).await
            }
            Action::Cancel => {
                // The monitor compares it with the live runs, and ends those that it cancels.
                let attributes = &event.attributes;
                let (question, sender) =
                    (attributes.question_uuid, attributes.sender.as_str().to_owned());
                self.dependencies.cancellations.push(Cancellation { question, sender });
                Ok(())
            }
            Action::None => Ok(()),
        };
        if Disposition::from_outcome(&outcome) != Disposition::Retry {
            self.metrics.act.record(start.elapsed());
            if let Some(published) = message.published {
                let age = Timestamp::now().seconds_since(published);
                self.metrics.age(event.kind.label(), age);
            }
        }
        outcome
    }

    async fn launch_until_done(&self, question: &Question<'_>) -> Result<(), HandleError> {
        let mut retries = Retries::new();
        let mut backoff = BACKOFF;
        loop {
            let mut outcome = self.launch(question).await;
            if let Err(error) = &outcome
                && retries.is_over(error)
            {
                outcome = self.give_up(question, error).await;
            }
            if Disposition::from_outcome(&outcome) != Disposition::Retry {
                return outcome;
            }
            if let Err(error) = &outcome {
                let question = question.run.question;
                warn!(%question, error = %Chain(error), "failed to act on event");
            }
            self.publish_retry_heartbeat(question, &mut retries).await;
            if !self.pause(&mut backoff).await {
                return outcome;
            }
        }
    }

    async fn launch(&self, question: &Question<'_>) -> Result<(), HandleError> {
        let Question { run, event, inputs, message } = *question;
        let record = self.launch_record(question).await.map_err(HandleError::View)?;
        if record.terminal {
            debug!(question = %run.question, "question redelivered after its terminal event");
            return Ok(());
        }
        // Without the question, the view cannot tell who may cancel it.
        if record.question && record.cancelled {
            return self.refuse_cancelled(question).await;
        }
        let recipient = event.attributes.recipient;
        let answerer = self.dependencies.router.answerer(recipient).await;
        match answerer.map_err(HandleError::Routing)? {
            Answerer::Runner => {}
            Answerer::External(subscription) => {
                let attributes = &message.attributes;
                self.external.expect_acknowledgement(run, attributes, subscription).await;
                return Ok(());
            }
            Answerer::Nobody(revisions) => {
                let recipient = recipient.to_string();
                let refusal = Refusal::NoSuchRevision { recipient, revisions };
                return self.refuse(question, refusal).await;
            }
        }
        let launch = LaunchRequest {
            run,
            recipient: &recipient.to_buf(),
            parent_question: event.attributes.parent_question_uuid,
            attributes: &message.attributes,
            inputs,
        };
        match self.dependencies.runner.launch(launch).await {
            Err(RunnerError::Refused { exception, message, .. }) => {
                self.refuse(question, Refusal::Runner { exception, message }).await
            }
            Err(conflict @ RunnerError::NameConflict { .. }) => {
                let message = Chain(&conflict).to_string();
                let refusal = Refusal::Runner { exception: "RuntimeError", message };
                self.refuse(question, refusal).await?;
                Err(HandleError::Runner(conflict))
            }
            outcome => outcome.map_err(HandleError::Runner),
        }
    }

    /// What is on record of a run before its launch.
    ///
    /// For a first delivery the view answers alone, unless the question may be older than the view.
    /// The view may be late: the monitor ends the run when a cancellation comes to the view. A
    /// redelivered question may have been answered, and its run removed, so the history is read too
    /// until the question has come to the view.
    async fn launch_record(&self, question: &Question<'_>) -> Result<RunRecord, ReadError> {
        let Question { run, event, message, .. } = *question;
        let view = &self.dependencies.view;
        let age = message.published.map(|at| Timestamp::now().seconds_since(at));
        match age.is_some_and(|age| age < FIRST_DELIVERY.as_secs_f64()) {
            true => view.run_record_since(run, event.attributes.datetime).await,
            false => view.run_record(run).await,
        }
    }

    /// Ends the run of a cancelled question, if an earlier delivery has launched one: the monitor
    /// then notifies the parent. Without a run, the parent is notified here.
    async fn refuse_cancelled(&self, question: &Question<'_>) -> Result<(), HandleError> {
        let ended = self.dependencies.runner.cancel(question.run.question).await;
        if ended.map_err(HandleError::Runner)? {
            return Ok(());
        }
        self.refuse(question, Refusal::Cancelled).await
    }

    /// Notifies the parent that the question cannot be launched, and then ends its run, which may
    /// exist although the launch failed. In this order the parent gets one exception: the end of a
    /// run whose terminal event is on record needs no other.
    async fn give_up(
        &self,
        question: &Question<'_>,
        error: &HandleError,
    ) -> Result<(), HandleError> {
        let run = question.run;
        let reason = Chain(error).to_string();
        error!(question = %run.question, reason, "launch given up");
        let minutes = GIVE_UP_AFTER.as_secs() / 60;
        self.refuse(question, Refusal::GivenUp { minutes, reason }).await?;
        if let Err(error) = self.dependencies.runner.cancel(run.question).await {
            let question = run.question;
            warn!(%question, error = %Chain(&error), "failed to end the run of a launch given up");
        }
        Ok(())
    }

    /// Publishes one heartbeat in each heartbeat interval: a parent that receives nothing gives up
    /// long before we do. It is not retried, because Pub/Sub itself may be unavailable.
    async fn publish_retry_heartbeat(&self, question: &Question<'_>, retries: &mut Retries) {
        let slot = retries.since.elapsed().as_secs() as i64 / HEARTBEAT_INTERVAL;
        if slot <= retries.heartbeats {
            return;
        }
        retries.heartbeats = slot;
        let run = question.run;
        let attempt = RunAttempt { run, number: 0, question: &question.message.attributes };
        let Some(heartbeat) = attempt.retry_heartbeat(Timestamp::now(), slot) else { return };
        if let Err(error) = self.dependencies.publisher.publish(heartbeat.message).await {
            let question = run.question;
            warn!(%question, error = error.chain(), "failed to publish a heartbeat of a retried launch");
        }
    }

    /// Publishes an exception, unless it is on record.
    async fn refuse(&self, question: &Question<'_>, refusal: Refusal) -> Result<(), HandleError> {
        let Question { run, event, message, .. } = question;
        let at = event.attributes.datetime;
        let exception = notifications::refusal(*run, &message.attributes, at, &refusal);
        let Some(exception) = exception else { return Ok(()) };
        if self
            .dependencies
            .view
            .has(run.question, exception.uuid)
            .await
            .map_err(HandleError::View)?
        {
            return Ok(());
        }
        info!(question = %run.question, "question refused");
        let published = self.dependencies.publisher.publish(exception.message).await;
        published.map_err(HandleError::Publish)?;
        self.metrics.refused();
        Ok(())
    }
}

// === impl Retries ===

impl Retries {
    fn new() -> Self {
        Self { since: Instant::now(), unavailable_since: None, heartbeats: 0 }
    }

    /// Whether to give up, after another try that failed.
    fn is_over(&mut self, error: &HandleError) -> bool {
        let unavailable = match error {
            HandleError::Runner(error) => matches!(error, RunnerError::Unavailable { .. }),
            HandleError::Publish(_) | HandleError::Routing(_) => true,
            HandleError::Decode(_) | HandleError::Append(_) | HandleError::View(_) => false,
        };
        if !unavailable {
            self.unavailable_since = None;
            return false;
        }
        self.unavailable_since.get_or_insert_with(Instant::now).elapsed() >= GIVE_UP_AFTER
    }
}
