//! Logs and metrics of the process.

mod json;
use json::JsonFormat;
pub use json::one_line;
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::fmt;
use std::io::{self, IsTerminal, Stderr, Write, stderr};
use std::time::Duration;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Bounds in seconds for what takes from a microsecond to seconds: stages of one event.
const SHORT: [f64; 12] =
    [1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1e-3, 4e-3, 16e-3, 64e-3, 256e-3, 1.0, 4.0];

/// Bounds in seconds for what takes from a moment to a day: questions.
const LONG: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

/// Samples of histograms queue up until they are scraped or this has passed.
const UPKEEP: Duration = Duration::from_secs(5);

/// The shape of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As the SDK logs: for a person.
    Text,
    /// As Google Cloud Logging reads them.
    Json,
}

/// Sends logs of `level` and above to stderr, or as `filter` says where it is given (the syntax of
/// `RUST_LOG`).
pub fn install_logs(level: &str, filter: Option<&str>, shape: Shape) {
    // The client of Pub/Sub tells at WARN of what it then does again by itself.
    let default = format!("{level},google_cloud_pubsub=error,google_cloud_gax=error");
    let filter = EnvFilter::new(filter.unwrap_or(&default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Unheard(stderr()))
        .log_internal_errors(false);
    match shape {
        Shape::Text => logs.with_ansi(stderr().is_terminal()).event_format(SdkFormat).init(),
        Shape::Json => logs.with_ansi(false).event_format(JsonFormat).init(),
    }
}

/// Whether a person reads what goes to stderr.
pub fn on_terminal() -> bool {
    stderr().is_terminal()
}

/// Makes the recorder of metrics the process's own.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .upkeep_timeout(UPKEEP)
        .set_buckets(&SHORT)?
        .set_buckets_for_metric(Matcher::Prefix("twined_question_".into()), &LONG)?
        .set_buckets_for_metric(Matcher::Full("twined_event_age_seconds".into()), &LONG)?
        .set_buckets_for_metric(Matcher::Full("twined_failure_detection_seconds".into()), &LONG)?
        .install_recorder()
        .inspect(|_| tell_build())
}

/// Which program this is.
fn tell_build() {
    describe_gauge!("twined_build_info", "Always 1; its labels say which program this is");
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("TWINED_COMMIT").unwrap_or("unknown");
    gauge!("twined_build_info", "version" => version, "commit" => commit).set(1.0);
}

/// Brings the histograms up to date, for as long as it is polled.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
    }
}

/// Stderr, whether anybody reads it or not. A log whose reader has gone must not end who writes it.
struct Unheard(Stderr);

impl Write for Unheard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// `[time | LEVEL | module] message`, as the SDK logs.
struct SdkFormat;

impl<S, N> FormatEvent<S, N> for SdkFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S,%3f");
        let metadata = event.metadata();
        let module = metadata.target().strip_prefix("twined::").unwrap_or(metadata.target());
        write!(writer, "[{now} | {} | {module}] ", metadata.level())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
