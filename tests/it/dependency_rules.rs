//! The dependency rules: which module may name which, read from the sources.
//!
//! A module may name only what its line here allows. `lib.rs` and `main.rs` join the modules and
//! are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What the pipeline and the monitor may name: neither names the other.
const WORK: [&str; 10] = [
    "cancellations",
    "chain",
    "dependencies",
    "event",
    "notifications",
    "pubsub",
    "retry",
    "routing",
    "runner",
    "store",
];

/// What each module may name of the others. The roots may name all.
const MODULES: &[(&str, &[&str])] = &[
    ("event", &["chain"]),
    ("pubsub", &["chain", "preflight", "event", "request_guard", "retry"]),
    ("store", &["chain", "event"]),
    ("runner", &["chain", "preflight", "dotenv", "event", "locked_folder", "sdk", "tasks"]),
    ("registry", &["chain", "event"]),
    ("pipeline", &WORK),
    ("monitor", &WORK),
    ("dependencies", &["cancellations", "pubsub", "routing", "runner", "store"]),
    ("cancellations", &[]),
    ("routing", &["event", "notifications", "pubsub", "registry", "store"]),
    ("notifications", &["event", "runner"]),
    ("http", &["chain", "event", "google", "registry", "request_guard"]),
    ("sdk", &["event", "private_path"]),
    ("google", &[]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("chain", &[]),
    ("retry", &[]),
    ("preflight", &[]),
    ("request_guard", &[]),
    ("private_path", &[]),
    ("dotenv", &[]),
    ("locked_folder", &[]),
];

/// May name every module, adapters too.
const ROOTS: [&str; 5] = ["config", "daemon", "local", "serve", "cli"];

/// What implements an interface: only roots name it, and itself.
const ADAPTERS: [&str; 5] = [
    "store::sqlite",
    "runner::process",
    "runner::kubernetes",
    "registry::listed",
    "registry::allowed",
];

/// The emulator is a program of its own that happens to live here: it names no module but these, so
/// that it can be moved out.
const EMULATOR: (&str, &[&str]) = ("pubsub::emulator", &["request_guard"]);

/// The layers of the Kubernetes runner: what each module may name of the others. `kubernetes`
/// itself owns all of them.
const KUBERNETES_LAYERS: &[(&str, &[&str])] = &[
    // Below the API server: pure.
    ("quantity", &[]),
    ("refusal", &[]),
    ("reserved", &[]),
    ("settings", &["quantity", "reserved"]),
    ("inputs", &["refusal", "reserved", "settings"]),
    ("job", &["inputs", "quantity", "refusal", "reserved", "settings"]),
    ("failure", &[]),
    // The API server, and what it shows.
    ("api", &["job"]),
    ("election", &["api"]),
    ("kueue", &["api", "failure"]),
    ("preflight", &["job", "refusal", "settings"]),
    ("observed", &["failure", "job"]),
    ("state", &["failure", "job", "observed"]),
    ("job_writer", &["api", "job", "observed", "state"]),
    // The work.
    ("watches", &["api", "observed", "state"]),
    ("queue_updates", &["kueue", "state"]),
    ("launcher", &["api", "job", "job_writer", "observed", "refusal", "settings", "state"]),
    ("canceller", &["api", "job_writer", "observed", "state"]),
    ("settler", &["api", "job", "job_writer", "observed", "state"]),
    ("claims", &["api", "election", "job", "job_writer", "observed", "state"]),
    ("reconciler", &["api", "failure", "job", "job_writer", "observed", "state"]),
    ("admission", &["api", "election", "job_writer", "observed", "settings", "state"]),
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
    ("dotenvy", &["dotenv"]),
    ("aws_lc_rs", &["google"]),
];

#[test]
fn a_module_names_only_what_its_rule_allows() {
    let modules: BTreeMap<_, _> = MODULES.iter().copied().collect();
    let all: BTreeSet<_> = modules.keys().copied().chain(ROOTS).collect();
    let mut broken = Vec::new();
    let mut seen = 0;
    for Source { path, module, code } in sources() {
        let module = &*module[0];
        if ROOTS.contains(&module) || ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(allowed) = modules.get(module) else {
            broken.push(format!("{}: module `{module}` has no rule in this test", path.display()));
            continue;
        };
        for other in &all {
            let named = names(&code, &format!("crate::{other}"));
            seen += usize::from(named);
            if named && *other != module && !allowed.contains(other) {
                broken.push(format!("{}: `{module}` names `{other}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 20, "this test no longer sees imports: it saw {seen}");
}

#[test]
fn only_roots_name_adapters() {
    let mut broken = Vec::new();
    for Source { path, module, code } in sources() {
        for adapter in ADAPTERS {
            let home = module.join("::").starts_with(adapter);
            let root = ROOTS.contains(&&*module[0]);
            if !home && !root && names(&code, &format!("crate::{adapter}")) {
                broken.push(format!("{} names `{adapter}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_kubernetes_runner_keeps_its_layers() {
    let layers: BTreeMap<_, _> = KUBERNETES_LAYERS.iter().copied().collect();
    let mut broken = Vec::new();
    let mut seen = 0;
    for Source { path, module, code } in sources() {
        let ["runner", "kubernetes", layer, ..] =
            &*module.iter().map(|it| &**it).collect::<Vec<_>>()
        else {
            continue;
        };
        let Some(allowed) = layers.get(layer) else {
            broken.push(format!("{}: `{layer}` has no rule in this test", path.display()));
            continue;
        };
        for other in layers.keys() {
            let named = names(&code, &format!("crate::runner::kubernetes::{other}"));
            seen += usize::from(named);
            if named && other != layer && !allowed.contains(other) {
                broken.push(format!("{}: `{layer}` names `{other}`", path.display()));
            }
        }
        // Types of the runner itself come from above all layers.
        let above = code.match_indices("crate::runner::kubernetes::").any(|(at, path)| {
            code[at + path.len()..].starts_with(|first: char| first.is_uppercase())
        });
        if above {
            broken.push(format!("{}: `{layer}` names a type of `kubernetes`", path.display()));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 20, "this test no longer sees imports: it saw {seen}");
}

#[test]
fn the_emulator_names_nothing_but_its_tools() {
    let (emulator, tools) = EMULATOR;
    let mut broken = Vec::new();
    let mut files = 0;
    for Source { path, module, code } in sources() {
        if !module.join("::").starts_with(emulator) {
            continue;
        }
        files += 1;
        let code =
            tools.iter().fold(code, |code, tool| code.replace(&format!("crate::{tool}"), ""));
        let code = code.replace(&format!("crate::{emulator}"), "");
        if names(&code, "crate::") {
            broken.push(format!("{} names a module outside the emulator", path.display()));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(files > 10, "the emulator is not where this test looks");
}

#[test]
fn a_module_includes_only_its_own_files() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for Source { path, module: including, code } in sources() {
        for file in included(&path, &code) {
            seen += 1;
            if module(&file)[0] != including[0] {
                broken.push(format!("{} includes {}", path.display(), file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 3, "this test no longer sees included files: it saw {seen}");
}

#[test]
fn an_outside_crate_has_one_home() {
    let mut broken = Vec::new();
    for Source { path, code, .. } in sources() {
        for (name, homes) in CRATES {
            let at_home = homes.iter().any(|home| {
                path.starts_with(format!("src/{home}"))
                    || path == Path::new(&format!("src/{home}.rs"))
            });
            if !at_home && names(&code, &format!("{name}::")) {
                broken.push(format!("{} names the crate `{name}`", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn each_way_to_name_a_module_is_seen() {
    let module = ["runner".to_owned(), "process".to_owned()];
    let seen = |text: &str, path: &str| names(&code(text, &module), path);
    assert!(seen("use crate::store::Row;", "crate::store"));
    assert!(seen("let x = crate::store::sqlite::open();", "crate::store::sqlite"));
    assert!(seen("use crate::{event, store};", "crate::store"));
    assert!(seen("use super::Launch;", "crate::runner::Launch"));
    assert!(seen("use super::super::store::Row;", "crate::store"));
    assert!(seen("mod tests {\n    use super::super::kubernetes;\n}", "crate::runner::kubernetes"));
    assert!(!seen("mod tests {\n    use super::super::store;\n}", "crate::store"));
    assert!(!seen("use crate::store_of_others;", "crate::store"));
    assert!(!seen("//! crate::store is not named here", "crate::store"));
}

/// A source file, its module's path and its code.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    code: String,
}

/// The lines of a module's text that are not comments, with all paths into the crate written in
/// full: `super::` by the module that it stands for, a group of names one by one.
fn code(text: &str, module: &[String]) -> String {
    let mut code = String::new();
    // `rustfmt` begins and ends a module within a file at the first column.
    let mut inline = 0;
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let mut line = line.to_owned();
        while let Some((start, end, levels)) = first_super(&line) {
            let kept = (module.len() + inline).saturating_sub(levels).min(module.len());
            let parent: String = module[..kept].iter().map(|part| format!("{part}::")).collect();
            line.replace_range(start..end, &format!("crate::{parent}"));
        }
        if let Some((before, group)) = line.split_once("crate::{") {
            let names = group.split_once('}').map_or(group, |(names, _)| names).split(',');
            let all: Vec<_> = names.map(|name| format!("crate::{}", name.trim())).collect();
            line = format!("{before}{}", all.join(" "));
        }
        let begins = line.starts_with("mod ") || line.starts_with("pub mod ");
        if begins && line.ends_with('{') {
            inline = 1;
        } else if line == "}" {
            inline = 0;
        }
        code.push_str(&line);
        code.push('\n');
    }
    code
}

/// The files that code includes by name.
fn included(path: &Path, code: &str) -> Vec<PathBuf> {
    let folder = path.parent().expect("sources are in src");
    let named = ["include_str!(\"", "include_bytes!(\"", "include!(\""];
    let after = named.iter().flat_map(|name| code.split(name).skip(1));
    after
        .map(|rest| rest.split('"').next().unwrap_or_default())
        .map(|name| {
            let mut file = folder.to_owned();
            for part in name.split('/') {
                match part {
                    ".." => drop(file.pop()),
                    part => file.push(part),
                }
            }
            file
        })
        .collect()
}

/// Where the first `super::` of a line and those that follow it start and end, and how many they
/// are.
fn first_super(line: &str) -> Option<(usize, usize, usize)> {
    const SUPER: &str = "super::";
    let start = line.find(SUPER)?;
    let rest = line.as_bytes()[start..].chunks(SUPER.len());
    let levels = rest.take_while(|part| *part == SUPER.as_bytes()).count();
    Some((start, start + levels * SUPER.len(), levels))
}

/// Whether code names a path.
fn names(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let word = |character: char| character.is_alphanumeric() || character == '_';
        let before = code[..at].chars().next_back();
        let after = code[at + path.len()..].chars().next();
        !before.is_some_and(word) && (path.ends_with("::") || !after.is_some_and(word))
    })
}

/// `src/store/row.rs` is the module `store::row`.
fn module(path: &Path) -> Vec<String> {
    let path = path.strip_prefix("src").expect("sources are in src").with_extension("");
    path.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

fn sources() -> Vec<Source> {
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
                let path = path.strip_prefix(root).unwrap().to_owned();
                let module = module(&path);
                let code = code(&text, &module);
                found.push(Source { path, module, code });
            }
        }
    }
    assert!(found.len() > 30, "sources are not where this test looks");
    found
}
