//! The processes of a run: the child and its descendants.
//!
//! The child has a process group of its own. A descendant that leaves the group, even with a
//! session of its own, becomes a child of the supervisor when its ancestors have ended, because the
//! supervisor is a "subreaper". So no process is left when the supervisor has no child. This needs
//! Linux; elsewhere only the group is ended.

use crate::runner::process::records::Outcome;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, kill_process_group,
    setsid, wait, waitid,
};
use std::process::Child;

/// The processes of a run.
#[derive(Debug)]
pub(super) struct ProcessTree {
    child: Pid,
}

/// Detaches this process from the terminal, and makes it the parent of its orphaned descendants.
pub(super) fn detach() {
    // Fails only for the leader of a process group, for example if started by a shell.
    let _ = setsid();
    #[cfg(target_os = "linux")]
    // Fails only on kernels before 3.4.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Waits until a child of this process has ended, without reaping it. Returns false if it has none.
pub(super) fn wait_for_an_end() -> bool {
    loop {
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

// === impl ProcessTree ===

impl ProcessTree {
    /// The tree of a child that leads a process group.
    pub(super) fn new(child: &Child) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self { child: pid.expect("the pid of a process is a positive number") }
    }

    /// Reaps ended processes, and returns how the child ended if it is among them.
    pub(super) fn reap(&self) -> Option<Outcome> {
        while let Ok(Some((pid, status))) = retry(|| wait(WaitOptions::NOHANG)) {
            if pid == self.child {
                return Some(outcome(status));
            }
        }
        None
    }

    /// Sends SIGTERM to the child and its group. Not after the child was reaped.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL to the child and its group. Not after the child was reaped.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills the processes that the child left, after it was reaped.
    pub(super) fn kill_remaining(&self) {
        // The kernel does not reuse the id of a group that has a process, and uses all other ids
        // before it reuses one.
        let _ = kill_process_group(self.child, Signal::KILL);
        kill_orphans();
    }

    fn signal(&self, signal: Signal) {
        // Processes that have ended are no error. The child may have left its group.
        let _ = kill_process_group(self.child, signal);
        let _ = kill_process(self.child, signal);
    }
}

fn outcome(status: WaitStatus) -> Outcome {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Outcome::Exit(status),
        (None, Some(signal)) => Outcome::Signal(signal),
        // Without further options, `wait` returns ended processes only.
        (None, None) => Outcome::Lost,
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Kills the children of this process, and those that become its children by that, until there is
/// none.
#[cfg(target_os = "linux")]
fn kill_orphans() {
    let this = rustix::process::getpid();
    loop {
        match retry(|| wait(WaitOptions::NOHANG)) {
            Ok(Some(_)) => continue,
            Ok(None) => {}
            Err(_) => return,
        }
        for process in crate::runner::process::procfs::processes() {
            if process.parent() == Some(this) {
                // It keeps its pid until this process reaps it.
                let _ = kill_process(process.pid(), Signal::KILL);
            }
        }
        if retry(|| wait(WaitOptions::empty())).is_err() {
            return;
        }
    }
}

/// Without a subreaper, the orphans of the tree cannot be found.
#[cfg(not(target_os = "linux"))]
fn kill_orphans() {}
