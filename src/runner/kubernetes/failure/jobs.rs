//! A finished Job whose pods report no more.

use super::text;
use crate::event::Timestamp;
use crate::runner::{Cause, EndReason, RunEnd};
use k8s_openapi::api::batch::v1::{Job, JobCondition};

/// How a Job of `service` ended; `None` while it is unfinished. (A Job that is about to fail, but
/// has pods that run, is unfinished.)
pub(super) fn end(job: &Job, service: &str) -> Option<RunEnd> {
    let condition = finished_condition(job)?;
    let cause = if condition.type_ == "Complete" {
        Cause::new(
            EndReason::Exited,
            format!(
                "`{service}` ended without an error, but without a result: its code may have ended \
                 early, or the SDK found the question invalid; see its log, and what its code \
                 returns"
            ),
        )
    } else {
        failure(job, condition, service)
    };
    let at = finished_at(job, condition);
    Some(RunEnd { at, started: None, cause, tail: Vec::new() })
}

fn finished_condition(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })
}

fn failure(job: &Job, condition: &JobCondition, service: &str) -> Cause {
    let quoted = text::reported("it", condition.message.as_deref().unwrap_or_default());
    match condition.reason.as_deref().unwrap_or_default() {
        "DeadlineExceeded" => {
            let seconds = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
            let deadline = seconds.map_or_else(String::new, |seconds| format!(" of {seconds} s"));
            let message = format!(
                "`{service}` was ended because its Job lasted longer than its deadline{deadline}, \
                 in which its waiting counts; ask for less at once, or raise the Job's deadline"
            );
            Cause::new(EndReason::Deadline, message)
        }
        "BackoffLimitExceeded" => {
            let message = format!(
                "the pod of `{service}` failed and is no longer there, so nobody can tell how it \
                 ended{quoted}; ask again"
            );
            Cause::new(EndReason::Failed, message)
        }
        reason => {
            let reason = text::quote(reason);
            let message = format!(
                "the Job of `{service}` failed with `{reason}`{quoted}; see its pod in the \
                 cluster, or ask again"
            );
            Cause::new(EndReason::Failed, message)
        }
    }
}

/// When the Job finished: the same time for every observer.
fn finished_at(job: &Job, condition: &JobCondition) -> Timestamp {
    let status = job.status.as_ref();
    text::timestamp(status.and_then(|status| status.completion_time.as_ref()))
        .or_else(|| text::timestamp(condition.last_transition_time.as_ref()))
        .or_else(|| text::timestamp(status.and_then(|status| status.start_time.as_ref())))
        .or_else(|| text::timestamp(job.metadata.creation_timestamp.as_ref()))
        .unwrap_or(Timestamp(0))
}
