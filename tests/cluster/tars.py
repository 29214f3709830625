"""Layers of images: tars of files."""

import io
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "sh cat cp date dd df echo env grep head id ls mkdir ps rm sed seq sleep tail tr true wget"
)

USERS = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nservice:x:1000:1000::/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\nservice:x:1000:\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}


def add_file(archive, name, content, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    entry.size = size_of(content)

    if isinstance(content, bytes):
        archive.addfile(entry, io.BytesIO(content))
    else:
        with content.open("rb") as file:
            archive.addfile(entry, file)


def size_of(blob):
    return len(blob) if isinstance(blob, bytes) else blob.stat().st_size


def layer(files):
    """A tar of files, by path: texts, bytes or files. Scripts and ELF files are executable."""
    buffer = io.BytesIO()

    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            content = content.read_bytes() if isinstance(content, Path) else content
            is_program = content[:2] == b"#!" or content[:4] == b"\x7fELF"
            add_file(archive, name.lstrip("/"), content, 0o755 if is_program else 0o644)

    return buffer.getvalue()


def busybox():
    """A layer with busybox, its links and /tmp."""
    buffer = io.BytesIO(layer({"/bin/busybox": BUSYBOX, **USERS}))

    with tarfile.open(fileobj=buffer, mode="a") as archive:
        add_links(archive)

    return buffer.getvalue()


def add_links(archive):
    """Adds a link to busybox for each applet, and /tmp."""
    for applet in APPLETS.split():
        entry = tarfile.TarInfo(f"bin/{applet}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(entry)

    temporary = tarfile.TarInfo("tmp")
    temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
    archive.addfile(temporary)
