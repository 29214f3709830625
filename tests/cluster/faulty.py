"""A proxy before the API server that answers wrongly, late, by half, or not at all.

    proxy = Faulty(cluster)
    network.kubeconfig = proxy.kubeconfig(network.kubeconfig)
    proxy.calls = {"500": 0.1, "commit_and_cut": 0.05}
    proxy.watches = {"half_open": 0.3}
    proxy.heal()

A call meets one of the faults of `calls` with the chance that is given, a watch one of `watches`
with the chance a second. What fired is counted in `fired`.
"""

import collections
import contextlib
import http.client
import http.server
import json
import random
import socket
import socketserver
import threading
import time
import urllib.parse

import passage
import watching

CALLS = ("409", "429", "500", "503", "commit_and_cut", "commit_and_hang", "cut", "slow")
WATCHES = ("half_open", "410", "truncated", "cut")
REASONS = {
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    410: "Expired",
}
# Longer than a caller waits for an answer (20 s).
HANG = 25
# What a proxy must not pass on.
OWN = {"connection", "transfer-encoding", "content-length", "host", "accept-encoding"}


class Faulty:
    """Listens on loopback, without TLS, and calls the API server as whoever called it."""

    def __init__(self, cluster, seed=0):
        self.cluster = cluster
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.calls, self.watches = {}, {}
        self.is_down = False
        self.fired = collections.Counter()
        self.open = set()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.faulty = self
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()

    def kubeconfig(self, path):
        """The same kubeconfig, by way of the proxy."""
        config = json.loads(path.read_text())
        config["clusters"][0]["cluster"] = {"server": self.address}
        through = path.with_suffix(".faulty")
        through.write_text(json.dumps(config))
        return through

    def heal(self):
        """No more faults. What hangs, hangs on."""
        self.calls, self.watches = {}, {}

    @contextlib.contextmanager
    def down(self):
        """Nobody is there: connections end, and are refused."""
        self.is_down = True
        with self.lock:
            connections = set(self.open)
        for connection in connections:
            passage.end(connection)
        try:
            yield
        finally:
            self.is_down = False

    def fault(self, faults, share=1.0):
        """A fault, perhaps."""
        with self.lock:
            roll = self.random.random() / share
            for fault, chance in faults.items():
                if roll < chance:
                    return fault
                roll -= chance
        return None

    def count(self, fault):
        with self.lock:
            self.fired[fault] += 1

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request, address):
        """A connection that was cut is nothing to tell of."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 300

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.behind = None
        faulty = self.server.faulty
        with faulty.lock:
            faulty.open.add(self.connection)

    def finish(self):
        faulty = self.server.faulty
        with faulty.lock:
            faulty.open.discard(self.connection)
        if self.behind:
            self.behind.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def do(self):
        faulty = self.server.faulty
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if faulty.is_down:
            return self.cut()
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if query.get("watch", ["false"])[0] in ("1", "true"):
            return self.pass_watch()
        fault = faulty.fault(faulty.calls)
        # Nothing is changed by reading, so nothing can be in conflict.
        if fault == "409" and self.command == "GET":
            fault = None
        if fault:
            faulty.count(f"call {fault}")
        self.answer(fault, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    # === Calls ===

    def answer(self, fault, body):
        if fault == "cut":
            return self.cut()
        if fault in ("409", "429", "500", "503"):
            return self.refuse(int(fault))
        if fault == "slow":
            time.sleep(self.server.faulty.random.uniform(0.5, 5))
        status, kind, found = self.ask(body)
        if fault == "commit_and_cut":
            return self.cut()
        if fault == "commit_and_hang":
            time.sleep(HANG)
            return self.cut()
        self.give(status, kind, found)

    def ask(self, body):
        """Calls the API server, again where a kept connection was closed meanwhile."""
        headers = self.passed_on()
        for last in (False, True):
            fresh = self.behind is None
            self.behind = self.behind or watching.connection(self.server.faulty.cluster)
            try:
                self.behind.request(self.command, self.path, body, headers)
                answer = self.behind.getresponse()
                return answer.status, answer.getheader("Content-Type"), answer.read()
            except (OSError, http.client.HTTPException):
                self.behind.close()
                self.behind = None
                if fresh or last or self.command != "GET":
                    raise
        raise AssertionError("two tries")

    def passed_on(self):
        return {name: value for name, value in self.headers.items() if name.lower() not in OWN}

    def refuse(self, status):
        words = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": "a fault of the test",
            "reason": REASONS[status],
            "code": status,
        }
        self.give(status, "application/json", json.dumps(words).encode())

    def give(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        self.close_connection = True
        passage.end(self.connection)

    # === Watches ===

    def pass_watch(self):
        link = watching.connection(self.server.faulty.cluster, timeout=120)
        try:
            link.request("GET", self.path, headers=self.passed_on())
            answer = link.getresponse()
            if answer.status != 200:
                return self.give(answer.status, answer.getheader("Content-Type"), answer.read())
            self.send_response(200)
            self.send_header("Content-Type", answer.getheader("Content-Type"))
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            # The lines come as they come; whether a fault fires is asked twice a second.
            ticking = threading.Thread(target=self.tick, args=(link,), daemon=True)
            self.state, self.sending = None, threading.Lock()
            ticking.start()
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                while self.state is None and (line := answer.readline()):
                    self.pass_line(line)
            if self.state is None:
                self.chunk(b"")
            elif self.state == "half_open":
                # Until the other side gives up.
                with contextlib.suppress(OSError):
                    self.connection.recv(1)
                self.cut()
            self.state = self.state or "ended"
        finally:
            self.close_connection = True
            link.close()

    def pass_line(self, line):
        with self.sending:
            if self.state is None:
                self.chunk(line)

    def tick(self, link):
        faulty = self.server.faulty
        while self.state is None:
            time.sleep(0.5)
            fault = "cut" if faulty.is_down else faulty.fault(faulty.watches, share=0.5)
            if fault is None or self.state is not None:
                continue
            faulty.count(f"watch {fault}")
            with self.sending, contextlib.suppress(OSError):
                self.state = fault
                if fault == "410":
                    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "gone"}
                    gone |= {"apiVersion": "v1", "status": "Failure"}
                    self.chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                    self.chunk(b"")
                elif fault == "truncated":
                    self.chunk(b'{"type":"MODIFIED","object":{"kind":"Job","metada')
                    self.chunk(b"")
            # Wakes who waits for the next line of the API server.
            passage.end(link.sock) if link.sock else None
            if fault in ("cut", "truncated", "410"):
                self.cut()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
