//! The folder that keeps what a network on a laptop knows.
//!
//! | in it | what |
//! |---|---|
//! | `events.sqlite` | every event |
//! | `runs/` | a folder for each run that waits, runs, or has ended and is not dealt with |
//! | `logs/` | what the last runs printed |
//! | `google.json` | a service account that only this network believes |
//! | `shim/` | what stands in for the schemas that the SDK downloads |
//! | `lock` | held while a network uses the folder |

use crate::sdk::shim;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The folder, ours as long as this lives.
#[derive(Debug)]
pub struct Data {
    path: PathBuf,
    /// Goes with us.
    ephemeral: Option<TempDir>,
    _lock: File,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be made, or written to.
    #[error("failed to use `{}` for the network's data", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Another network uses it.
    #[error(
        "`{}` is used by another network{holder}: end that one, or choose another folder with \
         `--data`",
        path.display()
    )]
    InUse {
        /// Which.
        path: PathBuf,
        /// Its process, as far as it is known.
        holder: String,
    },
}

// === impl Data ===

impl Data {
    /// A folder that stays.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Folder { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let path = fs::canonicalize(path).map_err(failed)?;
        Self::lock(path, None)
    }

    /// A folder that goes when this does.
    pub fn ephemeral() -> Result<Self, DataError> {
        let folder = tempfile::Builder::new().prefix("twined-").tempdir();
        let failed = |source| DataError::Folder { path: std::env::temp_dir(), source };
        let folder = folder.map_err(failed)?;
        let path = fs::canonicalize(folder.path()).map_err(failed)?;
        Self::lock(path, Some(folder))
    }

    fn lock(path: PathBuf, ephemeral: Option<TempDir>) -> Result<Self, DataError> {
        let failed = |source| DataError::Folder { path: path.clone(), source };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(path.join("lock")).map_err(failed)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let known = lock.read_to_string(&mut holder).is_ok() && !holder.is_empty();
            let holder = if known { format!(" (process {})", holder.trim()) } else { holder };
            return Err(DataError::InUse { path, holder });
        }
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
        write!(lock, "{}", std::process::id()).map_err(failed)?;
        let data = Self { path, ephemeral, _lock: lock };
        // Written anew by every network: it belongs to this version of the program.
        shim::write(&data.shim())
            .map_err(|source| DataError::Folder { path: data.shim(), source })?;
        Ok(data)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the event store.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.sqlite")
    }

    /// The folder of the runs.
    pub fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// The folder of what runs printed.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The file of the service account.
    pub fn credentials(&self) -> PathBuf {
        self.path.join("google.json")
    }

    /// The folder of the shim.
    pub fn shim(&self) -> PathBuf {
        self.path.join("shim")
    }

    /// Removes the folder, if it is one that goes.
    pub fn close(self) -> Result<(), DataError> {
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
    fn a_folder_is_used_by_one_network_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/data");
        let first = Data::open(&path).unwrap();

        let error = Data::open(&path).unwrap_err().to_string();

        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Data::open(&path).unwrap();
    }

    #[test]
    fn an_ephemeral_folder_goes() {
        let data = Data::ephemeral().unwrap();
        let path = data.path().to_owned();
        assert!(data.shim().join("sitecustomize.py").is_file());
        data.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Data::open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("file/data"), "{error}");
    }
}
