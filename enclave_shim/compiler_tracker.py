"""The compiler tracker: the program itself marks the pages that it writes.

An image built with `optmig-cc --tracker=compiler` sets one byte per page before each write (see
`toolchain.marking`, which argues why nothing is lost), and its runtime marks what system calls
fill. Nothing of this needs the kernel's help: it works where the kernel has no tracker, or where
it may not see the page tables. It costs the program a little at all times, and nothing more while
it is moved.

**The order**: read the marks; clear those that were read as set; full barrier; read every thread's
slots and mark their pages again; only then may the caller read the pages. A mark that is set
between reading and clearing is of a page that is listed already, and is read after its mark was
cleared: so clearing touches only bytes that were read as set. The barrier is `membarrier(2)`: for
the caller (the clearing of a mark must be visible before a slot is read, which x86 alone does not
promise) and for every thread of the program (the store to a slot must be visible before it, of
whoever has read an old mark). The second is the kernel's work, and a kernel may lie; so the tracker
also waits for far longer than a processor holds a store back.

**Always counted as written**, because nobody marks them: the runtime's own state, the alternate
stacks, every thread's stack and slots, and what a system call that is under way may fill. Only the
resident of these pages are sent.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim.arena import Arena, Runs, merge_runs, runs_of_pages
from optmigd.enclave_shim.tracker import Range, Tracked, take_marks, tracked_ranges
from optmigd.protocol.errors import TrackerUnavailable

_STORES_ARE_VISIBLE_S = 50e-6
"""A store leaves its processor within a microsecond, or at once when the thread is interrupted."""
_ALTERNATE_STACKS_END = abi.RT_STATE_BYTES + abi.RT_MAX_THREADS * abi.ALT_STACK_BYTES
_LARGEST_STACK_BYTES = 1 << 30


def marks_itself(process: Tracked) -> bool:
    """Whether the program of a booted process marks what it writes."""
    return bool(process.ctl["slots"])


class CompilerTracker:
    """Reads the marks of a program that was built for it.

    Args:
        process: a booted process of such an image.
        arena: its memory.

    Raises:
        TrackerUnavailable: the image has no marks, or the runtime's state is not plausible.
    """

    name = "compiler"
    gave_back = True  # a mark does not say whether the page was written or given back

    def __init__(self, process: Tracked, arena: Arena) -> None:
        if not marks_itself(process):
            raise TrackerUnavailable(
                "the image was not built for the compiler tracker (optmig-cc --tracker=compiler)"
            )
        self._ctl = process.ctl
        self._arena = arena
        self._data = [one for one in tracked_ranges(arena) if one.first_page]
        self._slots = self._ctl["slots"]
        self._slots_offset = self._ctl["slots_offset"]
        if not 0 < self._slots <= abi.RT_MAX_SLOTS:
            raise TrackerUnavailable("the runtime's count of slots is not plausible")

    def arm(self) -> None:
        """Forget what was marked so far; see `Tracker`."""
        self.collect()

    def collect(self, *, parked: bool = False) -> Runs:
        """Return the pages written since the last call; see `Tracker`. It is always as quick."""
        parts = [take_marks(self._ctl.marks)]
        parts += [self._take_low(data) for data in self._data]
        linux.full_barrier()
        if not parked:
            time.sleep(_STORES_ARE_VISIBLE_S)
        parts.append(self._mark_again())
        return merge_runs(*parts)

    def disarm(self) -> None:
        """There is nothing to undo: the program marks whether anybody reads or not."""

    def _take_low(self, data: Range) -> Runs:
        first = data.start // abi.PAGE_BYTES
        runs = take_marks(self._ctl.low_marks[first : data.end // abi.PAGE_BYTES])
        runs["first"] += data.first_page
        return runs

    def _mark_again(self) -> Runs:
        """Mark what is in slots; return what always counts as written."""
        always = [(0, _ALTERNATE_STACKS_END // abi.PAGE_BYTES)]
        threads = self._arena.rt_state["threads"]
        addresses = [self._arena.rt_state["boot_slots"]]
        for at, bytes_ in zip(
            threads["out_at"].ravel().tolist(), threads["out_bytes"].ravel().tolist(), strict=True
        ):
            if bytes_ and (filled := self._pages(at, at + bytes_)):
                always.append(filled)
        for thread in threads[threads["used"] != 0]:
            if (slots := self._slots_of(int(thread["fs_base"]))) is not None:
                where, span = slots
                always.append(span)
                addresses.append(where)
            if (stack := self._stack(int(thread["stack_top"]))) is not None:
                always.append(stack)
        pages = self._numbers(np.concatenate(addresses))
        self._ctl.marks[pages] = 1
        resident = [self._arena.resident_runs(first, end) for first, end in sorted(set(always))]
        return merge_runs(*resident, runs_of_pages(pages))

    def _numbers(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The arena's numbers of the pages of those addresses that are in it."""
        base = addresses.astype(np.int64)
        numbers = (base - abi.ARENA_BASE) // abi.PAGE_BYTES
        inside = (numbers >= 0) & (numbers < self._arena.page_count)
        found = [numbers[inside]]
        for data in self._data:
            within = (base >= data.start) & (base < data.end)
            found.append((base[within] - data.start) // abi.PAGE_BYTES + data.first_page)
        return np.unique(np.concatenate(found))

    def _offset(self, address: int) -> int | None:
        """Where in the arena an address of the program is; None if it is not."""
        if abi.ARENA_BASE <= address < abi.ARENA_BASE + self._arena.size_bytes:
            return address - abi.ARENA_BASE
        for data in self._data:
            if data.start <= address < data.end:
                return address - data.start + data.first_page * abi.PAGE_BYTES
        return None

    def _pages(self, start: int, end: int) -> tuple[int, int] | None:
        first = self._offset(start)
        if first is None:
            return None
        last = min(first + (end - start), self._arena.size_bytes)
        return first // abi.PAGE_BYTES, -(-last // abi.PAGE_BYTES)

    def _slots_of(self, fs_base: int) -> tuple[NDArray[np.uint64], tuple[int, int]] | None:
        """A thread's slots and the pages that they are on; None while it has none."""
        at = self._offset(fs_base + self._slots_offset)
        if at is None or at % 8 or at + 8 * self._slots > self._arena.size_bytes:
            return None
        end = at + 8 * self._slots
        slots = np.frombuffer(self._arena.view[at:end], dtype=np.uint64).copy()
        return slots, (at // abi.PAGE_BYTES, -(-end // abi.PAGE_BYTES))

    def _stack(self, top: int) -> tuple[int, int] | None:
        """The pages of a stack: from its top down to where its mapping begins."""
        state = self._arena.rt_state
        vmas = state["vmas"][: min(int(state["vma_count"]), abi.RT_MAX_VMAS)]
        if not top:
            return None
        index = int(np.searchsorted(vmas["end"], top - 1, side="right"))
        low = top - abi.PAGE_BYTES
        if index < len(vmas) and int(vmas[index]["start"]) < top:
            low = max(int(vmas[index]["start"]), top - _LARGEST_STACK_BYTES)
        return self._pages(low, top)
