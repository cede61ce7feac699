"""The kernel tracker: which pages did the program write since the last look?

The application's process makes a userfaultfd and opens its own pagemap; the runtime passes both to
the agent. The agent registers the program's mappings of the arena for asynchronous write
protection. The first write to a protected page lifts the protection in the kernel, without a
message; the `PAGEMAP_SCAN` ioctl lists the pages without protection and protects them again in one
step. It costs nothing while no migration runs.

**The one rule: first re-arm, then read.** `collect` returns only after the pages it names are
protected again (and the TLBs flushed), so a page that is written while it is being read shows up
in the next collection and is sent again. The last collection happens with every thread parked.

What the kernel does not see, the runtime marks, one byte per page, after the change is done:
punched holes above all. Marks follow the same rule: the mark is cleared first, the page read
later. The clear must be visible before the page is read, which x86 alone would not promise (a load
may pass an earlier store); the scan's system call stands between them and is a full barrier.

**Only what the program has reached is scanned** (see `reach`): an arena may be many times as large
as what is in it, and to protect memory that was never touched would make page tables for it, and
walk them at every scan. A part in which a page has appeared since is protected, *then* the pages in
it are listed: all of them are new.

Two ranges are watched. The arena's own mapping, and the image's `.data/.bss`: a second mapping of
arena pages, at the addresses the program was linked for. A write through one mapping leaves the
other's protection alone, so both are scanned, and pages of the second are named by their number in
the arena.

**The program runs meanwhile.** Protecting a page table's entries interrupts every processor that
runs the program, so memory that is full of written pages is protected a slice at a time, with as
long a pause after each. Lifting the registration is worse: the kernel walks every entry (75 ms a
GiB) with the lock held that page faults and mappings wait for, so that is done in slices too. At
the switchover nothing runs, and only time counts.

False positives are harmless and happen: a page table that is made while the tracker is armed
counts all its entries as written once. Missing pages would be fatal, so `PM_SCAN_CHECK_WPASYNC`
makes the kernel refuse a scan over memory that lost its registration.
"""

import errno
import fcntl
import os
import platform
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import Arena, Control, Runs, as_runs, merge_runs, runs_of_pages
from optmigd.enclave_shim.reach import Reach
from optmigd.protocol.errors import TrackerUnavailable

UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFDIO_REGISTER_MODE_WP = 2
_UFFDIO_RANGE = struct.Struct("<QQ")
_UFFDIO_REGISTER = struct.Struct("<QQQQ")

PAGEMAP_SCAN = 0xC0606610
PM_SCAN_WP_MATCHING = 1
PM_SCAN_CHECK_WPASYNC = 2
PAGE_IS_WRITTEN = 2
_PM_SCAN_ARG = struct.Struct("<12Q")
_WALK_END = 4
_REGION = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
_REGIONS_PER_SCAN = 1 << 15
SLICE_PAGES = 1 << 14
"""Written pages that are protected, and registered pages that are let go, in one go."""
SCANNERS = min(8, len(os.sched_getaffinity(0)))
TABLE_BYTES = 512 * abi.PAGE_BYTES
BLOCK_WORDS = 64
BLOCK_MARKS = 8 * BLOCK_WORDS
"""Marks that are looked at together: eight cache lines."""
STRIP_BYTES = 256 << 20
"""Less than this is not worth a second thread: a clean GiB takes 0.3 ms."""


@dataclass(frozen=True)
class Range:
    """A mapping of arena pages in the program: addresses, and the first page's number."""

    start: int
    end: int
    first_page: int

    def part(self, first: int, end: int) -> "Range":
        """What of it maps the arena's pages from `first` up to `end`; may be empty."""
        pages = (self.end - self.start) // abi.PAGE_BYTES
        low = min(max(first - self.first_page, 0), pages)
        high = min(max(end - self.first_page, low), pages)
        return Range(
            self.start + low * abi.PAGE_BYTES,
            self.start + high * abi.PAGE_BYTES,
            self.first_page + low,
        )


class Tracked(Protocol):
    """What a tracker needs of a process (see `optmigd.enclave_shim.process.Process`)."""

    ctl: Control
    uffd: int
    pagemap: int
    tracker_errno: int


class Tracker(Protocol):
    """Finds written pages; every tracker follows the rule 'first re-arm, then read'.

    Attributes:
        name: for reports.
        gave_back: whether the program may have given back some of the pages of the last collection.

    """

    name: str
    gave_back: bool

    def arm(self) -> None:
        """Begin: every write from now on will be collected."""

    def collect(self, *, parked: bool = False) -> Runs:
        """Return the pages written since the last call (or `arm`), and re-arm them; blocks.

        Args:
            parked: the program stands still: be quick, whatever it costs.

        """

    def disarm(self) -> None:
        """Stop tracking, without a trace in the program; may be called more than once."""


def tracked_ranges(arena: Arena) -> list[Range]:
    """The program's two mappings of arena pages, from the runtime's state.

    Raises:
        TrackerUnavailable: the runtime's state is not plausible.

    """
    state = arena.rt_state
    ranges = [Range(abi.ARENA_BASE, abi.ARENA_BASE + arena.size_bytes, 0)]
    start, end, copy = (int(state[name]) for name in ("data_start", "data_end", "data_copy"))
    if end > start:
        inside = copy >= abi.ARENA_BASE and copy - abi.ARENA_BASE + end - start <= arena.size_bytes
        if (start | end | copy) % abi.PAGE_BYTES or not inside:
            raise TrackerUnavailable("the runtime's data range is not within the arena")
        ranges.append(Range(start, end, (copy - abi.ARENA_BASE) // abi.PAGE_BYTES))
    return ranges


def probe(process: Tracked) -> str:
    """What is missing for the kernel tracker, in a sentence; empty if nothing is."""
    release = platform.release()
    if process.uffd < 0:
        return (
            "userfaultfd with asynchronous write protection was refused "
            f"({os.strerror(process.tracker_errno)}); Linux 6.7 or later with "
            f"CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP is needed, this is {release}"
        )
    # An empty range: the kernel knows the call, or it does not.
    arg = bytearray(_PM_SCAN_ARG.pack(_PM_SCAN_ARG.size, *([0] * 11)))
    try:
        fcntl.ioctl(process.pagemap, PAGEMAP_SCAN, arg)
    except OSError as error:
        return (
            f"the PAGEMAP_SCAN ioctl was refused ({error.strerror}); Linux 6.7 or later is "
            f"needed, this is {release}"
        )
    return ""


def take_marks(marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Runs:
    """Return the marked pages and clear their marks, while the program goes on marking.

    A page that is marked again after its mark was found is read after that was cleared, and so with
    all that the mark stands for.
    """
    marked = _marked(marks)
    marks[marked] = 0
    return runs_of_pages(marked)


def find_marks(marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Runs:
    """Return the marked pages."""
    return runs_of_pages(_marked(marks))


def _marked(marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> NDArray[np.int64]:
    """The indexes of what is set.

    Nearly all are clear, so whole blocks are looked at first, and in a copy of those that are not,
    words. (A copy, because numpy counts before it collects and refuses an array that changes in
    between.)
    """
    whole = len(marks) // BLOCK_MARKS * BLOCK_MARKS if _aligned(marks) else 0
    blocks = marks[:whole].view(np.uint64).reshape(-1, BLOCK_WORDS)
    some = np.flatnonzero(np.bitwise_or.reduce(blocks, axis=1))
    words = blocks[some].ravel()
    found = np.flatnonzero(words)
    row, column = np.nonzero(words[found].view(np.uint8).reshape(-1, 8))
    block, word = np.divmod(found[row], BLOCK_WORDS)
    rest = np.flatnonzero(marks[whole:].copy()) + whole
    return np.concatenate((some[block] * BLOCK_MARKS + word * 8 + column, rest))


def _aligned(marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> bool:
    return int(marks.ctypes.data) % 8 == 0


def no_pause() -> None:
    """Go on at once."""


class KernelTracker:
    """Write protection by userfaultfd, read out by PAGEMAP_SCAN, and the runtime's marks.

    It works on duplicates of the process's descriptors, so it may outlive the process: then every
    call raises `OSError`, and `disarm` has nothing to do.

    Args:
        process, arena: what is tracked.
        pause: called between two slices of written pages while the program runs; it may block.

    """

    name = "kernel"
    gave_back = True

    def __init__(
        self, process: Tracked, arena: Arena, pause: Callable[[], None] = no_pause
    ) -> None:
        why = probe(process)
        if why:
            raise TrackerUnavailable(why)
        self._marks = process.ctl.marks
        self._arena = arena
        self._pause = pause
        self._ranges = tracked_ranges(arena)
        self._reach = Reach(arena)
        self._scanners = ThreadPoolExecutor(SCANNERS, thread_name_prefix="scanner")
        self._uffd = os.dup(process.uffd)
        self._pagemap = os.dup(process.pagemap)

    def arm(self) -> None:
        """Begin tracking; blocks for about 25 ms per resident GiB, half of it in pauses."""
        for watched in self._ranges:
            arg = bytearray(
                _UFFDIO_REGISTER.pack(
                    watched.start, watched.end - watched.start, UFFDIO_REGISTER_MODE_WP, 0
                )
            )
            fcntl.ioctl(self._uffd, UFFDIO_REGISTER, arg)
        take_marks(self._marks)
        self._reach.look()
        self._protect(self._reach.runs, parked=False)

    def collect(self, *, parked: bool = False) -> Runs:
        """Return the pages written since the last call, and re-arm them; see `Tracker`."""
        parts = [take_marks(self._marks)]
        self.gave_back = len(parts[0]) > 0
        known = self._reach.runs
        added = self._reach.look()
        for found in self._scan_all(known, parked):
            parts.extend(found)
        self._protect(added, parked)
        parts += [
            self._arena.resident_runs(first, first + count) for first, count in added.tolist()
        ]
        return merge_runs(*parts)

    def _protect(self, pages: Runs, parked: bool) -> None:
        """Protect those pages, whether they were written or not."""
        for _ in self._scan_all(pages, parked):
            pass  # where nothing was protected yet even pages that are none count as written

    def _scan_all(self, pages: Runs, parked: bool) -> Iterator[list[Runs]]:
        """Scan those pages of all ranges, in as many threads as are worth it."""
        strips = [
            strip
            for watched in self._ranges
            for first, count in pages.tolist()
            for strip in _strips(watched.part(first, first + count))
        ]
        return self._scanners.map(lambda strip: self._scan(strip, parked), strips)

    def _scan(self, watched: Range, parked: bool) -> list[Runs]:
        """Scan one strip; in a thread of its own."""
        found = []
        regions = np.empty(_REGIONS_PER_SCAN, dtype=_REGION)
        at = watched.start
        while at < watched.end:
            begun_s = time.monotonic()
            arg = bytearray(
                _PM_SCAN_ARG.pack(
                    _PM_SCAN_ARG.size,
                    PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                    at,
                    watched.end,
                    0,
                    int(regions.ctypes.data),
                    len(regions),
                    0 if parked else SLICE_PAGES,
                    0,
                    # With exactly these two masks the kernel counts an entry that is gone (paged
                    # out, or dropped by the program) as written; with any others it would not.
                    PAGE_IS_WRITTEN,
                    0,
                    PAGE_IS_WRITTEN,
                )
            )
            count = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, arg)
            written = regions[:count]
            firsts = (written["start"] - watched.start) // abi.PAGE_BYTES + watched.first_page
            counts = (written["end"] - written["start"]) // abi.PAGE_BYTES
            found.append(as_runs(firsts, counts))
            at = _PM_SCAN_ARG.unpack(arg)[_WALK_END]
            if not parked and counts.sum() == SLICE_PAGES:
                time.sleep(time.monotonic() - begun_s)
                self._pause()
        return found

    def disarm(self) -> None:
        """Stop tracking: lift every protection and unregister; see `Tracker`."""
        if self._uffd < 0:
            return
        uffd, pagemap = self._uffd, self._pagemap
        self._uffd = self._pagemap = -1
        self._scanners.shutdown()
        try:
            for watched in self._ranges:
                _unregister(uffd, watched)
        finally:
            os.close(uffd)
            os.close(pagemap)


def _strips(watched: Range) -> Iterator[Range]:
    """Cut a range into as many parts as there are threads to scan them, on whole page tables."""
    size = watched.end - watched.start
    parts = min(SCANNERS, max(1, size // STRIP_BYTES))
    step = max(1, -(-size // parts // TABLE_BYTES)) * TABLE_BYTES
    for start in range(watched.start, watched.end, step):
        first_page = watched.first_page + (start - watched.start) // abi.PAGE_BYTES
        yield Range(start, min(start + step, watched.end), first_page)


def _unregister(uffd: int, watched: Range) -> None:
    """Let go of a range, a slice at a time; nothing if the process has ended."""
    step = SLICE_PAGES * abi.PAGE_BYTES
    at = watched.start
    while at < watched.end:
        begun_s = time.monotonic()
        length = min(step, watched.end - at)
        arg = bytearray(_UFFDIO_RANGE.pack(at, length))
        try:
            fcntl.ioctl(uffd, UFFDIO_UNREGISTER, arg)
        except OSError as error:
            if error.errno == errno.ENOMEM and at + length < watched.end:
                step = watched.end - at  # a mapping too many to cut one: all the rest at once
                continue
            # Of a process that has ended the kernel says so, or that it has no memory: both hold.
            if error.errno in (errno.ESRCH, errno.ENOMEM):
                return
            raise
        at += length
        time.sleep(time.monotonic() - begun_s)
