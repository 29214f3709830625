//! What the SDK of Octue Twined needs: the runners and the roots use it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`variables`] | the names of the environment variables that the SDK and Google's clients read |
//! | [`services`] | how a service is found: a folder with an `octue.yaml` |
//! | [`arguments`] | the arguments of `octue twined question ask-local`, and the file beside them |
//! | [`shim`] | the Python that makes an unmodified SDK work offline, and read that file |

pub(crate) mod arguments;
pub(crate) mod services;
pub(crate) mod shim;
pub(crate) mod variables;

/// The command that answers one question with the service of its working directory.
pub(crate) const ASK_LOCAL: [&str; 4] = ["octue", "twined", "question", "ask-local"];

/// The sender of questions that have no parent question, as the SDK names it.
pub(crate) const ROOT_PARENT: &str = "local/local:local";
