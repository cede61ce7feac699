"""The two ends of the gate: processes under test report where they are, and wait to be let on.

A wrapped process (`wrapped_daemon`, `wrapped_agent`) calls `reach` at every boundary. Its event
loop then stands still until the harness answers: nothing is received, decided or sent meanwhile.
The harness's end is `Gate`.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GATE = "OPTMIGD_TEST_GATE"
"""Environment: path of the gate's socket."""
HOST = "OPTMIGD_TEST_HOST"
"""Environment: name of the host that the process belongs to."""


@dataclass(frozen=True)
class Boundary:
    """A point in a migration: the n-th time that a process comes to it.

    Attributes:
        host: of the process.
        kind: `daemon` or `agent`.
        name: what is about to happen, or has just happened.
        nth: counted from 1.
    """

    host: str
    kind: str
    name: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.host} {self.kind}: {self.name}" + (f" #{self.nth}" if self.nth > 1 else "")


class _Reporter:
    """A process's connection to the gate; made again after a fork."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def reach(self, kind: str, name: str) -> None:
        path = os.environ.get(GATE)
        if path is None:
            return
        report = {"host": os.environ[HOST], "kind": kind, "name": name}
        with self._lock:
            try:
                answer = self._ask(path, json.dumps(report).encode() + b"\n")
            except OSError as error:
                answer = repr(error).encode()
        if answer != b"\n":  # the harness has gone, or the connection was lost: the log tells
            print(f"gate: {name}: answered {answer!r}", file=sys.stderr, flush=True)

    def _ask(self, path: str, report: bytes) -> bytes:
        if self._socket is None or self._pid != os.getpid():
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(path)
            self._pid = os.getpid()
        self._socket.sendall(report)
        return self._socket.recv(1)


_reporter = _Reporter()


def reach(kind: str, name: str) -> None:
    """Report a boundary and stand still until the harness lets this process on."""
    _reporter.reach(kind, name)


class Gate:
    """The harness's end: lets everything on but the one boundary that it is set to hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trace: list[Boundary] = []
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._wanted: Boundary | None = None
        self._held = threading.Event()
        self._go = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._accepter = threading.Thread(target=self._accept, daemon=True)
        self._accepter.start()

    def begin(self, wanted: Boundary | None = None) -> None:
        """Count anew, and hold whoever comes to `wanted`."""
        with self._lock:
            self.trace = []
            self._counts = {}
            self._wanted = wanted
            self._held = threading.Event()
            self._go = threading.Event()

    def wait_held(self, timeout_s: float) -> bool:
        """Wait until a process stands at the boundary; False if none came in time."""
        return self._held.wait(timeout_s)

    def open(self) -> None:
        """Let the process on that is held, if it still lives, and hold nobody any more."""
        with self._lock:
            self._wanted = None
        self._go.set()

    def close(self) -> None:
        """Let everybody on and take no more reports.

        The thread that accepts is woken and waited for: its system call may be begun anew, and the
        listener's descriptor would by then be that of the next gate, whose reports it would take.
        """
        self.open()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepter.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
                connection.sendall(b"\n")

    def _take(self, report: dict[str, str]) -> None:
        key = (report["host"], report["kind"], report["name"])
        with self._lock:
            self._counts[key] = nth = self._counts.get(key, 0) + 1
            boundary = Boundary(*key, nth)
            self.trace.append(boundary)
            if boundary != self._wanted:
                return
            self._wanted = None
            held, go = self._held, self._go
        held.set()
        go.wait()


@contextmanager
def gate_at(path: Path) -> Iterator[Gate]:
    """A gate that ends with the block."""
    gate = Gate(path)
    try:
        yield gate
    finally:
        gate.close()
