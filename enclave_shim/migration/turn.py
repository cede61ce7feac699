"""Waiting for the hosts' switchover turn: rounds go on, the program runs on, nothing is parked.

Several enclaves may converge at once, and switchovers at the same time lengthen each other's
downtime. The daemon serialises them where it says so (`ask_for_turn`). The source asks once, when
it has converged. Until the answer it sends a round now and then, which keeps what is dirty small;
each costs the program its write faults again, so there is a pause between them.
"""

import trio

from optmigd.enclave_shim.migration.common import Emit

ANSWER_S = 0.02
"""How long to wait for the answer before the next round."""
FRESH_S = 0.002
"""How long what was just collected is still fresh enough to switch over with."""
PAUSE_S = 0.25
LIMIT_S = 20.0
"""After so long it switches over without: a daemon that does not answer must not hold it up."""


class SwitchoverTurn:
    """One migration's wait for its turn.

    Args:
        emit: tells the daemon.
        wanted: whether the daemon gives turns at all.

    """

    def __init__(self, emit: Emit, *, wanted: bool) -> None:
        self._emit = emit
        self._wanted = wanted
        self._asked_s: float | None = None
        self._given = trio.Event()

    def give(self) -> None:
        """The daemon says that it is this migration's turn."""
        self._given.set()

    async def came(self) -> bool:
        """Ask, if that was not done, and wait for a moment.

        Returns:
            Whether to switch over with what was collected just now. If not, another round must come
            before the next call: the program has run on meanwhile.

        """
        if not self._wanted or self._given.is_set():
            return True
        if self._asked_s is None:
            self._asked_s = trio.current_time()
            await self._emit("converged", {})
            with trio.move_on_after(ANSWER_S):
                await self._given.wait()
            return self._given.is_set() and trio.current_time() - self._asked_s <= FRESH_S
        if trio.current_time() - self._asked_s > LIMIT_S:
            return True
        with trio.move_on_after(PAUSE_S):
            await self._given.wait()
        return False
