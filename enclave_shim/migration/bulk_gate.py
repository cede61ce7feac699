"""Bulk work that waits while another enclave of this host switches over.

A switchover is a few messages to and fro, each of which has to be run at once by some process, and
the last few pages. Rounds of other migrations, which nobody waits for, take processors and links
away from it just then. So the daemon has them wait for as long as it takes: nobody begins a round,
and the threads of one that is under way look here between two records.
"""

import threading

import trio

LIMIT_S = 1.0
"""No wait is longer: a daemon that forgets to say when it is over may not stop a migration."""


class BulkGate:
    """Open, unless the daemon has shut it. `wait` is for threads, the rest for tasks."""

    def __init__(self) -> None:
        """Open."""
        self._open = threading.Event()
        self._open.set()
        self._moved = trio.Event()
        self._shut = False
        self._kept_open = False

    def set(self, *, shut: bool) -> None:
        """Let bulk work wait, or go on, as the daemon says."""
        self._shut = shut
        self._move()

    def keep_open(self, kept: bool = True) -> None:
        """Let it go on, whatever the daemon says: a program stands still, or a thread must end."""
        self._kept_open = kept
        self._move()

    def wait(self) -> None:
        """Return when it is open, after LIMIT_S at most; blocks."""
        if not self._open.is_set() and not self._open.wait(LIMIT_S):
            self._open.set()

    async def opened(self) -> None:
        """Return when it is open, after LIMIT_S at most."""
        with trio.move_on_after(LIMIT_S) as scope:
            while not self._open.is_set():
                await self._moved.wait()
        if scope.cancelled_caught:
            self._open.set()

    def _move(self) -> None:
        if self._shut and not self._kept_open:
            self._open.clear()
        else:
            self._open.set()
        moved, self._moved = self._moved, trio.Event()
        moved.set()
