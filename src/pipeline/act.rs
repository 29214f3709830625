//! What is done about an event that is on record, tried again here for as long as it makes sense.
//!
//! A launch and a cancellation may meet on two daemons, each of which sees what is on record a
//! moment late. So a launch looks for a cancellation before and after, a cancellation waits a
//! while for a run to end, and the monitor looks again at every run that it hears of.

use crate::chain::Chain;
use crate::dependencies::Dependencies;
use crate::event::{Event, Inputs, Kind, RunId, Timestamp, attributes};
use crate::notifications::{self, Attempt, GIVE_UP_AFTER, HEARTBEAT_INTERVAL, Refusal};
use crate::pipeline::Pipeline;
use crate::pipeline::action::{self, Action};
use crate::pipeline::disposition::{self, Disposition, HandleError};
use crate::pubsub::Message;
use crate::runner::{LaunchRequest, RunnerError};
use crate::store::{EventQuery, EventScope};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

/// For how long a cancellation waits for a run that another daemon may just be launching.
const LAUNCHING: Duration = Duration::from_secs(10);

/// For how long a cancellation waits to be seen in the view, which may be behind the store.
const BEHIND: Duration = Duration::from_secs(5);

/// How many attempts at a question are read to see who asked it: they all say the same.
const ATTEMPTS: u32 = 16;

/// How often is looked meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Who answers a question.
enum Answerer {
    /// A run of ours.
    Runner,
    /// A service that somebody runs, by a subscription of this name.
    Subscription(String),
    /// Nobody; of that service there are these revisions.
    Nobody(Vec<String>),
}

/// How long an event is held.
struct Hold {
    start: Instant,
    /// Since when the runner, the registry or Pub/Sub has not done what it should.
    unavailable: Option<Instant>,
    /// How many heartbeats were sent meanwhile.
    heartbeats: i64,
}

// === impl Pipeline ===

impl Pipeline {
    /// Acts, with as many tries as it takes. An error is for good, or we were stopped.
    pub(super) async fn act_until_done(
        &self,
        event: &Event<'_>,
        message: &Message,
    ) -> Result<(), HandleError> {
        let mut hold = Hold { start: Instant::now(), unavailable: None, heartbeats: 0 };
        for tries in 0.. {
            let mut outcome = self.act(event, message).await;
            if let Err(failed) = &outcome
                && hold.is_over(failed)
                && let Action::Launch(run, _) = action::of(event)
            {
                outcome = self.give_up(run, event, message, failed).await;
            }
            if disposition::of(&outcome) != Disposition::Retry {
                self.metrics.act.record(hold.start.elapsed());
                if let Some(published) = message.published {
                    let age = Timestamp::now().seconds_since(published);
                    self.metrics.age(event.kind.label(), age);
                }
                return outcome;
            }
            if let Err(failed) = &outcome {
                let question = event.attributes.question_uuid;
                warn!(%question, error = %Chain(failed), "failed to act on event");
            }
            self.say_held(&mut hold, event, message).await;
            if !self.pause(tries).await {
                return outcome;
            }
        }
        unreachable!("the tries are counted without end")
    }

    async fn act(&self, event: &Event<'_>, message: &Message) -> Result<(), HandleError> {
        match action::of(event) {
            Action::Launch(run, inputs) => self.launch(run, inputs, event, message).await,
            Action::Cancel(run) => self.cancel(run, event).await,
            Action::Nothing => Ok(()),
        }
    }

    async fn launch(
        &self,
        run: RunId,
        inputs: Inputs<'_>,
        event: &Event<'_>,
        message: &Message,
    ) -> Result<(), HandleError> {
        let record = self.dependencies.view.run_record(run).await.map_err(HandleError::Look)?;
        if record.terminal {
            debug!(%run, "redelivered after its end");
            return Ok(());
        }
        if record.cancelled {
            return self.call_off(run, event, message).await;
        }
        match self.answerer(event).await? {
            Answerer::Runner => {}
            Answerer::Subscription(subscription) => {
                self.look_outside(run, message, subscription).await;
                return Ok(());
            }
            Answerer::Nobody(revisions) => {
                let recipient = event.attributes.recipient.to_string();
                let refusal = Refusal::NoSuchRevision { recipient, revisions };
                return self.refuse(run, event, message, refusal).await;
            }
        }
        let launch = LaunchRequest {
            run,
            recipient: &event.attributes.recipient.to_buf(),
            parent_question: event.attributes.parent_question_uuid,
            attributes: &message.attributes,
            inputs,
        };
        match self.dependencies.runner.launch(launch).await {
            Err(RunnerError::Refused { exception, message: words, .. }) => {
                let refusal = Refusal::Runner { exception, message: words };
                return self.refuse(run, event, message, refusal).await;
            }
            Err(foreign @ RunnerError::NameConflict { .. }) => {
                let words = Chain(&foreign).to_string();
                let refusal = Refusal::Runner { exception: "RuntimeError", message: words };
                self.refuse(run, event, message, refusal).await?;
                return Err(HandleError::Act(foreign));
            }
            outcome => outcome.map_err(HandleError::Act),
        }?;
        // Another process may have put a cancellation on record since the look. A view may be behind.
        if self.dependencies.store.run_record(run).await.map_err(HandleError::Look)?.cancelled {
            self.dependencies.runner.cancel(run.question).await.map_err(HandleError::Act)?;
        }
        Ok(())
    }

    /// Sees to it that a question which was cancelled does not run, and that its asker is told:
    /// by the end of its run if it has one.
    async fn call_off(
        &self,
        run: RunId,
        event: &Event<'_>,
        message: &Message,
    ) -> Result<(), HandleError> {
        if self.dependencies.runner.cancel(run.question).await.map_err(HandleError::Act)? {
            return Ok(());
        }
        self.refuse(run, event, message, Refusal::Cancelled).await
    }

    async fn answerer(&self, event: &Event<'_>) -> Result<Answerer, HandleError> {
        let recipient = event.attributes.recipient;
        let Dependencies { registry, admin, subscriptions_first, .. } = &self.dependencies;
        let ours = registry.has(recipient).await.map_err(HandleError::Find)?;
        if ours && !subscriptions_first {
            return Ok(Answerer::Runner);
        }
        let subscription = recipient.subscription();
        let look = || admin.has_subscription(&subscription);
        // Who is to be told that nobody answers is told what is so now.
        let has =
            if ours { self.subscriptions.has(&subscription, look).await } else { look().await };
        if has.map_err(HandleError::Call)? {
            return Ok(Answerer::Subscription(subscription));
        }
        if ours {
            return Ok(Answerer::Runner);
        }
        let revisions = registry.revisions(recipient.service()).await.map_err(HandleError::Find)?;
        let name = |tag: &String| format!("{}:{tag}", recipient.service());
        Ok(Answerer::Nobody(revisions.iter().map(name).collect()))
    }

    /// Ends every run of a question, if the one who says so may.
    async fn cancel(&self, run: RunId, event: &Event<'_>) -> Result<(), HandleError> {
        if !self.may_cancel(run, event).await? {
            warn!(%run, "ignored the cancellation of somebody who did not ask the question");
            return Ok(());
        }
        let give_up = Instant::now() + LAUNCHING;
        while !self.dependencies.runner.cancel(run.question).await.map_err(HandleError::Act)? {
            let record = self.dependencies.view.run_record(run).await.map_err(HandleError::Look)?;
            // Where the question is not on record, its launch will see the cancellation.
            if !record.question || record.terminal || Instant::now() >= give_up {
                break;
            }
            if !matches!(self.answerer(event).await?, Answerer::Runner) {
                break;
            }
            self.look_again().await?;
        }
        Ok(())
    }

    /// Whether a cancellation is of somebody who may: as the view sees it. Where the view does not
    /// see it, as the question says that the store has, and before there is one as it says of
    /// itself.
    async fn may_cancel(&self, run: RunId, event: &Event<'_>) -> Result<bool, HandleError> {
        let said = &event.attributes;
        let give_up = Instant::now() + BEHIND;
        loop {
            // In this order: what is there decides, and it may come between.
            let seen = self.dependencies.view.has(said.uuid).await.map_err(HandleError::Look)?;
            if self.dependencies.view.run_record(run).await.map_err(HandleError::Look)?.cancelled {
                return Ok(true);
            }
            if seen {
                return Ok(false);
            }
            if Instant::now() >= give_up {
                return match self.askers(run.question).await? {
                    Some(askers) => Ok(askers.iter().any(|asker| asker == said.sender.as_str())),
                    None => Ok([said.parent, said.originator].contains(&said.sender)),
                };
            }
            self.look_again().await?;
        }
    }

    /// Who asked a question and who the root of its tree, as it says; none where it is not on record.
    async fn askers(&self, question: Uuid) -> Result<Option<Vec<String>>, HandleError> {
        let query = EventQuery {
            of: EventScope::Question(question),
            kinds: vec!["question".to_owned()],
            exclude_kinds: Vec::new(),
            limit: ATTEMPTS,
            tail: false,
        };
        let asked = self.dependencies.store.read(&query).await.map_err(HandleError::Look)?;
        let names = [attributes::PARENT, attributes::ORIGINATOR];
        let askers = asked.iter().flat_map(|event| names.map(|name| event.attributes.get(name)));
        Ok((!asked.is_empty()).then(|| askers.flatten().cloned().collect()))
    }

    async fn look_again(&self) -> Result<(), HandleError> {
        tokio::select! {
            () = self.stop.cancelled() => Err(HandleError::Stopped),
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
        }
    }

    /// Tells the asker that his question cannot be launched, and sees to it, as well as it goes,
    /// that it does not run after all. In this order: the end of a run whose asker was told needs
    /// no words.
    async fn give_up(
        &self,
        run: RunId,
        event: &Event<'_>,
        message: &Message,
        failed: &HandleError,
    ) -> Result<(), HandleError> {
        let reason = Chain(failed).to_string();
        error!(%run, reason, "a question is given up");
        let refusal = Refusal::GivenUp { minutes: GIVE_UP_AFTER.as_secs() / 60, reason };
        self.refuse(run, event, message, refusal).await?;
        if let Err(failed) = self.dependencies.runner.cancel(run.question).await {
            warn!(%run, error = %Chain(&failed), "failed to call off a question that is given up");
        }
        Ok(())
    }

    /// Says now and then that a question which is held is not lost: its asker gives up on silence
    /// long before we do. As well as it goes, for Pub/Sub may be what is not there.
    async fn say_held(&self, hold: &mut Hold, event: &Event<'_>, message: &Message) {
        let slot = hold.start.elapsed().as_secs() as i64 / HEARTBEAT_INTERVAL;
        let Kind::Question(_) = event.kind else { return };
        if slot <= hold.heartbeats {
            return;
        }
        hold.heartbeats = slot;
        let (attributes, question) = (&event.attributes, &message.attributes);
        let run = RunId { question: attributes.question_uuid, retry: attributes.retry_count };
        let about = Attempt { run, number: 0, question };
        let Some(report) = about.retry_heartbeat(Timestamp::now(), slot) else { return };
        if let Err(failed) = self.dependencies.publisher.publish(report.message).await {
            warn!(%run, error = failed.chain(), "failed to say that a question is held");
        }
    }

    /// Tells the asker why his question is not run, unless he was told.
    async fn refuse(
        &self,
        run: RunId,
        event: &Event<'_>,
        message: &Message,
        refusal: Refusal,
    ) -> Result<(), HandleError> {
        let at = event.attributes.datetime;
        let Some(report) = notifications::refusal(run, &message.attributes, at, &refusal) else {
            return Ok(());
        };
        if self.dependencies.view.has(report.uuid).await.map_err(HandleError::Look)? {
            return Ok(());
        }
        info!(%run, "refused");
        self.dependencies.publisher.publish(report.message).await.map_err(HandleError::Call)?;
        self.metrics.refused();
        Ok(())
    }
}

// === impl Hold ===

impl Hold {
    /// Whether it is enough, after another try that failed.
    fn is_over(&mut self, failed: &HandleError) -> bool {
        let away = match failed {
            HandleError::Act(failed) => matches!(failed, RunnerError::Unavailable { .. }),
            HandleError::Call(_) | HandleError::Find(_) => true,
            _ => false,
        };
        if !away {
            self.unavailable = None;
            return false;
        }
        self.unavailable.get_or_insert_with(Instant::now).elapsed() >= GIVE_UP_AFTER
    }
}
