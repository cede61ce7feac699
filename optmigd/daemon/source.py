"""The source's part of a migration up to the release: agree, open the streams, relay.

The daemon decides nothing about the hand-off; the shim agent does. What this module guarantees is
that an attempt which fails ends with the agent's word: either it has resumed the program, or it has
released it. Nothing in between is ever reported as an outcome.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from optmigd.config import Peer
from optmigd.daemon.agents import CONNECTION_LOST, Agent, AgentConnectionLost, Event
from optmigd.daemon.answers import Params, merged, param
from optmigd.daemon.bandwidth import Share
from optmigd.daemon.host import Host
from optmigd.daemon.link import Link, refusal
from optmigd.daemon.nurseries import open_flat_nursery
from optmigd.daemon.records import MigrationRecord
from optmigd.daemon.registry import Instance
from optmigd.daemon.streams import StreamDuplicates, dial_stream
from optmigd.protocol.blockers import Blocker, blockers_from_fields
from optmigd.protocol.errors import (
    AlreadyReleased,
    ChannelClosed,
    EnclaveError,
    MigrationBlocked,
    MigrationFailed,
    OptmigError,
    RuntimeFailed,
)
from optmigd.protocol.link import (
    Abort,
    Accepted,
    Finished,
    ImageChunk,
    ImageWanted,
    Offer,
    Refused,
    Session,
)

ABORT_GRACE_S = 2.0
"""After the peer's `Abort`, how long our own agent may take to say the reason better."""
FINISHED_GRACE_S = 10.0
ENDED_TIMEOUT_S = 15.0
WITHDRAW_RETRY_S = 1.0
ABORT_SEND_TIMEOUT_S = 1.0


CHANGEABLE = ("downtime_limit_ms", "max_bandwidth", "on_stall")


@dataclass(frozen=True)
class MigrateOptions:
    """What was asked for; `max_bandwidth` in bytes per second, `timeout_s`; 0: no limit."""

    mode: str
    downtime_limit_ms: float
    max_bandwidth: int
    streams: int
    timeout_s: float
    on_stall: str
    verify: bool
    dry_run: bool

    def changeable(self) -> Params:
        """What of it can be changed while the migration is under way."""
        return {name: getattr(self, name) for name in CHANGEABLE}


@dataclass(frozen=True)
class Hooks:
    """What an attempt tells at once: the destination has room; the rounds have converged."""

    accepted: Callable[[], None]
    converged: Callable[[], None]


class Attempt:
    """The conversation with the agent here and the daemon there, before the release.

    `token`, `ended` and `blockers` are its outcome.
    """

    def __init__(
        self,
        host: Host,
        instance: Instance,
        peer: Peer,
        options: MigrateOptions,
        migration_id: bytes,
        record: MigrationRecord,
        log: structlog.stdlib.BoundLogger,
        hooks: "Hooks",
    ) -> None:
        """Prepare it; nothing is sent yet."""
        self.migration_id = migration_id
        self.token: bytes | None = None
        self.ended: Params | None = None
        self.ended_event = trio.Event()
        self.blockers: list[Blocker] = []
        self.link: Link | None = None
        self.duplicates = StreamDuplicates(options.streams)
        self._host = host
        self._instance = instance
        self._peer = peer
        self._options = options
        self._share: Share | None = None
        self._agreeing = trio.Lock()
        self._exported = False
        self._record = record
        self._log = log
        self._hooks = hooks
        self._events: trio.MemoryReceiveChannel[Event] | None = None

    def subscribe(self, agent: Agent) -> None:
        """Listen to the agent; from here on it may have to be asked to withdraw."""
        self._events = agent.subscribe(self.migration_id)

    async def run(self) -> None:
        """Migrate until the agent has released, or has ended the migration.

        Raises:
            MigrationBlocked: the destination refused and could hold no rehearsal.
            OptmigError: something failed: `withdraw` must follow, as after a cancellation.
        """
        agent = self._instance.live_agent()
        status = await agent.request("status")
        self.blockers = [
            blocker
            for blocker in blockers_from_fields(status.get("blockers"))
            # What stands still while it is copied needs no tracker.
            if blocker.code != "tracker" or self._options.mode != "stop-and-copy"
        ]
        self.link = link = await self._host.dial(self._peer)
        tickets = await self._agree(link, status)
        self._hooks.accepted()
        dry_run = self._options.dry_run or bool(self.blockers)
        self.subscribe(agent)
        await self._host.turns.let_pass(self.migration_id)
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._relay_from_agent, link, nursery.cancel_scope)
            nursery.start_soon(self._relay_from_peer, link, agent)
            async with self._agreeing:
                await agent.request("export", self._export_params(dry_run))
                self._exported = True
            if not dry_run:
                await self._send_beside_others(agent, tickets)

    async def change(self, options: MigrateOptions, changes: Params) -> None:
        """Go on with other options: `changes` says which differ.

        Raises:
            AlreadyReleased: it is too late.
            OptmigError: the agent did not take them: nothing was changed.
        """
        async with self._agreeing:
            if self._exported:
                agent = self._instance.live_agent()
                await agent.request("set", {"migration_id": self.migration_id, **changes})
            self._options = options
        if self._share is not None:
            # Also where only another limit was changed: the agent may have set the streams' rate.
            self._share.change(options.max_bandwidth)

    async def withdraw(self, *, ended_timeout_s: float = ENDED_TIMEOUT_S) -> None:
        """Have the agent resume the program.

        Returns when the agent has said that the program runs, when it has ended, or when it has
        released: then `token` is set.

        Args:
            ended_timeout_s: how long the agent may take from obeying to its `ended`, which it may
                have said to an earlier daemon.
        """
        agent = self._instance.agent
        while self._events is not None and agent is not None and not agent.gone.is_set():
            try:
                await self._ask_to_withdraw(agent, ended_timeout_s)
                break
            except OptmigError as failure:
                self._log.warning("withdrawal_unanswered", error=failure.message)
                await trio.sleep(WITHDRAW_RETRY_S)

    async def abort(self, error: OptmigError) -> None:
        """Tell the peer's daemon, if it can still be told, to forget the migration."""
        if self.link is not None:
            with trio.move_on_after(ABORT_SEND_TIMEOUT_S):
                try:
                    await self.link.send(Abort(error.code[:64], error.message[:1000]))
                except OptmigError as failure:
                    self._log.info("abort_not_sent", error=failure.message)

    def send_token_to_shim(self) -> None:
        """Send the token, which is journaled, to the shim there past its daemon, if that goes.

        The link carries it as well, so it is no loss if it does not.
        """
        if self.token is not None:
            with suppress(ChannelClosed):
                self.duplicates.send_frame(self.token)

    async def listen(self) -> None:
        """Note what the agent says, until it has ended."""
        async for event in self._agent_events():
            if event is not CONNECTION_LOST:
                self._take(event)

    def forget_end(self) -> None:
        """Expect the agent to end the migration once more."""
        self.ended = None
        self.ended_event = trio.Event()

    async def close(self) -> None:
        """Let go of everything but the agent."""
        self.duplicates.close()
        if self._events is not None:
            self._events.close()
        if self.link is not None:
            await self.link.aclose()

    async def _agree(self, link: Link, status: Params) -> list[bytes]:
        """Offer the enclave; the destination's blockers are added to ours."""
        facts = self._instance.row.facts
        await link.send(
            Offer(
                migration_id=self.migration_id,
                enclave=self._instance.enclave,
                generation=self._instance.row.generation,
                image_sha256=facts["image_sha256"],
                image_bytes=facts["image_bytes"],
                memory_bytes=facts["memory_bytes"],
                resident_bytes=param(status, "resident_bytes", int, 0),
                streams=self._options.streams,
                policy=facts["policy"],
                own_dir=facts["own_dir"],
                shared=facts["shared"],
                dry_run=self._options.dry_run or bool(self.blockers),
                mode=self._options.mode,
            )
        )
        idle_s = self._host.settings.limits.link_idle_timeout_s
        while True:
            message = await link.receive(timeout_s=idle_s)
            if isinstance(message, Accepted):
                return message.tickets
            if isinstance(message, ImageWanted):
                await self._send_image(link, facts["image_sha256"], facts["image_bytes"])
            elif isinstance(message, Refused):
                refused = [blocker.blocker() for blocker in message.blockers]
                self.blockers = merged(self.blockers, refused)
            elif isinstance(message, Finished):
                raise MigrationBlocked("the destination refused", blockers=self.blockers)
            else:
                raise refusal(message, self._peer)

    async def _send_image(self, link: Link, sha256: bytes, size_bytes: int) -> None:
        offset = 0
        while offset < size_bytes:
            content = await self._host.images.read(sha256, offset)
            await link.send(ImageChunk(offset, content, offset + len(content) >= size_bytes))
            offset += len(content)
        self._log.info("image_sent", bytes=size_bytes)

    def _export_params(self, dry_run: bool) -> Params:
        options = self._options
        return {
            "migration_id": self.migration_id,
            "mode": options.mode,
            "streams": options.streams,
            "downtime_limit_ms": options.downtime_limit_ms,
            "max_bandwidth": options.max_bandwidth,
            "on_stall": options.on_stall,
            "verify": options.verify,
            "timeout_s": options.timeout_s,
            "switchover_stall_s": self._host.settings.migration.switchover_stall_s,
            "dry_run": dry_run,
            "ask_for_turn": True,
            "source_host": self._host.identity.public,
            "destination_host": self._peer.key,
        }

    async def _send_beside_others(self, agent: Agent, tickets: list[bytes]) -> None:
        """Open the streams, and share the host's bandwidth until cancelled."""
        limit = self._options.max_bandwidth
        with self._host.bandwidth.share(limit, self.duplicates.pace) as self._share:
            await self._open_streams(agent, tickets)
            await trio.sleep_forever()

    async def _open_streams(self, agent: Agent, tickets: list[bytes]) -> None:
        if len(tickets) != self._options.streams:
            raise MigrationFailed(
                f"expected {self._options.streams} tickets from host {self._peer.name}, found "
                f"{len(tickets)}"
            )

        async def open_one(index: int, ticket: bytes) -> None:
            settings = self._host.settings
            sock = await dial_stream(
                self._peer, ticket, settings.limits, settings.migration.congestion_control
            )
            self.duplicates.keep(index, sock)
            params = {"migration_id": self.migration_id, "index": index}
            await agent.request("add_stream", params, fd=sock.fileno())

        async with open_flat_nursery() as nursery:
            for index, ticket in enumerate(tickets):
                nursery.start_soon(open_one, index, ticket)

    async def _relay_from_agent(self, link: Link, relay: trio.CancelScope) -> None:
        async for event in self._agent_events():
            if event is CONNECTION_LOST:
                raise AgentConnectionLost()
            self._take(event)
            if event["event"] == "session":
                await self._host.turns.let_pass(self.migration_id)
                await link.send(Session(param(event["params"], "payload", bytes)))
            if self.token is not None or self.ended is not None:
                relay.cancel()
                return
        raise RuntimeFailed("the shim agent ended during the migration: see its agent.log")

    async def _relay_from_peer(self, link: Link, agent: Agent) -> None:
        while True:
            message = await link.receive()
            if isinstance(message, Session):
                await self._host.turns.let_pass(self.migration_id)
                params = {"migration_id": self.migration_id, "payload": message.payload}
                await agent.notify("session", params)
            elif isinstance(message, Abort):
                error = refusal(message, self._peer)
                if not isinstance(error, ChannelClosed):  # it lost its shim, and ours knows no more
                    await trio.sleep(ABORT_GRACE_S)
                raise error
            elif isinstance(message, Finished):
                await trio.sleep(FINISHED_GRACE_S)
                raise MigrationFailed(
                    f"host {self._peer.name} has finished ({message.outcome}), but the shim agent "
                    f"here has not within {FINISHED_GRACE_S:.0f} s"
                )
            else:
                raise refusal(message, self._peer)

    def _agent_events(self) -> trio.MemoryReceiveChannel[Event]:
        if self._events is None:
            raise RuntimeFailed("the shim agent is not listened to")
        return self._events

    def _take(self, event: Event) -> None:
        """Note what the agent says. Never awaits: an event taken is an event noted."""
        params = event["params"]
        if event["event"] == "release":
            self.token = param(params, "payload", bytes)
        elif event["event"] == "ended":
            self.ended = params
            self.ended_event.set()
        elif event["event"] == "converged":
            self._hooks.converged()
        else:
            state = self._record.state
            self._record.take(event["event"], params)
            if event["event"] == "round":
                self._log.info("round_completed", **self._record.rounds[-1])
            elif self._record.state != state:
                self._log.info("state_entered", state=self._record.state)

    async def _ask_to_withdraw(self, agent: Agent, ended_timeout_s: float) -> None:
        async with open_flat_nursery() as nursery:

            async def listen() -> None:
                async for event in self._agent_events():
                    if event is not CONNECTION_LOST:
                        self._take(event)
                    if self.token is not None or self.ended is not None:
                        break
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            try:
                await agent.request("cancel", {"migration_id": self.migration_id})
            except AlreadyReleased:
                await trio.sleep_forever()  # until `release` arrives, or the agent has gone
            except EnclaveError as error:
                if isinstance(error, RuntimeFailed):
                    raise
                # It has no such migration: it never began. Any other error leaves that open.
                self._log.info("withdrawal_needless", error=error.message)
                ended_timeout_s = 0.0
            self.duplicates.cut()
            nursery.cancel_scope.deadline = trio.current_time() + ended_timeout_s
            await self.ended_event.wait()
