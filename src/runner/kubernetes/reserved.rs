//! What each container of a question gets from us, so that no setting may replace it.

use crate::sdk::variables;

/// The folder in which a question is mounted that no argument holds.
pub(super) const MOUNT_FOLDER: &str = "/twined";

/// The variables that are set for every question: with other values nothing would run.
pub(super) const VARIABLES: [&str; 5] = [
    variables::TOPIC_NAME,
    variables::COMPUTE_PROVIDER,
    variables::SERVICE_REVISION_TAG,
    variables::QUESTION_FILE,
    variables::QUESTION_PARTS,
];
