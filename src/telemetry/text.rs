//! Logs for a person, as the SDK writes them.

use super::fields::Fields;
use serde_json::Value;
use std::fmt;
use tracing::Event;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// Writes `[time | LEVEL | module] message`, with the fields of the event and its spans.
pub(super) fn write_line(
    mut writer: Writer<'_>,
    event: &Event<'_>,
    Fields(spans): Fields,
) -> fmt::Result {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S,%3f");
    let metadata = event.metadata();
    let module = metadata.target().strip_prefix("twined::").unwrap_or(metadata.target());
    write!(writer, "[{now} | {} | {module}] ", metadata.level())?;
    DefaultFields::new().format_fields(writer.by_ref(), event)?;
    let of_event = |name: &str| metadata.fields().field(name).is_some();
    for (name, value) in spans.iter().filter(|(name, _)| !of_event(name)) {
        match value {
            Value::String(text) => write!(writer, " {name}={text:?}")?,
            value => write!(writer, " {name}={value}")?,
        }
    }
    writeln!(writer)
}

#[cfg(test)]
mod tests {
    use super::super::LogStyle;
    use super::super::tests::logged;
    use tracing::{info, info_span};

    #[test]
    fn a_line_has_the_fields_of_its_event_and_its_spans() {
        let text = logged(LogStyle::Text, || {
            let span = info_span!("delivery", task = "pipeline", event = "outer", runs = 3);
            span.in_scope(|| info!(event = "inner", "launched"));
        });

        let fields = "launched event=\"inner\" runs=3 task=\"pipeline\"";
        assert!(text.contains("| INFO | telemetry::text::tests] launched"), "{text}");
        assert!(text.trim_end().ends_with(fields), "{text}");
    }

    #[test]
    fn the_fields_of_a_span_stay_on_one_line_without_control_characters() {
        let evil = "a\nb\u{1b}[31m";
        let text =
            logged(LogStyle::Text, || info_span!("s", spanned = evil).in_scope(|| info!("x")));
        assert!(!text.trim_end_matches('\n').contains(char::is_control), "{text:?}");
    }
}
