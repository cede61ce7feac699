"""Hot pages: what the program writes all the time is sent late, for it would be sent in vain.

A page that was sent in a round and was written meanwhile must be sent again. One to which that
happens round after round costs bandwidth, and the program's processors, and gains nothing before
the program stands still. So it is left out of the rounds after the second time, and sent when a
round has passed in which it was not written, or with the last round, which leaves nothing out.

What is hot depends on how long rounds are: where all that is dirty is hot, the next round is short,
fewer pages are written in it, and the others are sent. A program that is held back is to make
rounds shrink, so from then on nothing is left out (`stop`).
"""

import numpy as np

from optmigd.enclave_shim.arena import Runs, pages_of_runs, runs_of_pages

HOT_ROUNDS = 3
"""Written in so many rounds running, a page is hot: all but the first have sent it in vain."""


class HotPages:
    """Which pages were written in each of the last rounds.

    Args:
        page_count: of the arena; one byte is kept for each.

    """

    def __init__(self, page_count: int) -> None:
        self._rounds = np.zeros(page_count, dtype=np.uint8)
        self._any_hot = False
        self._stopped = False

    def stop(self) -> None:
        """Let no page be hot from now on."""
        self._stopped = True

    def round_over(self, written: Runs) -> None:
        """Note the pages that were written while a round was under way."""
        pages = pages_of_runs(written)
        rounds = np.minimum(self._rounds[pages] + 1, HOT_ROUNDS)
        self._rounds[:] = 0
        self._rounds[pages] = rounds
        self._any_hot = bool((rounds == HOT_ROUNDS).any())

    def part(self, runs: Runs) -> tuple[Runs, Runs]:
        """Part sorted runs into what the next round sends, and what is hot.

        Where nothing is hot, as in the first and longest rounds, no page is looked at.
        """
        if self._stopped or not self._any_hot:
            return runs, runs[:0]
        pages = pages_of_runs(runs)
        hot = self._rounds[pages] == HOT_ROUNDS
        return runs_of_pages(pages[~hot]), runs_of_pages(pages[hot])
