//! The data folder of a network on this machine.
//!
//! | path | content |
//! |---|---|
//! | `events.sqlite` | every event |
//! | `runs/` | a folder for each run that waits, runs, or has ended and is not settled |
//! | `logs/` | the output of the latest runs |
//! | `google.json` | a service account that only this network accepts |
//! | `shim/` | the shim of the SDK |
//! | `lock` | locked while a network uses the folder |

use crate::locked_folder::{FolderLock, LockError};
use crate::sdk::shim;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The data folder, locked until this is dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    /// Deletes the folder when it is dropped.
    ephemeral: Option<TempDir>,
    _lock: FolderLock,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// It cannot be created or written.
    #[error("failed to use `{}` as data folder", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Another network holds its lock.
    #[error(
        "`{}` is in use by another network{}: stop that network, or choose another folder with \
         `--data`",
        path.display(),
        .holder.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The id of its process, where it is known.
        holder: Option<u32>,
    },
}

// === impl DataFolder ===

impl DataFolder {
    /// Opens the folder at `path`, and creates it where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Folder { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let path = fs::canonicalize(path).map_err(failed)?;
        Self::lock(path, None)
    }

    /// Creates a temporary folder, deleted when this is dropped.
    pub(crate) fn ephemeral() -> Result<Self, DataError> {
        let folder = tempfile::Builder::new().prefix("twined-").tempdir();
        let failed = |source| DataError::Folder { path: std::env::temp_dir(), source };
        let folder = folder.map_err(failed)?;
        let path = fs::canonicalize(folder.path()).map_err(failed)?;
        Self::lock(path, Some(folder))
    }

    fn lock(path: PathBuf, ephemeral: Option<TempDir>) -> Result<Self, DataError> {
        let lock = FolderLock::acquire(&path.join("lock")).map_err(|error| match error {
            LockError::InUse { holder } => DataError::InUse { path: path.clone(), holder },
            LockError::Io(source) => DataError::Folder { path: path.clone(), source },
        })?;
        let data = Self { path, ephemeral, _lock: lock };
        // Written anew by every network: it belongs to this version of the program.
        shim::write(&data.shim())
            .map_err(|source| DataError::Folder { path: data.shim(), source })?;
        Ok(data)
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// File of the event store.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("events.sqlite")
    }

    /// Folder of the runs.
    pub(crate) fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// Folder of the runs' output.
    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// File of the service account.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.path.join("google.json")
    }

    /// Folder of the shim.
    pub(crate) fn shim(&self) -> PathBuf {
        self.path.join("shim")
    }

    /// Deletes the folder if it is temporary.
    pub(crate) fn close(self) -> Result<(), DataError> {
        let Self { path, ephemeral, _lock } = self;
        match ephemeral {
            Some(folder) => folder.close().map_err(|source| DataError::Folder { path, source }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_uses_a_folder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/data");
        let first = DataFolder::open(&path).unwrap();

        let error = DataFolder::open(&path).unwrap_err().to_string();

        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataFolder::open(&path).unwrap();
    }

    #[test]
    fn a_temporary_folder_is_deleted() {
        let data = DataFolder::ephemeral().unwrap();
        let path = data.path().to_owned();
        assert!(data.shim().join("sitecustomize.py").is_file());
        data.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_error_names_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataFolder::open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("file/data"), "{error}");
    }
}
