//! Logs and metrics of the process.

mod fields;
mod json;
mod text;
use fields::{Fields, SpanFields};
pub(crate) use json::one_line;
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::fmt;
use std::io::{self, IsTerminal, Stderr, Write, stderr};
use std::time::Duration;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, Layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Bucket bounds of histograms of single events, in seconds.
const SHORT: [f64; 12] =
    [1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 256e-3, 1.0, 4.0];

/// Bucket bounds of histograms of questions, in seconds.
const LONG: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

/// How often samples are moved into the histograms. Until then, or a scrape, they use memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogStyle {
    /// For a person, as the SDK writes them.
    Text,
    /// For Google Cloud Logging.
    Json,
}

/// Writes logs of `level` and above to stderr; or those of `filter`, if given, in the syntax of
/// `RUST_LOG`.
pub(crate) fn install_logs(level: &str, filter: Option<&str>, style: LogStyle) {
    // The client of Pub/Sub warns of failures that it retries by itself.
    let default = format!("{level},google_cloud_pubsub=error,google_cloud_gax=error");
    let filter = EnvFilter::new(filter.unwrap_or(&default));
    let lines = Layer::default()
        .log_internal_errors(false)
        .with_ansi(style == LogStyle::Text && on_terminal())
        .with_writer(|| TolerantStderr(stderr()))
        .event_format(style);
    // Another consumer of spans and events is another layer.
    tracing_subscriber::registry().with(filter).with(SpanFields).with(lines).init();
}

/// Whether stderr is a terminal.
pub(crate) fn on_terminal() -> bool {
    stderr().is_terminal()
}

/// Installs the recorder of the process's metrics.
pub(crate) fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .upkeep_timeout(UPKEEP)
        .set_buckets(&SHORT)?
        .set_buckets_for_metric(Matcher::Prefix("twined_question_".into()), &LONG)?
        .set_buckets_for_metric(Matcher::Full("twined_event_age_seconds".into()), &LONG)?
        .set_buckets_for_metric(Matcher::Full("twined_failure_detection_seconds".into()), &LONG)?
        .install_recorder()
        .inspect(|_| record_build())
}

fn record_build() {
    describe_gauge!(
        "twined_build_info",
        "Always 1, with the version and commit of the program as labels"
    );
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("TWINED_COMMIT").unwrap_or("unknown");
    gauge!("twined_build_info", "version" => version, "commit" => commit).set(1.0);
}

/// Moves samples into the histograms regularly, for as long as it is polled.
pub(crate) async fn upkeep(metrics: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
    }
}

/// Stderr that ignores errors: a reader of the logs that has gone must not end the process.
struct TolerantStderr(Stderr);

impl Write for TolerantStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

// === impl LogStyle ===

impl<S, N> FormatEvent<S, N> for LogStyle
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let spans = Fields::from_spans(context);
        match self {
            Self::Text => text::write_line(writer, event, spans),
            Self::Json => json::write_line(writer, event, spans),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that are logged in a format.
    pub(super) fn logged(style: LogStyle, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).event_format(style);
        let layer = layer.with_writer(move || written.clone());
        let subscriber = tracing_subscriber::registry().with(SpanFields).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }
}
