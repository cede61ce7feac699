"""Holding a program back that writes faster than its pages can be sent.

The program is parked for a share of every period, by the same means as at the switchover, so it
works for every program and leaves no trace. Only the owner's choice (`--on-stall throttle`) gets
here.

On a busy host parking takes milliseconds, during which the program runs; and one that has fallen
behind runs at its full speed whenever it may. So what counts is how long it has run: it is held in
proportion to that, however short or long the period becomes.
"""

import time

import trio

from optmigd.enclave_shim.process import Process

PERIOD_S = 0.05
"""Of a throttle in which parking takes no time."""
LONGEST_HOLD_S = 1.0
PARK_TIMEOUT_S = 10.0


class Throttle:
    """A duty cycle; `run` it in a nursery, set `permille` at any time.

    Attributes:
        highest_permille: the most that was asked for so far.
        held_ms: how long the program has stood still for it so far.

    """

    def __init__(self, process: Process) -> None:
        self.highest_permille = 0
        self.held_ms = 0.0
        self._process = process
        self._permille = 0
        self._changed = trio.Event()
        self._asked = trio.Event()  # to park it for good
        self._parked = trio.Event()
        self._parking_s = 0.0  # what the last park took

    @property
    def permille(self) -> int:
        """The share of its time that the program is held back."""
        return self._permille

    @permille.setter
    def permille(self, value: int) -> None:
        self._permille = value
        self.highest_permille = max(self.highest_permille, value)
        self._changed.set()

    async def run(self) -> None:
        """Park and resume in turn while there is anything to hold back; until cancelled.

        However it ends, the program is not parked by it afterwards, but by `park`.

        Raises:
            MigrationTimeout: the program did not park.
            RuntimeFailed: the program ended.

        """
        while not self._parked.is_set():
            if self._permille == 0:
                self._changed = trio.Event()
                await self._changed.wait()
            resumed_s = time.monotonic()
            await self._pause(PERIOD_S * (1000 - self._permille) / 1000)
            await self._hold(resumed_s)

    async def _hold(self, resumed_s: float) -> None:
        for_good = self._asked.is_set()
        try:
            await self._quiesce()
            if for_good:
                self._parked.set()
                return
            parked_s = time.monotonic()
            try:
                await self._pause(hold_s(parked_s - resumed_s, self._permille))
            finally:
                self.held_ms += (time.monotonic() - parked_s) * 1e3
        finally:
            if not self._parked.is_set():
                self._process.resume()

    async def _pause(self, pause_s: float) -> None:
        with trio.move_on_after(pause_s):
            await self._asked.wait()

    async def park(self) -> float:
        """Park the program for good; returns how many seconds that took.

        A hold that is under way ends, and `run` parks the program again at once: whoever asks has
        just found little to be dirty, and one that has fallen behind writes at its full speed
        whenever it runs. After any other exit than a return, the caller must resume it.

        Raises:
            MigrationTimeout: it did not park.
            RuntimeFailed: it ended.

        """
        if self._permille:
            self._asked.set()
            await self._parked.wait()
        else:
            await self._quiesce()
        return self._parking_s

    async def _quiesce(self) -> None:
        begun_s = time.monotonic()
        await self._process.quiesce(PARK_TIMEOUT_S)
        self._parking_s = time.monotonic() - begun_s


def hold_s(ran_s: float, permille: int) -> float:
    """How long a program that has run for so long is held, to be held `permille` of its time."""
    return min(ran_s * permille / (1000 - permille), LONGEST_HOLD_S)
