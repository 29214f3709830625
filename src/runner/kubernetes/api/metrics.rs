//! How many calls of the API server were made, and how long they took.

use super::Verb;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use std::time::Duration;

/// How a call ended: a closed set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseCode(usize);

/// Handles by verb and code, looked up once.
#[derive(Debug)]
pub(super) struct Metrics {
    total: [[Counter; ResponseCode::LABELS.len()]; Verb::ALL.len()],
    seconds: [[Histogram; ResponseCode::LABELS.len()]; Verb::ALL.len()],
}

/// Counts how often the watch of a kind of objects was opened again after an error.
pub(in crate::runner::kubernetes) fn watch_restarts(resource: &'static str) -> Counter {
    describe_counter!("twined_watch_restarts_total", "Watches that broke and were reopened");
    let restarts = counter!("twined_watch_restarts_total", "resource" => resource);
    restarts.absolute(0);
    restarts
}

// === impl ResponseCode ===

impl ResponseCode {
    /// The codes that operators tell apart. `ok` stands for all of 2xx, `5xx` for all of them, and
    /// `error` for a call without an answer.
    const LABELS: [&'static str; 11] =
        ["ok", "400", "401", "403", "404", "409", "422", "429", "5xx", "timeout", "error"];
    pub(super) const OK: Self = Self(0);
    pub(super) const TIMEOUT: Self = Self(9);
    const ERROR: Self = Self(10);

    pub(super) fn from_error(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                400 => Self(1),
                401 => Self(2),
                403 => Self(3),
                404 => Self(4),
                409 => Self(5),
                422 => Self(6),
                429 => Self(7),
                500..=599 => Self(8),
                _ => Self::ERROR,
            },
            _ => Self::ERROR,
        }
    }
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new() -> Self {
        describe_counter!("twined_runner_requests_total", "Calls of the Kubernetes API server");
        describe_histogram!(
            "twined_runner_request_seconds",
            Unit::Seconds,
            "Duration of calls of the Kubernetes API server"
        );
        Self {
            total: Verb::ALL.map(|verb| {
                ResponseCode::LABELS.map(|code| {
                    let labels = [("verb", verb.label()), ("code", code)];
                    counter!("twined_runner_requests_total", &labels)
                })
            }),
            seconds: Verb::ALL.map(|verb| {
                ResponseCode::LABELS.map(|code| {
                    let labels = [("verb", verb.label()), ("code", code)];
                    histogram!("twined_runner_request_seconds", &labels)
                })
            }),
        }
    }

    pub(super) fn record(&self, verb: Verb, code: ResponseCode, duration: Duration) {
        self.total[verb as usize][code.0].increment(1);
        self.seconds[verb as usize][code.0].record(duration);
    }
}
