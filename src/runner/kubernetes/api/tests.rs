use super::*;
use kube::core::Status;
use metrics_exporter_prometheus::PrometheusBuilder;
use std::future::{pending, ready};

fn api_error(code: u16, reason: &str, message: &str) -> kube::Error {
    kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
}

async fn failed_call(error: kube::Error) -> ApiError {
    timed_call(&Metrics::new(), Verb::Create, ready(Err::<(), _>(error))).await.unwrap_err()
}

#[tokio::test]
async fn a_status_is_divided_by_what_the_caller_must_do() {
    let quota = "jobs.batch \"q\" is forbidden: exceeded quota: few";
    for (code, variant) in [
        (400, "Invalid"),
        (422, "Invalid"),
        (409, "Conflict"),
        (404, "NotFound"),
        (401, "Forbidden"),
        (403, "Forbidden"),
        (429, "Unavailable"),
        (500, "Unavailable"),
        (504, "Unavailable"),
        (0, "Unavailable"),
    ] {
        let error = failed_call(api_error(code, "Why", quota)).await;
        assert!(format!("{error:?}").starts_with(variant), "{code}: {error:?}");
        assert!(error.to_string().ends_with(quota), "{error}");
    }
    let exists =
        failed_call(api_error(409, "AlreadyExists", "jobs.batch \"q\" already exists")).await;
    assert!(matches!(exists, ApiError::AlreadyExists(_)), "{exists:?}");
}

#[tokio::test]
async fn a_call_without_an_answer_may_be_repeated_and_names_each_source_once() {
    let refused = std::io::Error::other("connection refused");
    let error = failed_call(kube::Error::Service(refused.into())).await;
    assert_eq!(error.to_string(), "API server unavailable: ServiceError: connection refused");
    let error = failed_call(api_error(503, "ServiceUnavailable", "")).await;
    assert_eq!(error.to_string(), "API server unavailable: 503 ServiceUnavailable");
}

#[tokio::test(start_paused = true)]
async fn a_call_times_out() {
    let start = Instant::now();
    let result = timed_call(&Metrics::new(), Verb::Patch, pending::<kube::Result<()>>()).await;
    let text = "API server unavailable: no answer to `patch` in 20 s";
    assert_eq!(result.unwrap_err().to_string(), text);
    assert_eq!(start.elapsed(), CALL_TIMEOUT);
}

#[test]
fn calls_are_counted_by_verb_and_code() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = ::metrics::with_local_recorder(&recorder, Metrics::new);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        timed_call(&metrics, Verb::Get, ready(Ok(()))).await.unwrap();
        let conflict = ready(Err::<(), _>(api_error(409, "AlreadyExists", "exists")));
        timed_call(&metrics, Verb::Create, conflict).await.unwrap_err();
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
fn every_verb_has_the_index_of_its_variant() {
    for (index, verb) in Verb::ALL.into_iter().enumerate() {
        assert_eq!(verb as usize, index);
    }
}
