"""What both roles of a migration share: who moves, on whose behalf, and how to tell of it."""

import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.image import Image
from optmigd.enclave_shim.platforms import Claims, Platform
from optmigd.enclave_shim.policy import Policy
from optmigd.enclave_shim.preflight import DigestCache
from optmigd.enclave_shim.process import Process
from optmigd.protocol.convergence import OnStall
from optmigd.protocol.errors import LocalProtocolError

Params = dict[str, Any]
Emit = Callable[[str, Params], Awaitable[None]]
"""Sends an event of this migration to the daemon; raises `ChannelClosed` if there is none."""

# Source: include/uapi/asm-generic/socket.h; Python 3.11 does not name it.
SO_MAX_PACING_RATE = 47
UNPACED = (1 << 8 * struct.calcsize("@L")) - 1
"""What the kernel takes for no pacing. Source: net/core/sock.c."""

RECORD_BYTES = 1 << 20
DEFAULT_SWITCHOVER_STALL_S = 30.0


@dataclass(frozen=True)
class Identity:
    """Which enclave it is, wherever its instance lives.

    Attributes:
        name: of the enclave.
        image, policy, measurement: what runs, under which rules; both are part of the measurement.
        policy_text: the policy as its owner wrote it.
        platform: makes and checks evidence here.

    """

    name: str
    image: Image
    policy: Policy
    policy_text: bytes
    measurement: bytes
    platform: Platform


@dataclass
class Enclave:
    """An instance of an enclave that lives here.

    Attributes:
        identity: which enclave it is.
        arena, process: its memory and its process.
        generation: counts the owners: 1 at launch, one more with every move.
        own_dir: the own directory on this host.
        virtual_dir: its path as the program sees it.
        io_files: the files of the "io" root (see `files.py`), name to path.
        digests: of files outside that the program reads.

    """

    identity: Identity
    arena: Arena
    process: Process
    generation: int
    own_dir: Path
    virtual_dir: str
    io_files: dict[str, Path]
    digests: DigestCache

    @property
    def image(self) -> Image:
        """What it runs."""
        return self.identity.image

    @property
    def io_dir(self) -> Path:
        """Where the files of the "io" root stand, if they came with the enclave."""
        return self.io_files["output.log"].parent


@dataclass(frozen=True)
class Binding:
    """Which migration this is, between which hosts."""

    migration_id: bytes
    source_host: bytes
    destination_host: bytes


@dataclass(frozen=True)
class ExportOrders:
    """What the source is told (Contract 1, `export`).

    `switchover_stall_s`: how long the program stays parked while the peer takes or says nothing.
    `ask_for_turn`: whether the daemon says when to switch over; see `SwitchoverTurn`.
    """

    binding: Binding
    mode: Literal["precopy", "stop-and-copy"]
    streams: int
    downtime_limit_ms: float
    max_bandwidth: int
    on_stall: OnStall
    verify: bool
    timeout_s: float
    dry_run: bool
    switchover_stall_s: float
    ask_for_turn: bool = False


@dataclass(frozen=True)
class ReceiveOrders:
    """What the destination is told (Contract 1, `receive`)."""

    binding: Binding
    generation: int
    memory_bytes: int
    streams: int
    dry_run: bool
    virtual_dir: str


class Streams:
    """Collects the data streams' sockets as the daemon passes them, in any order."""

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket | None] = [None] * count
        self._complete = trio.Event()
        self._pace = b""  # as the daemon has set it

    def add(self, index: int, fd: int) -> None:
        """Take over a connected socket.

        Raises:
            LocalProtocolError: there is no such stream, or it is here already; the socket is
                closed.

        """
        sock = socket.socket(fileno=fd)
        if not 0 <= index < len(self._sockets) or self._sockets[index] is not None:
            sock.close()
            raise LocalProtocolError(f"data stream {index} is not expected")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # The last record of a round is small and somebody waits for it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._apply_pace(sock)
        self._sockets[index] = sock
        if all(self._sockets):
            self._complete.set()

    async def all(self) -> list[socket.socket]:
        """Wait until every stream is here."""
        await self._complete.wait()
        return [sock for sock in self._sockets if sock is not None]

    def pace(self, bytes_s: int) -> None:
        """Let the kernel send at most so many bytes a second over all of them; 0: no limit."""
        self._pace = struct.pack("@L", -(-bytes_s // len(self._sockets)) or UNPACED)
        for sock in self._sockets:
            if sock is not None:
                self._apply_pace(sock)

    def _apply_pace(self, sock: socket.socket) -> None:
        if self._pace and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, self._pace)

    def shut(self) -> None:
        """Break all of them: whoever is blocked on one ends with an error."""
        for sock in self._sockets:
            if sock is not None:
                with suppress(OSError):  # the peer has gone: then nobody is blocked on it either
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all of them, when no thread works on them any more."""
        self.shut()
        for sock in self._sockets:
            if sock is not None:
                sock.close()


class Appraiser:
    """Judges the peer's evidence by the policy, and remembers the claims for the receipt."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.claims: Claims | None = None

    def __call__(self, evidence: bytes, report_data: bytes) -> None:
        """Appraise; see `SessionChannel`.

        Raises:
            AttestationFailed: a rule of the policy is not met.

        """
        who = self._identity
        claims = who.platform.verify(evidence)
        who.policy.appraise(
            claims,
            measurement=who.measurement,
            platform=who.platform.name,
            report_data=report_data,
        )
        self.claims = claims


def page_count(bytes_: int) -> int:
    """Pages of a size that is whole pages."""
    return bytes_ // abi.PAGE_BYTES


Log = structlog.stdlib.BoundLogger

Replace = Callable[[Enclave], Awaitable[None]]
"""Replaces a waiting process that has ended; see `instance.Maker.replace`."""
