//! What the SDK of Octue Twined needs from us, in one place: the runners and the roots use it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`variables`] | the names of the environment variables that the SDK and Google's clients read |
//! | [`services`] | how a service is found: a folder with an `octue.yaml` |
//! | [`arguments`] | the arguments of `octue twined question ask-local`, and the file beside them |
//! | [`shim`] | the Python that makes an unmodified SDK work offline, and read that file |

pub mod arguments;
pub mod services;
pub mod shim;
pub mod variables;

/// The command that answers one question with the service of the folder that it runs in.
pub const ASK_LOCAL: [&str; 4] = ["octue", "twined", "question", "ask-local"];

/// The sender of every question that a person asks: the SDK has no other name for them.
pub const PERSON: &str = "local/local:local";
