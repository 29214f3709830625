"""A TCP proxy: lets pods reach a server that listens only on loopback, such as the emulator."""

import contextlib
import socket
import threading


class TcpProxy:
    """Forwards connections to an address that pods reach to `target`.

    While it is `cut`, it closes all connections.
    """

    def __init__(self, host, target, port=0):
        name, _, number = target.rpartition(":")
        self.target = (name, int(number))
        self.is_cut = False
        self.open = set()
        self.lock = threading.Lock()
        self.listener = socket.create_server((host, port), backlog=512)
        self.address = f"{host}:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        # Closing alone would not end an `accept` that waits.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.end_connections()

    @contextlib.contextmanager
    def cut(self):
        """Forwards nothing inside this context."""
        self.is_cut = True
        self.end_connections()
        try:
            yield
        finally:
            self.is_cut = False

    def end_connections(self):
        with self.lock:
            connections, self.open = self.open, set()
        for connection in connections:
            end(connection)

    def accept(self):
        while True:
            try:
                incoming, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                incoming.close()
                continue
            try:
                outgoing = socket.create_connection(self.target)
            except OSError:
                incoming.close()
                continue
            with self.lock:
                self.open |= {incoming, outgoing}
            for pair in ((incoming, outgoing), (outgoing, incoming)):
                threading.Thread(target=self.forward, args=pair, daemon=True).start()

    def forward(self, source, sink):
        try:
            while part := source.recv(1 << 16):
                sink.sendall(part)
        except OSError:
            pass
        finally:
            for connection in (source, sink):
                end(connection)
            with self.lock:
                self.open -= {source, sink}
            source.close()


def end(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
