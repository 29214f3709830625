//! Timestamps in microseconds, as the SDK writes and BigQuery stores them.

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;
use std::fmt;

static PARSER: DateTimeParser = DateTimeParser::new();

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

// === impl Timestamp ===

impl Timestamp {
    /// The time of the host's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// Parses ISO 8601. Without an offset it is UTC: old SDKs write naive datetimes.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(timestamp) = PARSER.parse_timestamp(text) {
            return Some(Self(timestamp.as_microsecond()));
        }
        let naive = PARSER.parse_datetime(text).ok()?;
        Some(Self(naive.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond()))
    }

    /// Seconds from `earlier` to `self`; 0 if the clock went backwards.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        // Precise to the microsecond for 285 years.
        self.0.saturating_sub(earlier.0).max(0) as f64 / 1e6
    }
}

impl fmt::Display for Timestamp {
    /// As Python's `isoformat` writes it: microseconds and an offset.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(timestamp) => write!(f, "{}", timestamp.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00")),
            // Outside the years -9999 to 9999, which no parsed timestamp is.
            Err(_) => write!(f, "{} microseconds", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datetimes_of_every_sdk_are_parsed() {
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
    fn an_invalid_datetime_is_refused() {
        for text in ["", "yesterday", "2024-13-11T10:46:48", "1712832408"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_timestamp_is_displayed_as_it_was_parsed() {
        let text = "2024-04-11T10:46:48.000064+00:00";
        assert_eq!(
            Timestamp::parse(text).map(|timestamp| timestamp.to_string()).as_deref(),
            Some(text)
        );
    }
}
