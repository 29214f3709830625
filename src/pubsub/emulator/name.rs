//! Names of topics and subscriptions: `projects/{project}/topics/{id}`.

use std::fmt;

/// The topic in answers about a subscription whose topic was deleted.
pub(super) const DELETED_TOPIC: &str = "_deleted-topic_";

/// The kind of a named resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResourceKind {
    Topic,
    Subscription,
}

/// A valid name. Its kind is known from the context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ResourceName {
    pub project: String,
    pub id: String,
}

/// Why a name is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not have the form of its kind.
    #[error("invalid resource name (name={name}): expected `projects/<project>/{collection}/<id>`")]
    Form {
        /// The name.
        name: String,
        /// The part that names the kind.
        collection: &'static str,
    },
    /// Its last part is not a valid id.
    #[error(
        "invalid resource name (name={name}): an id has 3 to 255 letters, digits and `-_.~+%`, \
         begins with a letter, and not with `goog`"
    )]
    Id {
        /// The name.
        name: String,
    },
}

// === impl ResourceKind ===

impl ResourceKind {
    fn collection(self) -> &'static str {
        match self {
            Self::Topic => "topics",
            Self::Subscription => "subscriptions",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Topic => "Topic",
            Self::Subscription => "Subscription",
        })
    }
}

// === impl ResourceName ===

impl ResourceName {
    /// Parses the name of a resource of this kind.
    pub(super) fn parse(kind: ResourceKind, name: &str) -> Result<Self, NameError> {
        let collection = kind.collection();
        let form = || NameError::Form { name: name.to_owned(), collection };
        let parts: Vec<&str> = name.split('/').collect();
        let ["projects", project, found, id] = parts[..] else { return Err(form()) };
        if found != collection || project.is_empty() {
            return Err(form());
        }
        if !is_id(id) {
            return Err(NameError::Id { name: name.to_owned() });
        }
        Ok(Self { project: project.to_owned(), id: id.to_owned() })
    }

    /// Formats the name of a resource of this kind in `project`.
    pub(super) fn format(kind: ResourceKind, project: &str, id: &str) -> String {
        format!("projects/{project}/{}/{id}", kind.collection())
    }
}

/// Parses `projects/{project}`, and returns the project.
pub(super) fn parse_project(name: &str) -> Result<&str, NameError> {
    match name.strip_prefix("projects/") {
        Some(project) if !project.is_empty() && !project.contains('/') => Ok(project),
        _ => Err(NameError::Form { name: name.to_owned(), collection: "…" }),
    }
}

fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~+%".contains(&byte);
    (3..=255).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_alphabetic())
        && !id.starts_with("goog")
        && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::{NameError, ResourceKind, ResourceName, parse_project};

    #[test]
    fn a_name_is_formatted_as_it_was_parsed() {
        let text = "projects/my-project/subscriptions/octue.test.1-0-0.answers~+%_x";
        let name = ResourceName::parse(ResourceKind::Subscription, text).unwrap();

        assert_eq!(name.project, "my-project");
        assert_eq!(ResourceName::format(ResourceKind::Subscription, &name.project, &name.id), text);
    }

    #[test]
    fn a_name_in_another_form_is_refused() {
        for text in [
            "",
            "abc",
            "projects//topics/abc",
            "projects/p/subscriptions/abc",
            "projects/p/topics/abc/d",
        ] {
            let error = ResourceName::parse(ResourceKind::Topic, text).unwrap_err();
            assert!(matches!(error, NameError::Form { .. }), "{text}");
        }
        assert!(parse_project("projects/p/topics").is_err());
        assert_eq!(parse_project("projects/p"), Ok("p"));
    }

    #[test]
    fn an_invalid_id_is_refused() {
        let long = "a".repeat(256);
        for id in ["ab", &long, "1abc", "-abc", "google", "goog-abc", "a b c", "ä-b-c", "a:bc"] {
            let error =
                ResourceName::parse(ResourceKind::Topic, &format!("projects/p/topics/{id}"))
                    .unwrap_err();
            assert!(matches!(error, NameError::Id { .. }), "{id}");
        }
        assert!(
            ResourceName::parse(ResourceKind::Topic, &format!("projects/p/topics/{}", &long[1..]))
                .is_ok()
        );
    }
}
