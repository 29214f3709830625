//! Logs and metrics of the process.

mod fields;
mod json;
mod text;
use fields::SpanFields;
use json::JsonFormat;
pub(crate) use json::one_line;
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::{self, IsTerminal, Stderr, Write, stderr};
use std::time::Duration;
use text::TextFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::Layer;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Bounds of histograms of one event, in seconds.
const SHORT: [f64; 12] =
    [1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 256e-3, 1.0, 4.0];

/// Bounds of histograms of questions, in seconds.
const LONG: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

/// How often samples are moved into the histograms. Until then, or a scrape, they queue up.
const UPKEEP: Duration = Duration::from_secs(5);

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogStyle {
    /// For a person, as the SDK writes them.
    Text,
    /// For Google Cloud Logging.
    Json,
}

/// Writes logs of `level` and above to stderr, or those of `filter` where it is given, in the syntax of
/// `RUST_LOG`.
pub(crate) fn install_logs(level: &str, filter: Option<&str>, style: LogStyle) {
    // The client of Pub/Sub warns of failures that it retries by itself.
    let default = format!("{level},google_cloud_pubsub=error,google_cloud_gax=error");
    let filter = EnvFilter::new(filter.unwrap_or(&default));
    let (text, json) = match style {
        LogStyle::Text => (Some(lines().event_format(TextFormat)), None),
        LogStyle::Json => (None, Some(lines().event_format(JsonFormat))),
    };
    let text = text.map(|text| text.with_ansi(on_terminal()));
    // Another consumer of spans and events is another layer.
    tracing_subscriber::registry().with(filter).with(SpanFields).with(text).with(json).init();
}

/// A layer that writes lines to stderr.
fn lines<S>() -> Layer<S, DefaultFields, Format, fn() -> TolerantStderr> {
    let layer = Layer::default().log_internal_errors(false).with_ansi(false);
    layer.with_writer(|| TolerantStderr(stderr()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::Registry;
    use tracing_subscriber::fmt::FormatEvent;
    use tracing_subscriber::layer::Layered;

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

    /// What is logged in a format.
    pub(super) fn logged<F>(format: F, log: impl FnOnce()) -> String
    where
        F: FormatEvent<Layered<SpanFields, Registry>, DefaultFields> + Send + Sync + 'static,
    {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).event_format(format);
        let layer = layer.with_writer(move || written.clone());
        let subscriber = tracing_subscriber::registry().with(SpanFields).with(layer);
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }
}
