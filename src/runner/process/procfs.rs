//! The processes of this machine, from `/proc`.

use crate::runner::process::environment;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A process that existed a moment ago.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    folder: PathBuf,
}

/// All processes.
pub(super) fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some(Process { pid, folder: entry.path() })
    })
}

/// Kills the processes of a run, and returns how many there were. A process of a run inherits the
/// run's folder in its environment; one that cleared its environment is not found.
pub(super) fn kill_processes_of(run: &Path) -> usize {
    let mut marker = environment::RUN.as_bytes().to_vec();
    marker.push(b'=');
    marker.extend(run.as_os_str().as_bytes());

    processes().filter(|process| process.kill_if(|process| process.has(&marker))).count()
}

// === impl Process ===

impl Process {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Its parent; none if it has ended.
    pub(super) fn parent(&self) -> Option<Pid> {
        let stat = fs::read(self.folder.join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // `pid (name) state parent …`: the name may contain any character.
        let (_, after) = stat.rsplit_once(')')?;
        Pid::from_raw(after.split_whitespace().nth(1)?.parse().ok()?)
    }

    /// Whether its initial environment has a variable. False if it has ended.
    fn has(&self, variable: &[u8]) -> bool {
        let environment = fs::read(self.folder.join("environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|other| other == variable)
    }

    /// Kills it if it satisfies a condition, and returns whether it did. The pidfd is opened first,
    /// so a later process with the same pid is not killed.
    fn kill_if(&self, condition: impl Fn(&Self) -> bool) -> bool {
        let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) else { return false };
        condition(self) && pidfd_send_signal(pidfd, Signal::KILL).is_ok()
    }
}
