//! The services of a host: folders with an `octue.yaml`.

use crate::event::SruidBuf;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file that makes a folder a service.
const FILE: &str = "octue.yaml";

/// How many levels below a given folder are searched.
const DEPTH: usize = 2;

/// A service that was found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalService {
    /// Its name, with the given revision tag.
    pub sruid: SruidBuf,
    /// The folder of its `octue.yaml`.
    pub folder: PathBuf,
}

/// Why the services of a host cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServicesError {
    /// A given folder has no service.
    #[error("no `octue.yaml` found in `{}` or up to two levels below it", .0.display())]
    None(PathBuf),
    /// A folder cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// An `octue.yaml` is not valid.
    #[error("`{}` is not a valid service configuration: {message}", path.display())]
    Parse {
        /// The folder or file.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// Two folders have the same service.
    #[error("`{}` and `{}` both have the service `{service}`", first.display(), second.display())]
    Twice {
        /// Its SRUID.
        service: String,
        /// One folder.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// The used part of an `octue.yaml`. Only the first service is read, as by the SDK.
#[derive(Deserialize)]
struct Configuration {
    services: Vec<ServiceName>,
}

#[derive(Deserialize)]
struct ServiceName {
    namespace: String,
    name: String,
}

/// Finds the services in the given folders. Without a folder, the current one is searched, which
/// may have none.
pub(crate) fn find(given: &[PathBuf], tag: &str) -> Result<Vec<LocalService>, ServicesError> {
    let mut found = BTreeMap::<String, LocalService>::new();
    let current = [PathBuf::from(".")];
    for folder in if given.is_empty() { &current } else { given } {
        let mut folders = Vec::new();
        search(folder, DEPTH, &mut folders)?;
        if folders.is_empty() && !given.is_empty() {
            return Err(ServicesError::None(folder.clone()));
        }
        for folder in folders {
            let service = read(&folder, tag)?;
            let name = service.sruid.to_string();
            match found.get(&name) {
                Some(first) if first.folder != service.folder => {
                    return Err(ServicesError::Twice {
                        service: name,
                        first: first.folder.clone(),
                        second: service.folder,
                    });
                }
                Some(_) | None => found.insert(name, service),
            };
        }
    }
    Ok(found.into_values().collect())
}

fn search(folder: &Path, depth: usize, folders: &mut Vec<PathBuf>) -> Result<(), ServicesError> {
    let failed = |source| ServicesError::Read { path: folder.to_owned(), source };
    let folder = fs::canonicalize(folder).map_err(failed)?;
    if folder.join(FILE).is_file() {
        folders.push(folder);
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let mut subfolders = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // Links to folders are followed.
        if !hidden && entry.path().is_dir() {
            subfolders.push(entry.path());
        }
    }
    subfolders.sort();
    for subfolder in subfolders {
        // Only the given folders must be readable.
        let _ = search(&subfolder, depth - 1, folders);
    }
    Ok(())
}

fn read(folder: &Path, tag: &str) -> Result<LocalService, ServicesError> {
    let path = folder.join(FILE);
    let text = fs::read_to_string(&path)
        .map_err(|source| ServicesError::Read { path: path.clone(), source })?;
    let invalid = |message: String| ServicesError::Parse { path: path.clone(), message };
    let configuration: Configuration =
        serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let first = configuration.services.into_iter().next();
    let ServiceName { namespace, name } =
        first.ok_or_else(|| invalid("`services` is empty".into()))?;
    let text = format!("{namespace}/{name}:{tag}");
    let sruid = text.parse().map_err(|error| invalid(format!("`{text}`: {error}")))?;
    Ok(LocalService { sruid, folder: folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(folder: &Path, namespace: &str, name: &str) {
        fs::create_dir_all(folder).unwrap();
        let text = format!(
            "services:\n  - name: {name}\n    namespace: {namespace}\n    children:\n      - key: x\n"
        );
        fs::write(folder.join(FILE), text).unwrap();
    }

    #[test]
    fn services_are_found_in_a_folder_and_below_it() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        service(&root.join("a"), "octue", "a");
        service(&root.join("more/b"), "octue", "b");
        service(&root.join(".venv/c"), "octue", "c");
        fs::create_dir(root.join("empty")).unwrap();

        let found = find(std::slice::from_ref(&root), "local").unwrap();

        let names: Vec<_> = found.iter().map(|service| service.sruid.as_str()).collect();
        assert_eq!(names, ["octue/a:local", "octue/b:local"]);
        assert_eq!(found[0].folder, root.join("a"));
        assert_eq!(find(&[root.join("a"), root.clone()], "local").unwrap().len(), 2);
    }

    #[test]
    fn each_error_names_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let refusal = |folder: &str| find(&[root.join(folder)], "local").unwrap_err().to_string();
        fs::create_dir(root.join("none")).unwrap();
        assert!(refusal("none").contains("none"));
        assert!(refusal("missing").contains("missing"));
        service(&root.join("caps"), "Octue", "a");
        assert!(refusal("caps").contains("lower kebab case"));
        fs::create_dir(root.join("odd")).unwrap();
        for text in ["services: []", "services: [{name: a}]", "{", "services: 3"] {
            fs::write(root.join("odd").join(FILE), text).unwrap();
            assert!(refusal("odd").contains("odd"), "{text}");
        }
        service(&root.join("twice/a"), "octue", "a");
        service(&root.join("twice/b"), "octue", "a");
        assert!(refusal("twice").contains("both have the service `octue/a:local`"));
    }
}
