"""Watches Jobs and pods at the API server, so that objects are seen that are deleted later."""

import contextlib
import http.client
import json
import ssl
import threading
import time
import urllib.parse

from cluster import ADMIN_TOKEN

JOBS = "/apis/batch/v1/namespaces/{}/jobs"
PODS = "/api/v1/namespaces/{}/pods"


def connection(cluster, timeout=60):
    """A connection to the API server, as admin."""
    unchecked = ssl._create_unverified_context()
    return http.client.HTTPSConnection(cluster.api, 443, timeout=timeout, context=unchecked)


def call(link, method, path, body=None):
    """Makes one call. Returns the status and the decoded answer."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
    link.request(method, path, body and json.dumps(body), headers)
    answer = link.getresponse()
    return answer.status, json.loads(answer.read() or b"{}")


class Watch:
    """Watches objects in a thread, and calls `seen(event type, object, time)` for each event.

    With `brief`, the objects have only their metadata.
    """

    def __init__(self, cluster, path, seen, labels=None, brief=False):
        self.cluster = cluster
        self.headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        if brief:
            kind = "as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            self.headers["Accept"] = f"application/json;{kind}"
        self.path = path
        self.query = {"labelSelector": labels} if labels else {}
        self.seen = seen
        self.stopped = threading.Event()
        self.began = threading.Event()
        self.version = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.began.wait(30), f"no watch of {path}"

    def run(self):
        while not self.stopped.is_set():
            # A watch that breaks is reopened: a test may end the server.
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self.follow()
            self.stopped.wait(0.2)

    def follow(self):
        link = connection(self.cluster)
        if self.version is None:
            status, found = call(link, "GET", self.url())
            if status != 200:
                return
            for each in found["items"]:
                self.seen("ADDED", each, time.time())
            self.version = found["metadata"]["resourceVersion"]
            self.began.set()
        more = {"watch": "1", "resourceVersion": self.version, "timeoutSeconds": "30"}
        link.request("GET", self.url(allowWatchBookmarks="true", **more), headers=self.headers)
        lines = link.getresponse()
        while not self.stopped.is_set() and (line := lines.readline()):
            event = json.loads(line)
            if event["type"] == "ERROR":
                self.version = None
                return
            self.version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self.seen(event["type"], event["object"], time.time())

    def url(self, **more):
        query = urllib.parse.urlencode({**self.query, **more})
        return f"{self.path}?{query}" if query else self.path

    def stop(self):
        self.stopped.set()
