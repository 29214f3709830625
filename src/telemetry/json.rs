//! Logs as Google Cloud Logging reads them: one line of JSON each.

use serde_json::{Map, Value};
use std::fmt;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `{"severity": …, "time": …, "target": …, "message": …}`, and the fields of the event.
pub struct JsonFormat;

/// The fields of one event.
#[derive(Default)]
struct Fields(Map<String, Value>);

// === impl JsonFormat ===

impl<S, N> FormatEvent<S, N> for JsonFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields(mut line) = fields;
        // What the line is comes after its fields, so that no field can pass for it.
        let metadata = event.metadata();
        line.insert("severity".into(), severity(*metadata.level()).into());
        line.insert("time".into(), jiff::Timestamp::now().to_string().into());
        line.insert("target".into(), metadata.target().into());
        writeln!(writer, "{}", one_line(&Value::Object(line)))
    }
}

/// The name of a level there.
fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

/// JSON without what could steer a terminal. It escapes line feeds and their kin itself; the control
/// characters above ASCII it leaves to us. They are inside strings alone.
pub fn one_line(value: &Value) -> String {
    let json = value.to_string();
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        match character.is_control() {
            true => line.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => line.push(character),
        }
    }
    line
}

// === impl Fields ===

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing::{debug, warn};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || written.clone())
            .event_format(JsonFormat)
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_has_what_google_reads_and_the_fields() {
        let text = logged(|| warn!(runs = 3, cause = %"no room", "failed to launch"));

        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["severity"], "WARNING");
        assert_eq!(line["message"], "failed to launch");
        assert_eq!((&line["runs"], &line["cause"]), (&Value::from(3), &Value::from("no room")));
        assert!(line["target"].as_str().unwrap().starts_with("twined::telemetry"));
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn what_is_logged_of_strangers_stays_one_line_and_steers_nothing() {
        let evil = "a\n{\"severity\":\"ERROR\"}\u{1b}[31m\u{9b}31m\u{7f}";
        let text = logged(|| debug!(severity = "ERROR", said = evil, "{evil}"));

        assert_eq!(text.trim_end_matches('\n').lines().count(), 1, "{text}");
        assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text:?}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["severity"], &line["said"]), (&"DEBUG".into(), &evil.into()));
        assert_eq!(line["message"], evil);
    }
}
