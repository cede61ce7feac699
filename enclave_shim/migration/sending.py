"""Sending over a migration's data streams, so that it ends when the migration does."""

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import Streams
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.enclave_shim.migration.switchover import end_if_stalled, receive_ready
from optmigd.protocol.convergence import AHEAD_MOST
from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.handoff_seals import HandoffSeals
from optmigd.protocol.session import Ready

REFUSAL_GRACE_S = 0.3


class Sending:
    """The source's end of the data streams.

    Where one breaks, most likely the destination gave up: then its reason, sealed, is on its way,
    and is waited for before the break is told.

    Args:
        streams: of the migration.
        gate: where bulk work waits for the switchovers of others.

    """

    def __init__(self, streams: Streams, gate: BulkGate) -> None:
        self._streams = streams
        self._gate = gate

    async def send(self, send: Callable[[], Awaitable[None]]) -> None:
        """Have that send in threads; a cancel shuts the streams, which ends the threads.

        Raises:
            ExceptionGroup: what it raised.

        """
        sent = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shut_unless, sent)
                await send()
                sent.set()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup:
            await trio.sleep(REFUSAL_GRACE_S)
            raise

    async def send_ahead(self, rounds: Rounds) -> None:
        """Send ahead and look what is dirty then, again until that was not less two times running.

        Raises:
            ExceptionGroup: as `send`.

        """
        least, in_vain = rounds.dirty_pages, 0
        for _ in range(AHEAD_MOST):
            await self.send(rounds.send_ahead)
            await trio.to_thread.run_sync(rounds.collect)
            in_vain = 0 if rounds.dirty_pages < least else in_vain + 1
            if in_vain == 2:
                return
            least = min(least, rounds.dirty_pages)

    async def send_last(
        self, rounds: Rounds, seal_manifest: Callable[[], bytes], stall_s: float
    ) -> None:
        """Send the rest of the last round, and the manifest.

        Raises:
            ExceptionGroup: of MigrationTimeout if the destination took nothing for so many seconds,
                or what sending raised.

        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_if_stalled, rounds, stall_s)
            await self.send(partial(rounds.send, seal_manifest))
            nursery.cancel_scope.cancel()

    async def receive_ready(self, seals: HandoffSeals, limit_s: float) -> Ready:
        """Wait for READY on the first stream; see `switchover.receive_ready`."""
        try:
            return await receive_ready((await self._streams.all())[0], seals, limit_s)
        except ChannelClosed:
            await trio.sleep(REFUSAL_GRACE_S)
            raise

    async def _shut_unless(self, sent: trio.Event) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not sent.is_set():
                self._gate.keep_open()
                self._streams.shut()
