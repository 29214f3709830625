"""The images of the tests: services on Python and `octue`, and programs that die in many ways.

They are written here, layer by layer, with no other tool: an image is a tar of files and two JSON
documents. A service of SRUID `<namespace>/<name>:<tag>` is the image
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
# Where the shim is in an image.
SHIM_FOLDER = "/opt/shim"

REGISTRY = "registry.test"
REPOSITORY = f"{REGISTRY}/network/services"
PAUSE = f"{REGISTRY}/pause:1"
BUSYBOX = f"{REGISTRY}/busybox:1"
# The revision tag of every service here: the children that the services name have it.
TAG = "local"

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

# Where an image has its service.
SERVICE = "/app"

# What stands in for `octue` in images that die, by the name of the service.
DEATHS = {
    "answers-nothing": "exit 0",
    "exits": 'echo "The wind was too much." >&2; exit 3',
    "is-loud": 'seq 5000 | sed "s/^/This is line /" >&2; exit 1',
    # The process that eats is the container's first, so the kernel's word is the container's.
    "eats-memory": "exec tail /dev/zero",
    # Only a child of it is killed.
    "child-eats-memory": "tail /dev/zero; exit $?",
    "is-killed": "sh -c 'kill -9 $$'; exit $?",
    "crashes": "sh -c 'kill -SEGV $$'; exit $?",
    "is-told-to-stop": "sh -c 'kill -TERM $$'; exit $?",
    "aborts": "sh -c 'kill -ABRT $$'; exit $?",
    "wants-another-processor": "sh -c 'kill -ILL $$'; exit $?",
    "lacks-a-program": "no-such-program",
    # A child of it is killed, and it makes nothing of that.
    "hides-its-end": "(exec tail /dev/zero); exit 0",
    "sleeps": "trap 'exit 143' TERM; sleep 86400 & wait",
    # As a Python that is the container's first process does.
    "is-deaf": "trap '' TERM; while :; do sleep 1; done",
    "fills-disk": "dd if=/dev/zero of=/filled bs=1M count=${MEBIBYTES:-512}; sleep 86400",
    "fills-volume": "dd if=/dev/zero of=/scratch/filled bs=1M count=${MEBIBYTES:-64}; sleep 86400",
}

# The services of `tests/it/runner_contract.rs`.
CONTRACT = {
    "good": "echo hello",
    "bad": "echo alas; exit 3",
    "endless": "trap 'exit 143' TERM; sleep 86400 & wait",
}


# An image in another language: it tells the address ANSWERS the digest of what reached it.
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
    """Images by name, whose blobs are bytes or files."""

    def __init__(self):
        self.blobs = {}
        self.names = {}

    def add(self, name, layers, **config):
        """Adds an image of `layers`, which are tars, with what the OCI calls its config."""
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

    def add_unpulled(self, sruid, of):
        """Adds the image of a service again, as that of another that no node has anything of.

        Returns its name. It can be had from the registry alone.
        """
        manifest = json.loads(self.blobs[self.names[sruid_image(of)]])
        config = json.loads(self.blobs[manifest["config"]["digest"]])["config"]
        layers = [self.blobs[part["digest"]] for part in manifest["layers"]]
        name = sruid_image(sruid)
        self.add(name, [*layers, tars.layer({"/etc/revision": sruid})], **config)
        return name

    def damage(self, name):
        """Makes the last layer of an image another than its manifest says, of the same size."""
        manifest = json.loads(self.blobs[self.names[name]])
        layer = manifest["layers"][-1]
        self.blobs[layer["digest"]] = b"?" * layer["size"]

    def digest(self, name):
        """The digest of an image's manifest."""
        return self.names[name]

    def write_archive(self, file, names=None):
        """Writes images as an archive in the OCI's layout, as `ctr images import` reads it."""
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

    # Reading 150 MB takes a moment, and a layer that is kept has its digest for a name.
    return blob.stem


# === What is in them ===


def everything():
    """All images of the tests."""
    store = Store()
    add_deaths(store)
    add_services(store)
    add_shapes(store)
    return store


def add_pause(store):
    """What holds a pod's network: it only has to be there."""
    busybox = {"/bin/busybox": tars.BUSYBOX}
    store.add(PAUSE, [tars.layer(busybox)], Cmd=["/bin/busybox", "sleep", "2147483647"])


def add_deaths(store):
    """Images of `deaths/<name>:local`, whose `octue` is a few words of shell."""
    base = tars.busybox()
    path = ["PATH=/bin:/usr/bin"]
    store.add(BUSYBOX, [base], Env=path)

    for name, script in DEATHS.items():
        octue = tars.layer({"/bin/octue": f"#!/bin/sh\n{script}\n"})
        store.add(sruid_image(f"deaths/{name}:{TAG}"), [base, octue], Env=path)

    # What every runner of the Rust tests can run.
    for name, script in CONTRACT.items():
        octue = tars.layer({"/bin/octue": f"#!/bin/sh\n{script}\n"})
        store.add(sruid_image(f"test/{name}:1.0"), [base, octue], Env=path)

    # It has no such command, and one that no kernel can run, and one for a shell that is not there.
    store.add(sruid_image(f"deaths/has-no-octue:{TAG}"), [base], Env=path)
    damaged = tars.layer({"/bin/octue": b"\x7fELF and nothing more"})
    store.add(sruid_image(f"deaths/is-damaged:{TAG}"), [base, damaged], Env=path)
    orphaned = tars.layer({"/bin/octue": "#!/no/such/shell\n"})
    store.add(sruid_image(f"deaths/has-no-shell:{TAG}"), [base, orphaned], Env=path)


def add_services(store):
    """Images of the services of `tests/sdk/services`, and of the SDK's own example of a tree."""
    base = service_base.ensure()

    for sruid, files in services(base).items():
        store.add(sruid_image(sruid), [base, service(files)], **PYTHON)


# What an image of a Python service says of itself. Off line the SDK needs the shim. That it is on
# the image's own path shows that whoever runs the image keeps it.
ENVIRONMENT = ["PATH=/usr/local/bin:/bin", "PYTHONUNBUFFERED=1", "HOME=/tmp"]
PYTHON = {
    "Env": [*ENVIRONMENT, f"PYTHONPATH={SHIM_FOLDER}"],
    "WorkingDir": SERVICE,
}


def service(files, **more):
    """The layer of a service of these files.

    Of the shim it has no more than what stands in for a network: that a question reaches the SDK
    whole is for the daemon to see to, as in an image that knows nothing of us.
    """
    own = {f"{SERVICE}/{name}": content for name, content in files.items()}
    shim = {f"{SHIM_FOLDER}/{file.name}": file for file in sorted(SHIM.glob("*.py"))}
    shim[f"{SHIM_FOLDER}/twined_question.py"] = "AFTER = {}\n"
    return tars.layer({**own, **shim, **more})


def add_shapes(store):
    """Images of `shapes/<name>:local`: services that are not as the others are."""
    base = service_base.ensure()
    witness = services(base)[f"tests/witness:{TAG}"]
    packages = f"/{service_base.site_packages(Path())}"
    # It has no PYTHONPATH, and finds the shim where its packages are.
    own = service(witness, **{f"{packages}/shim.pth": SHIM_FOLDER})
    store.add(
        sruid_image(f"shapes/without-path:{TAG}"), [base, own], Env=ENVIRONMENT, WorkingDir=SERVICE
    )
    octue = tars.layer({"/bin/octue": SHELL})
    store.add(sruid_image(f"shapes/shell:{TAG}"), [tars.busybox(), octue], Env=["PATH=/bin:/usr/bin"])


def services(base):
    """The files of each service, by SRUID."""
    found = {}

    for folder in sorted((SDK / "services").iterdir()):
        own = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        found[sruid_of(own["octue.yaml"])] = own

    # The example is wherever the SDK is.
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
    """The SRUID of an `octue.yaml`. There is one service in each, in the plainest of YAML."""
    found = re.findall(r"^\s+(?:- )?(name|namespace): (\S+)$", configuration.decode(), re.MULTILINE)
    said = dict(reversed(found))
    return f"{said['namespace']}/{said['name']}:{TAG}"


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as archive:
        everything().write_archive(archive)
