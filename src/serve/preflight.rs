//! The checks before a start, which `twined doctor` runs too.

use crate::chain::Chain;
use crate::config::{PubsubChoice, ServeSettings, ServicesArgs, google_credentials};
use crate::daemon::retry_at_start;
use crate::preflight::{PreflightCheck, PreflightIdentity};
use crate::pubsub::preflight::{PubsubRequirements, check_pubsub};
use crate::pubsub::{Admin, Connection};
use crate::runner::kubernetes::preflight::{self, ClusterFindings, ClusterRequirements};
use crate::sdk::{services, variables};
use crate::serve::{RunnerChoice, kubernetes as jobs};
use crate::store::sqlite::{self, SqliteStore};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// The results of all checks.
#[derive(Clone, Debug)]
pub(super) struct PreflightFindings {
    /// All checks.
    pub(super) checks: Vec<PreflightCheck>,
    /// The Google service account of questions, if it is known.
    pub(super) google_account: Option<String>,
}

/// The command that runs the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckedBy {
    /// The daemon, before it starts: its credentials are the daemon's.
    Daemon,
    /// `twined doctor`, with the credentials of its user.
    Doctor,
}

/// Checks everything that the daemon needs.
pub(super) async fn check(
    settings: &ServeSettings,
    choice: &RunnerChoice<'_>,
    connection: &Connection,
    by: CheckedBy,
) -> PreflightFindings {
    let unused = settings.unused.iter().map(|text| PreflightCheck::warn("settings", text, ""));
    let mut checks: Vec<_> = unused.collect();
    checks.extend(open_emulator(&settings.pubsub));
    let (pubsub, store, runner) = tokio::join!(
        pubsub(settings, connection, by),
        store(settings),
        runner(settings, choice, by),
    );
    checks.extend(pubsub);
    checks.push(store);
    checks.extend(runner.checks);
    PreflightFindings { checks, google_account: runner.google_account }
}

/// Warns if other hosts can reach the emulator, which has no authentication.
fn open_emulator(pubsub: &PubsubChoice) -> Option<PreflightCheck> {
    let PubsubChoice::OwnEmulator(address) = pubsub else { return None };
    let loopback = SocketAddr::ip(address).to_canonical().is_loopback();
    (!loopback).then(|| {
        PreflightCheck::warn(
            "emulator",
            format!("every client that reaches {address} can ask, answer and cancel questions"),
            "use an address on loopback, or close its port to other hosts",
        )
    })
}

async fn pubsub(
    settings: &ServeSettings,
    connection: &Connection,
    by: CheckedBy,
) -> Vec<PreflightCheck> {
    let ServeSettings { topic, subscription, project, pubsub, .. } = settings;
    let identity = (*pubsub == PubsubChoice::Google).then(|| google_identity(by));
    let google = identity.as_ref();
    let admin = Admin::new(connection);
    // An emulator may be starting. (For Google's Pub/Sub, this call would need a right that the
    // daemon does not need otherwise.)
    if google.is_none() {
        // The checks below report an emulator that never answers.
        let _ = retry_at_start(async || admin.check().await).await;
    }
    check_pubsub(connection, PubsubRequirements { topic, subscription, project, google }).await
}

/// The account that Google's clients use: that of their credentials file, or else that of the
/// machine or pod.
fn google_identity(by: CheckedBy) -> PreflightIdentity {
    let identity = match google_credentials() {
        None => PreflightIdentity {
            name: "the account of this machine or pod".to_owned(),
            is_daemon: true,
        },
        Some(path) => identity_in(&path, &std::fs::read(&path).unwrap_or_default()),
    };
    PreflightIdentity { is_daemon: identity.is_daemon || by == CheckedBy::Daemon, ..identity }
}

/// The account of a credentials file. The file of a user account does not name the user.
fn identity_in(path: &Path, text: &[u8]) -> PreflightIdentity {
    let credentials: Value = serde_json::from_slice(text).unwrap_or_default();
    let text = |key: &str| credentials[key].as_str().unwrap_or_default();
    let path = path.display();
    let (name, is_daemon) = match text("type") {
        "service_account" => (text("client_email").to_owned(), true),
        kind @ ("impersonated_service_account" | "external_account") => {
            (format!("the {kind} of `{path}`"), true)
        }
        _ => (format!("the user account of `{path}`"), false),
    };
    PreflightIdentity { name, is_daemon }
}

async fn store(settings: &ServeSettings) -> PreflightCheck {
    let name = format!("store sqlite:{}", settings.store.display());
    let (path, data) = (settings.store.clone(), settings.data.clone());
    match tokio::task::spawn_blocking(move || open_store(&path, &data)).await {
        Ok(Ok(found)) => PreflightCheck::ok(name, found),
        Ok(Err(found)) => PreflightCheck::fail(
            name,
            found,
            "set `--store sqlite:PATH` to a file and `--data` to a folder, both on a disk of this host",
        ),
        Err(error) => PreflightCheck::fail(name, format!("the check panicked: {error}"), ""),
    }
}

/// Opens the store. If it is missing, opens a trial store beside its path and deletes it again.
fn open_store(path: &Path, data: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("failed to use `{}`: {error}", data.display());
    drop(tempfile::tempfile_in(first_existing(data)).map_err(failed)?);
    let (tried, found, _deleted) = match path.exists() {
        true => (path.to_owned(), "can be opened", None),
        false => {
            let folder = path.parent().unwrap_or(Path::new(""));
            // The daemon creates its data folder, and no other.
            let parent = if data.starts_with(folder) { first_existing(folder) } else { folder };
            let trial = tempfile::Builder::new().prefix(".twined-check-").tempdir_in(parent);
            let trial = trial.map_err(|error| {
                format!("no file can be created in `{}`: {error}", folder.display())
            })?;
            let tried = trial.path().join("events.sqlite");
            (tried, "does not exist yet: the daemon creates it", Some(trial))
        }
    };
    match SqliteStore::open(&tried, sqlite::Options::default()) {
        Ok(_) => Ok(found.to_owned()),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

/// The folder, or its first parent that exists.
fn first_existing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder)
}

async fn runner(
    settings: &ServeSettings,
    choice: &RunnerChoice<'_>,
    by: CheckedBy,
) -> PreflightFindings {
    let (kubernetes, services) = match choice {
        RunnerChoice::Processes(args) => {
            return PreflightFindings { checks: vec![folders(args)], google_account: None };
        }
        RunnerChoice::Pods(kubernetes, services) => (kubernetes, services),
    };
    let required = ClusterRequirements {
        network: &jobs::job_defaults(settings, kubernetes, Vec::new()),
        settings: services,
        service_account: &kubernetes.service_account,
        queue: kubernetes.queue.as_deref(),
        is_daemon: by == CheckedBy::Daemon,
    };
    // Boxed, because its many calls make a large future.
    let findings = Box::pin(preflight::check_cluster(required)).await;
    let ClusterFindings { mut checks, google_account } = findings;
    checks.extend(reachable_pubsub(settings));
    PreflightFindings { checks, google_account }
}

/// The services that run as processes. `twined serve` has read the given folders before.
fn folders(args: &ServicesArgs) -> PreflightCheck {
    let name = "services";
    match services::find(&args.services, &args.tag) {
        Ok(found) if found.is_empty() => PreflightCheck::warn(
            name,
            "no `octue.yaml` in this folder: every question is answered with ServiceNotFound",
            "give the folders of the services: `twined serve --runner process DIR…`",
        ),
        Ok(found) => {
            let names: Vec<_> = found.iter().map(|found| found.sruid.to_string()).collect();
            PreflightCheck::ok(name, format!("processes of this host: {}", names.join(", ")))
        }
        Err(error) => PreflightCheck::fail(
            name,
            Chain(&error).to_string(),
            "give folders with an `octue.yaml`",
        ),
    }
}

/// Warns if pods would get a loopback address as that of Pub/Sub.
fn reachable_pubsub(settings: &ServeSettings) -> Option<PreflightCheck> {
    let given = settings.variables.get(variables::PUBSUB_EMULATOR_HOST).cloned();
    let address = match &settings.pubsub {
        PubsubChoice::Google => return None,
        PubsubChoice::Emulator(address) => given.unwrap_or_else(|| address.clone()),
        PubsubChoice::OwnEmulator(address) => given.unwrap_or_else(|| address.to_string()),
    };
    let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
    let loopback = matches!(host, "localhost" | "127.0.0.1" | "[::1]" | "0.0.0.0" | "[::]");
    loopback.then(|| {
        PreflightCheck::warn(
            "pods and Pub/Sub",
            format!(
                "pods get {address} as the address of Pub/Sub, which in a pod is the pod itself"
            ),
            "set the address by which pods reach it: `--env PUBSUB_EMULATOR_HOST=HOST:PORT`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Verdict;

    #[test]
    fn the_check_of_a_missing_store_leaves_no_file() {
        let root = tempfile::tempdir().unwrap();
        let found = open_store(&root.path().join("events.sqlite"), root.path()).unwrap();
        assert!(found.contains("does not exist yet"), "{found}");
        let data = root.path().join("not/there");
        let found = open_store(&data.join("events.sqlite"), &data).unwrap();
        assert!(found.contains("does not exist yet"), "{found}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_no_store_fails_the_check() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("events.sqlite");
        std::fs::write(&path, "this is some text, and no database at all").unwrap();
        let found = open_store(&path, root.path()).unwrap_err();
        assert!(found.contains("is not a SQLite database"), "{found}");
        let missing = open_store(&root.path().join("no/events.sqlite"), root.path()).unwrap_err();
        assert!(missing.contains("no file can be created"), "{missing}");
    }

    #[test]
    fn the_credentials_of_a_user_account_are_not_the_daemons() {
        let identity = |text: &str| identity_in(Path::new("/file.json"), text.as_bytes());
        let account = identity(r#"{"type": "service_account", "client_email": "a@p"}"#);
        assert_eq!(account, PreflightIdentity { name: "a@p".to_owned(), is_daemon: true });
        assert!(!identity(r#"{"type": "authorized_user", "client_id": "c"}"#).is_daemon);
        assert!(!identity("").is_daemon);
    }

    #[test]
    fn an_emulator_beyond_loopback_gives_a_warning() {
        let own = |address: &str| PubsubChoice::OwnEmulator(address.parse().unwrap());
        assert!(open_emulator(&own("127.0.0.1:1")).is_none());
        assert_eq!(open_emulator(&own("0.0.0.0:1")).unwrap().verdict, Verdict::Warn);
    }
}
