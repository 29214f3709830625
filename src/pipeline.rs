//! One delivery, from message to ack:
//!
//! ```text
//! Delivery -> decode -> Event -> append -> act -> ack
//! ```
//!
//! Append comes before act, so nothing runs that is not on record. Ack comes last, so a crash at
//! any point is a redelivery. Append and act can both be repeated, so a redelivery is harmless. A
//! delivery that cannot be handled now is held and retried. One that can never be handled is
//! rejected: its message is stored unchanged, and if it is a question its parent is notified.

mod act;
pub mod action;
mod disposition;
mod in_flight;
mod lanes;
mod metrics;
mod reject;
pub mod view_feed;
use crate::chain::Chain;
use crate::dependencies::Dependencies;
use crate::event::{self, Event, decode};
use crate::pipeline::disposition::{Disposition, HandleError};
use crate::pipeline::in_flight::{InFlightLimit, InFlightPermit};
use crate::pipeline::lanes::Lanes;
use crate::pipeline::metrics::{InFlightGauge, Metrics};
use crate::pubsub::subscriber::FlowControl;
use crate::pubsub::{Delivery, Message};
use crate::retry::Backoff;
use crate::routing::ExternalServices;
use crate::store::{AppendError, Row};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info_span, warn};

/// How many deliveries of one question are handled together. They share a commit. The first is
/// acked only when all of them have been acted on, so they must not be too many.
const BATCH: usize = 64;

/// How often the gauge of the oldest delivery is updated.
const UPKEEP: Duration = Duration::from_secs(5);

/// The pauses between tries of one delivery.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));

/// Handles deliveries.
#[derive(Debug)]
pub struct Pipeline {
    dependencies: Dependencies,
    lanes: Lanes<InFlight>,
    limit: InFlightLimit,
    external: ExternalServices,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

/// A delivery that is being handled, or waits in its lane.
#[derive(Debug)]
struct InFlight {
    delivery: Delivery,
    /// Lasts from receipt to ack.
    span: Span,
    _gauge: InFlightGauge,
    _permit: InFlightPermit,
}

// === impl Pipeline ===

impl Pipeline {
    /// A pipeline that works until `stop`, with no more in flight than `flow`.
    pub fn new(
        dependencies: Dependencies,
        flow: FlowControl,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let Dependencies { view, publisher, .. } = &dependencies;
        let external = ExternalServices::new(Arc::clone(view), publisher.clone(), stop.clone());
        Arc::new(Self {
            dependencies,
            lanes: Lanes::new(),
            limit: InFlightLimit::new(flow),
            external,
            metrics: Arc::new(Metrics::new()),
            stop,
        })
    }

    /// Handles every delivery, until there are no more or until it is stopped. On a stop, each
    /// delivery in flight gets one last try, and is nacked if that fails.
    pub async fn run(self: Arc<Self>, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut workers = JoinSet::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                delivery = deliveries.recv() => match delivery {
                    Some(delivery) => {
                        let permit = self.limit.acquire(&delivery.message);
                        // On a stop the delivery is dropped, which nacks it.
                        let Some(permit) = self.stop.run_until_cancelled(permit).await else {
                            break;
                        };
                        self.dispatch(delivery, permit, &mut workers);
                    }
                    None => break,
                },
                Some(ended) = workers.join_next() => {
                    // Its receipts were dropped, so no delivery is lost.
                    if let Err(panic) = ended {
                        error!(error = %panic, "a worker panicked: its deliveries are redelivered");
                    }
                }
                _ = upkeep.tick() => self.metrics.update_oldest(),
                () = self.stop.cancelled() => break,
            }
        }
        deliveries.close();
        self.lanes.clear();
        while workers.join_next().await.is_some() {}
        self.external.shutdown().await;
    }

    fn dispatch(
        self: &Arc<Self>,
        delivery: Delivery,
        permit: InFlightPermit,
        workers: &mut JoinSet<()>,
    ) {
        let lane = lane(&delivery.message).to_owned();
        let message = &delivery.message;
        let span = info_span!("delivery", message_id = message.id, question = lane);
        let gauge = self.metrics.in_flight();
        let in_flight = InFlight { delivery, span, _gauge: gauge, _permit: permit };
        if self.lanes.push(&lane, in_flight) {
            workers.spawn(Arc::clone(self).work(lane));
        }
    }

    /// Handles the deliveries of one lane, until it is empty.
    async fn work(self: Arc<Self>, lane: String) {
        let worker = self.lanes.worker(&lane);
        while let Some(batch) = worker.take(BATCH) {
            self.receive(batch).await;
        }
    }

    /// Handles deliveries of one question in order, and answers them.
    async fn receive(&self, batch: Vec<InFlight>) {
        let outcomes = self.handle(&batch).await;
        for (InFlight { delivery, span, .. }, outcome) in batch.into_iter().zip(outcomes) {
            let disposition = Disposition::from_outcome(&outcome);
            let is_done = match (disposition, outcome) {
                (Disposition::Reject, Err(error)) => {
                    self.reject(&delivery.message, &error).instrument(span.clone()).await
                }
                (disposition, _) => disposition == Disposition::Ack,
            };
            if !is_done {
                // Stopped while it was held. Those that follow are of the same question: all are
                // nacked.
                return;
            }
            self.metrics.disposed(disposition);
            delivery.receipt.ack();
        }
    }

    async fn handle(&self, batch: &[InFlight]) -> Vec<Result<(), HandleError>> {
        let mut events: Vec<_> =
            batch.iter().map(|it| it.span.in_scope(|| self.decode(&it.delivery))).collect();
        self.append(batch, &mut events).await;
        let mut outcomes = Vec::with_capacity(batch.len());
        for (event, InFlight { delivery, span, .. }) in events.into_iter().zip(batch) {
            let outcome = match event {
                Ok(event) => {
                    let acting = self.act_until_done(&event, &delivery.message);
                    acting.instrument(span.clone()).await
                }
                Err(error) => Err(error),
            };
            outcomes.push(outcome);
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

    /// Appends the events, with as many tries as it takes. Those that the store refuses, or that
    /// are not on record when we are stopped, become errors.
    async fn append(&self, batch: &[InFlight], events: &mut [Result<Event<'_>, HandleError>]) {
        let start = Instant::now();
        let mut backoff = BACKOFF;
        loop {
            let rows: Vec<_> = events.iter().zip(batch).filter_map(row).collect();
            if rows.is_empty() {
                return;
            }
            let appended = self.dependencies.log.append(&rows).await;
            drop(rows);
            let Err(error) = appended else {
                self.metrics.append.record(start.elapsed());
                return;
            };
            warn!(error = %Chain(&error), "failed to append events");
            match error {
                AppendError::Refused { uuid, reason } => {
                    let is_refused = |event: &Result<Event<'_>, _>| {
                        event.as_ref().is_ok_and(|event| event.attributes.uuid == uuid)
                    };
                    for event in events.iter_mut().filter(|event| is_refused(event)) {
                        let reason = reason.clone();
                        *event = Err(HandleError::Append(AppendError::Refused { uuid, reason }));
                    }
                }
                AppendError::Unavailable(_) if self.pause(&mut backoff).await => {}
                AppendError::Unavailable(source) => {
                    // An error cannot be cloned: each event gets its text.
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

    /// Waits before the next try. False where we are stopped: the delivery is then nacked.
    async fn pause(&self, backoff: &mut Backoff) -> bool {
        self.metrics.disposed(Disposition::Retry);
        backoff.wait_unless(&self.stop).await
    }
}

fn row<'a>(
    (event, in_flight): (&'a Result<Event<'a>, HandleError>, &'a InFlight),
) -> Option<Row<'a>> {
    let message = &in_flight.delivery.message;
    let event = event.as_ref().ok()?;
    Some(Row::new(event, &message.attributes, &message.id, &message.ordering_key))
}

/// The lane of a message: its question, whatever ordering key its publisher chose, because the
/// events of a question must be handled in order.
fn lane(message: &Message) -> &str {
    let question = message.attributes.get(event::attributes::QUESTION_UUID);
    question.filter(|question| !question.is_empty()).unwrap_or(&message.id)
}
