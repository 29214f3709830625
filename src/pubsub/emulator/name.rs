//! Names of topics and subscriptions: `projects/{project}/topics/{id}`.

use std::fmt;

/// What a subscription answers as its topic when that was deleted.
pub(super) const DELETED_TOPIC: &str = "_deleted-topic_";

/// What a name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Topic,
    Subscription,
}

/// A checked name. Its kind is known from where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub project: String,
    pub id: String,
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It does not have the form of the kind that was asked for.
    #[error("invalid resource name (name={name}): expected `projects/<project>/{collection}/<id>`")]
    Form {
        /// What was given.
        name: String,
        /// The part that says what is named.
        collection: &'static str,
    },
    /// Its last part is not an id.
    #[error(
        "invalid resource name (name={name}): an id has 3 to 255 letters, digits and `-_.~+%`, \
         begins with a letter, and not with `goog`"
    )]
    Id {
        /// What was given.
        name: String,
    },
}

// === impl Kind ===

impl Kind {
    fn collection(self) -> &'static str {
        match self {
            Self::Topic => "topics",
            Self::Subscription => "subscriptions",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Topic => "Topic",
            Self::Subscription => "Subscription",
        })
    }
}

// === impl Name ===

impl Name {
    /// Reads the name of a `kind`.
    pub fn parse(kind: Kind, name: &str) -> Result<Self, NameError> {
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

    /// Writes the name of a `kind`, as `project` calls it.
    pub fn write(kind: Kind, project: &str, id: &str) -> String {
        format!("projects/{project}/{}/{id}", kind.collection())
    }
}

/// Reads `projects/{project}`, and gives the project.
pub(super) fn project(name: &str) -> Result<&str, NameError> {
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
    use super::{Kind, Name, NameError, project};

    #[test]
    fn a_name_is_read_and_written() {
        let text = "projects/my-project/subscriptions/octue.test.1-0-0.answers~+%_x";
        let name = Name::parse(Kind::Subscription, text).unwrap();

        assert_eq!(name.project, "my-project");
        assert_eq!(Name::write(Kind::Subscription, &name.project, &name.id), text);
    }

    #[test]
    fn a_name_of_the_wrong_form_is_refused() {
        for text in [
            "",
            "abc",
            "projects//topics/abc",
            "projects/p/subscriptions/abc",
            "projects/p/topics/abc/d",
        ] {
            let error = Name::parse(Kind::Topic, text).unwrap_err();
            assert!(matches!(error, NameError::Form { .. }), "{text}");
        }
        assert!(project("projects/p/topics").is_err());
        assert_eq!(project("projects/p"), Ok("p"));
    }

    #[test]
    fn the_rules_of_ids_hold() {
        let long = "a".repeat(256);
        for id in ["ab", &long, "1abc", "-abc", "google", "goog-abc", "a b c", "ä-b-c", "a:bc"] {
            let error = Name::parse(Kind::Topic, &format!("projects/p/topics/{id}")).unwrap_err();
            assert!(matches!(error, NameError::Id { .. }), "{id}");
        }
        assert!(Name::parse(Kind::Topic, &format!("projects/p/topics/{}", &long[1..])).is_ok());
    }
}
