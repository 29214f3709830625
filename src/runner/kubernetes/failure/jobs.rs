//! A Job that is finished, where no pod says more.

use super::text;
use crate::event::Timestamp;
use crate::runner::{EndReason, RunEnd};
use k8s_openapi::api::batch::v1::{Job, JobCondition};

/// How a Job of `service` ended, if it has. (One that is to fail, but whose pods still run, has
/// not.)
pub fn end(job: &Job, service: &str) -> Option<RunEnd> {
    let condition = finished(job)?;
    let (reason, message) = if condition.type_ == "Complete" {
        let message = format!(
            "`{service}` ended without an error, but without a result: its code may have ended \
             early, or the SDK found the question invalid; see its log, and what its code returns"
        );
        (EndReason::Exited, message)
    } else {
        failed(job, condition, service)
    };
    let at = when(job, condition);
    Some(RunEnd { at, started: None, reason, message, tail: Vec::new() })
}

fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })
}

fn failed(job: &Job, condition: &JobCondition, service: &str) -> (EndReason, String) {
    let said = condition.message.as_deref().unwrap_or_default();
    let quoted = text::aside("it says", said);
    match condition.reason.as_deref().unwrap_or_default() {
        "DeadlineExceeded" => {
            let seconds = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
            let deadline = seconds.map_or_else(String::new, |seconds| format!(" of {seconds} s"));
            let message = format!(
                "`{service}` was ended because its Job lasted longer than its deadline{deadline}, \
                 in which its waiting counts; ask for less at once, or raise the Job's deadline"
            );
            (EndReason::Deadline, message)
        }
        "BackoffLimitExceeded" => {
            let message = format!(
                "the pod of `{service}` failed and is no longer there, so nobody can say how it \
                 ended{quoted}; ask again"
            );
            (EndReason::Failed, message)
        }
        reason => {
            let reason = text::quote(reason);
            let message = format!(
                "the Job of `{service}` failed with `{reason}`{quoted}; see its pod in the \
                 cluster, or ask again"
            );
            (EndReason::Failed, message)
        }
    }
}

/// When the Job finished: always the same moment, whoever looks.
fn when(job: &Job, condition: &JobCondition) -> Timestamp {
    let status = job.status.as_ref();
    text::moment(status.and_then(|status| status.completion_time.as_ref()))
        .or_else(|| text::moment(condition.last_transition_time.as_ref()))
        .or_else(|| text::moment(status.and_then(|status| status.start_time.as_ref())))
        .or_else(|| text::moment(job.metadata.creation_timestamp.as_ref()))
        .unwrap_or(Timestamp(0))
}
