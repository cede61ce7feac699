"""The files that travel with an enclave: its own directory, its output so far, its input.

They are copied like memory. Every round sends what differs from the round before; the last delta
is taken while the program is parked, and is as short as what it wrote since. A file is compared in
chunks by hash, so a large file of which little changes costs little to send.

Which blocks of its files the program wrote is told by its runtime (`written_files`), and nothing
else of a file is read then. Without that, whether a file changed at all is told by its size, times
and inode. A change within the clock tick of the last look would keep them equal, so a file that was
touched just before it was read is not believed to be unchanged the next time (as git treats its
'racily clean' files). The same way tells of a file that somebody else has changed.
"""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim.beneath import DIRECTORY, MAX_DEPTH, parent_of
from optmigd.enclave_shim.written_files import Written, WrittenFiles
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.records import FileMeta

RACY_NS = 20_000_000  # two ticks of a 100 Hz kernel
MAX_FILES = 200_000
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KEEPS_INODES = {
    0xEF53,  # ext4
    0x58465342,  # XFS
    0x9123683E,  # btrfs
    0xF2F52010,  # F2FS
    0x01021994,  # tmpfs
    0x6969,  # NFS
    0x2FC12FC1,  # ZFS
    0x794C7630,  # overlay
}
"""File systems (`f_type`) where a file has one inode, for the program as for this process."""

_JOINED_BLOCKS = 8  # reading and sending them costs less than another step
_UNKNOWN = b""  # of a chunk: another than any digest


Root = Literal["own", "io"]
Step = tuple[FileMeta, bytes]
"""A change, and the content that goes with it."""


@dataclass
class _Known:
    """What the destination has of one path."""

    kind: str  # "file", "dir" or "link"
    stamp: tuple[int, int, int, int]
    trusted: bool
    mode: int
    mtime_ns: int
    size: int = 0
    lost: bool = False  # it could not be looked at: what was written is not known any more
    target: str = ""
    chunks: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    root: Root
    path: str
    kind: str
    status: os.stat_result
    target: str = ""


class TravellingFiles:
    """The source's view: what the destination has, and the steps to what is there now.

    Args:
        own: the enclave's own directory.
        io_files: name (one of `file_receiver.IO_NAMES`) to path.
        chunk_bytes: the most content of one step.
        written: what the program has written into its own directory; None: not known.

    """

    def __init__(
        self,
        own: Path,
        io_files: dict[str, Path],
        chunk_bytes: int,
        written: WrittenFiles | None = None,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._written = written if linux.file_system(own) in _KEEPS_INODES else None
        self._device = own.stat().st_dev
        self._own = own
        self._io_files = io_files
        self._known: dict[tuple[Root, str], _Known] = {}

    def blockers(self) -> list[Blocker]:
        """What stands in these places and cannot travel."""
        found: list[Blocker] = []
        for count, entry in enumerate(self._walk()):
            subject = f"{entry.root}:{entry.path}"
            why = ""
            if entry.kind == "other":
                why = "a socket, pipe or device cannot travel: remove it"
            elif entry.kind == "file" and entry.root == "own" and entry.status.st_nlink > 1:
                why = "a file with several hard links cannot travel: copy it instead"
            elif not _is_utf8(entry.path) or not _is_utf8(entry.target):
                why = "a file whose name is not UTF-8 cannot travel: rename it"
            if why:
                found.append(Blocker("special-file", subject, why))
            if count == MAX_FILES:
                why = f"more than {MAX_FILES} files cannot travel"
                found.append(Blocker("special-file", str(self._own), why))
                break
        return found

    @property
    def pending_blocks(self) -> int:
        """How many blocks of 4096 bytes the program has written into files since the last delta."""
        return self._written.pending_blocks() if self._written else 0

    def delta(self) -> Iterator[Step]:
        """Yield the steps from what was sent before to what is there now; blocks on the disk."""
        written = self._written.take() if self._written else None
        now_ns = time.time_ns()
        entries = {(entry.root, entry.path): entry for entry in self._walk()}
        for key in sorted(self._known, key=lambda key: key[1].count("/"), reverse=True):
            entry = entries.get(key)
            if entry is None or entry.kind != self._known[key].kind:
                del self._known[key]
                yield (FileMeta(*key, "delete"), b"")
        directories = []
        for key, entry in entries.items():
            known = self._known.get(key)
            stamp = _stamp(entry.status)
            trusted = now_ns - max(entry.status.st_ctime_ns, entry.status.st_mtime_ns) > RACY_NS
            mine = entry.status.st_dev == self._device
            blocks = _blocks(entry, known, written) if mine else None
            same = known is not None and known.stamp == stamp
            if known and same and not (known.trusted if blocks is None else blocks.any()):
                continue
            fresh = _Known(
                entry.kind,
                stamp,
                trusted,
                stat.S_IMODE(entry.status.st_mode) & 0o777,
                entry.status.st_mtime_ns,
                target=entry.target,
            )
            self._known[key] = fresh
            if entry.kind == "dir":
                if known is None:
                    yield (FileMeta(*key, "mkdir", mode=0o700), b"")
                directories.append((key, fresh))
            elif entry.kind == "link":
                if known is None or known.target != entry.target:
                    if known:
                        yield (FileMeta(*key, "delete"), b"")
                    yield (FileMeta(*key, "symlink", target=entry.target), b"")
            elif entry.kind == "file":
                try:
                    fd = self._open(entry)
                except OSError as error:
                    if error.errno not in _VANISHED:
                        raise
                    # The program has removed or replaced it since we looked: the next delta tells.
                    self._forget(key, known)
                    continue
                with open(fd, "rb", buffering=0):
                    if known and blocks is not None and _may_be_patched(fd, known, blocks):
                        yield from self._patches(key, fd, known, fresh, blocks)
                    else:
                        yield from self._file_delta(entry, fd, known, fresh)
                yield _meta(key, fresh)
        for key, fresh in reversed(directories):  # last: what happens inside changes the times
            yield _meta(key, fresh)

    def _forget(self, key: tuple[Root, str], known: _Known | None) -> None:
        if known is None:
            del self._known[key]
        else:
            known.trusted, known.lost = False, True
            self._known[key] = known

    def _file_delta(
        self, entry: _Entry, fd: int, known: _Known | None, fresh: _Known
    ) -> Iterator[Step]:
        had = known.chunks if known else []
        key = entry.root, entry.path
        size = self._chunk_bytes
        index = 0
        if entry.root == "io" and known and os.fstat(fd).st_size >= known.size:
            # Opened for appending only: all but the last, partial chunk stays as it was.
            index = max(len(had) - 1, 0)
            fresh.chunks.extend(had[:index])
        while True:
            content = os.pread(fd, size, index * size)
            if content:
                digest = hashlib.blake2b(content, digest_size=16).digest()
                fresh.chunks.append(digest)
                fresh.size = index * size + len(content)
                if index >= len(had) or had[index] != digest:
                    yield FileMeta(*key, "write", offset=index * size), content
            if len(content) < size:
                break
            index += 1
        if known is None or known.size > fresh.size or fresh.size == 0:
            yield FileMeta(*key, "truncate", size=fresh.size), b""

    def _patches(
        self,
        key: tuple[Root, str],
        fd: int,
        known: _Known,
        fresh: _Known,
        blocks: NDArray[np.bool_],
    ) -> Iterator[Step]:
        """The blocks that were written, and what the file has grown by since."""
        fresh.chunks, fresh.size = known.chunks, known.size
        ends = os.fstat(fd).st_size
        if ends > known.size:  # what was appended, and the rest of the block that it begins in
            grown = known.size // abi.FILE_BLOCK_BYTES
            blocks = np.resize(blocks, -(-ends // abi.FILE_BLOCK_BYTES))
            blocks[grown:] = True
        for first, count in _runs(blocks):
            at, end = first * abi.FILE_BLOCK_BYTES, (first + count) * abi.FILE_BLOCK_BYTES
            while at < end and (content := os.pread(fd, min(end - at, self._chunk_bytes), at)):
                yield FileMeta(*key, "write", offset=at), content
                self._forget_digests(fresh, at, len(content))
                at += len(content)
                fresh.size = max(fresh.size, at)

    def _forget_digests(self, fresh: _Known, offset: int, length: int) -> None:
        first, last = offset // self._chunk_bytes, (offset + length - 1) // self._chunk_bytes
        fresh.chunks.extend([_UNKNOWN] * (last + 1 - len(fresh.chunks)))
        fresh.chunks[first : last + 1] = [_UNKNOWN] * (last + 1 - first)

    def _open(self, entry: _Entry) -> int:
        if entry.root == "io":
            return os.open(self._io_files[entry.path], os.O_RDONLY | os.O_CLOEXEC)
        with parent_of(self._own, entry.path) as (parent, name):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=parent)

    def _walk(self) -> Iterator[_Entry]:
        for name, path in self._io_files.items():
            status = os.stat(path)
            yield _Entry("io", name, "file" if stat.S_ISREG(status.st_mode) else "other", status)
        root = os.open(self._own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from _walk_directory(root, "", 0)
        finally:
            os.close(root)


def _walk_directory(directory: int, prefix: str, depth: int) -> Iterator[_Entry]:
    """Everything below a directory, parents before children."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ELOOP, "directories nested too deeply", prefix)
    with os.scandir(directory) as listing:
        names = sorted(item.name for item in listing)
    for name in names:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            path = prefix + name
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=directory)
                yield _Entry("own", path, "link", status, target)
            elif stat.S_ISREG(status.st_mode):
                yield _Entry("own", path, "file", status)
            elif stat.S_ISDIR(status.st_mode):
                yield _Entry("own", path, "dir", status)
                child = os.open(name, DIRECTORY, dir_fd=directory)
                try:
                    yield from _walk_directory(child, path + "/", depth + 1)
                finally:
                    os.close(child)
            else:
                yield _Entry("own", path, "other", status)
        except FileNotFoundError:
            continue  # removed while we looked: the next delta will not see it either


def _blocks(
    entry: _Entry, known: _Known | None, written: Written | None
) -> NDArray[np.bool_] | None:
    """Which blocks of what the destination has of a file were written; None: that is not known."""
    if not known or known.lost or not written or (entry.root, entry.kind) != ("own", "file"):
        return None
    inode = entry.status.st_ino
    if inode != known.stamp[0] or written.whole(inode):
        return None
    return written.blocks(inode, -(-known.size // abi.FILE_BLOCK_BYTES))


def _may_be_patched(fd: int, known: _Known, blocks: NDArray[np.bool_]) -> bool:
    """Whether what is open is that file, and all that was changed in it is known."""
    status = os.fstat(fd)
    if status.st_ino != known.stamp[0] or status.st_size < known.size:
        return False
    return bool(blocks.any()) or status.st_size > known.size or status.st_mtime_ns == known.mtime_ns


def _runs(blocks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First index and length of the runs of true ones; a few false ones between two join them."""
    edges = np.flatnonzero(np.diff(blocks, prepend=False, append=False))
    firsts, ends = edges[::2], edges[1::2]
    if not len(firsts):
        return []
    apart = firsts[1:] - ends[:-1] > _JOINED_BLOCKS
    begins, closes = firsts[np.append(True, apart)], ends[np.append(apart, True)]
    return list(zip(begins.tolist(), (closes - begins).tolist(), strict=True))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _meta(key: tuple[Root, str], fresh: _Known) -> Step:
    return FileMeta(*key, "meta", mode=fresh.mode, mtime_ns=fresh.mtime_ns), b""


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
