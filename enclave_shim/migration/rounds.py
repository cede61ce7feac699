"""The source's rounds: what is sent in each, and what each was like.

Round 0 sends every resident page; holes are not mentioned, because the destination's memory is
fresh and reads as zeros. Each later round sends what the tracker collected since, but for hot pages
(see `hot_pages`), which the last round sends. The order that makes this complete is: arm, *then*
list the resident pages; collect (which re-arms), *then* read.
"""

import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import trio

from optmigd.enclave_shim.arena import Arena, Runs, as_runs, count_pages, merge_runs
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.migration.background import run_in_background
from optmigd.enclave_shim.migration.forecast import FIXED_DOWNTIME_MS
from optmigd.enclave_shim.migration.hot_pages import HotPages
from optmigd.enclave_shim.migration.pump import Sender
from optmigd.enclave_shim.tracker import Tracker
from optmigd.protocol.convergence import (
    PAGE_BYTES,
    RoundStats,
    expected_downtime_ms,
    throughput,
)
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.records import Counts, overall_chain
from optmigd.protocol.session import RoundDone

BACKGROUND_PAGES = 1 << 14
"""A round of so many pages (64 MiB) takes long enough for a program to feel it."""

FEW_PAGES = 1 << 10
FEW_S = 0.003
"""A round of fewer pages, sent within that time, is over before threads have agreed."""

STALE_S = 0.005
"""What was collected longer ago says too little about what is dirty now."""

NOTHING: Runs = as_runs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class Rounds:
    """Sends rounds over all streams and keeps account of them.

    Args:
        arena: what is sent.
        senders: one for each stream, in the order of their numbers.
        files: what travels beside the memory.
        tracker: finds written pages, and is armed; None if the program is parked from the start.

    """

    def __init__(
        self, arena: Arena, senders: list[Sender], files: TravellingFiles, tracker: Tracker | None
    ) -> None:
        self.history: list[RoundStats] = []
        self.pending: Runs = NOTHING
        self._holes: Runs = NOTHING
        self._file_blocks = 0
        self._written: Runs = NOTHING  # since the account of the last round
        self.hot_pages = HotPages(arena.page_count)
        self._arena = arena
        self._senders = senders
        self._files = files
        self._tracker = tracker
        self._started_s = self._collected_s = 0.0
        self._sent = Counts()
        self._last_sent = -1
        self._parked = tracker is None
        self._sent_ahead = False
        self._limiter = trio.CapacityLimiter(len(senders))

    @property
    def round_no(self) -> int:
        """The number of the next round to be recorded."""
        return len(self.history)

    @property
    def transferred_bytes(self) -> int:
        """Bytes sealed so far; grows while a round is under way."""
        return sum(sender.sent_bytes for sender in self._senders)

    @property
    def totals(self) -> Counts:
        """Counts over all rounds and streams; complete when no round is under way."""
        totals = Counts()
        for sender in self._senders:
            totals.add(sender.totals)
        return totals

    @property
    def chain(self) -> bytes:
        """The chain over all streams."""
        return overall_chain([sender.chain for sender in self._senders])

    def begin(self) -> None:
        """List the resident pages for round 0; blocks."""
        if self._tracker is not None:
            self._tracker.collect()  # what was written since it was armed is among them
        self.pending = self._arena.resident_runs()

    def collect(self, *, parked: bool = False) -> None:
        """Add the pages written since the last collection to what the next round sends; blocks.

        Args:
            parked: the program stands still: be quick.

        """
        self._parked = self._parked or parked
        if self._tracker is None:
            return
        collected = self._tracker.collect(parked=parked)
        if not parked:
            self._file_blocks = self._files.pending_blocks
            self._written = merge_runs(self._written, collected)
        written = merge_runs(self.pending, self._holes, collected)
        if parked and len(self._holes) == 0 and not self._tracker.gave_back:
            self.pending = written  # to look for holes would take 5 ms a GiB
        else:
            self.pending, self._holes = self._arena.split_resident(written, thorough=False)

    async def collect_while_confirmed(self, receive: Callable[[], Awaitable[RoundDone]]) -> None:
        """Collect while the confirmation of the round comes, and again if that took its time.

        What is collected late is more for the next round. But the buffers of a slow link may hold
        much of a round: what is written until they have drained counts for the decision as well.

        Args:
            receive: returns the destination's account of the round.

        Raises:
            RemoteProtocolError: it is not this side's.

        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect)
            self.confirm(await receive())
        if time.monotonic() - self._collected_s > STALE_S:
            await self._collect()

    async def _collect(self) -> None:
        await trio.to_thread.run_sync(self.collect)
        self._collected_s = time.monotonic()

    @property
    def dirty_pages(self) -> int:
        """How many pages, and blocks of files, would be sent if the program were parked now."""
        return self._memory_pages + self._file_blocks

    @property
    def _memory_pages(self) -> int:
        return count_pages(self.pending) + count_pages(self._holes)

    @property
    def expected_downtime_ms(self) -> float:
        """How long the program would stand still if it were parked now."""
        return expected_downtime_ms(self.dirty_pages, throughput(self.history), FIXED_DOWNTIME_MS)

    async def send_ahead(self) -> None:
        """Send what is pending as a first part of the last round, while the program still runs.

        Hot pages wait. The round stays open: collect again, with the program parked unless too much
        has become dirty meanwhile, then `send`.

        Raises, and is cancelled: see `send`.
        """
        if not self._sent_ahead:
            self._started_s = time.monotonic()
        self.pending, hot = self.hot_pages.part(self.pending)

        def send_on(senders: list[Sender]) -> None:
            for sender in senders:
                sender.send_pages(self.round_no, self.pending, self._holes)
                if sender is self._senders[0] and self._file_blocks:
                    sender.send_files(self._files.delta())

        await self._on_all_streams(send_on)
        self.pending, self._holes, self._file_blocks = hot, NOTHING, 0
        self._sent_ahead = True

    async def send(self, seal_manifest: Callable[[], bytes] | None = None) -> None:
        """Send what is pending, as the next round or as the rest of it.

        While the program runs, a large round leaves the processors to it, and hot pages wait.

        Args:
            seal_manifest: for the last round: called in a thread when all streams have sent it,
                and what it returns is sent behind it.

        Raises:
            ChannelClosed: a stream broke, or was closed to stop this.
            OSError: a file could not be read.

        Cancellation waits for the streams' threads: close the streams to end them.
        """
        if not self._sent_ahead:
            self._started_s = time.monotonic()
        round_no = self.round_no
        counts: list[Counts] = []
        hot = NOTHING
        if not self._parked:
            self.pending, hot = self.hot_pages.part(self.pending)
        last = seal_manifest is not None
        closed = threading.Lock()

        def send_on(senders: list[Sender]) -> None:
            for sender in senders:
                sender.send_pages(round_no, self.pending, self._holes)
                if sender is self._senders[0]:
                    sender.send_files(self._files.delta())
                count = sender.close_round(last=last)
                with closed:
                    counts.append(count)
                    all_sent = len(counts) == len(self._senders)
            if all_sent and seal_manifest is not None:
                self._senders[0].send_manifest(seal_manifest())

        await self._on_all_streams(send_on)
        self._sent = Counts()
        for count in counts:
            self._sent.add(count)
        self._last_sent = round_no
        self._sent_ahead = False
        self.pending, self._holes, self._file_blocks = hot, NOTHING, 0

    async def _on_all_streams(self, send_on: Callable[[list[Sender]], None]) -> None:
        """Run that for all streams together if there is little to send, or else for each."""
        pages = self._memory_pages
        in_background = not self._parked and pages >= BACKGROUND_PAGES
        together = [self._senders] if self._few(pages) else [[one] for one in self._senders]
        async with trio.open_nursery() as nursery:
            for senders in together:
                send: Callable[[], None] = partial(send_on, senders)
                if in_background:
                    send = partial(run_in_background, send)
                nursery.start_soon(partial(trio.to_thread.run_sync, send, limiter=self._limiter))

    def _few(self, pages: int) -> bool:
        """Whether one thread should send all: two would wait for each other's interpreter lock.

        Not over a slow link: a stream after the other would be sent at one stream's rate.
        """
        return pages < FEW_PAGES and pages * PAGE_BYTES <= FEW_S * throughput(self.history)

    def confirm(self, done: RoundDone) -> None:
        """Compare the destination's account with this side's.

        Raises:
            RemoteProtocolError: they differ.

        """
        totals = self.totals
        ours = (self._last_sent, totals.records, totals.all_pages, self.chain)
        if (done.round_no, done.records, done.pages, done.chain) != ours:
            raise RemoteProtocolError("the destination's account of a round is not the source's")

    def record(self, *, throttle_permille: int = 0) -> RoundStats:
        """Close the round's account; the next one can begin."""
        hot_pages = 0
        if not self._parked:
            self.hot_pages.round_over(self._written)
            self._written = NOTHING
            hot_pages = count_pages(self.hot_pages.part(self.pending)[1])
        stats = RoundStats(
            round_no=self.round_no,
            pages=self._sent.pages,
            zero_pages=self._sent.zero_pages,
            bytes=self._sent.bytes,
            duration_s=time.monotonic() - self._started_s,
            dirty_pages=self.dirty_pages,
            throttle_permille=throttle_permille,
            hot_pages=hot_pages,
        )
        self.history.append(stats)
        return stats
