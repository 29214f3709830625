//! The interface to what knows which service revisions exist.

pub mod allowed;
pub mod listed;
use crate::event::Sruid;
pub use allowed::Allowed;
use async_trait::async_trait;
pub use listed::Listed;
use std::error::Error;
use std::fmt::Debug;

/// Knows which revisions of which services exist. That one does not exist is an answer, not an
/// error.
#[async_trait]
pub trait ServiceRegistry: Debug + Send + Sync {
    /// Whether this revision exists.
    async fn has(&self, revision: Sruid<'_>) -> Result<bool, RegistryError>;

    /// The tag of the default revision of a service, `<namespace>/<name>`; none where there is no
    /// such service.
    async fn default(&self, service: &str) -> Result<Option<String>, RegistryError>;

    /// The tags of all revisions of a service that are known, for a person to choose from.
    async fn revisions(&self, service: &str) -> Result<Vec<String>, RegistryError>;
}

/// The registry gave no answer. Try again.
#[derive(Debug, thiserror::Error)]
#[error("failed to reach the service registry")]
pub struct RegistryError(#[source] pub Box<dyn Error + Send + Sync>);
