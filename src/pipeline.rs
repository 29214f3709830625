//! One delivery, from message to ack:
//!
//! ```text
//! Delivery -> decode -> Event -> append -> act -> ack
//! ```
//!
//! Append comes before act, so nothing runs that is not on record. Ack comes last, so a crash at
//! any point is a redelivery. Append and act can both be repeated, so a redelivery is harmless.
//! What cannot be done now is held and tried again; what never can be is rejected: kept whole, and
//! the parent is notified where there is one.

mod act;
pub mod action;
pub mod disposition;
pub mod view_feed;
mod lanes;
mod metrics;
mod in_flight;
mod outside;
use crate::chain::Chain;
use crate::dependencies::Dependencies;
use crate::event::decode::is_question;
use crate::event::{self, Event, RunId, Timestamp, decode};
use crate::notifications::{self, Refusal};
use crate::pipeline::disposition::{Disposition, HandleError};
use crate::pipeline::in_flight::{InFlightLimit, InFlightPermit};
use crate::pipeline::lanes::Lanes;
use crate::pipeline::metrics::{InFlightGauge, Metrics};
use crate::pipeline::outside::Subscriptions;
use crate::pubsub::subscriber::Flow;
use crate::pubsub::{Delivery, Message};
use crate::store::{AppendError, RejectedMessage, Row};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// How many deliveries of one question are dealt with together: they share a commit, and none
/// waits for the ack of more than this many.
const BATCH: usize = 64;

/// How often the gauges that age by themselves are brought up to date.
const UPKEEP: Duration = Duration::from_secs(5);

/// Deals with deliveries.
#[derive(Debug)]
pub struct Pipeline {
    dependencies: Dependencies,
    lanes: Lanes<(Delivery, (InFlightGauge, InFlightPermit))>,
    limit: InFlightLimit,
    outside: Mutex<JoinSet<()>>,
    subscriptions: Subscriptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

// === impl Pipeline ===

impl Pipeline {
    /// A pipeline that works until `stop`, with no more in hand than `flow`.
    pub fn new(dependencies: Dependencies, flow: Flow, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            dependencies,
            lanes: Lanes::new(),
            limit: InFlightLimit::new(flow),
            outside: Mutex::default(),
            subscriptions: Subscriptions::default(),
            metrics: Arc::new(Metrics::new()),
            stop,
        })
    }

    /// Deals with every delivery, until there are no more or until it is stopped. What is in hand
    /// then is dealt with to its end if that goes now, and given back if not.
    pub async fn run(self: Arc<Self>, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut workers = JoinSet::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                delivery = deliveries.recv() => match delivery {
                    Some(delivery) => {
                        let permit = self.limit.acquire(&delivery.message);
                        // Stopped first: it is given back.
                        let Some(permit) = self.stop.run_until_cancelled(permit).await else { break };
                        self.dispatch(delivery, permit, &mut workers);
                    }
                    None => break,
                },
                Some(ended) = workers.join_next() => {
                    // The receipts that it held were dropped, so nothing of it is lost.
                    if let Err(panic) = ended {
                        error!(error = %panic, "a worker panicked: its deliveries will come again");
                    }
                }
                _ = upkeep.tick() => self.metrics.upkeep(),
                () = self.stop.cancelled() => break,
            }
        }
        deliveries.close();
        self.lanes.clear();
        while workers.join_next().await.is_some() {}
        self.outside.lock().await.shutdown().await;
    }

    fn dispatch(
        self: &Arc<Self>,
        delivery: Delivery,
        permit: InFlightPermit,
        workers: &mut JoinSet<()>,
    ) {
        let key = lane(&delivery.message).to_owned();
        if self.lanes.push(&key, (delivery, (self.metrics.take(), permit))) {
            workers.spawn(Arc::clone(self).work(key));
        }
    }

    /// Deals with all that is in one lane.
    async fn work(self: Arc<Self>, key: String) {
        let worker = self.lanes.worker(&key);
        while let Some(batch) = worker.take(BATCH) {
            let (batch, in_hand): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            self.receive(batch).await;
            drop(in_hand);
        }
    }

    /// Takes deliveries of one question, deals with them in order, and answers for them.
    async fn receive(&self, batch: Vec<Delivery>) {
        let outcomes = self.handle(&batch).await;
        for (delivery, outcome) in batch.into_iter().zip(outcomes) {
            let disposition = disposition::of(&outcome);
            let done = match (disposition, outcome) {
                (Disposition::Reject, Err(error)) => self.reject(&delivery.message, &error).await,
                (disposition, _) => disposition == Disposition::Ack,
            };
            if done {
                self.metrics.disposed(disposition);
                delivery.receipt.ack();
            } else {
                // Stopped while it was held. All that follow are of its question: given back too.
                return;
            }
        }
    }

    async fn handle(&self, batch: &[Delivery]) -> Vec<Result<(), HandleError>> {
        let mut events: Vec<_> = batch.iter().map(|delivery| self.decode(delivery)).collect();
        self.append(batch, &mut events).await;
        let mut outcomes = Vec::with_capacity(batch.len());
        for (event, delivery) in events.into_iter().zip(batch) {
            outcomes.push(match event {
                Ok(event) => self.act_until_done(&event, &delivery.message).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    fn decode<'d>(&self, delivery: &'d Delivery) -> Result<Event<'d>, HandleError> {
        let start = Instant::now();
        let message = &delivery.message;
        let event = decode(&message.data, &message.attributes).map_err(HandleError::Decode)?;
        self.metrics.decode.record(start.elapsed());
        self.metrics.received(event.kind.label());
        Ok(event)
    }

    /// Puts the events on record, with as many tries as it takes. Those that the store refuses,
    /// or that are not there when we are stopped, become errors.
    async fn append(&self, batch: &[Delivery], events: &mut [Result<Event<'_>, HandleError>]) {
        let start = Instant::now();
        for tries in 0.. {
            let rows: Vec<_> = events.iter().zip(batch).filter_map(row).collect();
            if rows.is_empty() {
                return;
            }
            let failed = match self.dependencies.store.append(&rows).await {
                Ok(()) => {
                    self.metrics.append.record(start.elapsed());
                    return;
                }
                Err(failed) => failed,
            };
            drop(rows);
            warn!(error = %Chain(&failed), "failed to append events");
            match failed {
                AppendError::Refused { uuid, reason } => {
                    let refused = |event: &Result<Event<'_>, _>| {
                        event.as_ref().is_ok_and(|event| event.attributes.uuid == uuid)
                    };
                    for event in events.iter_mut().filter(|event| refused(event)) {
                        let reason = reason.clone();
                        *event = Err(HandleError::Append(AppendError::Refused { uuid, reason }));
                    }
                }
                AppendError::Unavailable(_) if self.pause(tries).await => {}
                AppendError::Unavailable(source) => {
                    let text = source.to_string();
                    for event in events.iter_mut().filter(|event| event.is_ok()) {
                        let source = text.clone().into();
                        *event = Err(HandleError::Append(AppendError::Unavailable(source)));
                    }
                    return;
                }
            }
        }
    }

    /// Keeps a message that can never be handled, and tells the asker if it was a question. False
    /// where we were stopped first.
    async fn reject(&self, message: &Message, error: &HandleError) -> bool {
        let reason = Chain(error).to_string();
        warn!(id = message.id, reason, "message rejected");
        if !self.tell_refused(message, &reason).await {
            return false;
        }
        let rejected = RejectedMessage {
            message_id: &message.id,
            ordering_key: &message.ordering_key,
            data: &message.data,
            attributes: &message.attributes,
            reason: &reason,
            at: Timestamp::now(),
        };
        for tries in 0.. {
            match self.dependencies.store.reject(&rejected).await {
                Ok(()) => break,
                Err(AppendError::Refused { reason, .. }) => {
                    // Nowhere to keep it: the log is the last place.
                    error!(id = message.id, reason, "event store refused a rejected message");
                    break;
                }
                Err(failed @ AppendError::Unavailable(_)) => {
                    warn!(error = %Chain(&failed), "failed to record a rejected message");
                    if !self.pause(tries).await {
                        return false;
                    }
                }
            }
        }
        self.metrics.rejected(error.label());
        true
    }

    /// As well as it goes: what is wrong with the message may be just what names the asker. False
    /// where we were stopped first.
    async fn tell_refused(&self, message: &Message, reason: &str) -> bool {
        use event::attributes as name;
        let attribute = |name: &str| message.attributes.get(name).map(String::as_str);
        if attribute(name::SENDER_TYPE) != Some("PARENT") || !is_question(&message.data) {
            return true;
        }
        let run = RunId {
            question: uuid::Uuid::new_v5(
                &uuid::Uuid::NAMESPACE_OID,
                attribute(name::QUESTION_UUID).unwrap_or_default().as_bytes(),
            ),
            retry: attribute(name::RETRY_COUNT).and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        // What is wrong with this one is no end of another that has its name.
        let named = attribute(name::QUESTION_UUID).and_then(|text| text.parse().ok());
        if let Some(question) = named {
            let run = RunId { question, ..run };
            let Some(known) = self.is_known(run).await else { return false };
            if known {
                return true;
            }
        }
        let refusal = Refusal::InvalidEvent { reason: reason.to_owned() };
        let at = message.published.unwrap_or(Timestamp(0));
        if let Some(report) = notifications::refusal(run, &message.attributes, at, &refusal) {
            let told = self.dependencies.publisher.publish_until(report.message, &self.stop).await;
            return told || !self.stop.is_cancelled();
        }
        true
    }

    /// Whether a question is on record. None where we were stopped first.
    async fn is_known(&self, run: RunId) -> Option<bool> {
        for tries in 0.. {
            match self.dependencies.view.run_record(run).await {
                Ok(record) => return Some(record.question),
                Err(failed) => warn!(%run, error = %Chain(&failed), "failed to look at a run"),
            }
            if !self.pause(tries).await {
                return None;
            }
        }
        unreachable!("the tries are counted without end")
    }

    /// Waits before the next try. False where we are stopped: the delivery is given back.
    async fn pause(&self, tries: u32) -> bool {
        self.metrics.disposed(Disposition::Retry);
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(disposition::pause(tries)) => true,
        }
    }
}

fn row<'a>(
    (event, delivery): (&'a Result<Event<'a>, HandleError>, &'a Delivery),
) -> Option<Row<'a>> {
    let message = &delivery.message;
    let event = event.as_ref().ok()?;
    Some(Row::new(event, &message.attributes, &message.id, &message.ordering_key))
}

/// What keeps the order of a message: the question that it says it is of, whatever its publisher's
/// ordering key, for a launch and a cancellation must never meet.
fn lane(message: &Message) -> &str {
    let question = message.attributes.get(event::attributes::QUESTION_UUID);
    question.filter(|question| !question.is_empty()).unwrap_or(&message.id)
}
