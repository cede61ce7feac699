"""Paths beneath a directory and nowhere else, whatever a peer says or a link points to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optmigd.protocol.errors import RemoteProtocolError

MAX_DEPTH = 64
MAX_PATH_BYTES = 1023
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def checked_parts(path: str) -> list[str]:
    """The components of a relative path that stays below its root.

    Raises:
        RemoteProtocolError: it is absolute, empty, too long, or has a `.` or `..`.

    """
    parts = path.split("/")
    if (
        len(os.fsencode(path)) > MAX_PATH_BYTES
        or len(parts) > MAX_DEPTH
        or "\0" in path
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise RemoteProtocolError("the peer names a file outside the enclave's own directory")
    return parts


@contextmanager
def parent_of(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """Open the directory that holds `path`, following no link on the way down."""
    *parents, name = checked_parts(path)
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            child = os.open(part, DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = child
        yield directory, name
    finally:
        os.close(directory)
