//! What an event on record causes. Pure.

use crate::event::{Event, Inputs, Kind, RunId};

/// What an event causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'e> {
    /// The launch of a run.
    Launch(RunId, Inputs<'e>),
    /// The end of the question's runs, if its sender may cancel the question.
    Cancel,
    /// Nothing: to be on record is enough.
    None,
}

// === impl Action ===

impl<'e> Action<'e> {
    /// Every kind is written out, so that a new one does not compile until its action is chosen.
    pub fn for_event(event: &Event<'e>) -> Self {
        match &event.kind {
            Kind::Question(inputs) => Self::Launch(run_id(event), *inputs),
            Kind::Cancellation => Self::Cancel,
            Kind::DeliveryAcknowledgement
            | Kind::Heartbeat
            | Kind::LogRecord
            | Kind::MonitorMessage
            | Kind::Exception
            | Kind::Result
            | Kind::Other(_) => Self::None,
        }
    }
}

fn run_id(event: &Event<'_>) -> RunId {
    RunId { question: event.attributes.question_uuid, retry: event.attributes.retry_count }
}
