//! Finished Jobs.

use super::*;

fn job(kind: &str, reason: &str, message: &str) -> Job {
    serde_json::from_value(json!({
        "metadata": { "name": "question-1", "creationTimestamp": "2026-11-25T12:00:00Z" },
        "spec": { "activeDeadlineSeconds": 60, "template": { "spec": { "containers": [] } } },
        "status": {
            "startTime": "2026-11-25T12:00:01Z",
            "conditions": [
                { "type": "Suspended", "status": "False" },
                {
                    "type": kind,
                    "status": "True",
                    "reason": reason,
                    "message": message,
                    "lastTransitionTime": "2026-11-25T12:02:00Z",
                },
            ],
        },
    }))
    .unwrap()
}

#[test]
fn each_end_of_a_job_has_its_message() {
    for (kind, why, message, reason, part) in [
        ("Complete", "CompletionsReached", "", EndReason::Exited, "without a result"),
        (
            "Failed",
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
            EndReason::Deadline,
            "deadline of 60 s",
        ),
        (
            "Failed",
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
            EndReason::Failed,
            "no longer there",
        ),
        (
            "Failed",
            "PodFailurePolicy",
            "Container question for pod default/x failed with exit code 3 matching FailJob rule at \
             index 0",
            EndReason::Failed,
            "exit code 3",
        ),
        ("Failed", "SomethingNew", "of tomorrow", EndReason::Failed, "SomethingNew"),
    ] {
        let end = job_end(&job(kind, why, message), SERVICE).unwrap();
        assert_eq!((end.cause.reason, end.at), (reason, at("2026-11-25T12:02:00Z")), "{why}");
        assert_message(why, &end.cause.message, &[part]);
    }
}

#[test]
fn a_job_with_running_pods_has_not_ended() {
    assert_eq!(job_end(&job("FailureTarget", "DeadlineExceeded", ""), SERVICE), None);
    assert_eq!(job_end(&job("SuccessCriteriaMet", "", ""), SERVICE), None);
    assert_eq!(job_end(&Job::default(), SERVICE), None);
}
