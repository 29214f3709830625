//! Logs for Google Cloud Logging: one line of JSON each.

use super::fields::Fields;
use serde_json::Value;
use std::fmt;
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;

/// Writes `{"severity": …, "time": …, "target": …, "message": …}`, with the fields of the event and
/// its spans.
pub(super) fn write_line(mut writer: Writer<'_>, event: &Event<'_>, spans: Fields) -> fmt::Result {
    let mut fields = spans;
    fields.add(event);
    let Fields(mut line) = fields;
    // Last, so that no field can replace them.
    let metadata = event.metadata();
    line.insert("severity".into(), severity(*metadata.level()).into());
    line.insert("time".into(), jiff::Timestamp::now().to_string().into());
    line.insert("target".into(), metadata.target().into());
    writeln!(writer, "{}", one_line(&Value::Object(line)))
}

/// The name of a level in Google Cloud Logging.
fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

/// JSON on one line, without characters that control a terminal. `serde_json` escapes those of
/// ASCII; the others, which occur only in strings, are escaped here.
pub(crate) fn one_line(value: &Value) -> String {
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

#[cfg(test)]
mod tests {
    use super::super::LogStyle;
    use super::super::tests::logged;
    use super::*;
    use tracing::{debug, info_span, warn};

    #[test]
    fn a_line_has_what_google_reads_and_the_fields() {
        let text = logged(LogStyle::Json, || warn!(runs = 3, cause = %"no room", "launch failed"));

        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["severity"], "WARNING");
        assert_eq!(line["message"], "launch failed");
        assert_eq!((&line["runs"], &line["cause"]), (&Value::from(3), &Value::from("no room")));
        assert!(line["target"].as_str().unwrap().starts_with("twined::telemetry"));
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_and_the_innermost_wins() {
        let text = logged(LogStyle::Json, || {
            let outer = info_span!("task", task = "pipeline", event = "outer").entered();
            let inner = info_span!("delivery", event = "inner", late = tracing::field::Empty);
            inner.record("late", 4);
            inner.in_scope(|| warn!(cause = "none", "nothing"));
            drop(outer);
            warn!("outside");
        });

        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["task"], &lines[0]["event"]), (&"pipeline".into(), &"inner".into()));
        assert_eq!((&lines[0]["late"], &lines[0]["cause"]), (&4.into(), &"none".into()));
        assert!(lines[1].get("task").is_none(), "{text}");
    }

    #[test]
    fn logged_text_of_others_stays_on_one_line_without_control_characters() {
        let evil = "a\n{\"severity\":\"ERROR\"}\u{1b}[31m\u{9b}31m\u{7f}";
        let text = logged(LogStyle::Json, || {
            info_span!("s", spanned = evil).in_scope(|| {
                debug!(severity = "ERROR", found = evil, "{evil}");
            });
        });

        assert_eq!(text.trim_end_matches('\n').lines().count(), 1, "{text}");
        assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text:?}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["severity"], &line["found"]), (&"DEBUG".into(), &evil.into()));
        assert_eq!((&line["message"], &line["spanned"]), (&evil.into(), &evil.into()));
    }
}
