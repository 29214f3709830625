//! Ack ids. An ack id names a queue, a message in it, and one delivery of that message.

use std::fmt;
use std::str::FromStr;

/// The id of one delivery. A later delivery of the same message has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AckId {
    /// The random id of the queue: an ack id of another queue, or of an emulator that ran before,
    /// must not ack a message here.
    pub queue: u64,
    pub sequence: u64,
    pub delivery: u32,
}

/// The text is not an ack id, not even an outdated one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid ack id (ack_id={0})")]
pub(super) struct AckIdError(String);

impl fmt::Display for AckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}-{:x}", self.queue, self.sequence, self.delivery)
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
    let (queue, sequence, delivery) = (part()?, part()?, part()?);
    if parts.next().is_some() {
        return None;
    }
    Some(AckId { queue, sequence, delivery: delivery.try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::AckId;

    proptest! {
        #[test]
        fn an_ack_id_is_parsed_as_it_was_printed(queue: u64, sequence: u64, delivery: u32) {
            let id = AckId { queue, sequence, delivery };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<AckId>();
        }
    }
}
