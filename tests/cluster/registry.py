"""A registry that serves the tests' images. Tests can delay or refuse pulls.

It implements only what containerd needs for a pull: `GET` and `HEAD` of manifests and blobs.
"""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import images
import tars

PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/?]+)(\?.*)?")


class Registry:
    """Serves the images of a store at `(host, port)`, until closed."""

    def __init__(self, store, host, port):
        self.store = store
        # By image name: the events for which the blobs wait, and the statuses of refusals.
        self.held = {}
        self.refused = {}
        # The number of requests for the manifest, by image name.
        self.pulls = {}
        registry = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                registry.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer((host, port), Answering)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        for released in self.held.values():
            released.set()
        self.server.shutdown()
        self.server.server_close()

    # === For tests ===

    @contextlib.contextmanager
    def holding(self, name):
        """Pulls of the image `name` wait inside this context."""
        self.held[name] = threading.Event()
        try:
            yield
        finally:
            self.held.pop(name).set()

    @contextlib.contextmanager
    def refusing(self, name, status):
        """Pulls of the image `name` get `status` inside this context; with 0, no answer."""
        self.refused[name] = status
        try:
            yield
        finally:
            del self.refused[name]

    # === Answering ===

    def answer(self, request):
        match = PATH.fullmatch(request.path)

        if request.path.rstrip("/") == "/v2":
            return respond(request, 200, b"{}", "application/json")
        if match is None:
            return refuse(request, 404, "NAME_UNKNOWN")

        repository = f"{images.REGISTRY}/{match['name']}"

        if match["kind"] == "manifests":
            return self.answer_manifest(request, repository, match["reference"])
        return self.answer_blob(request, repository, match["reference"])

    def answer_manifest(self, request, repository, reference):
        name = f"{repository}:{reference}"
        names = [name] if name in self.store.names else self.named(repository, reference)
        refused = [self.refused[name] for name in {name, *names} if name in self.refused]

        if refused:
            return refuse(request, refused[0], "DENIED")
        if not names:
            return refuse(request, 404, "MANIFEST_UNKNOWN")
        if request.command == "GET":
            self.pulls[names[0]] = self.pulls.get(names[0], 0) + 1

        digest = self.store.names[names[0]]
        return respond(request, 200, self.store.blobs[digest], images.MANIFEST, digest)

    def named(self, repository, digest):
        """The images of a repository with this digest."""
        return [
            name
            for name, own in self.store.names.items()
            if name.rpartition(":")[0] == repository and own == digest
        ]

    def answer_blob(self, request, repository, digest):
        if digest not in self.store.blobs:
            return refuse(request, 404, "BLOB_UNKNOWN")

        for name, released in list(self.held.items()):
            if name.rpartition(":")[0] == repository:
                released.wait()

        blob = self.store.blobs[digest]
        return respond(request, 200, blob, "application/octet-stream", digest)


def respond(request, status, blob, media_type, digest=None):
    request.send_response(status)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(tars.size_of(blob)))

    if digest:
        request.send_header("Docker-Content-Digest", digest)

    request.end_headers()

    if request.command == "HEAD":
        return

    # The client may have closed the connection.
    with contextlib.suppress(ConnectionError):
        if isinstance(blob, bytes):
            request.wfile.write(blob)
        else:
            with blob.open("rb") as file:
                request.connection.sendfile(file)


def refuse(request, status, code):
    if status == 0:
        request.close_connection = True
        return
    error = {"errors": [{"code": code, "message": code.replace("_", " ").lower()}]}
    respond(request, status, json.dumps(error).encode(), "application/json")
