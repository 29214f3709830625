//! The network that the commands `ask` and `env` use.

use crate::cli::{Failure, UNREACHABLE, terminal};
use crate::config::{DEFAULT_PROJECT, DEFAULT_TOPIC, DEFAULT_URL, env_variable};
use crate::pubsub::Connection;
use crate::sdk::variables;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

/// How long a network on this machine may take to describe itself.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest description that is read, in bytes. One has about 600.
const MAX_DESCRIPTION: usize = 64 * 1024;

/// How many unknown variables are named at most.
const MAX_NAMED: usize = 10;

/// The network to use.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct NetworkArgs {
    /// Address that `twined local` printed as `http` [default: http://127.0.0.1:8094]
    ///
    /// If given, it wins over PUBSUB_EMULATOR_HOST.
    #[arg(long, env = "TWINED_URL")]
    url: Option<String>,
}

/// A network's description of itself: the answer of `/env`.
#[derive(Deserialize)]
struct Description {
    variables: BTreeMap<String, String>,
}

/// Why a network cannot be used.
#[derive(Debug, thiserror::Error)]
enum DescribeError {
    #[error(
        "no network answers at {url}: start one with `twined local`, or name one with `--url` or \
         PUBSUB_EMULATOR_HOST"
    )]
    Silent {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error(
        "{url} is not a network of `twined local`: HTTP status {status}. Name one with `--url`"
    )]
    Status { url: String, status: u16 },
    #[error("{url} is not a network of `twined local`. Name one with `--url`")]
    Answer {
        url: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A connection to the topic of a network.
#[derive(Clone, Debug)]
pub(super) struct TopicConnection {
    pub connection: Connection,
    pub topic: String,
}

// === impl NetworkArgs ===

impl NetworkArgs {
    fn url(&self) -> &str {
        self.url.as_deref().unwrap_or(DEFAULT_URL)
    }

    /// Gets the network's variables. Those that this version does not know are left out, with a
    /// note on stderr.
    pub(super) async fn describe(&self) -> Result<BTreeMap<String, String>, Failure> {
        let failed = |error| Failure::new(UNREACHABLE, error);
        let (known, unknown) = self.variables().await.map_err(failed)?;
        if !unknown.is_empty() {
            let names = unknown.iter().take(MAX_NAMED).map(|name| format!("{name:?}"));
            let names = terminal::safe(&names.collect::<Vec<_>>().join(", "));
            let count = unknown.len();
            terminal::note(&format!("twined: {count} unknown variables left out: {names}"));
        }
        Ok(known)
    }

    async fn variables(&self) -> Result<(BTreeMap<String, String>, Vec<String>), DescribeError> {
        let url = || self.url().to_owned();
        let silent = |source: reqwest::Error| DescribeError::Silent {
            url: url(),
            source: source.without_url(),
        };
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
        // A redirect would lead to another network than the given one.
        let client = client.redirect(reqwest::redirect::Policy::none()).build().map_err(silent)?;
        let path = format!("{}/env", self.url().trim_end_matches('/'));
        let mut answer = client.get(path).send().await.map_err(silent)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(DescribeError::Status { url: url(), status: answer.status().as_u16() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(silent)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_DESCRIPTION {
                let source = format!("its answer has over {MAX_DESCRIPTION} bytes").into();
                return Err(DescribeError::Answer { url: url(), source });
            }
        }
        let parsed: Result<Description, _> = serde_json::from_slice(&body);
        let invalid = |source| DescribeError::Answer { url: url(), source };
        let Description { variables } = parsed.map_err(|error| invalid(error.into()))?;
        variables::split_known(variables).map_err(|error| invalid(error.into()))
    }

    /// A connection to the topic of the network at `--url`; without one, to that of
    /// PUBSUB_EMULATOR_HOST, as Google's clients; without either, to that of the network at the
    /// default address.
    pub(super) async fn topic_connection(&self) -> Result<TopicConnection, Failure> {
        let host = env_variable(variables::PUBSUB_EMULATOR_HOST).filter(|host| !host.is_empty());
        let (variables, from_environment): (BTreeMap<_, _>, _) =
            match host.filter(|_| self.url.is_none()) {
                Some(host) => {
                    let mut variables =
                        BTreeMap::from([(variables::PUBSUB_EMULATOR_HOST.into(), host)]);
                    for name in [variables::GOOGLE_CLOUD_PROJECT, variables::TOPIC_NAME] {
                        variables.extend(env_variable(name).map(|value| (name.to_owned(), value)));
                    }
                    (variables, true)
                }
                None => (self.describe().await?, false),
            };
        let variable = |name: &str, default: &str| {
            variables.get(name).cloned().unwrap_or_else(|| default.to_owned())
        };
        let host = variable(variables::PUBSUB_EMULATOR_HOST, "");
        let project = variable(variables::GOOGLE_CLOUD_PROJECT, DEFAULT_PROJECT);
        let code = if from_environment { crate::cli::USAGE } else { UNREACHABLE };
        let connection =
            Connection::emulator(&host, &project).map_err(|error| Failure::new(code, error))?;
        Ok(TopicConnection { connection, topic: variable(variables::TOPIC_NAME, DEFAULT_TOPIC) })
    }
}
