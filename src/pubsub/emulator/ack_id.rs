//! Ack ids: which delivery of which message of which queue.

use std::fmt;
use std::str::FromStr;

/// Names one delivery. A later delivery of the same message has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AckId {
    /// The queue's own number, so that an id of another queue, or of an emulator that ran before,
    /// never acks a stranger's message.
    pub queue: u64,
    pub place: u64,
    pub delivery: u32,
}

/// The text is not an ack id, of whatever age.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid ack id (ack_id={0})")]
pub(super) struct AckIdError(String);

impl fmt::Display for AckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}-{:x}", self.queue, self.place, self.delivery)
    }
}

impl FromStr for AckId {
    type Err = AckIdError;

    fn from_str(text: &str) -> Result<Self, AckIdError> {
        parse(text).ok_or_else(|| AckIdError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<AckId> {
    let mut parts = text.split('-');
    let mut part = || u64::from_str_radix(parts.next()?, 16).ok();
    let (queue, place, delivery) = (part()?, part()?, part()?);
    if parts.next().is_some() {
        return None;
    }
    Some(AckId { queue, place, delivery: delivery.try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::AckId;

    proptest! {
        #[test]
        fn an_ack_id_reads_back(queue: u64, place: u64, delivery: u32) {
            let id = AckId { queue, place, delivery };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<AckId>();
        }
    }
}
