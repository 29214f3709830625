//! Checks that a file system enforces the locks of SQLite. Where it does not, two processes that
//! share a store corrupt it without an error.
//!
//! Within one process SQLite compares locks itself and does not ask the kernel. So a connection
//! locks another file beside the store, and the kernel is asked for the same lock on behalf of
//! another opener. (Not the store itself: a process that closes a file loses every lock on it.)
//!
//! This needs locks of the kind that SQLite takes, POSIX record locks, but owned by an open file
//! (`F_OFD_SETLK`). `std`'s `File::try_lock` takes the other kind (`flock`), which Linux does not
//! compare with record locks: it would succeed on every local disk.

use crate::store::sqlite::{OpenError, error_text};
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Network file systems by Linux's magic number. SQLite's log needs shared memory, which two hosts
/// do not have. (`man 2 statfs`; the headers of Lustre and GPFS.)
const SHARES: [(u32, &str); 8] = [
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0x5346_414f, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
];

/// A file that exists during a check.
struct Probe(PathBuf);

/// Checks the file system of a store, by this VFS of SQLite, or by its default.
pub(super) fn check(path: &Path, folder: &Path, vfs: Option<&str>) -> Result<(), OpenError> {
    if let Some(share) = share(folder) {
        return Err(OpenError::Share { path: path.to_owned(), share });
    }
    let none = |why: String| OpenError::NoLocks { path: path.to_owned(), why };
    let probe = Probe::beside(path, folder);
    let holder = lock(&probe, vfs).map_err(|error| none(error_text(&error)))?;
    let excluded = excludes(&probe).map_err(|error| none(error.to_string()))?;
    drop(holder);
    match excluded {
        true => Ok(()),
        false => Err(none("a second writer is let in beside the first".to_owned())),
    }
}

/// A connection that holds an exclusive lock on the file.
fn lock(probe: &Probe, vfs: Option<&str>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&probe.0, flags, vfs)?,
        None => Connection::open_with_flags(&probe.0, flags)?,
    };
    // No other process knows the file. To SQLite, a lock that is not supported looks like one that
    // is held.
    connection.busy_timeout(Duration::ZERO)?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    Ok(connection)
}

/// Whether another opener of the file is refused the lock.
#[cfg(target_os = "linux")]
fn excludes(probe: &Probe) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let file = File::options().read(true).write(true).open(&probe.0)?;
    // Owned by the open file and not by the process: only so does a process conflict with itself.
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&all)) {
        Ok(_) => Ok(false),
        // `EINVAL`: a kernel or a sandbox without such locks, which cannot be checked.
        Err(Errno::EAGAIN | Errno::EACCES | Errno::EINVAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Other systems have no such locks. That SQLite got its own has to suffice.
#[cfg(not(target_os = "linux"))]
fn excludes(probe: &Probe) -> io::Result<bool> {
    File::open(&probe.0).map(|_| true)
}

/// The name of the network file system that a folder is on.
#[cfg(target_os = "linux")]
fn share(folder: &Path) -> Option<&'static str> {
    // Where that is unknown, the locks decide.
    let found = rustix::fs::statfs(folder).ok()?;
    share_of(found.f_type as u32)
}

#[cfg(not(target_os = "linux"))]
fn share(_: &Path) -> Option<&'static str> {
    None
}

fn share_of(number: u32) -> Option<&'static str> {
    SHARES.iter().find(|(share, _)| *share == number).map(|(_, name)| *name)
}

// === impl Probe ===

impl Probe {
    /// A file that no other check uses.
    fn beside(path: &Path, folder: &Path) -> Self {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.locks", Uuid::new_v4()));
        Self(folder.join(name))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may not exist.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_disk_refuses_a_second_writer() {
        let folder = tempfile::tempdir().unwrap();

        check(&folder.path().join("events.sqlite"), folder.path(), None).unwrap();

        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    /// SQLite's `unix-none` takes no locks, as if the file system granted every lock.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_that_grants_every_lock_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");

        let error = check(&path, folder.path(), Some("unix-none")).unwrap_err();

        assert_eq!(
            error.to_string(),
            format!(
                "event store `{}` is on a file system without locks (a second writer is let in \
                 beside the first): choose a path on a disk of this host, not on a network share",
                path.display()
            )
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_lock_that_is_not_granted_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        // SQLite's locks by folders: an existing folder is a held lock.
        let probe = Probe::beside(&path, folder.path());
        let mut taken = probe.0.clone().into_os_string();
        taken.push(".lock");
        fs::create_dir(&taken).unwrap();

        let error = lock(&probe, Some("unix-dotfile")).unwrap_err();

        assert_eq!(error_text(&error), "database is locked");
    }

    #[test]
    fn network_file_systems_are_known() {
        assert_eq!(share_of(0x6969), Some("NFS"));
        assert_eq!(share_of(0xff53_4d42), Some("CIFS"));
        for (local, number) in [("ext4", 0xef53), ("tmpfs", 0x0102_1994), ("FUSE", 0x6573_5546)] {
            assert_eq!(share_of(number), None, "{local}");
        }
    }
}
