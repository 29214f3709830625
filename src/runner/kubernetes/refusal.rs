//! Why a question is not launched.

/// Why a question cannot run as it asks. A later try would not succeed either: the parent is
/// notified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LaunchRefusal {
    /// An exception of Python.
    pub exception: &'static str,
    /// For the parent: why, and what to do about it.
    pub message: String,
}

// === impl LaunchRefusal ===

impl LaunchRefusal {
    /// The network's settings do not allow it.
    pub(super) fn denied(message: String) -> Self {
        Self { exception: "PermissionError", message }
    }

    /// It is malformed, or larger than can be carried.
    pub(super) fn invalid(message: String) -> Self {
        Self { exception: "ValueError", message }
    }

    /// The API server does not accept its Job.
    pub(super) fn by_api_server(message: &str) -> Self {
        Self {
            exception: "RuntimeError",
            message: format!("The cluster does not take the question's Job: {message}"),
        }
    }
}
