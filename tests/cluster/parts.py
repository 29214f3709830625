"""The programs that a cluster is made of: built from the Go module proxy once, and kept.

They are kept outside the clone, in `~/.cache/twined-parts/<key>` (`TWINED_PARTS` chooses another
folder), where the key is made of what they are built from. So a new clone builds nothing, and a
raised version builds once. What Debian has comes from Debian.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

MODULES = Path(__file__).parent / "parts"

KUBERNETES = "v1.36.3"
_MAJOR, _MINOR, _ = KUBERNETES.lstrip("v").split(".")
_VERSION = "k8s.io/component-base/version"

# The versions of Kueue that are tested, by the name that a person gives: what networks run today,
# and one whose Workloads are of the newest version.
KUEUE = {"0.10": "kueue-0.10", "0.16": "kueue"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Programs that one `go build` makes."""

    module: str
    packages: tuple
    # What the one program is called, where its package has another name.
    name: str = ""
    tags: str = ""
    ldflags: str = "-s -w"

    def programs(self):
        return [self.name] if self.name else [package.split("/")[-1] for package in self.packages]

    def command(self, folder):
        out = folder / self.name if self.name else f"{folder}/"
        tags = ["-tags", self.tags] if self.tags else []
        flags = ["-trimpath", *tags, "-ldflags", self.ldflags]
        return ["go", "build", *flags, "-o", str(out), *self.packages]


PARTS = (
    Part(
        "kubernetes",
        tuple(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
        ),
        # Clients ask the server for its version.
        ldflags=f"-s -w -X {_VERSION}.gitVersion={KUBERNETES}"
        f" -X {_VERSION}.gitMajor={_MAJOR} -X {_VERSION}.gitMinor={_MINOR}",
    ),
    Part("kubernetes", ("go.etcd.io/etcd/server/v3",), name="etcd"),
    Part("kubernetes", ("sigs.k8s.io/kwok/cmd/kwok",)),
    Part(
        "kubernetes",
        tuple(
            f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        # Each wants a C library or a tool that nobody here has.
        tags="no_btrfs no_zfs no_devmapper",
    ),
    Part("kueue", ("sigs.k8s.io/kueue/cmd/kueue",), name="kueue"),
    Part("kueue-0.10", ("sigs.k8s.io/kueue/cmd/kueue",), name="kueue-0.10"),
)

# What comes from Debian: the package of each program or file.
DEBIAN = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/lib/cni/host-local": "containernetworking-plugins",
    "/bin/busybox": "busybox-static",
    "ip": "iproute2",
    "iptables": "iptables",
    "openssl": "openssl",
    "unshare": "util-linux",
    "umount": "mount",
}

PATH = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Unavailable(Exception):
    """Why there can be no cluster on this machine, in words for a person."""


def say(message):
    print(f"cluster: {message}", file=sys.stderr, flush=True)


def cache():
    """The folder in which everything is kept that takes long to make."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twined-parts"
    return Path(os.environ.get("TWINED_PARTS") or usual)


def key():
    """Names what the programs are built from."""
    digest = hashlib.sha256(repr(PARTS).encode())

    for module in sorted({part.module for part in PARTS}):
        for file in ("go.mod", "go.sum"):
            digest.update((MODULES / module / file).read_bytes())

    return digest.hexdigest()[:16]


def folder():
    """The folder of the programs, built or not."""
    return cache() / key()


def ensure(kueue=None):
    """Returns the folder of the programs, after building what is not there.

    Kueue takes minutes of its own, so only the version that is named is built.
    """
    install_debian_packages()
    programs = folder()
    programs.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in PARTS if part.module not in KUEUE.values()]
    wanted += [part for part in PARTS if kueue and part.module == KUEUE[kueue]]

    with locked(programs / "lock"):
        for part in wanted:
            if not all((programs / name).is_file() for name in part.programs()):
                build(part, programs)
        if kueue:
            keep_manifests(kueue, programs)

    return programs


def build(part, programs):
    names = ", ".join(part.programs())

    if shutil.which("go") is None:
        raise Unavailable(f"no Go on this machine, and {names} must be built (see parts.py)")

    say(f"building {names} into {programs}: minutes the first time, then never again")
    unfinished = programs / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    started = time.monotonic()
    built = subprocess.run(
        part.command(unfinished),
        cwd=MODULES / part.module,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"},
        stdin=subprocess.DEVNULL,
    )

    if built.returncode != 0:
        raise Unavailable(f"failed to build {names}: `go build` ended with {built.returncode}")

    for name in part.programs():
        os.replace(unfinished / name, programs / name)

    unfinished.rmdir()
    say(f"built {names} in {time.monotonic() - started:.0f} s")


def install_debian_packages():
    """Installs what Debian has and this machine lacks."""
    if shutil.which("kubectl") is None:
        raise Unavailable("no `kubectl` on this machine: install it, 1.30 or newer")

    missing = [package for file, package in DEBIAN.items() if shutil.which(file, path=PATH) is None]
    packages = sorted(set(missing))

    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"install these first (Debian's names): {' '.join(packages)}")

    say(f"installing {' '.join(packages)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages]

    if subprocess.run(install, env=quiet, stdout=subprocess.DEVNULL).returncode == 0:
        return

    # A machine that was never updated knows no packages.
    subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False)

    if subprocess.run(install, env=quiet, stdout=subprocess.DEVNULL).returncode != 0:
        raise Unavailable(f"failed to install {' '.join(packages)}")


def keep_manifests(version, programs):
    """Keeps what Kueue's module ships for its installation, beside its program."""
    module = KUEUE[version]
    kept = programs / f"{module}-manifests"

    if kept.is_dir():
        return

    run = functools.partial(
        subprocess.run, cwd=MODULES / module, capture_output=True, text=True, check=True
    )
    run(["go", "mod", "download", "sigs.k8s.io/kueue"])
    listed = run(["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kueue"])
    components = Path(listed.stdout.strip()) / "config" / "components"
    unfinished = programs / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()

    for manifest in (*components.glob("crd/bases/*.yaml"), components / "webhook/manifests.yaml"):
        shutil.copyfile(manifest, unfinished / manifest.name)

    os.replace(unfinished, kept)


@contextlib.contextmanager
def locked(path):
    """Holds a lock, so that two runs do not make the same thing at once."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for version in KUEUE:
        ensure(version)
    say(f"all parts are in {folder()}")
