"""Taking the switchover turns of both hosts of an outgoing migration; see `turns`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.agents import Agent
from optmigd.daemon.host import Host
from optmigd.daemon.turns import HOLD_S
from optmigd.protocol.errors import OptmigError
from optmigd.protocol.link import Query, QueryEvent

WAIT_S = 15.0
"""After so long a migration switches over without."""


class SwitchoverTurn:
    """The turns of both hosts for one outgoing migration: `take` in a task, `give_back` at the end.

    They are taken in the order of the hosts' keys, by everyone: so two migrations in opposite
    directions never wait for each other.
    """

    def __init__(
        self, host: Host, peer: Peer, migration_id: bytes, log: structlog.stdlib.BoundLogger
    ) -> None:
        """Prepare it; nothing is asked yet."""
        self._host = host
        self._peer = peer
        self._migration_id = migration_id
        self._log = log
        self._scope = trio.CancelScope()

    async def take(self, agent: Agent) -> None:
        """Tell the agent when it may switch over; hold the turns until `give_back`, or HOLD_S."""
        with self._scope:
            async with AsyncExitStack() as held:
                started_s = trio.current_time()
                with trio.move_on_after(WAIT_S):
                    for key in sorted((self._host.identity.public, self._peer.key)):
                        ours = key == self._host.identity.public
                        await held.enter_async_context(self._own() if ours else self._theirs())
                waited_ms = round(1000 * (trio.current_time() - started_s), 1)
                self._log.info("switchover_turn_taken", waited_ms=waited_ms)
                try:
                    await agent.request("take_turn", {"migration_id": self._migration_id})
                except OptmigError as error:  # it has ended, or does so without: see the module
                    self._log.info("switchover_turn_unused", error=error.message)
                    return
                await trio.sleep(HOLD_S)

    def give_back(self) -> None:
        """Let others switch over; one that was never taken is not taken any more."""
        self._scope.cancel()

    @asynccontextmanager
    async def _own(self) -> AsyncIterator[None]:
        with self._host.turns.join(self._migration_id) as waiter:
            await waiter.turn()
            yield

    @asynccontextmanager
    async def _theirs(self) -> AsyncIterator[None]:
        """Hold the peer's turn by a conversation: whatever breaks it gives the turn back."""
        async with AsyncExitStack() as held:
            try:
                link = await held.enter_async_context(await self._host.dial(self._peer))
                await link.send(Query("turn", {"migration_id": self._migration_id}))
                await link.expect(QueryEvent, timeout_s=WAIT_S)
            except OptmigError as error:
                self._log.info("peers_turn_not_taken", code=error.code, error=error.message)
            yield
