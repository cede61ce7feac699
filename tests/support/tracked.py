"""A small C process that behaves like an enclave's towards the tracker, and its driver."""

import os
import socket
import subprocess
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import Arena, Control, Runs

SOURCE = Path(__file__).with_name("tracked.c")
DATA_ADDRESS = 0x400000000


def build(directory: Path) -> Path:
    """Compile the C process with the system's compiler."""
    binary = directory / "tracked"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", binary, SOURCE], check=True)
    return binary


class TrackedProcess:
    """Satisfies `optmigd.enclave_shim.tracker.Tracked`; `do` has it touch its memory."""

    def __init__(self, binary: Path, arena: Arena, data_page: int = 0, data_pages: int = 0) -> None:
        self.arena = arena
        self.ctl = Control(arena.size_bytes)
        if data_pages:
            state = arena.rt_state
            state["data_start"] = DATA_ADDRESS
            state["data_end"] = DATA_ADDRESS + data_pages * abi.PAGE_BYTES
            state["data_copy"] = abi.ARENA_BASE + data_page * abi.PAGE_BYTES
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            numbers = [
                arena.fd,
                arena.size_bytes,
                self.ctl.fd,
                os.fstat(self.ctl.fd).st_size,
                theirs.fileno(),
                data_page,
                data_pages,
            ]
            self.popen = subprocess.Popen(
                [str(binary), *map(str, numbers)],
                pass_fds=[arena.fd, self.ctl.fd, theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            theirs.close()
            payload, fds, _, _ = socket.recv_fds(ours, 4, 2)
        self.tracker_errno = array("i", payload)[0]
        self.pagemap = fds[-1]
        self.uffd = fds[0] if len(fds) == 2 else -1

    def send(self, command: str) -> None:
        """Start a command; `done` waits for it."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(command + "\n")
        self.popen.stdin.flush()

    def done(self) -> None:
        """Wait for the answer to the last command."""
        assert self.popen.stdout is not None
        answer = self.popen.stdout.readline()
        if answer != "ok\n":
            raise RuntimeError(f"the tracked process answered {answer!r}")

    def do(self, command: str) -> None:
        """Carry out one command of `tracked.c`."""
        self.send(command)
        self.done()

    def close(self) -> None:
        """End the process and close what belongs to it."""
        self.popen.kill()
        self.popen.communicate()
        for fd in (self.uffd, self.pagemap):
            if fd >= 0:
                os.close(fd)
        self.ctl.close()


@contextmanager
def tracked(
    binary: Path, pages: int, data_page: int = 0, data_pages: int = 0, huge: Runs | None = None
) -> Iterator[TrackedProcess]:
    """A tracked process with an arena of its own; both are gone afterwards.

    `huge` is memory to populate in huge pages before the process maps it, where the kernel has
    them, as a destination does.
    """
    arena = Arena(pages * abi.PAGE_BYTES)
    try:
        if huge is not None:
            arena.advise_huge(True)
            arena.populate(huge)
            arena.advise_huge(False)
        process = TrackedProcess(binary, arena, data_page, data_pages)
        try:
            yield process
        finally:
            process.close()
    finally:
        arena.close()
