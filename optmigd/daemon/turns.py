"""One thing at a time on a host that lengthens, or would lengthen, somebody's downtime.

Every host has one *turn*. A migration that has converged takes the turn of both its hosts before
its program is parked, and keeps it until the program runs at the destination. It waits while its
program runs on; no program is ever parked to wait. What a shim agent does when it is started, which
takes a processor for half a second, is done in a turn as well. What else a migration does before
its rounds, and after its enclave has moved, waits for the end of a switchover (`let_pass`). Nothing
depends on a turn but speed, so it is held, and waited for, for some seconds at most: a host that
hangs delays others and stops nobody.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

HOLD_S = 5.0
"""After so long the next one takes its turn whether or not the last one has given it back."""

PASS_S = 1.0
"""Nobody stands aside for longer than that."""


class Turns:
    """The turn of one host, first come, first served."""

    def __init__(self) -> None:
        """Nobody has it."""
        self._queue: deque[Waiter] = deque()
        self._changed = trio.Event()

    @contextmanager
    def join(self, switchover: bytes | None = None) -> Iterator["Waiter"]:
        """Stand in line; await the waiter's `turn`. Leaving the block gives it back.

        Args:
            switchover: the migration, if its switchover is what the turn is for.
        """
        waiter = Waiter(self, switchover)
        self._queue.append(waiter)
        self._call_first()
        try:
            yield waiter
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)
            self._call_first()

    @property
    def switchover(self) -> bytes | None:
        """The migration whose switchover has the turn now."""
        return self._queue[0].switchover if self._queue else None

    async def let_pass(self, migration_id: bytes) -> None:
        """Wait while the switchover of another migration has the turn, for PASS_S at most."""
        with trio.move_on_after(PASS_S):
            while self.switchover not in (None, migration_id):
                await self._changed.wait()

    @property
    def next_change(self) -> trio.Event:
        """Set as soon as somebody else, or nobody, has the turn."""
        return self._changed

    def _call_first(self) -> None:
        if self._queue and not self._queue[0].called.is_set():
            self._queue[0].since_s = trio.current_time()
            self._queue[0].called.set()
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _overstayed_at(self) -> float:
        return self._queue[0].since_s + HOLD_S

    def _pass_over(self) -> None:
        if self._queue and trio.current_time() >= self._overstayed_at():
            self._queue.popleft()
            self._call_first()


class Waiter:
    """One who stands in line."""

    def __init__(self, turns: Turns, switchover: bytes | None) -> None:
        """Use `Turns.join`."""
        self.called = trio.Event()
        self.since_s = 0.0
        self.switchover = switchover
        self._turns = turns

    async def turn(self) -> None:
        """Wait until it has the turn."""
        while not self.called.is_set():
            with trio.move_on_at(self._turns._overstayed_at()):
                await self.called.wait()
            if not self.called.is_set():
                self._turns._pass_over()
