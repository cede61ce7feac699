"""How far a program has come in its arena.

An arena is as large as the program may ever become, and most are never filled. A part of it in
which no page was ever allocated was never written either: the kernel tracker need not protect it,
which would give it page tables, nor walk those tables when the program stands still.
"""

import numpy as np

from optmigd.enclave_shim.arena import Arena, Runs, as_runs, runs_of_pages

PART_PAGES = 1 << 15
"""128 MiB: to hand one to a thread costs about what it costs to walk its page tables."""


class Reach:
    """The parts of an arena that hold pages, or did when they were looked at.

    Args:
        arena: whose.

    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._reached = np.zeros(-(-arena.page_count // PART_PAGES), dtype=bool)

    @property
    def runs(self) -> Runs:
        """The reached parts, as sorted runs of pages."""
        return self._pages_of(np.flatnonzero(self._reached))

    def look(self) -> Runs:
        """Look for pages beyond, and return the parts that they have added to `runs`.

        The program may run: what it allocates meanwhile may be found now, and is the next time.
        """
        added = []
        following = 0  # the part in which the next page stands
        for part in np.flatnonzero(~self._reached).tolist():
            if part < following:
                continue
            following = self._arena.next_resident(part * PART_PAGES) // PART_PAGES
            if following == part:
                added.append(part)
        self._reached[added] = True
        return self._pages_of(np.array(added, dtype=np.int64))

    def _pages_of(self, parts: np.ndarray) -> Runs:
        runs = runs_of_pages(parts)
        ends = np.minimum((runs["first"] + runs["count"]) * PART_PAGES, self._arena.page_count)
        firsts = runs["first"] * PART_PAGES
        return as_runs(firsts, ends - firsts)
