//! Directories for the files that a replica needs only while it lives.
//!
//! A replica holds a lock in its directory. A directory without its lock is of a replica that was
//! killed, and is deleted.

use crate::locked_folder::{FolderLock, LockError};
use std::fs;
use std::io;
use std::path::Path;
use tempfile::TempDir;

/// The first part of the directories' names.
const PREFIX: &str = "replica-";

/// The file that is locked.
const LOCK: &str = "lock";

/// The directory of a replica, deleted when it is dropped.
#[derive(Debug)]
pub(super) struct ReplicaDirectory {
    directory: TempDir,
    _lock: FolderLock,
}

// === impl ReplicaDirectory ===

impl ReplicaDirectory {
    /// Creates a directory in `root`, and deletes those of replicas that were killed.
    pub(super) fn create(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // A directory without the file is being created by another replica.
            if name.starts_with(PREFIX) && FolderLock::is_abandoned(&path.join(LOCK)) {
                // Another replica may delete it at the same time.
                let _ = fs::remove_dir_all(&path);
            }
        }
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)?;
        let lock = FolderLock::acquire(&directory.path().join(LOCK));
        let lock = lock.map_err(|error| match error {
            LockError::Io(error) => error,
            in_use @ LockError::InUse { .. } => io::Error::other(in_use),
        })?;
        Ok(Self { directory, _lock: lock })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_killed_replica_is_deleted_and_that_of_a_live_one_kept() {
        let root = tempfile::tempdir().unwrap();
        let live = ReplicaDirectory::create(root.path()).unwrap();
        let ReplicaDirectory { directory, _lock: lock } =
            ReplicaDirectory::create(root.path()).unwrap();
        let killed = directory.keep();
        drop(lock);

        let last = ReplicaDirectory::create(root.path()).unwrap();

        assert!(!killed.exists());
        assert!(live.path().exists());
        let path = last.path().to_owned();
        drop(last);
        assert!(!path.exists());
    }
}
