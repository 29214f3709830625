//! Whether a file system keeps others out of a file while one writes to it. Where it does not, two
//! processes that share a store ruin it, and nothing else would say so.
//!
//! SQLite's own record of who holds what, in the process, would answer for any file system. So one
//! connection locks a file of its own, beside the store, and the kernel is asked on behalf of
//! somebody else. (Not the store itself: to close a file takes from a process every lock on it.)

use crate::store::sqlite::{OpenError, words};
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The file systems of a network, by the number that Linux gives them: SQLite's log is shared over
/// memory, which two hosts do not have. (`man 2 statfs`; Lustre's and GPFS's own headers.)
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

/// A file that is there for the time of a check.
struct Probe(PathBuf);

/// Checks the file system of a store. `vfs` is SQLite's way to the files; its usual one where none.
pub(super) fn check(path: &Path, folder: &Path, vfs: Option<&str>) -> Result<(), OpenError> {
    if let Some(share) = share(folder) {
        return Err(OpenError::Share { path: path.to_owned(), share });
    }
    let none = |why: String| OpenError::NoLocks { path: path.to_owned(), why };
    let probe = Probe::beside(path, folder);
    let holder = lock(&probe, vfs).map_err(|error| none(words(&error)))?;
    let excluded = excludes(&probe).map_err(|error| none(error.to_string()))?;
    drop(holder);
    match excluded {
        true => Ok(()),
        false => Err(none("a second writer is let in beside the first".to_owned())),
    }
}

/// A connection that keeps everybody else out of the file.
fn lock(probe: &Probe, vfs: Option<&str>) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(&probe.0, flags, vfs)?,
        None => Connection::open_with_flags(&probe.0, flags)?,
    };
    // Nobody else knows the file. Locks that cannot be had look to SQLite like those of others.
    connection.busy_timeout(Duration::ZERO)?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    Ok(connection)
}

/// Whether one who opens the file now is kept out of it.
#[cfg(target_os = "linux")]
fn excludes(probe: &Probe) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let file = File::options().read(true).write(true).open(&probe.0)?;
    // Of the open file and not of the process: only so can a process be in its own way.
    let all = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&all)) {
        Ok(_) => Ok(false),
        // A kernel or a sandbox that does not know such locks cannot be asked.
        Err(Errno::EAGAIN | Errno::EACCES | Errno::EINVAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Elsewhere a process cannot ask it of itself; that the lock was granted has to do.
#[cfg(not(target_os = "linux"))]
fn excludes(probe: &Probe) -> io::Result<bool> {
    File::open(&probe.0).map(|_| true)
}

/// The name of the network's file system that a folder is on.
#[cfg(target_os = "linux")]
fn share(folder: &Path) -> Option<&'static str> {
    // Where it cannot be told, the locks decide.
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
    /// One that no other check uses.
    fn beside(path: &Path, folder: &Path) -> Self {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.locks", Uuid::new_v4()));
        Self(folder.join(name))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may not even have been made.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_this_host_keeps_a_second_writer_out() {
        let folder = tempfile::tempdir().unwrap();

        check(&folder.path().join("events.sqlite"), folder.path(), None).unwrap();

        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    /// SQLite's `unix-none` takes no locks at all: the same as a file system that grants them to
    /// everybody.
    #[cfg(target_os = "linux")]
    #[test]
    fn locks_that_keep_nobody_out_are_refused() {
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
    fn a_lock_that_cannot_be_had_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sqlite");
        // SQLite's locks by folders: one that is there is somebody's, as SQLite takes `ENOLCK` too.
        let probe = Probe::beside(&path, folder.path());
        let mut taken = probe.0.clone().into_os_string();
        taken.push(".lock");
        fs::create_dir(&taken).unwrap();

        let error = lock(&probe, Some("unix-dotfile")).unwrap_err();

        assert_eq!(words(&error), "database is locked");
    }

    #[test]
    fn the_shares_of_networks_are_known() {
        assert_eq!(share_of(0x6969), Some("NFS"));
        assert_eq!(share_of(0xff53_4d42), Some("CIFS"));
        for (local, number) in [("ext4", 0xef53), ("tmpfs", 0x0102_1994), ("FUSE", 0x6573_5546)] {
            assert_eq!(share_of(number), None, "{local}");
        }
    }
}
