//! A moment, in microseconds: what the SDK writes and BigQuery keeps.

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;
use std::fmt;

static PARSER: DateTimeParser = DateTimeParser::new();

/// A moment, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

// === impl Timestamp ===

impl Timestamp {
    /// The moment that the host's clock shows.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// Reads ISO 8601. Without an offset it is UTC: old SDKs write naive datetimes.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(moment) = PARSER.parse_timestamp(text) {
            return Some(Self(moment.as_microsecond()));
        }
        let naive = PARSER.parse_datetime(text).ok()?;
        Some(Self(naive.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond()))
    }

    /// Seconds from `earlier` to `self`; 0 where the clock went backwards.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        // Precise to the microsecond for 285 years.
        self.0.saturating_sub(earlier.0).max(0) as f64 / 1e6
    }
}

impl fmt::Display for Timestamp {
    /// As Python's `isoformat` writes it: microseconds and an offset.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(moment) => write!(f, "{}", moment.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00")),
            // Out of the years -9999 to 9999: nothing that was parsed is.
            Err(_) => write!(f, "{} microseconds", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_every_sdk_writes() {
        for (text, micros) in [
            ("2024-04-11T10:46:48.236064+00:00", 1_712_832_408_236_064),
            ("2024-04-11T10:46:48.236064", 1_712_832_408_236_064),
            ("2024-04-11T10:46:48", 1_712_832_408_000_000),
            ("2024-04-11 10:46:48.236064", 1_712_832_408_236_064),
            ("2024-04-11T12:46:48.236064+02:00", 1_712_832_408_236_064),
            ("2024-04-11T10:46:48.236064Z", 1_712_832_408_236_064),
        ] {
            assert_eq!(Timestamp::parse(text), Some(Timestamp(micros)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_moment() {
        for text in ["", "yesterday", "2024-13-11T10:46:48", "1712832408"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        let text = "2024-04-11T10:46:48.000064+00:00";
        assert_eq!(Timestamp::parse(text).map(|moment| moment.to_string()).as_deref(), Some(text));
    }
}
