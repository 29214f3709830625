//! Folders for what a replica needs while it lives, and nobody after.
//!
//! Each holds a lock for as long as its replica lives, so that what a killed one has left is told
//! from what one beside us uses.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tempfile::TempDir;

/// What the folders' names begin with.
const PREFIX: &str = "replica-";

/// The file that is locked.
const LOCK: &str = "lock";

/// A folder that goes when this does.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
    _lock: File,
}

// === impl Place ===

impl Place {
    /// A new one in `root`, from which those that killed replicas have left are taken away.
    pub fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(PREFIX) && is_left(&path) {
                // Another replica that starts now may be doing the same.
                let _ = fs::remove_dir_all(&path);
            }
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)?;
        let lock = File::create(folder.path().join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether nobody uses a folder. One without a lock is just being made.
fn is_left(folder: &Path) -> bool {
    let lock = File::open(folder.join(LOCK));
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_replica_left_goes_and_what_a_live_one_uses_stays() {
        let root = tempfile::tempdir().unwrap();
        let live = Place::new(root.path()).unwrap();
        let Place { folder, _lock: lock } = Place::new(root.path()).unwrap();
        let left = folder.keep();
        drop(lock);

        let last = Place::new(root.path()).unwrap();

        assert!(!left.exists());
        assert!(live.path().exists());
        let path = last.path().to_owned();
        drop(last);
        assert!(!path.exists());
    }
}
