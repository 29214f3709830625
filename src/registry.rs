//! The interface of a service registry, which knows the service revisions that exist.

pub mod allowed;
pub mod listed;
use crate::event::Sruid;
pub use allowed::AllowAllRegistry;
use async_trait::async_trait;
pub use listed::ListedRegistry;
use std::error::Error;
use std::fmt::Debug;

/// Knows which revisions of which services exist. That one does not exist is an answer, not an
/// error.
#[async_trait]
pub trait ServiceRegistry: Debug + Send + Sync {
    /// Whether this revision exists.
    async fn has(&self, revision: Sruid<'_>) -> Result<bool, RegistryError>;

    /// The tag of the default revision of a service, `<namespace>/<name>`; `None` if it is unknown.
    async fn default_tag(&self, service: &str) -> Result<Option<String>, RegistryError>;

    /// The tags of all known revisions of a service, for messages to people.
    async fn tags(&self, service: &str) -> Result<Vec<String>, RegistryError>;
}

/// The registry gave no answer. A retry may succeed.
#[derive(Debug, thiserror::Error)]
#[error("failed to reach the service registry")]
pub struct RegistryError(#[source] pub Box<dyn Error + Send + Sync>);
