"""The destination's role: make room, receive, verify, and run only with the token.

1. `setup`: judge the proposal. If nothing is in the way, start the image's process, which waits,
   and populate the memory before the first page arrives (a page fault costs more than opening a
   page). Then answer.
2. `active`: receivers place pages and files; each whole round is confirmed.
3. The manifest comes behind the last round and must agree with what arrived, to the record. Then
   the runtime puts everything in its place and waits at its restore point: PREPARED. READY carries
   this side's digest of the state. It goes back on the data stream, past the daemon, which reckons
   with it since it relayed the answer: what may be released must not be destroyed.
4. The token, and nothing else, starts the program: for this instance, this digest, this generation.
   It may arrive again: it is answered again and starts nothing.

Until READY every failure destroys this side, which has nothing to lose. After READY the source may
have let go, and then this is the only instance: silence alone destroys nothing.
"""

import hmac
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import trio

from optmigd.enclave_shim import preflight
from optmigd.enclave_shim.abi import Command
from optmigd.enclave_shim.migration.arrival import Arrival, populate
from optmigd.enclave_shim.migration.common import (
    RECORD_BYTES,
    Appraiser,
    Emit,
    Enclave,
    Identity,
    Log,
    ReceiveOrders,
    Replace,
)
from optmigd.enclave_shim.migration.conversation import PeerRefused, open_conversation
from optmigd.enclave_shim.migration.departure import free
from optmigd.enclave_shim.migration.handoff_frames import receive_frame
from optmigd.enclave_shim.migration.part import Announcer, Part
from optmigd.enclave_shim.migration.proposal import check_proposal, resident_runs
from optmigd.enclave_shim.migration.report import DestinationReport, Parts, boot_id, root_cause
from optmigd.enclave_shim.migration.switchover import small_heap
from optmigd.enclave_shim.migration.takeover import Takeover
from optmigd.enclave_shim.remembered import DestinationFacts, Memory, UnderWay
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.ciphers import choose_cipher
from optmigd.protocol.errors import (
    ChannelClosed,
    EnclaveError,
    MigrationBlocked,
    MigrationCancelled,
    MigrationFailed,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.handoff import Action, Event, Migration, Phase, Role
from optmigd.protocol.link import WireBlocker
from optmigd.protocol.records import state_digest
from optmigd.protocol.session import (
    Answer,
    Manifest,
    Proposal,
    Ready,
)
from optmigd.protocol.wire import encode

FAREWELL_TIMEOUT_S = 2.0

Prepare = Callable[[], Awaitable[Enclave]]
"""Makes memory, directories and the waiting process of the new instance."""


class Destination(Part):
    """One migration to here; `run` it once.

    Args:
        identity: what is to arrive.
        orders: how.
        prepare: makes the instance; called when nothing is in the way.
        replace: replaces its waiting process when that has ended.
        digests: of this host's files.
        memory: the vault, for the agent after this one.
        emit: sends events of this migration to the daemon.
        log: bound to the migration.

    """

    def __init__(
        self,
        identity: Identity,
        orders: ReceiveOrders,
        prepare: Prepare,
        replace: Replace,
        digests: preflight.DigestCache,
        memory: Memory,
        emit: Emit,
        log: Log,
    ) -> None:
        migration = Migration(Role.DESTINATION)
        binding = orders.binding
        announcer = Announcer(migration, binding.migration_id, emit, memory)
        super().__init__(binding, migration, announcer, streams=orders.streams)
        self.orders = orders
        self._identity = identity
        self._prepare = prepare
        self._replace = replace
        self._digests = digests
        self._memory = memory
        self._emit = emit
        self._log = log
        self._parts = Parts()
        self._appraiser = Appraiser(identity)
        self._conversation = open_conversation(
            "destination", identity, binding, self._appraiser, emit
        )
        facts = DestinationFacts(time.monotonic())
        self._report = DestinationReport(identity, binding, orders.generation, facts)
        self._instance = os.urandom(32)
        self._scope = trio.CancelScope()
        self._given_up_because: OptmigError | None = None
        self._answer_refused = False
        self._actions: tuple[Action, ...] = ()
        self._arrival: Arrival | None = None
        self._takeover: Takeover | None = None
        self._quiet = ExitStack()
        memory.note_migration(UnderWay(binding.migration_id, "destination"))

    # ---- what the agent calls ----

    def deliver(self, payload: bytes) -> None:
        """Take a payload of the attested session."""
        if not self.migration.released:
            self._conversation.deliver(payload)

    def cancel(self) -> None:
        """Destroy this side: its daemon has decided so.

        Raises:
            AlreadyReleased: the program runs here.

        """
        if self.migration.ended and not self.migration.released:
            return
        self._actions = self.migration.handle(Event.CANCEL)
        self._give_up(MigrationCancelled("cancelled; nothing was moved here"))

    def link_lost(self) -> None:
        """Destroy this side unless it has said READY: what is missing will never come."""
        if Action.DESTROY_DESTINATION in self.migration.handle(Event.LINK_LOST):
            self._give_up(ChannelClosed("the link to the source's host was lost"))

    async def token_delivered(self, payload: bytes) -> None:
        """Take the right to execute, and use it; see `Takeover`."""
        if self._takeover is None:
            raise RemoteProtocolError("a token before READY")
        await self._takeover.token_delivered(payload)

    async def daemon_back(self) -> None:
        """A daemon has connected: tell it where this side stands."""
        if self._takeover is not None:
            await self._takeover.repeat()
        await self.announcer.enter(again=True)
        await super().daemon_back()

    def _give_up(self, why: OptmigError) -> None:
        self._given_up_because = why
        self._scope.cancel()

    # ---- the migration ----

    async def run(self) -> None:
        """Carry the migration through; `ended` was emitted when this returns."""
        await self.announcer.enter()
        error: OptmigError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen)
                    nursery.start_soon(self._shut_streams_at_the_end)
                    takeover = await self._up_to_ready(nursery)
                    if takeover is not None:
                        nursery.start_soon(self._take_token_of_stream, takeover)
                        await takeover.started.wait()
                    nursery.cancel_scope.cancel()
        except (Exception, BaseExceptionGroup) as group:
            error = root_cause(group, self._log)
            if error is None:
                raise
        finally:
            self._quiet.close()
            self.streams.close()
        if self._takeover is not None:
            if self.migration.released:
                await self._takeover.started.wait()
                error = None
            self._actions = self._takeover.actions or self._actions
            error = error or self._takeover.start_error
        await self._end(error)
        self._conversation.close()

    async def _listen(self) -> None:
        """Take the source's messages; after READY only a refusal that opens ends this side.

        The source may have let go by then, and whoever carries the session can spoil it.
        """
        try:
            await self._conversation.listen()
        except PeerRefused:
            raise
        except OptmigError as error:
            if self.migration.phase not in (Phase.AWAITING_TOKEN, Phase.STARTING):
                raise
            self._log.warning("session_spoiled_after_ready", error=error.message)

    async def _up_to_ready(self, nursery: trio.Nursery) -> Takeover | None:
        """Everything until the token is awaited; None if there is nothing to wait for."""
        keys = await self._conversation.established()
        proposal = await self._conversation.receive(Proposal)
        blockers = await trio.to_thread.run_sync(
            check_proposal, proposal, self.orders, self._digests
        )
        cipher = choose_cipher(proposal.ciphers) or ""
        record_bytes = min(proposal.record_bytes, RECORD_BYTES)
        going = not (blockers or proposal.dry_run or self.orders.dry_run)
        if going:
            parts = await self._make_room(proposal, nursery)
            self._log.info("room_made", cipher=cipher, record_bytes=record_bytes, **parts)
        answer = Answer(
            cipher=cipher,
            record_bytes=record_bytes,
            blockers=[WireBlocker(b.code, b.subject, b.message[:1000]) for b in blockers],
            instance=self._instance,
        )
        if not going:
            await self._conversation.send(answer)
            await self._stop_at_answer(blockers)
            return None
        self.migration.handle(Event.OFFERED)
        self._quiet.enter_context(small_heap())
        self._report.setup_done()
        await self.announcer.enter()
        await self._conversation.send(answer)
        self._arrival = arrival = Arrival(
            self._instance_here(), self.orders, self.migration, live=proposal.mode == "precopy"
        )
        sealed = await arrival.receive_all(
            nursery, self._conversation, await self.streams.all(), keys, answer
        )
        manifest = self._conversation.handoff_seals().open_manifest(sealed)
        if manifest.generation != proposal.generation + 1:
            raise RemoteProtocolError("the manifest names another generation")
        if not arrival.fits(manifest):
            raise self._differs("the manifest does not fit what has arrived")
        return await self._verify(manifest, proposal, arrival)

    async def _stop_at_answer(self, blockers: list[Blocker]) -> None:
        self._answer_refused = True  # a refusal as well could overtake the blockers' being read
        if self.orders.dry_run:
            return
        if blockers:
            raise MigrationBlocked(f"{len(blockers)} blocker(s) here", blockers=blockers)
        # The source has blockers of its own and only asked for ours; it will say so.
        message = await self._conversation.receive_any()
        raise RemoteProtocolError(f"a {type(message).__name__} after nothing but a question")

    async def _make_room(self, proposal: Proposal, nursery: trio.Nursery) -> dict[str, float]:
        """Start the waiting process and populate its memory; returns what took how long."""
        runs = resident_runs(proposal)
        parts = Parts()
        with parts.measure("process_ms"):
            self.enclave = enclave = await self._prepare()
        nursery.start_soon(self._watch_process, enclave)
        with parts.measure("populate_ms"):
            await populate(enclave, runs, self.bulk_gate)
        return parts.parts_ms

    async def _watch_process(self, enclave: Enclave) -> None:
        await enclave.process.exited.wait()
        if self._takeover is None:
            raise EnclaveError("the waiting process of the new instance has ended")
        await self._takeover.keep_waiting()

    async def _shut_streams_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.bulk_gate.keep_open()
            self.streams.shut()

    # ---- hand-off ----

    async def _verify(self, manifest: Manifest, proposal: Proposal, arrival: Arrival) -> Takeover:
        """Make sure that the state here is the source's, put it in its place, and say READY."""
        enclave = self._instance_here()
        if manifest.arena_digest:
            with self._parts.measure("verify"):
                digest = await trio.to_thread.run_sync(enclave.arena.content_hash)
            if not hmac.compare_digest(digest, manifest.arena_digest):
                raise self._differs("the memory here differs from the memory at the source")
        with self._parts.measure("files"):
            if manifest.files:
                await self._check_files(manifest)
        self.migration.handle(Event.MANIFEST_EQUAL)
        with self._parts.measure("prepare"):
            asked = enclave.process.ask(Command.PREPARE)
            await self.announcer.enter()  # meanwhile
            await enclave.process.done(asked)
        # READY must not be said after this side was told to end, were it in this very tick.
        await trio.lowlevel.checkpoint_if_cancelled()
        seals = self._conversation.handoff_seals()
        binding, facts = self.binding, self._report.facts
        facts.peer, facts.received_bytes = self._appraiser.claims, arrival.received_bytes
        digest = state_digest(
            binding.migration_id, manifest.generation, arrival.chain, encode(manifest)
        )
        takeover = Takeover(
            enclave,
            binding,
            self.migration,
            generation=self.orders.generation,
            instance=self._instance,
            digest=digest,
            manifest=manifest,
            same_clock=proposal.boot_id == boot_id(),
            seals=seals,
            report=self._report,
            parts=self._parts,
            memory=self._memory,
            emit=self._emit,
            log=self._log,
            replace=self._replace,
        )
        takeover.note()  # before READY: from then on this may be the only instance
        self.migration.handle(Event.PREPARED)
        self._takeover = takeover
        try:
            arrival.send_ready(seals.seal_ready(Ready(digest)))
        except ChannelClosed:
            self._log.warning("ready_undelivered")  # the source will say that it goes on
        return takeover

    async def _take_token_of_stream(self, takeover: Takeover) -> None:
        """Take the token from where READY went: so it comes past the daemon here, and earlier.

        Whatever else comes there is no reason to end: the daemons deliver the token as well.
        """
        try:
            payload = await receive_frame((await self.streams.all())[0])
            await takeover.token_delivered(payload)
        except OptmigError as error:
            self._log.info("no_token_on_stream", code=error.code, error=error.message)

    async def _check_files(self, manifest: Manifest) -> None:
        needs = manifest.files
        blockers = await trio.to_thread.run_sync(preflight.check_needs, needs, self._digests)
        if blockers:
            raise MigrationBlocked("files that the program opened meanwhile", blockers=blockers)

    def _differs(self, message: str) -> MigrationFailed:
        self._actions = self.migration.handle(Event.MANIFEST_DIFFERS)
        return MigrationFailed(message)

    def _instance_here(self) -> Enclave:
        if self.enclave is None:
            raise RemoteProtocolError("there is no instance here yet")
        return self.enclave

    # ---- the end ----

    async def _end(self, error: OptmigError | None) -> None:
        outcome = "completed" if self.migration.released else "failed"
        if self._given_up_because is not None:
            error = self._given_up_because
            outcome = "cancelled" if isinstance(error, MigrationCancelled) else "failed"
        elif error is None and outcome == "failed":
            outcome = "checked"
        elif error is not None and self.migration.phase is not Phase.FAILED:
            refused = isinstance(error, PeerRefused)
            self._actions = self.migration.handle(Event.PEER_REFUSED if refused else Event.FAULT)
            outcome = "failed"
        if error is not None and Action.SEND_REFUSAL in self._actions and not self._answer_refused:
            await self._tell_source(error)
        if outcome != "completed":
            await self._destroy()
        self._log.info("migration_ended", outcome=outcome, error=error and error.message)
        if self._arrival is not None:
            self._report.facts.received_bytes = self._arrival.received_bytes
        self._report.facts.peer = self._appraiser.claims
        confirmation = self._takeover.confirmation if self._takeover else b""
        await self.announcer.enter()
        report = self._report.fields(self._parts)
        await self.announcer.end(outcome, error, report, confirmation)

    async def _tell_source(self, error: OptmigError) -> None:
        with trio.move_on_after(FAREWELL_TIMEOUT_S) as scope:
            scope.shield = True
            try:
                await self._conversation.refuse(error.code, error.message)
            except OptmigError as lost:
                self._log.info("source_not_told", error=lost.message)

    async def _destroy(self) -> None:
        """End the waiting process and give its memory back."""
        if self.enclave is not None:
            with trio.CancelScope(shield=True):
                await free(self.enclave, self.bulk_gate)
