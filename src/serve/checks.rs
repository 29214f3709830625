//! All that is looked at before a start.

use crate::chain::Chain;
use crate::check::{Asker, Check};
use crate::config::{PubsubChoice, ServeSettings, ServicesArgs, google_credentials};
use crate::network::patiently;
use crate::pubsub::{Admin, Connection, look};
use crate::runner::kubernetes::preflight;
use crate::sdk::{services, variables};
use crate::serve::{Choice, parts};
use crate::store::sqlite::{self, SqliteStore};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// What was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// All that was looked at.
    pub checks: Vec<Check>,
    /// The account of Google that questions are, where it can be told.
    pub google_account: Option<String>,
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looker {
    /// The daemon, before it starts.
    Daemon,
    /// Whoever runs the doctor.
    Doctor,
}

/// Looks at everything that the daemon needs.
pub(super) async fn look(
    settings: &ServeSettings,
    choice: &Choice<'_>,
    connection: &Connection,
    looker: Looker,
) -> Findings {
    let unused = settings.unused.iter().map(|words| Check::warn("settings", words, ""));
    let mut checks: Vec<_> = unused.collect();
    checks.extend(open_emulator(&settings.pubsub));
    let (pubsub, store, runner) = tokio::join!(
        pubsub(settings, connection, looker),
        store(settings),
        runner(settings, choice, looker),
    );
    checks.extend(pubsub);
    checks.push(store);
    checks.extend(runner.checks);
    Findings { checks, google_account: runner.google_account }
}

/// An emulator believes everybody who reaches it.
fn open_emulator(pubsub: &PubsubChoice) -> Option<Check> {
    let PubsubChoice::OwnEmulator(address) = pubsub else { return None };
    let loopback = SocketAddr::ip(address).to_canonical().is_loopback();
    (!loopback).then(|| {
        Check::warn(
            "emulator",
            format!("whoever reaches {address} may ask, answer and cancel"),
            "let it listen on loopback, or keep others away from its port",
        )
    })
}

async fn pubsub(settings: &ServeSettings, connection: &Connection, looker: Looker) -> Vec<Check> {
    let ServeSettings { topic, subscription, project, pubsub, .. } = settings;
    let asker = (*pubsub == PubsubChoice::Google).then(|| asker(looker));
    let google = asker.as_ref();
    let admin = Admin::new(connection);
    // What is not there yet may be starting. (At Google's it is, and listing topics is a right that
    // we do not need.)
    if google.is_none() {
        // If it never answers, the next look says so.
        let _ = patiently(async || admin.check().await).await;
    }
    look::look(connection, look::Wanted { topic, subscription, project, google }).await
}

/// As whom Google is asked: whose the credentials are that its clients find. Where there is no file
/// of them they are the machine's, or the pod's.
fn asker(looker: Looker) -> Asker {
    let asker = match google_credentials() {
        None => Asker { name: "the account of this machine or pod".to_owned(), is_daemon: true },
        Some(path) => holder(&path, &std::fs::read(&path).unwrap_or_default()),
    };
    Asker { is_daemon: asker.is_daemon || looker == Looker::Daemon, ..asker }
}

/// Whose a file of credentials is. A person's says no name.
fn holder(path: &Path, text: &[u8]) -> Asker {
    let credentials: Value = serde_json::from_slice(text).unwrap_or_default();
    let text = |key: &str| credentials[key].as_str().unwrap_or_default();
    let path = path.display();
    match text("type") {
        "service_account" => Asker { name: text("client_email").to_owned(), is_daemon: true },
        kind @ ("impersonated_service_account" | "external_account") => {
            Asker { name: format!("the {kind} of `{path}`"), is_daemon: true }
        }
        _ => Asker { name: format!("the person of `{path}`"), is_daemon: false },
    }
}

async fn store(settings: &ServeSettings) -> Check {
    let name = format!("store sqlite:{}", settings.store.display());
    let (path, data) = (settings.store.clone(), settings.data.clone());
    match tokio::task::spawn_blocking(move || open(&path, &data)).await {
        Ok(Ok(found)) => Check::ok(name, found),
        Ok(Err(words)) => Check::fail(
            name,
            words,
            "name a file on a disk of this host with `--store sqlite:PATH`, and a folder with \
             `--data`",
        ),
        Err(error) => Check::fail(name, format!("looking at it panicked: {error}"), ""),
    }
}

/// Opens the store, or, where there is none yet, one beside it that goes again.
fn open(path: &Path, data: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("failed to use `{}`: {error}", data.display());
    drop(tempfile::tempfile_in(standing(data)).map_err(failed)?);
    let (tried, found, _gone) = match path.exists() {
        true => (path.to_owned(), "it opens", None),
        false => {
            let folder = path.parent().unwrap_or(Path::new(""));
            // The daemon makes its folder, and no other.
            let beside = if data.starts_with(folder) { standing(folder) } else { folder };
            let gone = tempfile::Builder::new().prefix(".twined-check-").tempdir_in(beside);
            let gone = gone.map_err(|error| {
                format!("no file can be made in `{}`: {error}", folder.display())
            })?;
            (gone.path().join("events.sqlite"), "not there yet: the daemon makes it", Some(gone))
        }
    };
    match SqliteStore::open(&tried, sqlite::Options::default()) {
        Ok(_) => Ok(found.to_owned()),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

/// Of a folder and those that it is in, the first that is there.
fn standing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder)
}

async fn runner(settings: &ServeSettings, choice: &Choice<'_>, looker: Looker) -> Findings {
    let nothing = |check| Findings { checks: vec![check], google_account: None };
    let (kubernetes, services) = match choice {
        Choice::Processes(args) => return nothing(folders(args)),
        Choice::Pods(kubernetes, services) => (kubernetes, services),
    };
    let wanted = preflight::ClusterRequirements {
        network: &parts::network(settings, kubernetes, Vec::new()),
        settings: services,
        service_account: &kubernetes.service_account,
        queue: kubernetes.queue.as_deref(),
        is_daemon: looker == Looker::Daemon,
    };
    // Calls of many kinds make it large.
    let looked = Box::pin(preflight::check_cluster(wanted)).await;
    let preflight::ClusterFindings { mut checks, google_account } = looked;
    checks.extend(reach(settings));
    Findings { checks, google_account }
}

/// The services that run as processes. A start with folders that are none has ended before.
fn folders(args: &ServicesArgs) -> Check {
    let name = "services";
    match services::find(&args.services, &args.tag) {
        Ok(found) if found.is_empty() => Check::warn(
            name,
            "there is no `octue.yaml` here: every question is told that its service is not found",
            "name the folders of the services: twined serve --runner process DIR…",
        ),
        Ok(found) => {
            let names: Vec<_> = found.iter().map(|found| found.sruid.to_string()).collect();
            Check::ok(name, format!("processes of this host: {}", names.join(", ")))
        }
        Err(error) => {
            Check::fail(name, Chain(&error).to_string(), "name folders with an `octue.yaml`")
        }
    }
}

/// Pods are on other machines, or at least in another network, than our loopback.
fn reach(settings: &ServeSettings) -> Option<Check> {
    let told = settings.variables.get(variables::PUBSUB_EMULATOR_HOST).cloned();
    let address = match &settings.pubsub {
        PubsubChoice::Google => return None,
        PubsubChoice::Emulator(address) => told.unwrap_or_else(|| address.clone()),
        PubsubChoice::OwnEmulator(address) => told.unwrap_or_else(|| address.to_string()),
    };
    let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
    let loopback = matches!(host, "localhost" | "127.0.0.1" | "[::1]" | "0.0.0.0" | "[::]");
    loopback.then(|| {
        Check::warn(
            "pods and Pub/Sub",
            format!("pods are told that Pub/Sub is at {address}, which is themselves"),
            "give the address by which pods reach it: --env PUBSUB_EMULATOR_HOST=HOST:PORT",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn looking_for_a_store_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let found = open(&root.path().join("events.sqlite"), root.path()).unwrap();
        assert!(found.contains("not there yet"), "{found}");
        let data = root.path().join("not/there");
        let found = open(&data.join("events.sqlite"), &data).unwrap();
        assert!(found.contains("not there yet"), "{found}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_store_that_is_something_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("events.sqlite");
        std::fs::write(&path, "this is some text, and no database at all").unwrap();
        let words = open(&path, root.path()).unwrap_err();
        assert!(words.contains("is not a SQLite database"), "{words}");
        let missing = open(&root.path().join("no/events.sqlite"), root.path()).unwrap_err();
        assert!(missing.contains("no file can be made"), "{missing}");
    }

    #[test]
    fn a_person_s_credentials_are_not_the_daemon_s() {
        let holder = |text: &str| holder(Path::new("/file.json"), text.as_bytes());
        let account = holder(r#"{"type": "service_account", "client_email": "a@p"}"#);
        assert_eq!(account, Asker { name: "a@p".to_owned(), is_daemon: true });
        assert!(!holder(r#"{"type": "authorized_user", "client_id": "c"}"#).is_daemon);
        assert!(!holder("").is_daemon);
    }

    #[test]
    fn an_emulator_that_strangers_reach_is_told() {
        assert!(
            open_emulator(&PubsubChoice::OwnEmulator("127.0.0.1:1".parse().unwrap())).is_none()
        );
        let open = open_emulator(&PubsubChoice::OwnEmulator("0.0.0.0:1".parse().unwrap())).unwrap();
        assert_eq!(open.verdict, Verdict::Warn);
    }
}
