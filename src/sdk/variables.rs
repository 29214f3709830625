//! The environment variables that the SDK and Google's clients read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// Sends every Google /// Pub/Sub emulator that every Google client uses.
pub const PUBSUB_EMULATOR_HOST: &str = "PUBSUB_EMULATOR_HOST";
/// Project of Google's clients where nothing else gives one.
pub const GOOGLE_CLOUD_PROJECT: &str = "GOOGLE_CLOUD_PROJECT";
/// File of a service account. Google's clients want credentials even offline.
pub const GOOGLE_APPLICATION_CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// Metadata server of Google, which the SDK asks when it signs URLs.
pub const GCE_METADATA_HOST: &str = "GCE_METADATA_HOST";
/// The network's topic.
pub const TOPIC_NAME: &str = "TWINED_SERVICES_TOPIC_NAME";
/// Where a service runs: [`GOOGLE_KUEUE`].
pub const COMPUTE_PROVIDER: &str = "COMPUTE_PROVIDER";
/// The value of [`COMPUTE_PROVIDER`] for a service that was started for one question.
pub const GOOGLE_KUEUE: &str = "GOOGLE_KUEUE";
/// The revision tag of a service.
pub const SERVICE_REVISION_TAG: &str = "OCTUE_SERVICE_REVISION_TAG";
/// URL of the service registry of a network on this machine. Ours, read by the shim: the registries
/// in an `octue.yaml` are elsewhere.
pub const LOCAL_REGISTRY: &str = "TWINED_LOCAL_REGISTRY";
/// File with the question's inputs, or with the first part of them. Ours, read by the shim.
pub const QUESTION_FILE: &str = "TWINED_QUESTION_FILE";
/// Number of parts of the file of [`QUESTION_FILE`]. Ours, read by the shim.
pub const QUESTION_PARTS: &str = "TWINED_QUESTION_PARTS";

/// A value with which a network describes itself and that is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value of `{name}` from the network is not a valid {expected}")]
pub struct InvalidValue {
    /// The variable.
    pub name: &'static str,
    /// What its value must be.
    pub expected: &'static str,
}

/// Whether a variable's value has the right form.
type Form = fn(&str) -> bool;

/// The variables with which a network describes itself, and the form of their values. Whoever holds
/// the network's port chooses them, and a shell evaluates them.
const FORMS: [(&str, &str, Form); 6] = [
    (PUBSUB_EMULATOR_HOST, "HOST:PORT", is_address),
    (GCE_METADATA_HOST, "HOST:PORT", is_address),
    (GOOGLE_CLOUD_PROJECT, "project id", is_name),
    (GOOGLE_APPLICATION_CREDENTIALS, "absolute path", is_path),
    (TOPIC_NAME, "topic name", is_name),
    (LOCAL_REGISTRY, "URL of a registry", is_registry),
];

/// Splits `described` into the variables that this version knows and the names of the rest.
pub fn split_known(
    described: BTreeMap<String, String>,
) -> Result<(BTreeMap<String, String>, Vec<String>), InvalidValue> {
    let mut known = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, value) in described {
        let Some((name, expected, fits)) = FORMS.iter().find(|(known, _, _)| *known == name) else {
            unknown.push(name);
            continue;
        };
        if !fits(&value) {
            return Err(InvalidValue { name, expected });
        }
        known.insert((*name).to_owned(), value);
    }
    Ok((known, unknown))
}

/// Whether a text is an absolute path that a terminal and a shell show as it is.
pub fn is_path(text: &str) -> bool {
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
pub struct LocalNetwork<'a> {
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
    /// The variables that make the SDK and Google's clients use this network, and nothing else.
    pub fn variables(&self) -> BTreeMap<String, String> {
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

    fn described(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_network_s_own_variables_are_known() {
        for http in ["127.0.0.1:8094", "[::1]:8094"] {
            let network = LocalNetwork {
                pubsub: "localhost:8085",
                http: http.parse().unwrap(),
                project: "any",
                topic: "main.octue.twined.services",
                credentials: Path::new("/home/it's me/.twined/google.json"),
            };
            let variables = network.variables();
            assert_eq!(split_known(variables.clone()), Ok((variables, Vec::new())));
        }
    }

    #[test]
    fn an_unknown_variable_is_left_out() {
        let (variables, unknown) = split_known(described(&[
            ("LD_PRELOAD", "/tmp/evil.so"),
            ("x; touch /tmp/pwned; y", "1"),
            (TOPIC_NAME, "a-topic"),
        ]))
        .unwrap();
        assert_eq!(variables, described(&[(TOPIC_NAME, "a-topic")]));
        assert_eq!(unknown, ["LD_PRELOAD", "x; touch /tmp/pwned; y"]);
    }

    #[test]
    fn a_value_of_the_wrong_form_is_refused() {
        for (name, value) in [
            (PUBSUB_EMULATOR_HOST, "localhost"),
            (PUBSUB_EMULATOR_HOST, "$(touch /tmp/pwned):80"),
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
            let error = split_known(described(&[(name, value)])).unwrap_err();
            assert_eq!(error.name, name, "{value}");
        }
    }
}
