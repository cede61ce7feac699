"""The destination's side of one migration: admit, start an agent, relay, take over.

The daemon learns three things from its agent: `state` active (its answer follows, and READY goes
past this daemon: from here on the source may let go), `resumed` (the enclave runs here: journaled
before anybody is told) and `ended`.
"""

import dataclasses
import socket
from collections.abc import Callable

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.admission import (
    admission_blockers,
    can_rehearse,
    fetch_image,
    is_busy,
    memory_comes_free,
)
from optmigd.daemon.agents import CONNECTION_LOST, Agent, AgentConnectionLost, Event
from optmigd.daemon.answers import Params, param
from optmigd.daemon.host import Host, now_s
from optmigd.daemon.journal import MigrationRow
from optmigd.daemon.link import Link, refusal
from optmigd.daemon.nurseries import open_flat_nursery
from optmigd.daemon.outcomes import reported_error
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.registry import Activity, Instance
from optmigd.daemon.streams import StreamDuplicates
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    MigrationBlocked,
    MigrationFailed,
    OptmigError,
    RuntimeFailed,
)
from optmigd.protocol.link import (
    Abort,
    Accepted,
    Finished,
    Offer,
    Refused,
    Resumed,
    Session,
    Token,
    fit_blockers,
)
from optmigd.protocol.recovery import (
    heeds_abort,
    may_be_released,
    ready_possible,
    takes_token,
)


class Arrival:
    """An enclave that comes in: its instance, its agent and what the agent has said."""

    def __init__(
        self,
        host: Host,
        peer: Peer,
        row: MigrationRow,
        record: MigrationRecord,
        log: structlog.stdlib.BoundLogger,
        instance: Instance | None = None,
    ) -> None:
        """Prepare it; `instance` is one that an earlier daemon has started."""
        self.instance = instance
        self.owned = instance is not None and instance.row.state == "running"
        self.token_given = False
        self.aborted = False
        self.turned_away = False
        self.ended: Params | None = None
        self.resumed_event = trio.Event()
        self._duplicates = StreamDuplicates()
        self._host = host
        self._peer = peer
        self._row = row
        self._record = record
        self._log = log
        self._events: trio.MemoryReceiveChannel[Event] | None = None
        self._confirmation: bytes | None = None
        if instance is not None and instance.agent is not None:
            self._events = instance.agent.subscribe(row.migration_id)

    @property
    def may_be_released(self) -> bool:
        """Whether the source may have let go of the enclave in favour of this agent."""
        agent = self.instance.agent if self.instance is not None else None
        return not self._record.dry_run and may_be_released(
            ready_possible=ready_possible(self._record.state),
            token_given=self.token_given,
            aborted=self.aborted,
            ended=self.came_to_nothing,
            agent_alive=agent is not None and not agent.gone.is_set(),
        )

    @property
    def came_to_nothing(self) -> bool:
        """Whether the agent has ended the migration, and not because the enclave runs here.

        `completed` alone is no reason to let go of an agent: it says so as soon as the program
        runs, and this host may not have journaled that yet.
        """
        return self.ended is not None and self.ended.get("outcome") != "completed"

    async def admit(self, link: Link, offer: Offer, activity: Activity) -> bool:
        """Answer the offer; true if there is a session to relay.

        A refused offer is rehearsed where that is possible, so that the shims' blockers are found
        together with ours.

        Raises:
            OptmigError: it cannot come, for a reason that is no blocker.
        """
        await memory_comes_free(self._host, offer)
        blockers = admission_blockers(self._host, self._peer, offer)
        self._record.dry_run = offer.dry_run or bool(blockers)
        if blockers:
            self.turned_away = is_busy(blockers)
            await self._refuse(link, blockers)
            if not can_rehearse(self._host, offer, blockers):
                await link.send(Finished("refused"))
                return False
        await fetch_image(self._host, link, offer)
        try:
            await self._start_agent(offer, activity)
        except MigrationBlocked as error:
            await self._refuse(link, error.blockers)
            await link.send(Finished("refused"))
            return False
        tickets: list[bytes] = []
        if not self._record.dry_run:
            await self._host.journal.save_migration(self._row)
            tickets = self._host.tickets.issue(offer.migration_id, offer.streams, self._take_stream)
        await link.send(Accepted(tickets))
        self._log.info("migration_accepted", dry_run=self._record.dry_run)
        return True

    async def relay(self, link: Link) -> None:
        """Relay until the agent has ended the migration.

        Raises:
            ChannelClosed: a connection was lost; `listen` goes on without the link.
            OptmigError: somebody broke the protocol, or the source aborted (`aborted`).
        """
        agent = self._live_agent()
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._relay_from_agent, link, nursery.cancel_scope)
            nursery.start_soon(self._relay_from_peer, link, agent)

    async def listen(self, until: Callable[[], bool]) -> None:
        """Take what the agent says, without a link, until `until` holds or the agent has ended."""
        async for event in self._agent_events():
            if event is not CONNECTION_LOST:
                await self._take(event)
            if until():
                return

    async def give_token(self, token: bytes) -> None:
        """Hand the token to the agent, which alone can open it. Giving it twice does no harm.

        Raises:
            OptmigError: the agent cannot be reached.
        """
        agent = self._live_agent()
        if not takes_token(aborted=self.aborted):
            raise MigrationFailed("the source has ended this migration: its token comes too late")
        self.token_given = True
        params = {"migration_id": self._row.migration_id, "payload": token}
        await agent.notify("token_delivered", params)

    def failure(self) -> OptmigError | None:
        """What the agent's `ended` says if it is not a success."""
        if self.ended is None or self.ended.get("outcome") in ("completed", "checked"):
            return None
        return reported_error(self.ended) or MigrationFailed("the shim agent gave no reason")

    def cut_streams(self) -> None:
        """End the data streams for both hosts, and take no more."""
        self._host.tickets.withdraw(self._row.migration_id)
        self._duplicates.cut()

    async def tell_link_lost(self) -> None:
        """Tell the agent that nothing more comes, unless it is the token: see contract 1.

        Raises:
            OptmigError: it has not heard, or it has no such migration.
        """
        params = {"migration_id": self._row.migration_id}
        await self._live_agent().request("link_lost", params)

    def close(self) -> None:
        """Take no more streams and listen no longer."""
        self._host.tickets.withdraw(self._row.migration_id)
        self._duplicates.close()
        if self._events is not None:
            self._events.close()

    async def _refuse(self, link: Link, blockers: list[Blocker]) -> None:
        self._log.info("offer_refused", blockers=[blocker.code for blocker in blockers])
        await link.send(Refused(fit_blockers(blockers)))

    async def _start_agent(self, offer: Offer, activity: Activity) -> None:
        facts: Params = {
            "image_sha256": offer.image_sha256,
            "image_bytes": offer.image_bytes,
            "memory_bytes": offer.memory_bytes,
            "own_dir": offer.own_dir,
            "shared": offer.shared,
            "policy": offer.policy,
        }
        registry = self._host.registry
        self.instance = await registry.create(
            offer.enclave,
            state="incoming",
            generation=offer.generation + 1,
            facts=facts,
            came_from=self._peer.key,
        )
        self.instance.migration = activity
        self._row.number = self.instance.row.number
        with self._host.turns.join() as waiter:
            await waiter.turn()
            agent = await registry.start(self.instance)
        await self._host.turns.let_pass(offer.migration_id)
        self._events = agent.subscribe(offer.migration_id)
        answer = await agent.request(
            "receive",
            {
                "migration_id": offer.migration_id,
                "enclave": offer.enclave,
                "generation": offer.generation,
                "image": str(self._host.images.path(offer.image_sha256)),
                "policy": offer.policy,
                "memory_bytes": offer.memory_bytes,
                "resident_bytes": offer.resident_bytes,
                "streams": offer.streams,
                "dry_run": self._record.dry_run,
                "source_host": self._peer.key,
                "destination_host": self._host.identity.public,
                "own_dir": offer.own_dir,
            },
        )
        for name in ("measurement", "platform", "tracker"):
            facts[name] = param(answer, name, str)
        self._record.platform = facts["platform"]

    async def _take_stream(self, index: int, stream: socket.socket) -> None:
        """Own a data stream whose ticket was redeemed, and pass it to the agent."""
        self._duplicates.keep(index, stream)
        params = {"migration_id": self._row.migration_id, "index": index}
        await self._live_agent().request("add_stream", params, fd=stream.fileno())

    async def _relay_from_agent(self, link: Link, relay: trio.CancelScope) -> None:
        told = False
        async for event in self._agent_events():
            if event is CONNECTION_LOST:
                raise AgentConnectionLost()
            await self._take(event)
            if event["event"] == "session":
                await self._host.turns.let_pass(self._row.migration_id)
                await link.send(Session(param(event["params"], "payload", bytes)))
            elif event["event"] == "resumed" and not told and self._row.resumed is not None:
                told = True  # once: the agent answers the token of the stream and that of the link
                await link.send(Resumed(self._row.resumed))
            if self.ended is not None:
                relay.cancel()
                return
        raise RuntimeFailed("the shim agent ended during the migration: see its agent.log")

    async def _relay_from_peer(self, link: Link, agent: Agent) -> None:
        while True:
            message = await link.receive()
            if isinstance(message, Session):
                await self._host.turns.let_pass(self._row.migration_id)
                params = {"migration_id": self._row.migration_id, "payload": message.payload}
                await agent.notify("session", params)
            elif isinstance(message, Token):
                await self.give_token(message.payload)
            elif isinstance(message, Abort) and heeds_abort(token_given=self.token_given):
                self.aborted = True
                raise refusal(message, self._peer)
            elif not isinstance(message, Finished):
                raise refusal(message, self._peer)

    async def _take(self, event: Event) -> None:
        params = event["params"]
        if event["event"] == "resumed":
            self._confirmation = param(params, "payload", bytes)
            await self.take_over()
        elif event["event"] == "ended":
            self.ended = params
        else:
            self._record.take(event["event"], params)

    async def take_over(self) -> None:
        """Journal that the enclave is ours, if it runs here. Only then may anybody be told.

        That takes as long as the disk is full. Cancelled meanwhile, it is to be called again.
        """
        confirmation = self._confirmation
        if self.instance is None or confirmation is None or self._row.resumed is not None:
            return
        self.instance.row.since_s = now_s()
        self.instance.row.migration_id = self._row.migration_id
        journaled = dataclasses.replace(self._row, resumed=confirmation)
        await self._host.registry.running(self.instance, journaled)
        self._row.resumed = confirmation
        self.owned = True
        self.instance.migration = None
        self.instance.last_migration = self._record
        self.resumed_event.set()
        self._log.info("enclave_resumed", owner_generation=self.instance.row.generation)

    def _live_agent(self) -> Agent:
        if self.instance is None:
            raise RuntimeFailed("there is no shim agent for this migration yet")
        return self.instance.live_agent()

    def _agent_events(self) -> trio.MemoryReceiveChannel[Event]:
        if self._events is None:
            raise RuntimeFailed("the shim agent is not listened to")
        return self._events
