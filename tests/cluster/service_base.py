"""The layer below every service of the tests: a Python, the SDK and a shell.

The Python is the one that runs this, with the libraries that it is linked to. The layer is kept
beside the programs of the cluster, for it takes a while to make.
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
    """The SDK, as the tests of the SDK name it."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line for line in lines if line.startswith("octue=="))


def ensure():
    """Returns the layer: a file whose name is its digest."""
    own = [Path(file).read_text() for file in (__file__, tars.__file__)]
    inputs = [sys.version, sys.base_prefix, requirement(), *own]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    folder = parts.cache() / "service-base" / key
    folder.mkdir(parents=True, exist_ok=True)

    with parts.locked(folder / "lock"):
        kept = list(folder.glob("*.tar"))
        return kept[0] if kept else make(folder)


def make(folder):
    parts.say(f"making the image of services, with {requirement()} from PyPI")
    started = time.monotonic()

    with tempfile.TemporaryDirectory(dir=folder) as staging:
        root = Path(staging) / "root"
        lay_python(root)
        lay_sdk(root)
        lay_libraries(root)
        unfinished = Path(staging) / "layer"
        write_tree(root, unfinished)

        with unfinished.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)

        made = folder / f"{digest.hexdigest()}.tar"
        os.replace(unfinished, made)

    size = made.stat().st_size / 1e6
    parts.say(f"made it in {time.monotonic() - started:.0f} s: {size:.0f} MB")
    return made


def lay_python(root):
    """This Python, as if it had been installed below /usr/local."""
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


def lay_sdk(root):
    packages = site_packages(root)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--root-user-action=ignore", "--no-compile", "--target", packages, requirement()]
    subprocess.run(install, check=True)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    # Where a Python from Debian looks.
    debian = root / "usr" / "local" / "lib" / "python3" / "dist-packages"
    debian.parent.mkdir(exist_ok=True)
    debian.symlink_to(f"../{packages.parent.name}/{packages.name}")

    octue = root / "usr" / "local" / "bin" / "octue"
    octue.write_text(
        "#!/usr/local/bin/python3\n"
        "import sys\nfrom octue.cli import octue_cli\nsys.exit(octue_cli())\n"
    )
    octue.chmod(0o755)

    # Compiled once here and never looked at again, else each question compiles the SDK.
    compiling = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", root, "-p", "/"]
    compiling += ["--invalidation-mode", "unchecked-hash", root / "usr" / "local" / "lib"]
    subprocess.run(compiling, check=False, stdout=subprocess.DEVNULL)


def site_packages(root):
    return root / "usr/local/lib" / Path(sysconfig.get_path("stdlib")).name / "site-packages"


def lay_libraries(root):
    """The libraries that Python and its modules are linked to, all where libc is."""
    own = [root / "usr/local/bin/python3", *(root / "usr/local/lib").rglob("*.so*")]
    linked = {}

    for binary in own:
        printed = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
        linked.update(re.findall(r"^\s*(\S+) => (/\S+)", printed, re.MULTILINE))
        linked.update((path, path) for path in re.findall(r"^\s*(/\S+) \(", printed, re.MULTILINE))

    libraries = Path(linked["libc.so.6"]).parent

    for name, path in linked.items():
        # What a wheel brings itself is found as it is. The loader alone has a full name.
        if Path(path).is_relative_to(root):
            continue
        place = root / (name if name.startswith("/") else f"{libraries}/{name}").lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.path.realpath(path), place)
        place.chmod(0o755)


def write_tree(root, path):
    """Writes a tree as a layer that is the same whenever it is made of the same."""

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
        tars.add_places(archive)
