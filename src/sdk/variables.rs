//! The environment variables that the SDK and Google's clients read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// Pub/Sub emulator that every Google client uses, `HOST:PORT`.
pub(crate) const PUBSUB_EMULATOR_HOST: &str = "PUBSUB_EMULATOR_HOST";
/// Default project of Google's clients.
pub(crate) const GOOGLE_CLOUD_PROJECT: &str = "GOOGLE_CLOUD_PROJECT";
/// File of a service account. Google's clients need credentials even offline.
pub(crate) const GOOGLE_APPLICATION_CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// Metadata server of Google, which the SDK asks when it signs URLs.
pub(crate) const GCE_METADATA_HOST: &str = "GCE_METADATA_HOST";
/// The network's topic.
pub(crate) const TOPIC_NAME: &str = "TWINED_SERVICES_TOPIC_NAME";
/// Where a service runs: [`GOOGLE_KUEUE`].
pub(crate) const COMPUTE_PROVIDER: &str = "COMPUTE_PROVIDER";
/// The value of [`COMPUTE_PROVIDER`] for a process that was started for one question.
pub(crate) const GOOGLE_KUEUE: &str = "GOOGLE_KUEUE";
/// The revision tag of a service.
pub(crate) const SERVICE_REVISION_TAG: &str = "OCTUE_SERVICE_REVISION_TAG";
/// URL of the service registry of a network on this machine. Only the shim reads it: the registries
/// of an `octue.yaml` are in the cloud.
pub(crate) const LOCAL_REGISTRY: &str = "TWINED_LOCAL_REGISTRY";
/// File with the question's inputs, or with the first part of them. Only the shim reads it.
pub(crate) const QUESTION_FILE: &str = "TWINED_QUESTION_FILE";
/// Number of parts of the file of [`QUESTION_FILE`]. Only the shim reads it.
pub(crate) const QUESTION_PARTS: &str = "TWINED_QUESTION_PARTS";

/// Why a network's description is refused. Any process that listens on the port can send one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DescriptionError {
    /// Without the variable, clients would use the real cloud.
    #[error("the network's description lacks `{0}`")]
    Missing(&'static str),
    /// A value that must not reach a shell.
    #[error("the network's value of `{name}` is not a valid {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What its value must be.
        expected: &'static str,
    },
}

/// Whether a value is valid.
type ValueCheck = fn(&str) -> bool;

/// The variables with which a network describes itself: name, kind of value, and the check of it.
const DESCRIPTION: [(&str, &str, ValueCheck); 6] = [
    (PUBSUB_EMULATOR_HOST, "HOST:PORT", is_address),
    (GCE_METADATA_HOST, "HOST:PORT", is_address),
    (GOOGLE_CLOUD_PROJECT, "project id", is_name),
    (GOOGLE_APPLICATION_CREDENTIALS, "absolute path", is_path),
    (TOPIC_NAME, "topic name", is_name),
    (LOCAL_REGISTRY, "URL of a registry", is_registry),
];

/// Splits a description into the variables of a network and the names of all others. Each variable
/// of a network must be present with a valid value.
pub(crate) fn split_known(
    mut described: BTreeMap<String, String>,
) -> Result<(BTreeMap<String, String>, Vec<String>), DescriptionError> {
    let mut known = BTreeMap::new();
    for (name, expected, is_valid) in DESCRIPTION {
        let value = described.remove(name).ok_or(DescriptionError::Missing(name))?;
        if !is_valid(&value) {
            return Err(DescriptionError::Invalid { name, expected });
        }
        known.insert(name.to_owned(), value);
    }
    Ok((known, described.into_keys().collect()))
}

/// Whether a text is an absolute path without control characters.
fn is_path(text: &str) -> bool {
    Path::new(text).is_absolute() && !text.contains(char::is_control)
}

fn is_address(text: &str) -> bool {
    let host_fits = |host: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        !host.is_empty() && !host.starts_with('-') && host.chars().all(fits)
    };
    text.rsplit_once(':').is_some_and(|(host, port)| host_fits(host) && port.parse::<u16>().is_ok())
}

/// Whether a text is a name of a project or topic.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.~+%:".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(fits)
}

fn is_registry(text: &str) -> bool {
    let address = text.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/registry"));
    address.is_some_and(is_address)
}

/// A network on this machine, as its variables describe it.
#[derive(Clone, Debug)]
pub(crate) struct LocalNetwork<'a> {
    /// Its Pub/Sub, `HOST:PORT`.
    pub pubsub: &'a str,
    /// Its HTTP server.
    pub http: SocketAddr,
    /// Its project.
    pub project: &'a str,
    /// Its topic.
    pub topic: &'a str,
    /// The file of its service account.
    pub credentials: &'a Path,
}

// === impl LocalNetwork ===

impl LocalNetwork<'_> {
    /// The variables with which the SDK and Google's clients use this network alone.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let Self { pubsub, http, project, topic, credentials } = self;
        [
            (PUBSUB_EMULATOR_HOST, (*pubsub).to_owned()),
            (GOOGLE_CLOUD_PROJECT, (*project).to_owned()),
            (GOOGLE_APPLICATION_CREDENTIALS, credentials.display().to_string()),
            (GCE_METADATA_HOST, http.to_string()),
            (TOPIC_NAME, (*topic).to_owned()),
            (LOCAL_REGISTRY, format!("http://{http}/registry")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(http: &str) -> BTreeMap<String, String> {
        LocalNetwork {
            pubsub: "localhost:8085",
            http: http.parse().unwrap(),
            project: "any",
            topic: "main.octue.twined.services",
            credentials: Path::new("/home/it's me/.twined/google.json"),
        }
        .variables()
    }

    #[test]
    fn the_description_of_a_network_is_valid() {
        for http in ["127.0.0.1:8094", "[::1]:8094"] {
            let variables = network(http);
            assert_eq!(split_known(variables.clone()), Ok((variables, Vec::new())));
        }
    }

    #[test]
    fn an_unknown_variable_is_left_out() {
        let mut variables = network("127.0.0.1:1");
        for name in ["LD_PRELOAD", "x; touch /tmp/pwned; y"] {
            variables.insert(name.to_owned(), "1".to_owned());
        }
        let (known, unknown) = split_known(variables).unwrap();
        assert_eq!(known, network("127.0.0.1:1"));
        assert_eq!(unknown, ["LD_PRELOAD", "x; touch /tmp/pwned; y"]);
    }

    #[test]
    fn a_missing_variable_is_an_error() {
        for (name, _, _) in DESCRIPTION {
            let mut variables = network("127.0.0.1:1");
            variables.remove(name);
            assert_eq!(split_known(variables), Err(DescriptionError::Missing(name)));
        }
    }

    #[test]
    fn an_invalid_value_is_an_error() {
        for (name, value) in [
            (PUBSUB_EMULATOR_HOST, "localhost"),
            (PUBSUB_EMULATOR_HOST, "$(touch /tmp/pwned):80"),
            (PUBSUB_EMULATOR_HOST, "user:password@localhost:80"),
            (PUBSUB_EMULATOR_HOST, "-o:80"),
            (GCE_METADATA_HOST, "localhost:99999"),
            (GOOGLE_CLOUD_PROJECT, ""),
            (GOOGLE_CLOUD_PROJECT, "a b"),
            (GOOGLE_APPLICATION_CREDENTIALS, "google.json"),
            (GOOGLE_APPLICATION_CREDENTIALS, "/tmp/\x1b[2J"),
            (TOPIC_NAME, "a\nb"),
            (LOCAL_REGISTRY, "file:///etc/passwd"),
            (LOCAL_REGISTRY, "http://evil.example/registry"),
        ] {
            let mut variables = network("127.0.0.1:1");
            variables.insert(name.to_owned(), value.to_owned());
            let error = split_known(variables).unwrap_err();
            let named = matches!(error, DescriptionError::Invalid { name: n, .. } if n == name);
            assert!(named, "{value}: {error}");
        }
    }
}
