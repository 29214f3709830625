//! How a delivery is answered, from the outcome of its handling. Pure; no other module decides it.

use crate::event::DecodeError;
use crate::pubsub::CallError;
use crate::routing::RoutingError;
use crate::runner::RunnerError;
use crate::store::{AppendError, ReadError};

/// Why a delivery could not be handled.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandleError {
    /// It is not a valid event.
    #[error("failed to decode message")]
    Decode(#[source] DecodeError),
    /// It is not on record.
    #[error("failed to append event")]
    Append(#[source] AppendError),
    /// The view could not be read.
    #[error("failed to read what is on record of the question")]
    View(#[source] ReadError),
    /// The router could not determine who answers the question.
    #[error("failed to route the question")]
    Routing(#[source] RoutingError),
    /// Pub/Sub did not take a notification.
    #[error("failed to publish")]
    Publish(#[source] CallError),
    /// The runner failed.
    #[error("runner call failed")]
    Runner(#[source] RunnerError),
}

/// How a delivery is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    /// It is handled: it is acked.
    Ack,
    /// It is held: its ack deadline is extended, and it is handled again in this process. It is not
    /// nacked: every nack counts towards a dead-letter policy, and an outage must not move valid
    /// events to the dead-letter topic.
    Retry,
    /// It can never be handled: it is stored unchanged as a rejected message, and then acked.
    Reject,
}

// === impl Disposition ===

impl Disposition {
    /// The disposition of a delivery, after one try to handle it.
    pub(super) fn from_outcome<T>(outcome: &Result<T, HandleError>) -> Self {
        let Err(error) = outcome else { return Self::Ack };
        match error {
            HandleError::Publish(call) | HandleError::Routing(RoutingError::Subscription(call)) => {
                // A topic that does not exist may be created again.
                match call.is_transient() || call.is_not_found() {
                    true => Self::Retry,
                    false => Self::Reject,
                }
            }
            HandleError::Decode(_)
            | HandleError::Append(AppendError::Refused { .. })
            | HandleError::Runner(RunnerError::Refused { .. } | RunnerError::NameConflict { .. }) => {
                Self::Reject
            }
            HandleError::Append(AppendError::Unavailable(_))
            | HandleError::View(_)
            | HandleError::Routing(RoutingError::Registry(_))
            | HandleError::Runner(RunnerError::Unavailable { .. }) => Self::Retry,
        }
    }
}

// === impl HandleError ===

impl HandleError {
    /// The label in metrics, one of a closed set.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.label(),
            Self::Append(_) => "store",
            Self::View(_) => "view",
            Self::Routing(RoutingError::Registry(_)) => "registry",
            Self::Routing(RoutingError::Subscription(_)) | Self::Publish(_) => "pubsub",
            Self::Runner(_) => "runner",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn an_error_that_may_pass_is_retried_and_any_other_rejects_the_message() {
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
            (Err(HandleError::View(ReadError(unavailable()))), Disposition::Retry),
            (
                Err(HandleError::Runner(RunnerError::Refused {
                    question,
                    exception: "PermissionError",
                    message: String::new(),
                })),
                Disposition::Reject,
            ),
            (
                Err(HandleError::Runner(RunnerError::Unavailable {
                    verb: "launch",
                    question,
                    source: unavailable(),
                })),
                Disposition::Retry,
            ),
        ] {
            assert_eq!(Disposition::from_outcome(&outcome), disposition, "{outcome:?}");
        }
    }
}
