"""Removes everything of a cluster, however it ended.

The slot and the folder identify all that belongs to a cluster, so another process can clean up
after one that was killed: processes by a variable in their environment, containers by their
cgroup, mounts by their folder, the bridge by its name.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import parts

# The variable in the environment of every program of a cluster. Child processes inherit it.
MARK = "TWINED_CLUSTER_FOLDER"

# Where containerd's shims have their sockets, whatever its configuration.
SHIM_SOCKETS = Path("/run/containerd/s")
CGROUPS = Path("/sys/fs/cgroup")
# Where the kubelet links the logs of containers, whatever its configuration.
LOG_LINKS = Path("/var/log/containers")


def bridge(slot):
    return f"twined{slot}"


def cgroup(slot):
    return f"twined{slot}"


def clean_up(slot, folder):
    """Ends and removes everything of the cluster of this slot."""
    deadline = time.monotonic() + 30

    while processes := processes_of(slot, folder):
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass

        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {processes} of {folder} do not end")
        time.sleep(0.02)

    # A mount may cover another, so this is repeated until none is left.
    while mounts := mounts_of(folder):
        subprocess.run(["umount", "--lazy", *reversed(mounts)], check=False, capture_output=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"mounts {mounts} cannot be unmounted")

    remove_cgroups(slot)
    remove_log_links(folder)
    remove_sockets()
    remove_bridge(slot)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(slot, folder):
    """The processes of the cluster, including those in its containers."""
    mark = f"{MARK}={folder}".encode()
    found = set()

    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            # It has ended meanwhile, or is a kernel thread.
            continue

    for group in cgroups_of(slot):
        try:
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
        except OSError:
            continue

    # A process that was killed and not waited for still has a number.
    return sorted(process for process in found if not is_zombie(process))


def is_zombie(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def cgroups_of(slot):
    """The cgroups of the cluster in every hierarchy, the innermost first."""
    roots = [CGROUPS / cgroup(slot), *CGROUPS.glob(f"*/{cgroup(slot)}")]
    found = {Path(path) for root in roots for path, _, _ in os.walk(root)}
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def remove_cgroups(slot):
    # A hierarchy can have two names, so some are removed already.
    for group in cgroups_of(slot):
        try:
            group.rmdir()
        except OSError:
            continue


def mounts_of(folder):
    """The mount points at and below the folder, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if Path(point).is_relative_to(folder)]


def remove_log_links(folder):
    for link in LOG_LINKS.glob("*"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{folder}/"):
            link.unlink()


def remove_sockets():
    """Removes the sockets of shims, of any cluster, on which no process listens."""
    used = Path("/proc/net/unix").read_text()

    for socket in SHIM_SOCKETS.glob("*"):
        if str(socket) not in used:
            socket.unlink(missing_ok=True)


def remove_bridge(slot):
    """Removes the bridge. The links of pods vanished with their network namespaces."""
    subprocess.run(
        ["ip", "link", "delete", bridge(slot)],
        env={"PATH": parts.PATH},
        check=False,
        capture_output=True,
    )
