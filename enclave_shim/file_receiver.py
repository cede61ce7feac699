"""The files that come with an enclave, as the destination writes them.

What arrives is applied beneath two directories and nowhere else: paths are checked component by
component and opened without following links, whatever the peer says.
"""

import os
import stat
from pathlib import Path

from optmigd.enclave_shim.beneath import parent_of
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.records import FileMeta

IO_NAMES = ("output.log", "stdin")

Buffer = bytes | bytearray | memoryview


class FileReceiver:
    """The destination's side: applies steps beneath its two roots.

    A file stays open from one write to the next; see `release`.

    Args:
        own: the (new) own directory.
        io_dir: where `IO_NAMES` are written.

    """

    def __init__(self, own: Path, io_dir: Path) -> None:
        self._own = own
        self._io_dir = io_dir
        self._held: tuple[tuple[str, str], int] | None = None

    def apply(self, change: FileMeta, content: Buffer) -> None:
        """Carry out one step; blocks on the disk.

        Raises:
            RemoteProtocolError: the step is not one that a source may ask for.
            OSError: the file system refused it.

        """
        if change.root == "own":
            root = self._own
        elif change.path in IO_NAMES and change.op in ("write", "truncate", "meta"):
            root = self._io_dir
        else:
            raise RemoteProtocolError("the peer names a file that cannot travel")
        if change.op == "write":
            _write_all(self._hold(root, change), content, change.offset)
            return
        self.release()
        with parent_of(root, change.path) as (parent, name):
            match change.op:
                case "mkdir":
                    os.mkdir(name, 0o700, dir_fd=parent)
                case "symlink":
                    os.symlink(change.target, name, dir_fd=parent)
                case "delete":
                    _delete(name, parent)
                case "truncate":
                    fd = _open_to_write(name, parent)
                    try:
                        os.ftruncate(fd, change.size)
                    finally:
                        os.close(fd)
                case "meta":
                    _set_meta(change, name, parent)

    def release(self) -> None:
        """Close the file that was written last."""
        if self._held is not None:
            (_, fd), self._held = self._held, None
            os.close(fd)

    def _hold(self, root: Path, change: FileMeta) -> int:
        key = change.root, change.path
        if self._held is None or self._held[0] != key:
            self.release()
            with parent_of(root, change.path) as (parent, name):
                self._held = key, _open_to_write(name, parent)
        return self._held[1]


def _delete(name: str, parent: int) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def _open_to_write(name: str, parent: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=parent)


def _write_all(fd: int, content: Buffer, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _set_meta(change: FileMeta, name: str, parent: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.utime(fd, ns=(change.mtime_ns, change.mtime_ns))
        os.fchmod(fd, change.mode & 0o777)
    finally:
        os.close(fd)
