"""Lets pods reach a server of this machine that listens on loopback alone, as our emulator does."""

import contextlib
import socket
import threading


class Passage:
    """Carries what comes to an address that pods reach on to `target`, and what comes back.

    While it is `cut`, connections end and none are taken on.
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
        # A thread that waits in `accept` would keep a closed socket open.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.end_connections()

    @contextlib.contextmanager
    def cut(self):
        """Nothing passes in here."""
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
                threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, source, sink):
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
