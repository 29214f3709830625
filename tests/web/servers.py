"""Servers of the tests: one serves the pages, one permits every page, and a relay records the
traffic between a browser and the network.
"""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import queue
import re
import socket
import socketserver
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).parent
ATTACK_PAGE = "/attack.html"

REQUEST_LINE = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/\S*) HTTP/1\.1\r\n")
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")

PIXEL = base64.b64decode("R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==")
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def attempt_of(path):
    """The number of the attempt that a request belongs to, or None."""
    numbers = parse_qs(urlsplit(path).query).get("attempt")
    return int(numbers[0]) if numbers else None


class InThread:
    """A server on a free port of this machine, which serves in a thread."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.port = self.server_address[1]

    def __enter__(self):
        serve = functools.partial(self.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """Ignores that a browser breaks its connections when it is killed."""


# === Pages ===


class PageServer(InThread, http.server.ThreadingHTTPServer):
    """Serves the files of this folder, and receives the report of a page."""

    def __init__(self):
        super().__init__(PageHandler)
        self.reports = queue.SimpleQueue()


class PageHandler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments, directory=HERE)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.reports.put(json.loads(body))

    def log_message(self, *_):
        pass


# === The permissive server ===


@dataclass(frozen=True)
class RecordedRequest:
    """A request to the permissive server."""

    attempt: int | None
    method: str
    path: str
    headers: dict
    body: bytes


class PermissiveServer(InThread, http.server.ThreadingHTTPServer):
    """Answers every request with the content type that it needs, and lets every origin read it."""

    def __init__(self):
        super().__init__(PermissiveHandler)
        self.requests = []


class PermissiveHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        attempt, path = attempt_of(self.path), urlsplit(self.path).path
        recorded = RecordedRequest(attempt, self.command, path, headers, body)
        self.server.requests.append(recorded)

        if headers.get("upgrade") == "websocket":
            return self.accept_websocket(headers["sec-websocket-key"])

        kind, content = self.content(headers)
        self.send_response(200)
        # Not `*`: that does not allow credentials, which beacons carry.
        self.send_header("Access-Control-Allow-Origin", headers.get("origin", "*"))
        self.send_header("Access-Control-Allow-Credentials", "true")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, DELETE, PATCH")
        self.send_header("Access-Control-Allow-Headers", "content-type")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = answer

    @staticmethod
    def content(headers):
        if headers.get("accept") == "text/event-stream":
            return "text/event-stream", b"data: x\n\n"
        match headers.get("sec-fetch-dest"):
            case "image":
                return "image/gif", PIXEL
            case "style":
                return "text/css", b"/* empty */"
            case "script" | "worker":
                return "text/javascript", b"/* empty */"
        return "text/plain", b"welcome"

    def accept_websocket(self, key):
        digest = hashlib.sha1((key + WEBSOCKET_GUID).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_):
        pass


# === The relay ===


@dataclass(frozen=True)
class Exchange:
    """A request to the network, and the status of its answer."""

    attempt: int | None
    method: str
    path: str
    status: int


class Relay(InThread, socketserver.ThreadingTCPServer):
    """Passes bytes between a browser and a server unchanged, and records them.

    The browser resolves the server's address to the relay's, so `Host` and `Origin` are those of
    the server. A request for the page goes to the page's server instead. This is what DNS
    rebinding achieves: the page has the origin of the network.
    """

    def __init__(self, port, page_server):
        super().__init__(RelayHandler)
        self.upstream_port = port
        self.page_port = page_server.port
        # The bytes sent and received on each connection.
        self.connections = []

    @property
    def rule(self):
        """Resolves the server's port, at any name or address, to the relay."""
        return f"*:{self.upstream_port} 127.0.0.1:{self.port}"

    def exchanges(self):
        """The requests that were relayed and answered so far."""
        for sent, received in list(self.connections):
            requests = REQUEST_LINE.findall(bytes(sent))
            statuses = STATUS_LINE.findall(bytes(received))
            for (method, path), status in zip(requests, statuses):
                path = path.decode()
                attempt, bare = attempt_of(path), urlsplit(path).path
                yield Exchange(attempt, method.decode(), bare, int(status))


class RelayHandler(socketserver.BaseRequestHandler):
    def handle(self):
        browser = self.request
        # Browsers open connections that they may never use.
        if not (first := browser.recv(65536)):
            return

        wants_page = first.startswith(f"GET {ATTACK_PAGE}".encode())
        port = self.server.page_port if wants_page else self.server.upstream_port
        sent, received = bytearray(), bytearray()
        if not wants_page:
            self.server.connections.append((sent, received))

        with socket.create_connection(("127.0.0.1", port)) as upstream:
            sent += first
            upstream.sendall(first)
            back = threading.Thread(target=pass_on, args=(upstream, browser, received))
            back.start()
            pass_on(browser, upstream, sent)
            back.join()


def pass_on(source, destination, record):
    """Passes bytes on until `source` ends, and then ends the direction to `destination`."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            destination.sendall(data)
    with contextlib.suppress(OSError):
        destination.shutdown(socket.SHUT_WR)
