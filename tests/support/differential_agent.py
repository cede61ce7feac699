"""A shim agent whose `sample_dirty` runs both trackers on the same execution and compares them.

It writes `differential.json` into the instance's directory: the pages that the kernel saw
written, of which the marks missed some (a failure) and named others besides (a figure).

The kernel's list is taken first in each round, the marks after it. So a write in the kernel's
list of a round has its mark in the marks' list of that round or of the one before. The kernel
also names pages that were only read (a page table made meanwhile counts as written throughout);
such a page is missed only if its content differs from what was last read of it, and if the next
round's marks do not name it.
"""

import json
import sys

import numpy as np
import trio
from numpy.typing import NDArray

from optmigd.enclave_shim import agent
from optmigd.enclave_shim.__main__ import main
from optmigd.enclave_shim.arena import Arena, pages_of_runs
from optmigd.enclave_shim.compiler_tracker import CompilerTracker
from optmigd.enclave_shim.migration.common import Enclave
from optmigd.enclave_shim.migration.forecast import DirtySample
from optmigd.enclave_shim.tracker import KernelTracker

ROUND_S = 0.05


class Comparison:
    """Both trackers of one enclave, and what they said so far."""

    def __init__(self, enclave: Enclave) -> None:
        self._arena: Arena = enclave.arena
        self._kernel = KernelTracker(enclave.process, enclave.arena)
        self._kernel._marks = np.zeros(8, dtype=np.uint8)  # the kernel's own view alone
        self._compiler = CompilerTracker(enclave.process, enclave.arena)
        self._kernel.arm()
        self._compiler.arm()
        self._copy = {
            page: bytes(self._arena.pages[page])
            for page in pages_of_runs(self._arena.resident_runs()).tolist()
        }
        self._before: set[int] = set()
        self._doubtful: set[int] = set()
        self.kernel_pages = self.compiler_pages = self.rounds = self.beyond = 0
        self.missed: list[int] = []

    def round(self) -> None:
        """Collect from both, and compare; blocks."""
        seen = _pages(pages_of_runs(self._kernel.collect()))
        marked = _pages(pages_of_runs(self._compiler.collect()))
        self.missed += [page for page in self._doubtful - marked if self._differs(page)]
        self._doubtful = {page for page in seen - marked - self._before if self._differs(page)}
        for page in marked:
            self._copy[page] = bytes(self._arena.pages[page])
        self.rounds += 1
        self.kernel_pages += len(seen)
        self.compiler_pages += len(marked)
        self.beyond += len(marked - seen)
        self._before = marked

    def _differs(self, page: int) -> bool:
        return bytes(self._arena.pages[page]) != self._copy.get(page, bytes(4096))

    def close(self) -> None:
        """Stop both."""
        self._kernel.disarm()
        self._compiler.disarm()


def _pages(numbers: NDArray[np.int64]) -> set[int]:
    return set(numbers.tolist())


async def compare(enclave: Enclave, interval_s: float = 1.0) -> DirtySample:
    """What stands for `sample_dirty`."""
    comparison = await trio.to_thread.run_sync(Comparison, enclave)
    try:
        with trio.move_on_after(interval_s):
            while True:
                await trio.sleep(ROUND_S)
                await trio.to_thread.run_sync(comparison.round)
        await trio.to_thread.run_sync(comparison.round)  # of what was doubtful in the last one
    finally:
        comparison.close()
    names = ("rounds", "kernel_pages", "compiler_pages", "beyond", "missed")
    found = {name: getattr(comparison, name) for name in names}
    await trio.Path("differential.json").write_text(json.dumps(found))
    return DirtySample(comparison.kernel_pages, interval_s)


if __name__ == "__main__":
    setattr(agent, "sample_dirty", compare)  # noqa: B010
    sys.exit(main(sys.argv[1:]))
