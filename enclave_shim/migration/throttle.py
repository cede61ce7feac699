"""Holding a program back that writes faster than its pages can be sent.

The program is parked for a share of every period, by the same means as at the switchover, so it
works for every program and leaves no trace. Only the owner's choice (`--on-stall throttle`) gets
here.
"""

import time

import trio

from optmigd.enclave_shim.process import Process

PERIOD_S = 0.05
PARK_TIMEOUT_S = 5.0


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
        self._idle = trio.Lock()

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

        However it ends, the program is not parked by it afterwards.

        Raises:
            MigrationTimeout: the program did not park.
            RuntimeFailed: the program ended.

        """
        while True:
            if self._permille == 0:
                self._changed = trio.Event()
                await self._changed.wait()
            async with self._idle:
                held_s = PERIOD_S * self._permille / 1000
                if held_s:
                    await self._hold(held_s)
            await trio.sleep(PERIOD_S - held_s)

    async def _hold(self, held_s: float) -> None:
        begun_s = time.monotonic()
        try:
            await self._process.quiesce(PARK_TIMEOUT_S)
            await trio.sleep(held_s)
        finally:
            self._process.resume()
            self.held_ms += (time.monotonic() - begun_s) * 1e3

    async def stop(self) -> None:
        """Hold nothing back any more; returns when the program is not parked by this."""
        self.permille = 0
        async with self._idle:
            return
