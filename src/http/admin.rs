//! `/live`, `/ready` and `/metrics`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Whether the daemon is ready. It is ready when no [`ReadinessHold`] is left, until it drains.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    holds: Arc<Holds>,
    stop: CancellationToken,
}

/// Something that is not ready yet. The daemon is not ready until this is dropped.
#[derive(Debug)]
#[must_use = "a dropped hold does not delay readiness"]
pub(crate) struct ReadinessHold {
    holds: Arc<Holds>,
    name: &'static str,
}

/// The names of what is not ready yet.
#[derive(Debug, Default)]
struct Holds(Mutex<Vec<&'static str>>);

/// The routes.
pub(crate) fn router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    let ready = get(async |State(readiness): State<Readiness>| readiness.answer());
    let scrape = get(async |State(metrics): State<PrometheusHandle>| metrics.render());
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", ready.with_state(readiness))
        .route("/metrics", scrape.with_state(metrics))
}

// === impl Readiness ===

impl Readiness {
    /// Ready until `stop`, except while a hold exists.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { holds: Arc::default(), stop }
    }

    /// The daemon is not ready until the hold is dropped. `name` is its name in the answer.
    pub(crate) fn hold(&self, name: &'static str) -> ReadinessHold {
        self.holds.lock().push(name);
        ReadinessHold { holds: Arc::clone(&self.holds), name }
    }

    fn answer(&self) -> (StatusCode, String) {
        if self.stop.is_cancelled() {
            return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
        }
        let holds = self.holds.lock();
        match holds.is_empty() {
            true => (StatusCode::OK, "ready\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, format!("starting: {}\n", holds.join(", "))),
        }
    }
}

// === impl ReadinessHold ===

impl Drop for ReadinessHold {
    fn drop(&mut self) {
        let mut holds = self.holds.lock();
        if let Some(at) = holds.iter().position(|held| *held == self.name) {
            holds.remove(at);
        }
    }
}

// === impl Holds ===

impl Holds {
    /// All names. A poisoned lock is no problem, because no change leaves them inconsistent.
    fn lock(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_holds_it_back_and_until_it_drains() {
        let stop = CancellationToken::new();
        let readiness = Readiness::new(stop.clone());
        let (first, second) = (readiness.hold("the store"), readiness.hold("the runner"));
        assert_eq!(readiness.answer().1, "starting: the store, the runner\n");
        drop(first);
        assert_eq!(readiness.answer().1, "starting: the runner\n");
        drop(second);
        assert_eq!(readiness.answer(), (StatusCode::OK, "ready\n".to_owned()));
        stop.cancel();
        let draining = (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
        assert_eq!(readiness.answer(), draining);
    }
}
