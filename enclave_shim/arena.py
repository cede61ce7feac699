"""The enclave's memory: one file in memory that agent and application both map.

The arena is everything that travels. The application maps it at `ARENA_BASE`, the agent wherever
the kernel likes; pages are named by their number within the arena on both sides. A page that was
never touched is a hole in the file. Reading a hole through a mapping would allocate it, so
whoever reads many pages asks `split_resident` first.

The control block (`Control`) is the second shared memory: it belongs to one process on one host
and never travels (see `abi.py`).
"""

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim.places import CallPlace, Symbols, refused_calls
from optmigd.protocol.records import RUN

Runs = NDArray[Any]  # of dtype RUN
HASH_CHUNK_PAGES = 4096
MIN_CHECKED_RUN_PAGES = 16
NOWHERE = 1 << 62  # a page number behind every arena
ZERO_CHUNK_PAGES = 256
HUGE_PAGES = 512
CLOSE_BYTES = 16 << 20


def as_runs(firsts: NDArray[Any], counts: NDArray[Any]) -> Runs:
    """Put two arrays of page numbers and page counts together as runs."""
    runs = np.empty(len(firsts), dtype=RUN)
    runs["first"] = firsts
    runs["count"] = counts
    return runs


def runs_of_pages(pages: NDArray[Any]) -> Runs:
    """Sorted, distinct page numbers as runs."""
    if len(pages) == 0:
        return np.empty(0, dtype=RUN)
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(pages)]))
    return as_runs(pages[starts], ends - starts)


def pages_of_runs(runs: Runs) -> NDArray[np.int64]:
    """Every page number that the runs name, in their order."""
    counts = runs["count"].astype(np.int64)
    total = int(counts.sum())
    if total == 0:
        return np.empty(0, dtype=np.int64)
    offsets = np.cumsum(counts) - counts
    starts: NDArray[np.int64] = runs["first"].astype(np.int64) - offsets
    pages: NDArray[np.int64] = np.arange(total, dtype=np.int64) + np.repeat(starts, counts)
    return pages


def merge_runs(*parts: Runs) -> Runs:
    """The union of several lists of runs: sorted, not overlapping, adjacent runs joined."""
    runs = np.concatenate(parts) if parts else np.empty(0, dtype=RUN)
    if len(runs) < 2:
        return runs
    runs = runs[np.argsort(runs["first"], kind="stable")]
    first = runs["first"].astype(np.int64)
    reach = np.maximum.accumulate(first + runs["count"])
    starts = np.concatenate(([True], first[1:] > reach[:-1]))
    start_index = np.flatnonzero(starts)
    ends = np.concatenate((reach[start_index[1:] - 1], reach[-1:]))
    return as_runs(first[start_index], ends - first[start_index])


def count_pages(runs: Runs) -> int:
    """How many pages the runs name."""
    return int(runs["count"].sum(dtype=np.int64))


def coarse_runs(runs: Runs, limit: int) -> Runs:
    """At most `limit` runs that cover the given ones, by filling the smallest gaps."""
    if len(runs) <= limit:
        return runs
    first = runs["first"].astype(np.int64)
    end = first + runs["count"]
    gaps = first[1:] - end[:-1]
    keep = np.sort(np.argsort(-gaps, kind="stable")[: limit - 1])
    starts = np.concatenate((first[:1], first[1:][keep]))
    ends = np.concatenate((end[:-1][keep], end[-1:]))
    return as_runs(starts, ends - starts)


def split_huge(runs: Runs) -> tuple[Runs, Runs]:
    """Part sorted runs into whole, aligned stretches of `HUGE_PAGES`, and the rest."""
    first = runs["first"].astype(np.int64)
    end = first + runs["count"]
    from_page = -(-first // HUGE_PAGES) * HUGE_PAGES
    to_page = end // HUGE_PAGES * HUGE_PAGES
    whole = to_page > from_page
    huge = as_runs(from_page[whole], (to_page - from_page)[whole])
    heads = as_runs(first[whole], (from_page - first)[whole])
    tails = as_runs(to_page[whole], (end - to_page)[whole])
    rest = np.concatenate((runs[~whole], heads, tails))
    return huge, merge_runs(rest[rest["count"] > 0])


def _memory_file() -> int:
    """A new memory file: one that can take huge pages if this process may make it, or a memfd."""
    try:
        return linux.huge_memory_file("optmig-arena")
    except OSError:
        return os.memfd_create("optmig-arena", os.MFD_CLOEXEC)


class Arena:
    """One memory file and this process's mapping of it.

    Attributes:
        fd: the memory file.
        size_bytes: its size, whole pages.
        pages: the memory as a numpy array of shape (page count, 4096), of bytes.
        view: the same as a flat memoryview.
        rt_state: the runtime's travelling state at its start, of dtype `abi.RT_STATE`.

    """

    def __init__(self, size_bytes: int, fd: int = -1) -> None:
        """Make an arena, or map one that exists.

        Args:
            size_bytes: whole pages, more than the runtime's state takes.
            fd: an arena's file of that size, from now on this object's; -1 for a new one.

        Raises:
            ValueError: an impossible size.
            OSError: there is not enough memory.

        """
        if size_bytes <= abi.RT_STATE_BYTES or size_bytes % abi.PAGE_BYTES:
            raise ValueError(
                f"an arena is whole pages and more than {abi.RT_STATE_BYTES} bytes, "
                f"not {size_bytes} bytes"
            )
        self._keeping = threading.RLock()
        self._given_back = False
        self.size_bytes = size_bytes
        self.page_count = size_bytes // abi.PAGE_BYTES
        self.fd = _memory_file() if fd < 0 else fd
        try:
            if fd < 0:
                os.ftruncate(self.fd, size_bytes)
            self._map = mmap.mmap(self.fd, size_bytes, mmap.MAP_SHARED)
        except BaseException:
            os.close(self.fd)
            raise
        # Pages with plaintext belong into no core file of the agent.
        self._map.madvise(mmap.MADV_DONTDUMP)
        flat = np.frombuffer(self._map, dtype=np.uint8)
        self.pages: NDArray[np.uint8] = flat.reshape(self.page_count, abi.PAGE_BYTES)
        self.view = flat.data
        self.address = int(flat.ctypes.data)
        self.rt_state = flat[: abi.RT_STATE.itemsize].view(abi.RT_STATE)[0]

    @contextmanager
    def kept(self) -> Iterator[bool]:
        """Keep the memory while a thread looks at it; False: it is being given back, or was."""
        with self._keeping:
            yield not self._given_back

    def resident_bytes(self) -> int:
        """Bytes that are allocated now (a hole costs nothing)."""
        with self.kept() as there:
            return os.fstat(self.fd).st_blocks * 512 if there else 0

    def resident_runs(self, first: int = 0, end: int | None = None) -> Runs:
        """The allocated pages of [first, end), in page numbers; about 20 ns per page.

        The program may run, and give pages back meanwhile.
        """
        stop = self.page_count if end is None else end
        firsts: list[int] = []
        counts: list[int] = []
        at = first
        while at < stop:
            start = self.next_resident(at)
            if start >= stop:
                break
            hole = os.lseek(self.fd, start * abi.PAGE_BYTES, os.SEEK_HOLE) // abi.PAGE_BYTES
            at = min(hole, stop)
            if at == start:  # it has become a hole between the two calls
                continue
            firsts.append(start)
            counts.append(at - start)
        return as_runs(np.array(firsts, dtype=np.int64), np.array(counts, dtype=np.int64))

    def next_resident(self, page: int) -> int:
        """The first allocated page from that one on; `NOWHERE` if there is none."""
        try:
            return os.lseek(self.fd, page * abi.PAGE_BYTES, os.SEEK_DATA) // abi.PAGE_BYTES
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return NOWHERE
            raise

    def split_resident(self, runs: Runs, *, thorough: bool) -> tuple[Runs, Runs]:
        """Part runs into what is allocated and what is a hole (and so reads as zeros).

        Args:
            runs: sorted runs.
            thorough: look at every run; otherwise only at those long enough to be worth a system
                call. Reading a hole is correct too: it only costs a page of memory.

        Returns:
            The allocated runs and the holes.

        """
        looked = runs["count"] >= (1 if thorough else MIN_CHECKED_RUN_PAGES)
        present = self._present(runs[looked].tolist())
        holes = [
            _complement(found, first, first + count)
            for (first, count), found in zip(runs[looked].tolist(), present, strict=True)
            if count_pages(found) != count
        ]
        return merge_runs(runs[~looked], *present), merge_runs(*holes)

    def _present(self, runs: list[list[int]]) -> list[Runs]:
        """What of each sorted run is allocated.

        The kernel looks for the end of allocated memory page by page, up to the end of the arena
        and not of the run, so what it found serves every run within it: one walk for all of them.
        """
        found = []
        seen, data, hole = 0, 0, 0  # nothing in [seen, data), all of [data, hole)
        for first, count in runs:
            end = first + count
            parts = []
            at = first
            while at < end:
                if not seen <= at < hole:
                    seen = at
                    data, hole = self._next_extent(at)
                at = max(at, data)
                stop = min(hole, end)
                if stop > at:
                    parts.append((at, stop - at))
                at = stop
            table = np.array(parts, dtype=np.int64).reshape(-1, 2)
            found.append(as_runs(table[:, 0], table[:, 1]))
        return found

    def _next_extent(self, at: int) -> tuple[int, int]:
        """The next allocated pages from `at` on, as [first, end); `NOWHERE` if there are none."""
        while True:
            start = self.next_resident(at)
            if start == NOWHERE:
                return NOWHERE, NOWHERE
            stop = os.lseek(self.fd, start * abi.PAGE_BYTES, os.SEEK_HOLE) // abi.PAGE_BYTES
            if stop > start:  # it may have become a hole between the two calls
                return start, stop
            at = start

    def write_zeros(self, runs: Runs) -> None:
        """Make the named pages read as zeros: short runs are cleared, long ones become holes."""
        long = runs["count"] >= MIN_CHECKED_RUN_PAGES
        for first, count in runs[long].tolist():
            linux.punch_hole(self.fd, first * abi.PAGE_BYTES, count * abi.PAGE_BYTES)
        self.pages[pages_of_runs(runs[~long])] = 0

    def populate(self, runs: Runs) -> None:
        """Allocate the named pages and map them into this process; blocks.

        Whole stretches of `HUGE_PAGES` get huge pages, between `advise_huge` calls, if the kernel
        has them: zeroing and mapping then costs a third.

        Raises:
            OSError: there is not enough memory.

        """
        for first, count in runs.tolist():
            linux.madvise(
                self.address + first * abi.PAGE_BYTES,
                count * abi.PAGE_BYTES,
                linux.MADV_POPULATE_WRITE,
            )

    def advise_huge(self, wanted: bool) -> None:
        """Say whether memory that this process touches first may come in huge pages.

        Not but while populating what is resident at the source: a page touched by itself would take
        the memory of 512.
        """
        with suppress(OSError):  # a kernel without huge pages
            linux.madvise(
                self.address,
                self.size_bytes,
                linux.MADV_HUGEPAGE if wanted else linux.MADV_NOHUGEPAGE,
            )

    def content_hash(self, workers: int = 2) -> bytes:
        """SHA-256 over all content that is not zero, with the page numbers; blocks.

        Holes and pages of zeros count the same, so two hosts with equal content agree. The
        content must not change meanwhile (the program is parked).
        """
        chunks = [
            (at, min(at + HASH_CHUNK_PAGES, self.page_count))
            for at in range(0, self.page_count, HASH_CHUNK_PAGES)
        ]
        total = hashlib.sha256(b"optmigd arena v1")
        with ThreadPoolExecutor(workers) as pool:
            for digest in pool.map(self._hash_chunk, chunks):
                total.update(digest)
        return total.digest()

    def _hash_chunk(self, bounds: tuple[int, int]) -> bytes:
        pages = pages_of_runs(self.resident_runs(*bounds))
        if len(pages) == 0:
            return b""
        pages = pages[~zero_pages(self.pages, pages)]
        if len(pages) == 0:
            return b""
        digest = hashlib.sha256(runs_of_pages(pages).tobytes())
        for first, count in runs_of_pages(pages).tolist():
            digest.update(self.pages[first : first + count].data)
        return digest.digest()

    def close(self, pause: Callable[[], None] | None = None) -> None:
        """Give the memory back (holes again, in every process that maps it) and close the file.

        Args:
            pause: called now and then, about every millisecond of this work; it may block.

        """
        with self._keeping:
            if self._given_back:
                return
            self._given_back = True
        for at in range(0, self.size_bytes, CLOSE_BYTES):
            if pause is not None:
                pause()
            linux.punch_hole(self.fd, at, min(CLOSE_BYTES, self.size_bytes - at))
        os.close(self.fd)
        self.fd = -1


def zero_pages(pages: NDArray[np.uint8], numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the numbered pages, sorted and distinct, hold nothing but zeros.

    Three words of every page decide for nearly all that are not zero; only the rest is read.
    """
    words = pages.view(np.uint64)
    zero: NDArray[np.bool_] = words[numbers, 0] == 0
    for sample in (-1, words.shape[1] // 2):
        candidates = np.flatnonzero(zero)
        zero[candidates] = words[numbers[candidates], sample] == 0
    candidates = np.flatnonzero(zero)
    for at in range(0, len(candidates), ZERO_CHUNK_PAGES):
        some = candidates[at : at + ZERO_CHUNK_PAGES]
        named = numbers[some]
        first, end = int(named[0]), int(named[-1]) + 1
        # Without a copy where they lie side by side, as they mostly do.
        content = words[first:end] if end - first == len(named) else words[named]
        zero[some] = ~content.any(axis=1)
    return zero


def _complement(runs: Runs, first: int, end: int) -> Runs:
    """What of [first, end) the sorted runs leave out."""
    starts = np.concatenate(([first], runs["first"].astype(np.int64) + runs["count"]))
    ends = np.concatenate((runs["first"].astype(np.int64), [end]))
    some = ends > starts
    return as_runs(starts[some], (ends - starts)[some])


class Control:
    """The control block and the runtime's page marks, in one memfd that never travels."""

    def __init__(self, arena_bytes: int, fd: int = -1) -> None:
        """Make a control block, or map one that exists.

        Args:
            arena_bytes: size of the arena it belongs to.
            fd: an existing block's memfd, from now on this object's; -1 for a new one.

        Raises:
            OSError: there is not enough memory.

        """
        page_count = arena_bytes // abi.PAGE_BYTES
        marks_bytes = -(-page_count // abi.PAGE_BYTES) * abi.PAGE_BYTES
        size_bytes = abi.CTL_HEADER_BYTES + marks_bytes + abi.LOW_MARKS_BYTES
        self.fd = os.memfd_create("optmig-ctl", os.MFD_CLOEXEC) if fd < 0 else fd
        try:
            if fd < 0:
                os.ftruncate(self.fd, size_bytes)
            self._map = mmap.mmap(self.fd, size_bytes, mmap.MAP_SHARED)
        except BaseException:
            os.close(self.fd)
            raise
        self._flat = np.frombuffer(self._map, dtype=np.uint8)
        self._ctl = self._flat[: abi.CTL.itemsize].view(abi.CTL)
        self._address = int(self._flat.ctypes.data)
        self.marks: NDArray[np.uint8] = self._flat[abi.CTL_HEADER_BYTES :][:page_count]
        self.low_marks: NDArray[np.uint8] = self._flat[abi.CTL_HEADER_BYTES + marks_bytes :]
        file_marks = self._flat[abi.FILE_MARKS_OFFSET : abi.CTL_HEADER_BYTES]
        self.file_marks: NDArray[np.uint8] = file_marks[: abi.FILE_MARKS]
        self.file_whole_marks: NDArray[np.uint8] = file_marks[abi.FILE_MARKS :]
        if fd < 0:
            self["magic"] = abi.CTL_MAGIC
            self["abi_version"] = abi.ABI_VERSION
            self["arena_bytes"] = arena_bytes
            self["marks_bytes"] = marks_bytes

    def __getitem__(self, field: str) -> int:
        return int(self._ctl[field][0])

    def __setitem__(self, field: str, value: int) -> None:
        self._ctl[field][0] = value

    @property
    def error_text(self) -> str:
        """Why the runtime failed, in its own words."""
        return abi.text(self._ctl["error_text"][0])

    def words(self, field: str) -> list[int]:
        """An array field as integers."""
        return [int(word) for word in self._ctl[field][0]]

    def refused_calls(self, symbols: Symbols) -> list[CallPlace]:
        """The calls of the program that this process has answered with ENOSYS."""
        return refused_calls(self._ctl[0], symbols)

    def wake(self, field: str) -> None:
        """Wake every thread that waits on a futex field."""
        linux.futex_wake_all(self._address + abi.CTL_OFFSETS[field])

    def set_launch_block(
        self, argv: list[str], env: dict[str, str], shared: list[str], own_dir: str, name: str
    ) -> None:
        """Lay out what the program is started with, as `abi.h` describes the launch block.

        Raises:
            ValueError: it does not fit, or a text holds a NUL.

        """
        texts = [*argv, *(f"{k}={v}" for k, v in env.items()), *shared, own_dir, name]
        if any("\0" in text for text in texts):
            raise ValueError("arguments, environment and paths cannot hold a NUL character")
        block = b"".join(os.fsencode(text) + b"\0" for text in texts)
        offset = abi.PAGE_BYTES
        if offset + len(block) > abi.LAUNCH_BYTES:
            raise ValueError(f"arguments and environment take {len(block)} bytes: too long")
        self._flat[offset : offset + len(block)] = np.frombuffer(block, dtype=np.uint8)
        self["launch_offset"] = offset
        self["launch_argc"] = len(argv)
        self["launch_envc"] = len(env)
        self["launch_bytes"] = len(block)
        self["shared_count"] = len(shared)

    def close(self) -> None:
        """Close the memfd; views of the memory stay valid until they are dropped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
