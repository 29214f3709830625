"""The images of the tests: services with Python and `octue`, and programs that fail in many ways.

They are written here layer by layer, without another tool: an image is tars of files and two JSON
documents. The image of the service `<namespace>/<name>:<tag>` is
`registry.test/network/services/<namespace>/<name>:<tag>`.

    python images.py ARCHIVE.tar    writes all of them, for `kind load image-archive` and the like
"""

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

import service_base
import tars

HERE = Path(__file__).parent
SDK = HERE.parent / "sdk"
SHIM = HERE.parent.parent / "src" / "sdk" / "shim"
# The folder of the shim in an image.
SHIM_FOLDER = "/opt/shim"

REGISTRY = "registry.test"
REPOSITORY = f"{REGISTRY}/network/services"
PAUSE = f"{REGISTRY}/pause:1"
BUSYBOX = f"{REGISTRY}/busybox:1"
# The revision tag of every service here; the services name children with this tag.
TAG = "local"

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

# The folder of the service in an image.
SERVICE = "/app"

# The script that replaces `octue` in images that fail, by the name of the service.
FAILING = {
    "answers-nothing": "exit 0",
    "exits": 'echo "The wind was too much." >&2; exit 3',
    "is-loud": 'seq 5000 | sed "s/^/This is line /" >&2; exit 1',
    # The process that takes the memory is the container's first, so the container is OOM-killed.
    "eats-memory": "exec tail /dev/zero",
    # Only a child process of the first process is killed.
    "child-eats-memory": "tail /dev/zero; exit $?",
    "is-killed": "sh -c 'kill -9 $$'; exit $?",
    "crashes": "sh -c 'kill -SEGV $$'; exit $?",
    "is-terminated": "sh -c 'kill -TERM $$'; exit $?",
    "aborts": "sh -c 'kill -ABRT $$'; exit $?",
    "wants-another-processor": "sh -c 'kill -ILL $$'; exit $?",
    "lacks-a-program": "no-such-program",
    # A child process is killed, and the first process ignores that.
    "hides-its-end": "(exec tail /dev/zero); exit 0",
    "sleeps": "trap 'exit 143' TERM; sleep 86400 & wait",
    # Like a Python that is the container's first process.
    "ignores-sigterm": "trap '' TERM; while :; do sleep 1; done",
    "fills-disk": "dd if=/dev/zero of=/filled bs=1M count=${MEBIBYTES:-512}; sleep 86400",
    "fills-volume": "dd if=/dev/zero of=/scratch/filled bs=1M count=${MEBIBYTES:-64}; sleep 86400",
}

# The services of `tests/it/runner_contract.rs`.
CONTRACT = {
    "good": "echo hello",
    "bad": "echo alas; exit 3",
    "endless": "trap 'exit 143' TERM; sleep 86400 & wait",
}


# An image in another language: posts the digest of its inputs to the address in ANSWERS.
SHELL = r"""#!/bin/sh
set -eu
# `twined question ask-local`
shift 3
question() {
    if [ -z "${TWINED_QUESTION_FILE:-}" ]; then
        printf %s "$4"
        return
    fi
    cat "$TWINED_QUESTION_FILE"
    part=1
    while [ "$part" -lt "$TWINED_QUESTION_PARTS" ]; do
        cat "$TWINED_QUESTION_FILE.$part"
        part=$((part + 1))
    done
}
uuid=$(printf %s "$2" | sed 's/.*"question_uuid":"\([^"]*\)".*/\1/')
digest=$(question "$@" | busybox sha256sum | head -c 64)
wget -q -O - --post-data "$digest" "$ANSWERS/$uuid"
"""


def sruid_image(sruid):
    """The image of a service revision."""
    return f"{REPOSITORY}/{sruid}"


# === Images ===


class Store:
    """Images by name. Blobs are bytes or files."""

    def __init__(self):
        self.blobs = {}
        self.names = {}

    def add(self, name, layers, **config):
        """Adds an image of `layers`, which are tars. `config` is the OCI's image configuration."""
        diffs = [self.add_blob(layer) for layer in layers]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        described = self.described(CONFIG, self.add_blob(to_json(document)))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described,
            "layers": [self.described(LAYER, digest) for digest in diffs],
        }
        self.names[name] = self.add_blob(to_json(manifest))

    def add_blob(self, blob):
        digest = f"sha256:{digest_of(blob)}"
        self.blobs[digest] = blob
        return digest

    def described(self, media_type, digest):
        return {"mediaType": media_type, "digest": digest, "size": tars.size_of(self.blobs[digest])}

    def add_unpulled(self, sruid, like):
        """Adds a copy of the image of the service `like` as the image of another service.

        Returns its name. No node has it; only the registry serves it.
        """
        manifest = json.loads(self.blobs[self.names[sruid_image(like)]])
        config = json.loads(self.blobs[manifest["config"]["digest"]])["config"]
        layers = [self.blobs[part["digest"]] for part in manifest["layers"]]
        name = sruid_image(sruid)
        self.add(name, [*layers, tars.layer({"/etc/revision": sruid})], **config)
        return name

    def damage(self, name):
        """Replaces the last layer of an image by other bytes of the same size."""
        manifest = json.loads(self.blobs[self.names[name]])
        layer = manifest["layers"][-1]
        self.blobs[layer["digest"]] = b"?" * layer["size"]

    def digest(self, name):
        """The digest of an image's manifest."""
        return self.names[name]

    def write_archive(self, file, names=None):
        """Writes images as an archive in the OCI layout, for `ctr images import`."""
        names = list(self.names) if names is None else names
        manifests = [
            {
                **self.described(MANIFEST, self.names[name]),
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                },
            }
            for name in names
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        wanted = {self.names[name] for name in names}

        for digest in list(wanted):
            manifest = json.loads(self.blobs[digest])
            wanted.update(part["digest"] for part in (manifest["config"], *manifest["layers"]))

        with tarfile.open(fileobj=file, mode="w|") as archive:
            tars.add_file(archive, "oci-layout", to_json({"imageLayoutVersion": "1.0.0"}))
            tars.add_file(archive, "index.json", to_json(index))

            for digest in sorted(wanted):
                tars.add_file(archive, f"blobs/{digest.replace(':', '/')}", self.blobs[digest])


def to_json(document):
    return json.dumps(document).encode()


def digest_of(blob):
    if isinstance(blob, bytes):
        return hashlib.sha256(blob).hexdigest()

    # Reading 150 MB takes a moment, and a cached layer is named by its digest.
    return blob.stem


# === Contents ===


def everything():
    """All images of the tests."""
    store = Store()
    add_failing(store)
    add_services(store)
    add_shapes(store)
    return store


def add_pause(store):
    """The pause image, which holds a pod's network namespace."""
    busybox = {"/bin/busybox": tars.BUSYBOX}
    store.add(PAUSE, [tars.layer(busybox)], Cmd=["/bin/busybox", "sleep", "2147483647"])


def add_failing(store):
    """Images of `failing/<name>:local`, whose `octue` is a line of shell."""
    base = tars.busybox()
    path = ["PATH=/bin:/usr/bin"]
    store.add(BUSYBOX, [base], Env=path)

    for name, script in FAILING.items():
        octue = tars.layer({"/bin/octue": f"#!/bin/sh\n{script}\n"})
        store.add(sruid_image(f"failing/{name}:{TAG}"), [base, octue], Env=path)

    # The services of the runner contract.
    for name, script in CONTRACT.items():
        octue = tars.layer({"/bin/octue": f"#!/bin/sh\n{script}\n"})
        store.add(sruid_image(f"test/{name}:1.0"), [base, octue], Env=path)

    # No `octue` at all, one that no kernel can execute, and one for a shell that does not exist.
    store.add(sruid_image(f"failing/has-no-octue:{TAG}"), [base], Env=path)
    damaged = tars.layer({"/bin/octue": b"\x7fELF and nothing more"})
    store.add(sruid_image(f"failing/is-damaged:{TAG}"), [base, damaged], Env=path)
    orphaned = tars.layer({"/bin/octue": "#!/no/such/shell\n"})
    store.add(sruid_image(f"failing/has-no-shell:{TAG}"), [base, orphaned], Env=path)


def add_services(store):
    """Images of the services of `tests/sdk/services`, and of the SDK's example of a tree."""
    base = service_base.ensure()

    for sruid, files in services(base).items():
        store.add(sruid_image(sruid), [base, service(files)], **PYTHON)


# The environment of images of Python services. The SDK needs the shim offline. The image's own
# PYTHONPATH names it, so the tests fail if the daemon replaces that.
ENVIRONMENT = ["PATH=/usr/local/bin:/bin", "PYTHONUNBUFFERED=1", "HOME=/tmp"]
PYTHON = {
    "Env": [*ENVIRONMENT, f"PYTHONPATH={SHIM_FOLDER}"],
    "WorkingDir": SERVICE,
}


def service(files, **more):
    """The layer of a service of these files.

    Of the shim it has only the part that replaces a network. The part that delivers large
    questions must come from the daemon, as for images that know nothing of it.
    """
    own = {f"{SERVICE}/{name}": content for name, content in files.items()}
    shim = {f"{SHIM_FOLDER}/{file.name}": file for file in sorted(SHIM.glob("*.py"))}
    shim[f"{SHIM_FOLDER}/twined_question.py"] = "AFTER = {}\n"
    return tars.layer({**own, **shim, **more})


def add_shapes(store):
    """Images of `shapes/<name>:local`: services with an unusual image."""
    base = service_base.ensure()
    witness = services(base)[f"tests/witness:{TAG}"]
    packages = f"/{service_base.site_packages(Path())}"
    # Without PYTHONPATH: the shim is found through its site-packages.
    own = service(witness, **{f"{packages}/shim.pth": SHIM_FOLDER})
    store.add(
        sruid_image(f"shapes/without-path:{TAG}"), [base, own], Env=ENVIRONMENT, WorkingDir=SERVICE
    )
    octue = tars.layer({"/bin/octue": SHELL})
    store.add(
        sruid_image(f"shapes/shell:{TAG}"), [tars.busybox(), octue], Env=["PATH=/bin:/usr/bin"]
    )


def services(base):
    """The files of each service, by SRUID."""
    found = {}

    for folder in sorted((SDK / "services").iterdir()):
        own = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        found[sruid_of(own["octue.yaml"])] = own

    # The example is part of the SDK.
    with tarfile.open(base) as archive:
        pattern = re.compile(r".*/templates/template-child-services/(\w+)/([\w.]+)")
        example = {}

        for entry in archive:
            match = pattern.fullmatch(entry.name)
            if match and entry.isfile():
                content = archive.extractfile(entry).read()
                example.setdefault(match[1], {})[match[2]] = content

    for own in example.values():
        found[sruid_of(own["octue.yaml"])] = own

    return found


def sruid_of(configuration):
    """The SRUID of an `octue.yaml` with one service. Python's library cannot read YAML."""
    found = re.findall(r"^\s+(?:- )?(name|namespace): (\S+)$", configuration.decode(), re.MULTILINE)
    fields = dict(reversed(found))
    return f"{fields['namespace']}/{fields['name']}:{TAG}"


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as archive:
        everything().write_archive(archive)
