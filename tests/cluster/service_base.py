"""The base layer of every service of the tests: a Python, the SDK and a shell.

The Python is the one that runs the tests, with the libraries that it is linked to. The layer is
cached beside the programs of the cluster, because building it takes a while.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

import parts
import tars

HERE = Path(__file__).parent
REQUIREMENTS = HERE.parent / "sdk" / "requirements.txt"


def requirement():
    """The requirement of the SDK, from the tests of the SDK."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line for line in lines if line.startswith("octue=="))


def ensure():
    """Builds the layer if it is missing, and returns it: a file named by its digest."""
    own = [Path(file).read_text() for file in (__file__, tars.__file__)]
    inputs = [sys.version, sys.base_prefix, requirement(), *own]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    folder = parts.cache() / "service-base" / key
    folder.mkdir(parents=True, exist_ok=True)

    with parts.locked(folder / "lock"):
        cached = list(folder.glob("*.tar"))
        return cached[0] if cached else build(folder)


def build(folder):
    parts.log(f"building the image of services, with {requirement()} from PyPI")
    started = time.monotonic()

    with tempfile.TemporaryDirectory(dir=folder) as staging:
        root = Path(staging) / "root"
        copy_python(root)
        install_sdk(root)
        copy_libraries(root)
        unfinished = Path(staging) / "layer"
        write_tree(root, unfinished)

        with unfinished.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)

        layer = folder / f"{digest.hexdigest()}.tar"
        os.replace(unfinished, layer)

    size = layer.stat().st_size / 1e6
    parts.log(f"built it in {time.monotonic() - started:.0f} s: {size:.0f} MB")
    return layer


def copy_python(root):
    """Copies this Python to /usr/local."""
    library = Path(sysconfig.get_path("stdlib"))
    unneeded = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "lib2to3")
    unneeded += ("ensurepip", "pydoc_data", "turtledemo", "config-*", "__pycache__", "*.a")
    binaries = root / "usr" / "local" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy2(Path(os.path.realpath(sys.executable)), binaries / "python3")
    shutil.copytree(
        library,
        root / "usr" / "local" / "lib" / library.name,
        ignore=shutil.ignore_patterns(*unneeded),
    )
    binaries.joinpath("python").symlink_to("python3")


def install_sdk(root):
    packages = site_packages(root)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--root-user-action=ignore", "--no-compile", "--target", packages, requirement()]
    subprocess.run(install, check=True)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    # The path of a Python from Debian.
    debian = root / "usr" / "local" / "lib" / "python3" / "dist-packages"
    debian.parent.mkdir(exist_ok=True)
    debian.symlink_to(f"../{packages.parent.name}/{packages.name}")

    octue = root / "usr" / "local" / "bin" / "octue"
    octue.write_text(
        "#!/usr/local/bin/python3\n"
        "import sys\nfrom octue.cli import octue_cli\nsys.exit(octue_cli())\n"
    )
    octue.chmod(0o755)

    # Compiled here, with an invalidation mode that never checks the sources. Otherwise each
    # question would compile the SDK.
    compiling = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", root, "-p", "/"]
    compiling += ["--invalidation-mode", "unchecked-hash", root / "usr" / "local" / "lib"]
    subprocess.run(compiling, check=False, stdout=subprocess.DEVNULL)


def site_packages(root):
    return root / "usr/local/lib" / Path(sysconfig.get_path("stdlib")).name / "site-packages"


def copy_libraries(root):
    """Copies the libraries that Python and its modules are linked to into the folder of libc."""
    own = [root / "usr/local/bin/python3", *(root / "usr/local/lib").rglob("*.so*")]
    linked = {}

    for binary in own:
        printed = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
        linked.update(re.findall(r"^\s*(\S+) => (/\S+)", printed, re.MULTILINE))
        linked.update((path, path) for path in re.findall(r"^\s*(/\S+) \(", printed, re.MULTILINE))

    libraries = Path(linked["libc.so.6"]).parent

    for name, path in linked.items():
        # The libraries of wheels are in place. Only the loader is given by its path.
        if Path(path).is_relative_to(root):
            continue
        copy = root / (name if name.startswith("/") else f"{libraries}/{name}").lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.path.realpath(path), copy)
        copy.chmod(0o755)


def write_tree(root, path):
    """Writes a tree as a layer. The bytes depend only on the tree."""

    def plain(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    for name, content in tars.USERS.items():
        (root / "etc").mkdir(exist_ok=True)
        (root / name.lstrip("/")).write_text(content)

    (root / "bin").mkdir(exist_ok=True)
    shutil.copyfile("/bin/busybox", root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)

    with tarfile.open(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.add(file, str(file.relative_to(root)), recursive=False, filter=plain)
        tars.add_links(archive)
