"""Preflight: everything that would stop a move, found before anything is copied.

The source reads the program's file table where the runtime keeps it, in the arena, and lists what
cannot be carried across and which files the destination must have. The destination looks whether
it has them. Both lists are complete, so a person sees all blockers at once. The table is read again
when the program is parked: what it opened meanwhile counts too.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import Block, OfdKind
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.places import Symbols, call_place
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.session import FileNeed

READ_BYTES = 1 << 20
NO_SYMBOLS = Symbols()
SPARE_MEMORY_BYTES = 64 << 20
_BLOCKED_NOW: dict[int, tuple[str, str]] = {
    Block.UNLINKED: ("file-deleted", "it was removed while the program has it open"),
    Block.LOCKED: ("file-locked", "the program holds a lock on it"),
    Block.OUTSIDE: (
        "file-writable",
        "the program writes it; it is neither in its own directory nor shared",
    ),
    Block.CONTENT: ("pipe", "more stands unread in it than can be carried"),
}


NeedKind = Literal["external", "shared", "device"]
_NEEDED: dict[int, NeedKind] = {
    OfdKind.EXTERNAL: "external",
    OfdKind.SHARED: "shared",
    OfdKind.DEVICE: "device",
}


@dataclass(frozen=True)
class OpenFiles:
    """What the program's file table says: obstacles, and files by kind of need."""

    blockers: tuple[Blocker, ...]
    needed: tuple[tuple[NeedKind, str], ...]


def open_files(arena: Arena, symbols: Symbols = NO_SYMBOLS) -> OpenFiles:
    """Read the program's file table; no system call, fit for the switchover.

    While the program runs the answer may be out of date at once.

    Args:
        arena: the program's memory.
        symbols: names of its functions, for the places where it made what is in the way.

    """
    state = arena.rt_state
    blockers = []
    needed = []
    high = min(int(state["fd_high"]), abi.RT_MAX_FDS)
    fds = state["fds"][:high]
    for index in sorted({int(fd["ofd"]) for fd in fds if fd["state"] == abi.FD_OPEN}):
        if index >= abi.RT_MAX_OFDS:
            continue
        ofd = state["ofds"][index]
        path = abi.text(ofd["path"])
        kind = int(ofd["kind"])
        if kind == OfdKind.BLOCKER:
            code = path if path in ("socket", "pipe") else "device"
            made = call_place(ofd["made"], symbols)
            message = (
                f"the program holds a {path} open, made by {made.call}() at {made.place}; "
                "it cannot be carried to another host"
            )
            blockers.append(Blocker(code, f"descriptor of {path}", message))
        elif int(ofd["blocker"]):
            code, message = _BLOCKED_NOW.get(
                int(ofd["blocker"]), ("device", "it cannot be carried now")
            )
            if kind >= OfdKind.BLOCKER:
                made = call_place(ofd["made"], symbols)
                path = f"what {made.call}() made at {made.place}"
            blockers.append(Blocker(code, path, message))
        elif kind in _NEEDED:
            needed.append((_NEEDED[kind], path))
    if int(state["outside_writes"]):
        message = "the program wrote outside its own directory and its shared paths"
        blockers.append(Blocker("file-writable", abi.text(state["outside_path"]), message))
    return OpenFiles(tuple(blockers), tuple(sorted(set(needed))))


class DigestCache:
    """SHA-256 of files, computed again only if a file's identity, size or time changed."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, int, int, int, int], bytes] = {}

    def digest(self, path: str) -> tuple[int, bytes]:
        """Size and SHA-256 of a regular file; blocks while it reads.

        Raises:
            OSError: it cannot be read, or is not a regular file.

        """
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is not a regular file")
            key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if key not in self._digests:
                digest = hashlib.sha256()
                while content := os.read(fd, READ_BYTES):
                    digest.update(content)
                self._digests[key] = digest.digest()
            return status.st_size, self._digests[key]
        finally:
            os.close(fd)


def file_needs(files: OpenFiles, cache: DigestCache) -> tuple[list[FileNeed], list[Blocker]]:
    """What the destination must have; blocks while it reads files it has not read before."""
    needs = []
    blockers = []
    for kind, path in files.needed:
        if kind != "external":
            needs.append(FileNeed(path=path, kind=kind, size=0, sha256=b""))
            continue
        try:
            size, digest = cache.digest(path)
        except OSError as error:
            blockers.append(Blocker("file-absent", path, f"cannot be read: {error.strerror}"))
            continue
        needs.append(FileNeed(path=path, kind=kind, size=size, sha256=digest))
    return needs, blockers


def check_needs(needs: list[FileNeed], cache: DigestCache) -> list[Blocker]:
    """Which of the needed files this host lacks or has otherwise; blocks while it reads."""
    blockers = []
    for need in needs:
        if not os.path.isabs(need.path):
            blockers.append(Blocker("file-absent", need.path, "its path is not absolute"))
        elif need.kind == "device":
            if not os.path.exists(need.path):
                blockers.append(Blocker("file-absent", need.path, "no such device here"))
        elif need.kind == "shared":
            if not os.access(need.path, os.R_OK):
                message = "declared as shared storage, but absent or unreadable here"
                blockers.append(Blocker("shared-absent", need.path, message))
        else:
            blockers.extend(_check_external(need, cache))
    return blockers


def _check_external(need: FileNeed, cache: DigestCache) -> list[Blocker]:
    try:
        if os.path.getsize(need.path) != need.size:
            return [Blocker("file-different", need.path, "has another size here")]
        _, digest = cache.digest(need.path)
    except OSError as error:
        message = f"the program reads it, and here it cannot be read: {error.strerror}"
        return [Blocker("file-absent", need.path, message)]
    if digest != need.sha256:
        return [Blocker("file-different", need.path, "has another content here")]
    return []


def available_bytes() -> int:
    """Memory that a new enclave could take on this host, cgroup limit included."""
    available = 0
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for group in _cgroups():
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
        except (OSError, ValueError):
            continue  # no memory controller at this level
        if limit != "max":
            available = min(available, int(limit) - used)
    return available


def _cgroups() -> list[Path]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            leaf = Path("/sys/fs/cgroup") / line[3:].lstrip("/")
            return [leaf, *leaf.parents[: max(len(leaf.parts) - 4, 0)]]
    return []


def check_memory(resident_bytes: int) -> list[Blocker]:
    """Whether this host has room for that much enclave memory now."""
    wanted = resident_bytes + SPARE_MEMORY_BYTES
    available = available_bytes()
    if available >= wanted:
        return []
    message = f"needs {wanted >> 20} MiB, this host has {max(available, 0) >> 20} MiB available"
    return [Blocker("memory", "memory", message)]
