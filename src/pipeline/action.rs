//! What is to be done about an event once it is on record. Pure.

use crate::event::{Event, Inputs, Kind, RunId};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'e> {
    /// Make sure that the question runs.
    Launch(RunId, Inputs<'e>),
    /// Make sure that nothing of the question runs.
    Cancel(RunId),
    /// It is on record, and that is all.
    Nothing,
}

/// Decides. Every kind is written out, so that a new one does not compile until someone has.
pub fn of<'e>(event: &Event<'e>) -> Action<'e> {
    let run =
        RunId { question: event.attributes.question_uuid, retry: event.attributes.retry_count };
    match &event.kind {
        Kind::Question(inputs) => Action::Launch(run, *inputs),
        Kind::Cancellation => Action::Cancel(run),
        Kind::DeliveryAcknowledgement
        | Kind::Heartbeat
        | Kind::LogRecord
        | Kind::MonitorMessage
        | Kind::Exception
        | Kind::Result
        | Kind::Other(_) => Action::Nothing,
    }
}
