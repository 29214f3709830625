//! The walls of the house, held by reading the imports.
//!
//! A room may name only what its line here says. `lib.rs` and `main.rs` hold the house together
//! and are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What the pipeline and the monitor may name: neither names the other.
const WORK: [&str; 8] =
    ["chain", "dependencies", "event", "notifications", "pubsub", "registry", "runner", "store"];

/// What each room may name of the others. The roots may know all.
const ROOMS: [(&str, &[&str]); 16] = [
    ("event", &["chain"]),
    ("pubsub", &["chain", "check", "event", "request_guard"]),
    ("store", &["chain", "event"]),
    ("runner", &["chain", "check", "event"]),
    ("registry", &["chain", "event"]),
    ("pipeline", &WORK),
    ("monitor", &WORK),
    ("dependencies", &["pubsub", "registry", "runner", "store"]),
    ("notifications", &["event", "runner"]),
    ("http", &["chain", "event", "google", "registry", "request_guard"]),
    ("daemon", &["chain"]),
    ("google", &[]),
    ("telemetry", &[]),
    ("chain", &[]),
    ("check", &[]),
    ("request_guard", &[]),
];

/// May name every room, adapters too.
const ROOTS: [&str; 5] = ["config", "network", "local", "serve", "cli"];

/// What stands behind a seam: only roots name it, and itself.
const ADAPTERS: [&str; 5] = [
    "store::sqlite",
    "runner::process",
    "runner::kubernetes",
    "registry::listed",
    "registry::allowed",
];

/// Where an outside crate may be named.
const CRATES: [(&str, &[&str]); 15] = [
    ("nix", &["store/sqlite"]),
    ("rusqlite", &["store/sqlite"]),
    ("tonic", &["pubsub"]),
    ("tonic_prost", &["pubsub"]),
    ("prost", &["pubsub"]),
    ("google_cloud_pubsub", &["pubsub"]),
    ("google_cloud_googleapis", &["pubsub"]),
    ("google_cloud_auth", &["pubsub"]),
    ("kube", &["runner/kubernetes"]),
    ("k8s_openapi", &["runner/kubernetes"]),
    ("axum", &["http", "request_guard"]),
    ("clap", &["cli", "config"]),
    ("reqwest", &["cli"]),
    ("dotenvy", &["config", "runner/process"]),
    ("aws_lc_rs", &["google"]),
];

#[test]
fn rooms_name_only_what_they_may() {
    let rooms: BTreeMap<_, _> = ROOMS.into();
    let all: BTreeSet<_> = rooms.keys().copied().chain(ROOTS).collect();
    let mut broken = Vec::new();
    let mut seen = 0;
    for (path, text) in sources() {
        let room = room(&path);
        if ROOTS.contains(&&*room) || ["lib", "main"].contains(&&*room) {
            continue;
        }
        let Some(may) = rooms.get(&*room) else {
            broken.push(format!("{}: room `{room}` has no line in this test", path.display()));
            continue;
        };
        for other in &all {
            let named = names(&text, &format!("crate::{other}"));
            seen += usize::from(named);
            if named && *other != room && !may.contains(other) {
                broken.push(format!("{}: `{room}` names `{other}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 20, "this test no longer sees imports: it saw {seen}");
}

#[test]
fn only_roots_name_adapters() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for adapter in ADAPTERS {
            let home = path.starts_with(format!("src/{}", adapter.replace("::", "/")))
                || path == Path::new("src").join(format!("{}.rs", adapter.replace("::", "/")));
            let root = ROOTS.contains(&&*room(&path));
            if !home && !root && names(&text, &format!("crate::{adapter}")) {
                broken.push(format!("{} names `{adapter}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn an_outside_crate_has_one_home() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (name, homes) in CRATES {
            let at_home = homes.iter().any(|home| {
                path.starts_with(format!("src/{home}"))
                    || path == Path::new(&format!("src/{home}.rs"))
            });
            if !at_home && names(&text, &format!("{name}::")) {
                broken.push(format!("{} names the crate `{name}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_walls_are_seen_to_hold() {
    assert!(names("use crate::store::Row;", "crate::store"));
    assert!(names("let x = crate::store::sqlite::open();", "crate::store::sqlite"));
    assert!(!names("use crate::store_of_others;", "crate::store"));
    assert!(!names("//! crate::store is not named here", "crate::store"));
}

/// Whether code, not a comment, names a path.
fn names(text: &str, path: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.match_indices(path).map(move |(at, _)| (line, at))).any(
        |(line, at)| {
            let word = |character: char| character.is_alphanumeric() || character == '_';
            let before = line[..at].chars().next_back();
            let after = line[at + path.len()..].chars().next();
            !before.is_some_and(word) && (path.ends_with("::") || !after.is_some_and(word))
        },
    )
}

fn room(path: &Path) -> String {
    let first = path.components().nth(1).expect("src has something in it");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 30, "sources are not where this test looks");
    found
}
