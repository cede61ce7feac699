"""A real keeper without an agent: tests that drive the runtime themselves start processes by it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optmigd.enclave_shim.keeper import Keeper
from optmigd.enclave_shim.kept import KeeperClient


@contextmanager
def keeper_in(directory: Path) -> Iterator[KeeperClient]:
    """A keeper process in a directory of its own; it and what it has started end with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
        root = str(Path(__file__).parents[2])
        with theirs:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": root},
                pass_fds=[theirs.fileno()],
            )
        try:
            yield KeeperClient(ours)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    parent = os.pidfd_open(os.getppid())
    Keeper(lambda inheritance: 0)._serve(socket.socket(fileno=int(sys.argv[1])), parent)
