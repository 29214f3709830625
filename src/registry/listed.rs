//! A registry with a fixed list: the services that were found in folders.

use crate::event::{Sruid, SruidBuf};
use crate::registry::{RegistryError, ServiceRegistry};
use async_trait::async_trait;
use std::collections::BTreeMap;

/// The revisions that are listed, and no others.
#[derive(Clone, Debug, Default)]
pub struct ListedRegistry {
    /// Service to the tags of its revisions; the first is the default.
    tags: BTreeMap<String, Vec<String>>,
}

// === impl ListedRegistry ===

impl FromIterator<SruidBuf> for ListedRegistry {
    /// Of several revisions of one service the first is the default.
    fn from_iter<I: IntoIterator<Item = SruidBuf>>(revisions: I) -> Self {
        let mut tags = BTreeMap::<String, Vec<String>>::new();
        for revision in revisions {
            let revision = revision.as_sruid();
            tags.entry(revision.service().to_owned()).or_default().push(revision.tag().to_owned());
        }
        Self { tags }
    }
}

#[async_trait]
impl ServiceRegistry for ListedRegistry {
    async fn has(&self, revision: Sruid<'_>) -> Result<bool, RegistryError> {
        let tags = self.tags.get(revision.service());
        Ok(tags.is_some_and(|tags| tags.iter().any(|tag| tag == revision.tag())))
    }

    async fn default_tag(&self, service: &str) -> Result<Option<String>, RegistryError> {
        Ok(self.tags.get(service).and_then(|tags| tags.first()).cloned())
    }

    async fn tags(&self, service: &str) -> Result<Vec<String>, RegistryError> {
        Ok(self.tags.get(service).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_listed_revisions_exist() {
        let registry: ListedRegistry = ["a/b:2", "a/b:1", "c/d:local"]
            .map(|text| text.parse::<SruidBuf>().unwrap())
            .into_iter()
            .collect();

        for (revision, there) in
            [("a/b:1", true), ("a/b:2", true), ("a/b:3", false), ("a/d:local", false)]
        {
            assert_eq!(registry.has(Sruid::parse(revision).unwrap()).await.unwrap(), there);
        }
        assert_eq!(registry.default_tag("a/b").await.unwrap().as_deref(), Some("2"));
        assert_eq!(registry.default_tag("a/x").await.unwrap(), None);
        assert_eq!(registry.tags("a/b").await.unwrap(), ["2", "1"]);
    }
}
