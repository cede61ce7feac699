"""A stand-in for the daemon's control socket, for tests of its clients.

It speaks contract 3 of docs/architecture.md over a real UNIX socket, in threads, so that it serves
the async client, the blocking client and `optmigctl` in a process of its own alike.
"""

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from optmigd.protocol.errors import OptmigError, UnknownEnclave, to_wire
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

Params = dict[str, Any]
Handler = Callable[[Params], Generator[Params | bytes, None, Params] | Params]
"""Answers one request: a result, or a generator of events (or of raw bytes) that returns it.

It may raise an OptmigError, which is the answer then, or `HangUp`.
"""


class HangUp(Exception):
    """Close the connection without an answer."""


class ControlServer:
    """Serve `handlers` by method on a socket in a directory of its own, until the block ends."""

    def __init__(self, **handlers: Handler) -> None:
        self.handlers = handlers
        self.requests: list[tuple[str, Params]] = []
        self.stopping = threading.Event()
        """Set when the block ends: handlers that wait for something watch it."""
        self._directory = Path(tempfile.mkdtemp(prefix="optmigd-test-"))
        self.path = self._directory / "control.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._shut(self._listener)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            self._shut(connection)
        for thread in self._threads:
            thread.join(timeout=10)
        shutil.rmtree(self._directory)
        if self.failures and exc is None:
            raise self.failures[0]

    def params_of(self, method: str) -> Params:
        """The parameters of the only request for `method`."""
        (params,) = [params for name, params in self.requests if name == method]
        return params

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if not self.stopping.is_set():
                    raise
                return
            with self._lock:
                self._connections.append(connection)
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._answer(connection)
            except (HangUp, BrokenPipeError, ConnectionResetError):
                return
            except BaseException as failure:
                cut = isinstance(failure, OSError) and self.stopping.is_set()
                if not cut:
                    self.failures.append(failure)
            finally:
                self._shut(connection)

    def _answer(self, connection: socket.socket) -> None:
        decoder = FrameDecoder()
        while (payload := decoder.next_frame()) is None:
            data = connection.recv(65536)
            if not data:
                return
            decoder.feed(data)
        request: Any = unpack(payload)
        number, method, params = request["id"], request["method"], request["params"]
        with self._lock:
            self.requests.append((method, params))
        try:
            if method not in self.handlers:
                raise OptmigError(f"this test serves no {method!r}")
            answer = self.handlers[method](params)
            if isinstance(answer, Generator):
                answer = self._send_events(connection, number, answer)
            connection.sendall(frame(pack({"id": number, "result": answer})))
        except OptmigError as error:
            connection.sendall(frame(pack({"id": number, "error": to_wire(error)})))

    @staticmethod
    def _send_events(
        connection: socket.socket, number: int, events: Generator[Params | bytes, None, Params]
    ) -> Params:
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                result: Params = stop.value
                return result
            if isinstance(event, bytes):
                connection.sendall(event)
            else:
                connection.sendall(frame(pack({"id": number, "event": event})))

    @staticmethod
    def _shut(connection: socket.socket) -> None:
        with suppress(OSError):  # not connected any more, or closed already
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


STATUS: Params = {
    "enclave": "join",
    "state": "running",
    "host": "a",
    "platform": "sim",
    "measurement": "ab" * 32,
    "tracker": "kernel",
    "memory_bytes": 4 << 30,
    "resident_bytes": 3 << 29,
    "exit_status": None,
    "owner_generation": 1,
    "migration": None,
    "dir": "",
    "blockers": [],
}

PROGRESS: Params = {
    "round_no": 1,
    "transferred_bytes": 1 << 30,
    "remaining_bytes": 1 << 28,
    "total_bytes": 4 << 30,
    "dirty_pages_rate": 2000.0,
    "throughput_mbps": 8000.0,
    "expected_downtime_ms": 12.5,
}

ROUND: Params = {
    "round_no": 0,
    "pages": 262144,
    "zero_pages": 1000,
    "bytes": 1 << 30,
    "duration_ms": 900.0,
    "dirty_pages_rate": 2000.0,
}

MIGRATION: Params = {
    "migration_id": "0f" * 16,
    "enclave": "join",
    "source": "a",
    "destination": "b",
    "mode": "precopy",
    "state": "completed",
    "platform": "sim",
    "rounds": [ROUND],
    "total_bytes": 4 << 30,
    "transferred_bytes": 5 << 30,
    "zero_pages": 1000,
    "setup_time_ms": 40.0,
    "downtime_ms": 21.5,
    "total_time_ms": 4200.0,
    "throughput_mbps": 9000.0,
    "state_digest": "cd" * 32,
    "owner_generation": 2,
    "verified": None,
    "downtime_parts_ms": {"quiesce": 0.4, "last_pages": 12.0},
}


def unknown_enclave(params: Params) -> Params:
    """Refuse every name."""
    raise UnknownEnclave(f"this host has no enclave {params['enclave']!r}")
