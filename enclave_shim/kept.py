"""What the keeper keeps for the agent, and how the two talk (see `keeper.py`).

The agent is forked by the keeper, so it simply has what the keeper held at that moment: an
`Inheritance`. What comes up later it asks for over a socket pair, one request and one answer at a
time; the keeper answers within the time of a fork and an exec. This module is loaded by both, so it
imports nothing heavy.
"""

import fcntl
import os
import signal
import socket
import struct
from contextlib import suppress

START_FDS = ("arena", "ctl", "event", "socket", "own_dir", "output", "stdin", "image")
"""What comes with a request to start the application, in this order."""
CHILD_FDS = {name: 10 + index for index, name in enumerate(START_FDS)}
"""The numbers under which the application finds them when it begins."""
KEPT_FDS = ("arena", "ctl", "event", "image")
TRACKER_FDS = ("pagemap", "uffd")

START, KEEP_TRACKER, REAP, READY = b"S", b"K", b"R", b"Y"
ANSWER = struct.Struct("<ii")  # errno or 0, value
MAX_MESSAGE_BYTES = 4096

VAULT_BYTES = 1 << 20
"""Size of the vault (see `vault.py`); what is not written takes no memory."""


def make_vault() -> int:
    """A new, empty vault's descriptor; its size can never change."""
    fd = os.memfd_create("optmig-vault", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, VAULT_BYTES)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class KeptProcess:
    """The application's process, as the keeper holds it.

    Attributes:
        pid, pidfd: of the process; the number is not used again before the keeper has reaped it.
        fds: descriptors by name: those of KEPT_FDS, and of TRACKER_FDS if they came.
        wait_status: as wait(2) gave it; None while it is not reaped.

    """

    def __init__(self, pid: int, fds: dict[str, int]) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.fds = fds
        self.wait_status: int | None = None

    def kill(self) -> None:
        """Kill it; no error if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Return its wait status, waiting for its end if need be; only the keeper can."""
        if self.wait_status is None:
            self.wait_status = os.waitpid(self.pid, 0)[1]
        return self.wait_status

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (self.pidfd, *self.fds.values()):
            os.close(fd)
        self.fds = {}


class KeeperClient:
    """The agent's end of the socket pair. Every call blocks for a moment; none is cancellable."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def start(self, name: str, fds: dict[str, int]) -> tuple[int, int]:
        """Start the application; return its process's number and a pidfd, now the caller's.

        Args:
            name: argv[0].
            fds: by the names of START_FDS; they stay the caller's.

        Raises:
            OSError: it could not be started.

        """
        order = [fds[name] for name in START_FDS]
        pid, received = self._ask(START + os.fsencode(name)[:255], order)
        return pid, received[0]

    def keep_tracker(self, pagemap: int, uffd: int) -> None:
        """Have the keeper keep the tracker's descriptors; `uffd` may be -1 for none."""
        self._ask(KEEP_TRACKER, [pagemap] if uffd < 0 else [pagemap, uffd])

    def reap(self) -> int:
        """Return the wait status of the application, which must have ended (its pidfd says so)."""
        return self._ask(REAP)[0]

    def ready(self) -> None:
        """Say that this agent serves: from now on it is worth starting again."""
        self._ask(READY)

    def _ask(self, request: bytes, fds: list[int] | None = None) -> tuple[int, list[int]]:
        if fds:
            socket.send_fds(self._sock, [request], fds)
        else:
            self._sock.send(request)
        answer, received, _, _ = socket.recv_fds(
            self._sock, ANSWER.size, 1, socket.MSG_CMSG_CLOEXEC
        )
        if len(answer) != ANSWER.size:
            raise ConnectionResetError("the keeper has ended")
        error, value = ANSWER.unpack(answer)
        if error:
            raise OSError(error, os.strerror(error))
        return value, received


class Inheritance:
    """What an agent begins with.

    Attributes:
        listener: accepts daemons; what connected while no agent was there waits in it.
        vault_fd: the vault's memory (see `vault.py`).
        keeper: to ask for more.
        process: the application that an earlier agent has started, None if there is none.
        restarts: how many agents there were before.
        last_end: how the last one ended, for the log.

    """

    def __init__(
        self,
        listener: socket.socket,
        vault_fd: int,
        keeper: KeeperClient,
        process: KeptProcess | None,
        restarts: int,
        last_end: str,
    ) -> None:
        self.listener = listener
        self.vault_fd = vault_fd
        self.keeper = keeper
        self.process = process
        self.restarts = restarts
        self.last_end = last_end
