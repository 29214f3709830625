"""The programs of a cluster: built once from Go modules, and cached.

The cache is outside the clone, in `~/.cache/twined-parts/<key>` (`TWINED_PARTS` sets another
folder). The key is a digest of the sources, so a new clone builds nothing, and a new version is
built once. Programs that Debian packages come from Debian.
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

# The tested versions of Kueue, with their modules: the version that networks run today, and one
# with the newest version of Workloads.
KUEUE = {"0.10": "kueue-0.10", "0.16": "kueue"}


@dataclasses.dataclass(frozen=True)
class Part:
    """The programs of one `go build`."""

    module: str
    packages: tuple
    # The name of the program, if its package has another name.
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
        # Each of these needs a C library or a tool that is not installed.
        tags="no_btrfs no_zfs no_devmapper",
    ),
    Part("kueue", ("sigs.k8s.io/kueue/cmd/kueue",), name="kueue"),
    Part("kueue-0.10", ("sigs.k8s.io/kueue/cmd/kueue",), name="kueue-0.10"),
)

# The Debian package of each program or file.
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
    """Why this machine cannot run a cluster. The message is for a person."""


def log(message):
    print(f"cluster: {message}", file=sys.stderr, flush=True)


def cache():
    """The folder of everything that takes long to build."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twined-parts"
    return Path(os.environ.get("TWINED_PARTS") or default)


def key():
    """A digest of the sources of the programs."""
    digest = hashlib.sha256(repr(PARTS).encode())

    for module in sorted({part.module for part in PARTS}):
        for file in ("go.mod", "go.sum"):
            digest.update((MODULES / module / file).read_bytes())

    return digest.hexdigest()[:16]


def folder():
    """The folder of the programs, which may be missing."""
    return cache() / key()


def ensure(kueue=None):
    """Builds the programs that are missing, and returns their folder.

    Kueue takes some minutes, so only the given version is built.
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
            save_manifests(kueue, programs)

    return programs


def build(part, programs):
    names = ", ".join(part.programs())

    if shutil.which("go") is None:
        raise Unavailable(f"no Go on this machine, and {names} must be built (see parts.py)")

    log(f"building {names} into {programs}: this takes minutes, once")
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
    log(f"built {names} in {time.monotonic() - started:.0f} s")


def install_debian_packages():
    """Installs the missing Debian packages."""
    if shutil.which("kubectl") is None:
        raise Unavailable("no `kubectl` on this machine: install it, 1.30 or newer")

    missing = [package for file, package in DEBIAN.items() if shutil.which(file, path=PATH) is None]
    packages = sorted(set(missing))

    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"install these Debian packages: {' '.join(packages)}")

    log(f"installing {' '.join(packages)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages]

    if subprocess.run(install, env=quiet, stdout=subprocess.DEVNULL).returncode == 0:
        return

    # The package lists may be missing.
    subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False)

    if subprocess.run(install, env=quiet, stdout=subprocess.DEVNULL).returncode != 0:
        raise Unavailable(f"failed to install {' '.join(packages)}")


def save_manifests(version, programs):
    """Saves the manifests of Kueue's module beside its program."""
    module = KUEUE[version]
    manifests = programs / f"{module}-manifests"

    if manifests.is_dir():
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

    os.replace(unfinished, manifests)


@contextlib.contextmanager
def locked(path):
    """Holds a lock, so that two test runs do not build the same at once."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for version in KUEUE:
        ensure(version)
    log(f"all parts are in {folder()}")
