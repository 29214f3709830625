//! A registry without a list: every revision exists.

use crate::event::Sruid;
use crate::registry::{RegistryError, ServiceRegistry};
use async_trait::async_trait;

/// Takes every revision to exist. A missing image is noticed when it is pulled.
///
/// Revisions that the settings deny exist too: otherwise the exception would suggest a wrong name
/// to the parent. The runner refuses them with a `PermissionError` that names the setting.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAllRegistry;

// === impl AllowAllRegistry ===

#[async_trait]
impl ServiceRegistry for AllowAllRegistry {
    async fn has(&self, _revision: Sruid<'_>) -> Result<bool, RegistryError> {
        Ok(true)
    }

    /// Always none: without a list, no revision is known to be the default.
    async fn default_tag(&self, _service: &str) -> Result<Option<String>, RegistryError> {
        Ok(None)
    }

    async fn tags(&self, _service: &str) -> Result<Vec<String>, RegistryError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_revision_exists_and_none_is_listed() {
        let revision = Sruid::parse("octue/never-built:1.0").unwrap();
        assert!(AllowAllRegistry.has(revision).await.unwrap());
        assert_eq!(AllowAllRegistry.default_tag("octue/never-built").await.unwrap(), None);
        assert!(AllowAllRegistry.tags("octue/never-built").await.unwrap().is_empty());
    }
}
