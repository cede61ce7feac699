"""A TCP proxy between two daemons: it records every byte, and can cut the traffic."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PREAMBLE_BYTES = 8


class Proxy:
    """Forwards connections to an address; `recorded` holds all bytes of both directions.

    Without `record` it holds the first bytes of each connection only.

    The daemons' connections are told apart by their first bytes: `OPTMIGL1` links, `OPTMIGD1` data
    streams.
    """

    def __init__(self, target: tuple[str, int], *, record: bool = True) -> None:
        self._target = target
        self._record = record
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._pairs: list[tuple[socket.socket, socket.socket, bytearray]] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._closing = False
        self.recorded: list[bytearray] = []
        self._accepter = threading.Thread(target=self._accept, daemon=True)
        self._accepter.start()

    @property
    def address(self) -> str:
        """What to give to `host add`."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._closing:
                near.close()
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            first = bytearray()
            self._sockets += (near, far)
            with self._lock:
                self._pairs.append((near, far, first))
            for source, sink, log in ((near, far, first), (far, near, bytearray())):
                self.recorded.append(log)
                thread = threading.Thread(target=self._pump, args=(source, sink, log), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, log: bytearray) -> None:
        with suppress(OSError):  # a cut connection ends the pump
            while piece := source.recv(1 << 16):
                if self._record or len(log) < PREAMBLE_BYTES:
                    log += piece if self._record else piece[:PREAMBLE_BYTES]
                with self._moved:
                    self._moved.notify_all()
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, preamble: bytes = b"") -> int:
        """Cut every connection that began with `preamble`; return how many."""
        with self._lock:
            chosen = [pair for pair in self._pairs if bytes(pair[2]).startswith(preamble)]
            self._pairs = [pair for pair in self._pairs if pair not in chosen]
        for near, far, _ in chosen:
            for end in (near, far):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return len(chosen)

    def cut_after(self, preamble: bytes, bytes_in_all: int) -> threading.Thread:
        """Cut such connections as soon as so many bytes have crossed, over all connections."""

        def watch() -> None:
            while not self._closing:
                with self._moved:
                    self._moved.wait(1.0)
                if sum(map(len, self.recorded)) >= bytes_in_all and self.cut(preamble):
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Stop accepting, cut everything, and wait for the threads."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._accepter.join()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


@contextmanager
def proxy_to(listen: str) -> Iterator[Proxy]:
    """A proxy to `ADDR:PORT` that ends with the block."""
    host, port = listen.rsplit(":", 1)
    proxy = Proxy((host, int(port)))
    try:
        yield proxy
    finally:
        proxy.close()
