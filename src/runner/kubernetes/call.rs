//! Calls of the API server: what their errors mean, and how they are counted.
//!
//! ```text
//! call(verb, future) -> at most 20 s -> counted and timed -> Ok, or what the error means
//! ```
//!
//! An error divides the world the way the caller must act: never again as it is (`Refused`), look
//! again at what is there (`Exists`, `Conflict`, `Gone`), or later (`Unavailable`). A right that is missing
//! and a quota that is used up are `Unavailable`: an operator can mend either, and no question is
//! to fail for it at once.
//!
//! Nothing is tried again here: who called knows whether its call can be repeated.

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long one call may take. The API server gives up on a write after 34 s by itself; a caller
/// whose call may have been done asks again, and finds it done.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Makes calls of the API server, and counts them. Clones share their counts.
#[derive(Clone, Debug)]
pub struct Calls {
    metrics: Arc<Metrics>,
}

/// What a call does: the verbs of a Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Makes an object.
    Create,
    /// Reads one.
    Get,
    /// Reads many.
    List,
    /// Replaces one.
    Update,
    /// Changes a part of one.
    Patch,
    /// Takes one away.
    Delete,
}

/// Why a call did not do what it should, divided by what is to be done about it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// 400 or 422: it would be refused again. The words are for the asker.
    #[error("the API server refused it: {0}")]
    Refused(String),
    /// 409 `AlreadyExists`: there is one of that name already.
    #[error("there is one already: {0}")]
    Exists(String),
    /// Any other 409: it is not what it was when we looked. Where something was to be made, that is
    /// the namespace's quota, which others used at the same moment: then it was not made.
    #[error("it is in conflict with what is there: {0}")]
    Conflict(String),
    /// 404: it is not there, nor perhaps the namespace.
    #[error("it is not there: {0}")]
    Gone(String),
    /// 401 or 403: a right is missing, or a quota is used up. To be tried again.
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    /// 429, 5xx, no answer in time, no connection, or an answer that makes no sense. It may have
    /// been done. To be tried again.
    #[error("the API server cannot do it now: {0}")]
    Unavailable(String),
}

/// How a call ended: a closed set, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code(usize);

/// Handles, by verb and code.
#[derive(Debug)]
struct Metrics {
    total: [[Counter; Code::LABELS.len()]; Verb::ALL.len()],
    seconds: [[Histogram; Code::LABELS.len()]; Verb::ALL.len()],
}

// === impl Calls ===

impl Calls {
    /// Looks up the handles of the metrics, once.
    pub fn new() -> Self {
        Self { metrics: Arc::new(Metrics::new()) }
    }

    /// Awaits a call, for [`LIMIT`] at most.
    pub async fn call<T>(
        &self,
        verb: Verb,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        let start = Instant::now();
        let (code, result) = match timeout(LIMIT, call).await {
            Ok(Ok(answer)) => (Code::OK, Ok(answer)),
            Ok(Err(error)) => (Code::of(&error), Err(CallError::from(error))),
            Err(_) => {
                let words = format!("no answer to `{}` in {} s", verb.label(), LIMIT.as_secs());
                (Code::TIMEOUT, Err(CallError::Unavailable(words)))
            }
        };
        self.metrics.record(verb, code, start.elapsed());
        result
    }
}

impl Default for Calls {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Verb ===

impl Verb {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 6] =
        [Self::Create, Self::Get, Self::List, Self::Update, Self::Patch, Self::Delete];

    /// The name that a Role uses.
    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::List => "list",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

// === impl CallError ===

impl CallError {
    /// Whether it is worth trying again as it is.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Forbidden(_) | Self::Unavailable(_) => true,
            Self::Refused(_) | Self::Exists(_) | Self::Conflict(_) | Self::Gone(_) => false,
        }
    }

    /// What the API server said.
    pub fn words(&self) -> &str {
        match self {
            Self::Refused(words)
            | Self::Exists(words)
            | Self::Conflict(words)
            | Self::Gone(words)
            | Self::Forbidden(words)
            | Self::Unavailable(words) => words,
        }
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unavailable(words(&error));
        };
        let words = if status.message.is_empty() {
            format!("{} {}", status.code, status.reason)
        } else {
            status.message.clone()
        };
        match status.code {
            400 | 422 => Self::Refused(words),
            401 | 403 => Self::Forbidden(words),
            404 => Self::Gone(words),
            409 if status.reason == "AlreadyExists" => Self::Exists(words),
            409 => Self::Conflict(words),
            _ => Self::Unavailable(words),
        }
    }
}

/// An error with its causes, each once: those of kube repeat their sources.
fn words(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

// === impl Code ===

impl Code {
    /// The codes that tell something apart. `ok` are all of 2xx; `5xx` are all of them; `error` is
    /// where there was no answer.
    const LABELS: [&'static str; 11] =
        ["ok", "400", "401", "403", "404", "409", "422", "429", "5xx", "timeout", "error"];
    const OK: Self = Self(0);
    const TIMEOUT: Self = Self(9);
    const ERROR: Self = Self(10);

    fn of(error: &kube::Error) -> Self {
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
    fn new() -> Self {
        describe_counter!("twined_runner_requests_total", "Calls of the API server");
        describe_histogram!(
            "twined_runner_request_seconds",
            Unit::Seconds,
            "How long calls of the API server took"
        );
        Self {
            total: Verb::ALL.map(|verb| {
                Code::LABELS.map(|code| {
                    let labels = [("verb", verb.label()), ("code", code)];
                    counter!("twined_runner_requests_total", &labels)
                })
            }),
            seconds: Verb::ALL.map(|verb| {
                Code::LABELS.map(|code| {
                    let labels = [("verb", verb.label()), ("code", code)];
                    histogram!("twined_runner_request_seconds", &labels)
                })
            }),
        }
    }

    fn record(&self, verb: Verb, Code(code): Code, took: Duration) {
        self.total[verb as usize][code].increment(1);
        self.seconds[verb as usize][code].record(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::future::{pending, ready};

    fn api(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    async fn failed(error: kube::Error) -> CallError {
        Calls::new().call(Verb::Create, ready(Err::<(), _>(error))).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_status_means_what_is_to_be_done_about_it() {
        let quota = "jobs.batch \"q\" is forbidden: exceeded quota: few";
        for (code, transient, variant) in [
            (400, false, "Refused"),
            (422, false, "Refused"),
            (409, false, "Conflict"),
            (404, false, "Gone"),
            (401, true, "Forbidden"),
            (403, true, "Forbidden"),
            (429, true, "Unavailable"),
            (500, true, "Unavailable"),
            (504, true, "Unavailable"),
            (0, true, "Unavailable"),
        ] {
            let error = failed(api(code, "Why", quota)).await;
            assert!(format!("{error:?}").starts_with(variant), "{code}: {error:?}");
            assert_eq!(error.is_transient(), transient, "{code}");
            assert_eq!(error.words(), quota);
        }
        let there = failed(api(409, "AlreadyExists", "jobs.batch \"q\" already exists")).await;
        assert!(matches!(there, CallError::Exists(_)), "{there:?}");
    }

    #[tokio::test]
    async fn what_is_no_answer_may_be_tried_again_and_says_its_causes_once() {
        let refused = std::io::Error::other("connection refused");
        let error = failed(kube::Error::Service(refused.into())).await;
        assert!(error.is_transient());
        assert_eq!(
            error.to_string(),
            "the API server cannot do it now: ServiceError: connection refused"
        );
        let error = failed(api(503, "ServiceUnavailable", "")).await;
        assert_eq!(error.words(), "503 ServiceUnavailable");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_after_its_limit() {
        let start = Instant::now();
        let result = Calls::new().call(Verb::Patch, pending::<kube::Result<()>>()).await;
        assert_eq!(result.unwrap_err().words(), "no answer to `patch` in 20 s");
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[test]
    fn calls_are_counted_by_verb_and_code() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let calls = metrics::with_local_recorder(&recorder, Calls::new);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            calls.call(Verb::Get, ready(Ok(()))).await.unwrap();
            let conflict = ready(Err::<(), _>(api(409, "AlreadyExists", "it is there")));
            calls.call(Verb::Create, conflict).await.unwrap_err();
        });
        let text = recorder.handle().render();
        for line in [
            "twined_runner_requests_total{verb=\"get\",code=\"ok\"} 1",
            "twined_runner_requests_total{verb=\"create\",code=\"409\"} 1",
            "twined_runner_requests_total{verb=\"delete\",code=\"timeout\"} 0",
            "twined_runner_request_seconds_count{verb=\"create\",code=\"409\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_verb_is_where_its_number_says() {
        for (number, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb as usize, number);
        }
    }
}
