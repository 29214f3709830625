//! Locks a folder for one process at a time.
//!
//! The lock is on a file in the folder. The system releases it when the process ends, even by
//! SIGKILL.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// The lock of a folder, held until it is dropped.
#[derive(Debug)]
#[must_use = "the folder is locked until this is dropped"]
pub(crate) struct FolderLock {
    _file: File,
}

/// Why a folder was not locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process holds the lock.
    #[error("in use by another process{}", .holder.map(|id| format!(" ({id})")).unwrap_or_default())]
    InUse {
        /// The id of that process, if it can be read.
        holder: Option<u32>,
    },
    /// The file cannot be created, locked or written.
    #[error("failed to lock the folder")]
    Io(#[source] io::Error),
}

// === impl FolderLock ===

impl FolderLock {
    /// Locks `file`, creates it if it is missing, and writes the id of this process into it.
    pub(crate) fn acquire(file: &Path) -> Result<Self, LockError> {
        // Not truncated: another process may hold the lock, and its id is in the file.
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(file).map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The id is only for the message.
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::InUse { holder: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(LockError::Io)?;
        write!(file, "{}", std::process::id()).map_err(LockError::Io)?;
        Ok(Self { _file: file })
    }

    /// Whether `file` exists and no process holds its lock.
    pub(crate) fn is_abandoned(file: &Path) -> bool {
        File::open(file).is_ok_and(|file| file.try_lock().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_it_is_dropped_and_names_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lock");
        assert!(!FolderLock::is_abandoned(&file));
        let lock = FolderLock::acquire(&file).unwrap();
        assert!(!FolderLock::is_abandoned(&file));

        let error = FolderLock::acquire(&file).unwrap_err();

        let id = std::process::id();
        assert_eq!(error.to_string(), format!("in use by another process ({id})"));
        drop(lock);
        assert!(FolderLock::is_abandoned(&file));
        drop(FolderLock::acquire(&file).unwrap());
    }

    #[test]
    fn a_missing_folder_is_not_reported_as_in_use() {
        let error = FolderLock::acquire(Path::new("/nowhere/lock")).unwrap_err();
        assert!(matches!(error, LockError::Io(_)), "{error}");
    }
}
