//! What the kernel tells of processes, on Linux.

use crate::runner::process::environment;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A process that was there a moment ago.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    folder: PathBuf,
}

/// All processes that there are.
pub fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some(Process { pid, folder: entry.path() })
    })
}

/// Kills the processes that have a run's folder in their environment, as its child got it and
/// handed it down; says how many there were. (One that cleared its environment is not found.)
pub fn kill_processes_of(run: &Path) -> usize {
    let mut marker = environment::RUN.as_bytes().to_vec();
    marker.push(b'=');
    marker.extend(run.as_os_str().as_bytes());

    processes().filter(|process| process.kill_if(|process| process.has(&marker))).count()
}

// === impl Process ===

impl Process {
    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its parent; none where it is gone.
    pub fn parent(&self) -> Option<Pid> {
        let stat = fs::read(self.folder.join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // `pid (name) state parent …`, and the name may have anything in it.
        let (_, after) = stat.rsplit_once(')')?;
        Pid::from_raw(after.split_whitespace().nth(1)?.parse().ok()?)
    }

    /// Whether a variable is in the environment that it started with. What has ended has none.
    fn has(&self, variable: &[u8]) -> bool {
        let environment = fs::read(self.folder.join("environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|other| other == variable)
    }

    /// Kills it if it is the one that is meant; says whether it was. It is held on to before it
    /// is looked at, so no other is hit that has its number by then.
    fn kill_if(&self, is_meant: impl Fn(&Self) -> bool) -> bool {
        let Ok(held) = pidfd_open(self.pid, PidfdFlags::empty()) else { return false };
        is_meant(self) && pidfd_send_signal(held, Signal::KILL).is_ok()
    }
}
