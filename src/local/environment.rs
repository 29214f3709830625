//! The variables that make Google's clients and the SDK use this network, and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// Sends every Google client to an emulator of Pub/Sub.
pub const PUBSUB_EMULATOR_HOST: &str = "PUBSUB_EMULATOR_HOST";
/// The project of clients that are told none.
pub const GOOGLE_CLOUD_PROJECT: &str = "GOOGLE_CLOUD_PROJECT";
/// The file of a service account, for Google's clients want credentials even here.
pub const GOOGLE_APPLICATION_CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// The metadata server, which the SDK asks when it signs URLs.
pub const GCE_METADATA_HOST: &str = "GCE_METADATA_HOST";
/// The network's topic, for the SDK.
pub const TOPIC_NAME: &str = "TWINED_SERVICES_TOPIC_NAME";
/// The service registry of this network, for the shim: those of an `octue.yaml` are elsewhere.
pub const LOCAL_REGISTRY: &str = "TWINED_LOCAL_REGISTRY";
/// Where a child runs, for the SDK.
pub const COMPUTE_PROVIDER: &str = "COMPUTE_PROVIDER";

/// Where a network's parts are.
#[derive(Clone, Debug)]
pub struct Places<'a> {
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

// === impl Places ===

impl Places<'_> {
    /// The variables.
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
