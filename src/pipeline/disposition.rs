//! How a delivery is answered, from what became of it. Pure, and the only place that decides it.

use crate::event::DecodeError;
use crate::pubsub::CallError;
use crate::registry::RegistryError;
use crate::runner::RunnerError;
use crate::store::{AppendError, ReadError};
use std::time::Duration;

/// The pauses between tries of one delivery: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Why a delivery was not dealt with.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// It is no event.
    #[error("failed to decode message")]
    Decode(#[source] DecodeError),
    /// It is not on record.
    #[error("failed to append event")]
    Append(#[source] AppendError),
    /// What is on record of its question could not be seen.
    #[error("failed to look at what is on record")]
    Look(#[source] ReadError),
    /// Who answers it could not be found out.
    #[error("failed to look up the service revision")]
    Find(#[source] RegistryError),
    /// Pub/Sub could not be asked.
    #[error("failed to ask Pub/Sub")]
    Call(#[source] CallError),
    /// The runner did not do it.
    #[error("failed to act on event")]
    Act(#[source] RunnerError),
    /// We were stopped first.
    #[error("stopped while the event was held")]
    Stopped,
}

/// How a delivery is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It is dealt with.
    Ack,
    /// It is held, its lease extended, and tried again here. (It is not given back: every nack
    /// counts towards a dead-letter policy, and an outage must not move good events there.)
    Retry,
    /// It can never be handled: it is kept as a rejected message, and then acked.
    Reject,
}

/// Decides.
pub fn of<T>(outcome: &Result<T, HandleError>) -> Disposition {
    match outcome {
        Ok(_) => Disposition::Ack,
        // A topic that is not there may come back.
        Err(HandleError::Call(call)) if call.is_transient() || call.is_not_found() => {
            Disposition::Retry
        }
        Err(HandleError::Call(_)) => Disposition::Reject,
        Err(HandleError::Decode(_))
        | Err(HandleError::Append(AppendError::Refused { .. }))
        | Err(HandleError::Act(RunnerError::Refused { .. } | RunnerError::NameConflict { .. })) => {
            Disposition::Reject
        }
        Err(HandleError::Append(AppendError::Unavailable(_)))
        | Err(HandleError::Look(_))
        | Err(HandleError::Find(_))
        | Err(HandleError::Stopped)
        | Err(HandleError::Act(RunnerError::Unavailable { .. })) => Disposition::Retry,
    }
}

/// How long to wait before the try after `tries` of them.
pub fn pause(tries: u32) -> Duration {
    let (first, longest) = BACKOFF;
    longest.min(first.saturating_mul(1 << tries.min(16)))
}

// === impl HandleError ===

impl HandleError {
    /// A closed set of names, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.label(),
            Self::Append(_) => "store",
            Self::Look(_) => "view",
            Self::Find(_) => "registry",
            Self::Call(_) => "pubsub",
            Self::Act(_) | Self::Stopped => "runner",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn what_never_can_be_handled_is_rejected_and_what_may_be_is_tried_again() {
        let unavailable = || Box::<dyn std::error::Error + Send + Sync>::from("gone");
        let (uuid, question) = (Uuid::nil(), Uuid::nil());
        for (outcome, disposition) in [
            (Ok(()), Disposition::Ack),
            (
                Err(HandleError::Decode(DecodeError::MissingAttribute {
                    name: "uuid",
                    expected: "a UUID",
                })),
                Disposition::Reject,
            ),
            (
                Err(HandleError::Append(AppendError::Refused { uuid, reason: String::new() })),
                Disposition::Reject,
            ),
            (Err(HandleError::Append(AppendError::Unavailable(unavailable()))), Disposition::Retry),
            (Err(HandleError::Look(ReadError(unavailable()))), Disposition::Retry),
            (Err(HandleError::Stopped), Disposition::Retry),
            (
                Err(HandleError::Act(RunnerError::Refused {
                    question,
                    exception: "PermissionError",
                    message: String::new(),
                })),
                Disposition::Reject,
            ),
            (
                Err(HandleError::Act(RunnerError::Unavailable {
                    verb: "launch",
                    question,
                    source: unavailable(),
                })),
                Disposition::Retry,
            ),
        ] {
            assert_eq!(of(&outcome), disposition, "{outcome:?}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(pause(0), Duration::from_millis(50));
        assert_eq!(pause(1), Duration::from_millis(100));
        assert_eq!(pause(u32::MAX), Duration::from_secs(10));
    }
}
