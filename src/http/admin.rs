//! `/live`, `/ready` and `/metrics`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// Whether the daemon is ready: it is when nothing holds that back, and no more once it drains.
#[derive(Clone, Debug)]
pub struct Readiness {
    holds: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// Holds readiness back until it is dropped.
#[derive(Debug)]
#[must_use = "what is not held is ready"]
pub struct Hold(Arc<AtomicUsize>);

/// The routes.
pub fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    let ready = get(async |State(readiness): State<Readiness>| readiness.answer());
    let scrape = get(async |State(metrics): State<PrometheusHandle>| metrics.render());
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", ready.with_state(readiness))
        .route("/metrics", scrape.with_state(metrics))
}

// === impl Readiness ===

impl Readiness {
    /// Ready until `stop`, but for what [`Self::hold`] holds back.
    pub fn new(stop: CancellationToken) -> Self {
        Self { holds: Arc::default(), stop }
    }

    /// Holds it back.
    pub fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Hold(Arc::clone(&self.holds))
    }

    fn answer(&self) -> (StatusCode, &'static str) {
        if self.stop.is_cancelled() {
            return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        match self.holds.load(Ordering::SeqCst) {
            0 => (StatusCode::OK, "ready\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        }
    }
}

// === impl Hold ===

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_holds_it_back_and_until_it_drains() {
        let stop = CancellationToken::new();
        let readiness = Readiness::new(stop.clone());
        let (first, second) = (readiness.hold(), readiness.hold());
        assert_eq!(readiness.answer().1, "starting\n");
        drop(first);
        assert_eq!(readiness.answer().1, "starting\n");
        drop(second);
        assert_eq!(readiness.answer(), (StatusCode::OK, "ready\n"));
        stop.cancel();
        assert_eq!(readiness.answer(), (StatusCode::SERVICE_UNAVAILABLE, "draining\n"));
    }
}
