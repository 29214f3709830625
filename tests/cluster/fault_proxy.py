"""A proxy of the API server that injects faults: wrong, late, truncated or missing answers.

    proxy = FaultProxy(cluster)
    network.kubeconfig = proxy.kubeconfig(network.kubeconfig)
    proxy.calls = {"500": 0.1, "commit_and_cut": 0.05}
    proxy.watches = {"half_open": 0.3}
    proxy.heal()

`calls` has the probability of each fault per call, `watches` its probability per second of a
watch. `fired` counts the faults that were injected.
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

import tcp_proxy
import api_watch

CALLS = ("409", "429", "500", "503", "commit_and_cut", "commit_and_hang", "cut", "slow")
WATCHES = ("half_open", "410", "truncated", "cut")
REASONS = {
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    410: "Expired",
}
# Longer than the timeout of a call of the daemon (20 s).
HANG = 25
# Headers that a proxy must not forward.
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "accept-encoding"}


class FaultProxy:
    """Listens on loopback, without TLS, and forwards calls with their credentials."""

    def __init__(self, cluster, seed=0):
        self.cluster = cluster
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.calls, self.watches = {}, {}
        self.is_down = False
        self.fired = collections.Counter()
        self.open = set()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.proxy = self
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()

    def kubeconfig(self, path):
        """A copy of a kubeconfig that uses the proxy."""
        config = json.loads(path.read_text())
        config["clusters"][0]["cluster"] = {"server": self.address}
        through = path.with_suffix(".proxied")
        through.write_text(json.dumps(config))
        return through

    def heal(self):
        """Injects no more faults. Calls that hang continue to hang."""
        self.calls, self.watches = {}, {}

    @contextlib.contextmanager
    def down(self):
        """Ends all connections and accepts none inside this context."""
        self.is_down = True
        with self.lock:
            connections = set(self.open)
        for connection in connections:
            tcp_proxy.end(connection)
        try:
            yield
        finally:
            self.is_down = False

    def fault(self, faults, factor=1.0):
        """A random fault, or None. `factor` scales the probabilities."""
        with self.lock:
            roll = self.random.random() / factor
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
        """Ignores that connections were cut."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 300

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.upstream = None
        proxy = self.server.proxy
        with proxy.lock:
            proxy.open.add(self.connection)

    def finish(self):
        proxy = self.server.proxy
        with proxy.lock:
            proxy.open.discard(self.connection)
        if self.upstream:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def do(self):
        proxy = self.server.proxy
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        if proxy.is_down:
            return self.cut()
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if query.get("watch", ["false"])[0] in ("1", "true"):
            return self.pass_watch()
        fault = proxy.fault(proxy.calls)
        # A read cannot conflict.
        if fault == "409" and self.command == "GET":
            fault = None
        if fault:
            proxy.count(f"call {fault}")
        self.answer(fault, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    # === Calls ===

    def answer(self, fault, body):
        if fault == "cut":
            return self.cut()
        if fault in ("409", "429", "500", "503"):
            return self.refuse(int(fault))
        if fault == "slow":
            time.sleep(self.server.proxy.random.uniform(0.5, 5))
        status, kind, found = self.forward(body)
        if fault == "commit_and_cut":
            return self.cut()
        if fault == "commit_and_hang":
            time.sleep(HANG)
            return self.cut()
        self.respond(status, kind, found)

    def forward(self, body):
        """Calls the API server; twice, if a connection that was reused had been closed."""
        headers = self.passed_on()
        for last in (False, True):
            fresh = self.upstream is None
            self.upstream = self.upstream or api_watch.connection(self.server.proxy.cluster)
            try:
                self.upstream.request(self.command, self.path, body, headers)
                answer = self.upstream.getresponse()
                return answer.status, answer.getheader("Content-Type"), answer.read()
            except (OSError, http.client.HTTPException):
                self.upstream.close()
                self.upstream = None
                if fresh or last or self.command != "GET":
                    raise
        raise AssertionError("the second try returns or raises")

    def passed_on(self):
        headers = self.headers.items()
        return {name: value for name, value in headers if name.lower() not in HOP_BY_HOP}

    def refuse(self, status):
        error = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": "a fault of the test",
            "reason": REASONS[status],
            "code": status,
        }
        self.respond(status, "application/json", json.dumps(error).encode())

    def respond(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        self.close_connection = True
        tcp_proxy.end(self.connection)

    # === Watches ===

    def pass_watch(self):
        link = api_watch.connection(self.server.proxy.cluster, timeout=120)
        try:
            link.request("GET", self.path, headers=self.passed_on())
            answer = link.getresponse()
            if answer.status != 200:
                return self.respond(answer.status, answer.getheader("Content-Type"), answer.read())
            self.send_response(200)
            self.send_header("Content-Type", answer.getheader("Content-Type"))
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            # This thread passes lines on; the other one decides twice a second about a fault.
            ticking = threading.Thread(target=self.tick, args=(link,), daemon=True)
            self.state, self.sending = None, threading.Lock()
            ticking.start()
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                while self.state is None and (line := answer.readline()):
                    self.pass_line(line)
            if self.state is None:
                self.chunk(b"")
            elif self.state == "half_open":
                # Until the client closes the connection.
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
        proxy = self.server.proxy
        while self.state is None:
            time.sleep(0.5)
            fault = "cut" if proxy.is_down else proxy.fault(proxy.watches, factor=0.5)
            if fault is None or self.state is not None:
                continue
            proxy.count(f"watch {fault}")
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
            # Wakes the thread that waits for the API server's next line.
            tcp_proxy.end(link.sock) if link.sock else None
            if fault in ("cut", "truncated", "410"):
                self.cut()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
