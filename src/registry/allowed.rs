//! A registry that was told nothing: whatever can be named is taken for existing.

use crate::event::Sruid;
use crate::registry::{RegistryError, ServiceRegistry};
use async_trait::async_trait;

/// Takes every revision for existing. That an image is not there is then found by pulling it.
///
/// Revisions that the settings deny, too: if those did not exist, the asker would be told to look
/// for a mistake in the name. The runner refuses them, with a `PermissionError` that names the
/// setting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed;

// === impl Allowed ===

#[async_trait]
impl ServiceRegistry for Allowed {
    async fn has(&self, _revision: Sruid<'_>) -> Result<bool, RegistryError> {
        Ok(true)
    }

    /// Never: which is the default cannot be told from a name.
    async fn default(&self, _service: &str) -> Result<Option<String>, RegistryError> {
        Ok(None)
    }

    async fn revisions(&self, _service: &str) -> Result<Vec<String>, RegistryError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_revision_exists_and_none_is_listed() {
        let revision = Sruid::parse("octue/never-built:1.0").unwrap();
        assert!(Allowed.has(revision).await.unwrap());
        assert_eq!(Allowed.default("octue/never-built").await.unwrap(), None);
        assert!(Allowed.revisions("octue/never-built").await.unwrap().is_empty());
    }
}
