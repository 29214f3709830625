//! The processes of a run: the child, and whatever it started.
//!
//! The child has a process group of its own. A process that leaves the group, even by a session
//! of its own, still has an ancestor in the tree, and when that ends it becomes a child of its
//! supervisor, which is a "subreaper"; so once the supervisor has no child, nothing is left. That
//! is Linux; elsewhere, only the group is ended.

use crate::runner::process::record::How;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process, kill_process_group,
    setsid, wait, waitid,
};
use std::process::Child;

/// The processes of a run.
#[derive(Debug)]
pub struct Tree {
    child: Pid,
}

/// Makes this process one that no terminal ends, and from which no orphan of its tree escapes.
pub fn detach() {
    // Refused only to the leader of a group, as which a shell may have started us by hand.
    let _ = setsid();
    #[cfg(target_os = "linux")]
    // Refused by kernels before 3.4 alone.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Waits until a process of the tree has ended, and leaves it to be noted; false where there is
/// none to wait for.
pub fn wait_for_an_end() -> bool {
    loop {
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

// === impl Tree ===

impl Tree {
    /// The tree of a child that leads a process group of its own.
    pub fn new(child: &Child) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Self { child: pid.expect("the pid of a process is a positive number") }
    }

    /// Takes note of all that has ended; says how the child did, if it is among them.
    pub fn note(&self) -> Option<How> {
        while let Ok(Some((pid, status))) = retry(|| wait(WaitOptions::NOHANG)) {
            if pid == self.child {
                return Some(how(status));
            }
        }
        None
    }

    /// Asks the child and its group to end. Only while the child is not noted as ended.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the child and its group. Only while the child is not noted as ended.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Ends all that the child left, once it is noted as ended.
    pub fn clear(&self) {
        // The kernel gives the number of a group that still has a process to no other, and goes
        // round all numbers before it gives this one again.
        let _ = kill_process_group(self.child, Signal::KILL);
        clear();
    }

    fn signal(&self, signal: Signal) {
        // What is gone is fine; the child may have left its group.
        let _ = kill_process_group(self.child, signal);
        let _ = kill_process(self.child, signal);
    }
}

fn how(status: WaitStatus) -> How {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => How::Exit(status),
        (None, Some(signal)) => How::Signal(signal),
        // `wait` tells of ends alone, if not asked for more.
        (None, None) => How::Lost,
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

/// Kills our own children, and then those that become ours by it, till there is none.
#[cfg(target_os = "linux")]
fn clear() {
    let us = rustix::process::getpid();
    loop {
        match retry(|| wait(WaitOptions::NOHANG)) {
            Ok(Some(_)) => continue,
            Ok(None) => {}
            Err(_) => return,
        }
        for process in crate::runner::process::procfs::processes() {
            if process.parent() == Some(us) {
                // Ours until we note its end: the number is no other's.
                let _ = kill_process(process.pid(), Signal::KILL);
            }
        }
        if retry(|| wait(WaitOptions::empty())).is_err() {
            return;
        }
    }
}

/// There is no telling here which processes were of the tree.
#[cfg(not(target_os = "linux"))]
fn clear() {}
