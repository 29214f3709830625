"""Leaves nothing of a cluster behind, however it ended.

What belongs to a cluster is known by its slot and folder alone, so that one whose starter was
killed can be swept up by another: processes by a variable in their environment, containers by
their cgroup, mounts by their folder, the bridge by its name.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import parts

# The variable that every program of a cluster has, and hands on to what it starts.
MARK = "TWINED_CLUSTER_FOLDER"

# Where containerd's shims have their sockets, whatever it is told.
SHIM_SOCKETS = Path("/run/containerd/s")
CGROUPS = Path("/sys/fs/cgroup")
# Where the kubelet links the logs of containers, whatever it is told.
LOG_LINKS = Path("/var/log/containers")


def bridge(slot):
    return f"twined{slot}"


def cgroup(slot):
    return f"twined{slot}"


def sweep(slot, folder):
    """Ends and removes what is left of the cluster of this slot."""
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

    # A container's mount may cover another's, so again until there is none.
    while mounts := mounts_of(folder):
        subprocess.run(["umount", "--lazy", *reversed(mounts)], check=False, capture_output=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"mounts {mounts} do not go")

    remove_cgroups(slot)
    remove_log_links(folder)
    remove_sockets()
    remove_bridge(slot)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(slot, folder):
    """The processes of the cluster, those in its containers too."""
    mark = f"{MARK}={folder}".encode()
    found = set()

    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
        except OSError:
            # It has ended since, or is the kernel's.
            continue

    for group in cgroups_of(slot):
        try:
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
        except OSError:
            continue

    # One that was killed and not waited for yet has a number still, and nothing else.
    return sorted(process for process in found if not is_zombie(process))


def is_zombie(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def cgroups_of(slot):
    """Its cgroups in every hierarchy, the innermost first."""
    roots = [CGROUPS / cgroup(slot), *CGROUPS.glob(f"*/{cgroup(slot)}")]
    found = {Path(path) for root in roots for path, _, _ in os.walk(root)}
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def remove_cgroups(slot):
    # A hierarchy can have two names, so some are gone when their turn comes.
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
    """Those of shims, ours or not, at which nobody listens any more."""
    used = Path("/proc/net/unix").read_text()

    for socket in SHIM_SOCKETS.glob("*"):
        if str(socket) not in used:
            socket.unlink(missing_ok=True)


def remove_bridge(slot):
    """The links of pods went with their network namespaces."""
    subprocess.run(
        ["ip", "link", "delete", bridge(slot)],
        env={"PATH": parts.PATH},
        check=False,
        capture_output=True,
    )
