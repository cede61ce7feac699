"""An incoming migration from the offer to the receipt.

Until the shim agent may have told the source that it is ready (which it can, past this daemon, once
its answer was relayed), a migration that breaks is simply destroyed here. After that the source may
have let go of the enclave even if this host never hears of it. So an agent that was ready outlives
its conversation: it waits for the token to be delivered again, and it goes only when the source
says that the migration came to nothing there.

Whatever came to nothing here is called what the source calls it: see `last_word`.
"""

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.agents import AgentConnectionLost
from optmigd.daemon.asking import ask
from optmigd.daemon.destination import Arrival
from optmigd.daemon.host import Host, now_s
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.last_word import close_with_last_word
from optmigd.daemon.link import Link
from optmigd.daemon.nurseries import first_of, open_flat_nursery
from optmigd.daemon.outcomes import report_of
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.registry import Instance
from optmigd.protocol.errors import (
    AlreadyReleased,
    ChannelClosed,
    EnclaveError,
    HandoffUncertain,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OptmigError,
    RuntimeFailed,
    to_wire,
)
from optmigd.protocol.link import Abort, Finished, Offer
from optmigd.protocol.recovery import UNSETTLED, gives_way, stops_waiting

REPORT_TIMEOUT_S = 30.0
"""How long the agent may take from running the program to its report."""
RESUMED_TIMEOUT_S = 15.0
LINGER_S = 10.0
ABORT_SEND_TIMEOUT_S = 1.0
RESOLVE_FIRST_S = 0.2
RESOLVE_LAST_S = 30.0


class IncomingMigration:
    """One enclave on its way here; `Host.incoming` lists it until it is here, or is gone."""

    def __init__(
        self,
        host: Host,
        peer: Peer,
        row: MigrationRow,
        *,
        mode: str,
        resident_bytes: int,
        instance: Instance | None = None,
    ) -> None:
        """Use `offered` or `restored`."""
        self.resident_bytes = resident_bytes
        self._host = host
        self._peer = peer
        self._row = row
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._superseded: OptmigError | None = None
        self._waiting = False
        self._came_to_nothing = False
        self.record = MigrationRecord(
            row.migration_id,
            row.enclave,
            "destination",
            peer.name,
            source=peer.name,
            destination=host.name,
            mode=mode,
            publish=host.hub.publish,
        )
        self._log: structlog.stdlib.BoundLogger = host.log.bind(
            migration_id=row.migration_id.hex(),
            enclave=row.enclave,
            role="destination",
            peer=peer.name,
        )
        self._arrival = Arrival(host, peer, row, self.record, self._log, instance)

    @classmethod
    def offered(cls, host: Host, peer: Peer, offer: Offer) -> "IncomingMigration":
        """Answer an offer; then `run`."""
        row = MigrationRow(
            offer.migration_id,
            offer.enclave,
            0,
            "destination",
            peer.key,
            offer.generation,
            "active",
            now_s(),
        )
        return cls(host, peer, row, mode=offer.mode, resident_bytes=offer.resident_bytes)

    @classmethod
    def restored(
        cls, host: Host, peer: Peer, row: MigrationRow, instance: Instance
    ) -> "IncomingMigration":
        """Take up an interrupted migration, before its agent is connected; then `run_restored`."""
        mode = str(row.result.get("mode", ""))
        return cls(host, peer, row, mode=mode, resident_bytes=0, instance=instance)

    @property
    def migration_id(self) -> bytes:
        """16 random bytes, chosen by the source."""
        return self._row.migration_id

    @property
    def peer_key(self) -> bytes:
        """The source's host key."""
        return self._peer.key

    @property
    def under_way(self) -> bool:
        """The source waits in the queue, not the destination."""
        return True

    @property
    def released(self) -> bool:
        """An incoming enclave has nothing to release."""
        return False

    @property
    def owned(self) -> bool:
        """Whether the enclave is this host's already."""
        return self._arrival.owned

    @property
    def awaits_token(self) -> bool:
        """Whether it is ready, its conversation has ended, and no token has come."""
        return self._waiting and not self._arrival.token_given and not self.owned

    @property
    def turned_away(self) -> bool:
        """Whether the offer was refused because this host is full; the source may repeat it."""
        return self._arrival.turned_away

    @property
    def agent_pid(self) -> int | None:
        """The process that holds what has arrived; None before it is started."""
        instance = self._arrival.instance
        agent = instance.agent if instance is not None else None
        return agent.process.pid if agent is not None else None

    async def run(self, link: Link, offer: Offer) -> None:
        """Hold the conversation, and then do whatever is left to do without it.

        Cancelled (the daemon stops): an agent that waits goes on waiting; the journal knows it.
        """
        self._host.incoming[offer.migration_id] = self
        try:
            with self._scope:
                error = await self._converse(link, offer)
                await link.aclose()
                await self._go_on(error)
            await self._conclude_superseded()
        finally:
            await self._leave()

    async def run_restored(self) -> None:
        """Go on after a restart of the daemon, as `run`."""
        self._host.incoming[self._row.migration_id] = self
        try:
            self.record.set_state("switchover")  # it may have been: only the source knows
            with self._scope:
                await self._go_on(ChannelClosed("the daemon was stopped during the migration"))
            await self._conclude_superseded()
        finally:
            await self._leave()

    async def supersede(self) -> None:
        """Give way to a new offer of the same enclave by the same host; returns when it has.

        A source begins a migration only when it has ended the one before: what is left of that
        one here is waiting for a link that has broken unnoticed, or is being destroyed already.
        One that may have been released does not give way.
        """
        if gives_way(token_given=self._arrival.token_given, owned=self.owned):
            error = MigrationFailed(f"host {self._peer.name} has begun another one")
            await self._give_way(error)

    async def discard(self) -> None:
        """Destroy the waiting instance: an operator's decision; returns when it is gone.

        Raises:
            MigrationError: it does not wait for a token, or has got one.
        """
        if not self.awaits_token:
            raise MigrationError(
                f"enclave {self._row.enclave!r} does not wait here for the token of a source that "
                "cannot be reached: there is nothing to discard"
            )
        self._superseded = HandoffUncertain(
            f"an operator discarded what had arrived of {self._row.enclave!r}: it runs on at "
            f"host {self._peer.name}, or it is lost if that host had released it"
        )
        if not await self._shim_gives_up():
            self._superseded = None
            raise MigrationError(
                f"enclave {self._row.enclave!r} runs here already, or its shim agent does not "
                "answer: nothing was discarded"
            )
        await self._give_way(self._superseded)

    async def _give_way(self, error: OptmigError) -> None:
        self._superseded = error
        self._arrival.aborted = True
        self._scope.cancel()
        await self._done.wait()

    async def redeliver(self, token: bytes) -> bytes:
        """Give the agent the token once more and return its sealed confirmation.

        Raises:
            MigrationFailed: the enclave does not run here.
        """
        if self._row.resumed is None:
            await self._arrival.give_token(token)
            with trio.move_on_after(RESUMED_TIMEOUT_S):
                await first_of(self._arrival.resumed_event.wait, self._done.wait)
        if self._row.resumed is None:
            raise MigrationFailed(
                f"enclave {self._row.enclave!r} did not start on host {self._host.name}"
            )
        return self._row.resumed

    async def _converse(self, link: Link, offer: Offer) -> OptmigError | None:
        try:
            if await self._arrival.admit(link, offer, self):
                await self._arrival.relay(link)
                failure = self._arrival.failure()
                if failure is not None and not self.owned:
                    raise failure
                await link.send(Finished("completed" if self.owned else "checked"))
            # Closing first, with bytes unread, would take our last words away from the source.
            with trio.move_on_after(LINGER_S):
                while True:
                    await link.receive()
        except AgentConnectionLost as error:
            # No longer than that: the source may have released, and the agent may have an answer.
            with trio.move_on_after(ABORT_SEND_TIMEOUT_S):
                await self._say_abort(link, error, linger_s=0)
            return error
        except ChannelClosed as error:
            return error
        except OptmigError as error:
            if not self._arrival.aborted:
                await self._say_abort(link, error, linger_s=LINGER_S)
            return error
        return None

    async def _say_abort(self, link: Link, error: OptmigError, *, linger_s: float) -> None:
        try:
            await link.send(Abort(error.code[:64], error.message[:1000]))
            with trio.move_on_after(linger_s):
                while True:
                    await link.receive()
        except OptmigError as failure:
            self._log.debug("link_ended", error=failure.message)

    async def _conclude_superseded(self) -> None:
        if self._scope.cancelled_caught:
            await self._go_on(self._superseded)

    async def _go_on(self, error: OptmigError | None) -> None:
        """Finish without the conversation."""
        await self._arrival.take_over()  # the conversation may have ended in the middle of it
        if self._arrival.may_be_released and self._row.resumed is None:
            self._arrival.cut_streams()
            await self._wait_for_token()
        if self.owned:
            await self._finish()
        elif self.record.dry_run:
            self._log.info("rehearsal_ended")
        else:
            said = None if self._arrival.aborted else self._arrival.failure()
            error = self._superseded or said or error or MigrationFailed("it came to nothing")
            self._arrival.cut_streams()
            state = "cancelled" if isinstance(error, MigrationCancelled) else "failed"
            self.record.finish(state, to_wire(error))
            if self._row.number:
                await self._save(UNSETTLED)
                self._came_to_nothing = True
            self._log.warning(f"migration_{state}", code=error.code, error=error.message)

    async def _wait_for_token(self) -> None:
        """Wait until the token was delivered and used, or the source says there will be none."""
        self._log.warning("token_awaited")
        self._waiting = True
        async with open_flat_nursery() as nursery:

            async def listen() -> None:
                await self._arrival.listen(
                    lambda: self._row.resumed is not None or self._arrival.came_to_nothing
                )
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await self._ask_until_failed()
            nursery.cancel_scope.cancel()

    async def _ask_until_failed(self) -> None:
        """Return when the source has said that the migration came to nothing there."""
        delay_s = RESOLVE_FIRST_S
        params = {"migration_id": self._row.migration_id}
        agent_told = False
        while True:
            agent_told = agent_told or await self._tell_link_lost()
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, RESOLVE_LAST_S)
            peer = self._host.peers.by_key(self._peer.key) or self._peer
            try:
                answer = await ask(self._host, peer, "outcome", params)
            except OptmigError as error:
                self._log.info("outcome_unknown", code=error.code, error=error.message)
                continue
            if stops_waiting(str(answer.get("state"))) and await self._shim_gives_up():
                return

    async def _tell_link_lost(self) -> bool:
        """Have a shim that is not ready end; one that is will wait. Whether it has heard."""
        try:
            await self._arrival.tell_link_lost()
        except (ChannelClosed, RuntimeFailed) as error:
            self._log.info("shim_not_told", code=error.code, error=error.message)
            return False
        except OptmigError as error:  # it has no such migration, or is of an earlier release
            self._log.info("shim_has_nothing_to_end", error=error.message)
        return True

    async def _shim_gives_up(self) -> bool:
        """Have the shim end its wait; False: it has a token already, or could not be asked.

        This daemon may have been started after an earlier one handed the token over, and know
        nothing of it. The shim knows.
        """
        arrival = self._arrival
        agent = arrival.instance.agent if arrival.instance is not None else None
        if agent is None:
            return True
        arrival.aborted = True
        try:
            await agent.request("cancel", {"migration_id": self._row.migration_id})
        except AlreadyReleased:
            arrival.aborted, arrival.token_given = False, True
            self._log.warning("token_used_already")
            return False
        except (ChannelClosed, RuntimeFailed) as error:
            arrival.aborted = agent.gone.is_set()
            self._log.info("shim_not_asked", code=error.code, error=error.message)
            return arrival.aborted
        except EnclaveError as error:  # it knows of no such migration
            self._log.info("shim_has_nothing_to_end", error=error.message)
        return True

    async def _finish(self) -> None:
        """Take the agent's report and conclude."""
        if self._arrival.ended is None:
            with trio.move_on_after(REPORT_TIMEOUT_S):
                await self._arrival.listen(lambda: self._arrival.ended is not None)
        self.record.report = report_of(self._arrival.ended)
        self.record.finish("completed")
        await self._save("completed")
        self._log.info("migration_completed")
        if self._arrival.instance is not None:
            await self._host.registry.forget_older(self._arrival.instance)

    async def _leave(self) -> None:
        """Destroy what nobody waits for any more."""
        instance = self._arrival.instance
        kept = self._arrival.may_be_released or self.owned
        self._arrival.close()
        with trio.CancelScope(shield=True):
            if instance is not None and not kept:
                await self._host.registry.destroy(instance)
        self._host.incoming.pop(self._row.migration_id, None)
        if self._came_to_nothing:
            close_with_last_word(self._host, self._row)
        self._done.set()
        self._host.registry.announce_change()

    async def _save(self, state: str) -> None:
        self._row.state = state
        self._row.result = self.record.result() | {"receipt": self.record.report.get("receipt")}
        await self._host.journal.write_soon(
            self._host.nursery, lambda: self._host.journal.save_migration(self._row)
        )
