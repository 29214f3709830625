//! Where the network is that a person's commands talk to.

use crate::cli::{Failure, UNREACHABLE};
use crate::config::{DEFAULT_PROJECT, DEFAULT_TOPIC, DEFAULT_URL, ours};
use crate::pubsub::Connection;
use crate::sdk::variables;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How long a network on this machine may take to say what it is.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which network is meant.
#[derive(Clone, Debug, clap::Args)]
pub struct NetworkArgs {
    /// Address that `twined local` printed as `http` [default: http://127.0.0.1:8094]
    ///
    /// Given, it wins over PUBSUB_EMULATOR_HOST.
    #[arg(long, env = "TWINED_URL")]
    url: Option<String>,
}

/// What a network on this machine says of itself: what `/env` answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Described {
    /// What makes Google's clients and the SDK use it.
    pub variables: BTreeMap<String, String>,
    /// The folder of the shim that stands in for the JSON schemas that the SDK downloads.
    pub shim: PathBuf,
}

/// No network answers.
#[derive(Debug, thiserror::Error)]
#[error(
    "no network answers at {url}: start one with `twined local`, or name one with `--url` or \
     PUBSUB_EMULATOR_HOST"
)]
struct Silent {
    url: String,
    #[source]
    source: reqwest::Error,
}

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its Pub/Sub.
    pub connection: Connection,
    /// Its topic.
    pub topic: String,
}

// === impl NetworkArgs ===

impl NetworkArgs {
    fn url(&self) -> &str {
        self.url.as_deref().unwrap_or(DEFAULT_URL)
    }

    /// Asks the network what it is.
    pub async fn describe(&self) -> Result<Described, Failure> {
        let silent = |source: reqwest::Error| {
            let url = self.url().to_owned();
            Failure::new(UNREACHABLE, Silent { url, source: source.without_url() })
        };
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
        // Elsewhere is another network than the one that was named.
        let client = client.redirect(reqwest::redirect::Policy::none()).build().map_err(silent)?;
        let url = format!("{}/env", self.url().trim_end_matches('/'));
        let answer = client.get(url).send().await.map_err(silent)?;
        let answer = answer.error_for_status().map_err(silent)?;
        answer.json().await.map_err(silent)
    }

    /// Where its Pub/Sub is: as the network that was named says, or else as the environment does
    /// to Google's clients, or else as the network at the usual address says.
    pub async fn place(&self) -> Result<Place, Failure> {
        let host = ours(variables::PUBSUB_EMULATOR_HOST).filter(|host| !host.is_empty());
        let (variables, given): (BTreeMap<_, _>, _) = match host.filter(|_| self.url.is_none()) {
            Some(host) => {
                let mut variables =
                    BTreeMap::from([(variables::PUBSUB_EMULATOR_HOST.into(), host)]);
                for name in [variables::GOOGLE_CLOUD_PROJECT, variables::TOPIC_NAME] {
                    variables.extend(ours(name).map(|value| (name.to_owned(), value)));
                }
                (variables, true)
            }
            None => (self.describe().await?.variables, false),
        };
        let variable = |name: &str, default: &str| {
            variables.get(name).cloned().unwrap_or_else(|| default.to_owned())
        };
        let host = variable(variables::PUBSUB_EMULATOR_HOST, "");
        let project = variable(variables::GOOGLE_CLOUD_PROJECT, DEFAULT_PROJECT);
        let code = if given { crate::cli::USAGE } else { UNREACHABLE };
        let connection =
            Connection::emulator(&host, &project).map_err(|error| Failure::new(code, error))?;
        Ok(Place { connection, topic: variable(variables::TOPIC_NAME, DEFAULT_TOPIC) })
    }
}
