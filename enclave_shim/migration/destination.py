"""The destination's role: make room, receive, verify, and run only with the token.

1. `setup`: judge the proposal. If nothing is in the way, start the image's process, which waits,
   and populate the memory before the first page arrives (a page fault costs more than opening a
   page). Then answer.
2. `active`: receivers place pages and files; each whole round is confirmed.
3. The manifest must agree with what arrived, to the record. Then the runtime puts everything in its
   place and waits at its restore point: PREPARED. READY carries this side's digest of the state.
4. The token, and nothing else, starts the program: for this instance, this digest, this generation.
   It may arrive again: it is answered again and starts nothing.

Until READY every failure destroys this side, which has nothing to lose. After READY the source may
have let go, and then this is the only instance: silence alone destroys nothing.
"""

import hmac
import os
import time
from collections.abc import Awaitable, Callable

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
    Streams,
)
from optmigd.enclave_shim.migration.conversation import PeerRefused, open_conversation
from optmigd.enclave_shim.migration.proposal import check_proposal, resident_runs
from optmigd.enclave_shim.migration.report import DestinationReport, Parts, boot_id, root_cause
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
    to_wire,
)
from optmigd.protocol.handoff import Action, Event, Migration, Phase, Role, check_token
from optmigd.protocol.link import WireBlocker
from optmigd.protocol.records import state_digest
from optmigd.protocol.session import (
    Answer,
    Manifest,
    Proposal,
    Ready,
    ResumedReport,
)
from optmigd.protocol.wire import encode

POPULATE_PAGES = 1 << 14
FAREWELL_TIMEOUT_S = 2.0
REFUSAL_GRACE_S = 0.3

Prepare = Callable[[], Awaitable[Enclave]]
"""Makes memory, directories and the waiting process of the new instance."""


class Destination:
    """One migration to here; `run` it once.

    Args:
        identity: what is to arrive.
        orders: how.
        prepare: makes the instance; called when nothing is in the way.
        digests: of this host's files.
        emit: sends events of this migration to the daemon.
        log: bound to the migration.

    """

    def __init__(
        self,
        identity: Identity,
        orders: ReceiveOrders,
        prepare: Prepare,
        digests: preflight.DigestCache,
        emit: Emit,
        log: Log,
    ) -> None:
        self.orders = orders
        self.streams = Streams(orders.streams)
        self.migration = Migration(Role.DESTINATION)
        self.enclave: Enclave | None = None
        self._identity = identity
        self._prepare = prepare
        self._digests = digests
        self._emit = emit
        self._log = log
        self._parts = Parts()
        self._appraiser = Appraiser(identity)
        self._conversation = open_conversation(
            "destination", identity, orders.binding, self._appraiser, emit
        )
        self._report = DestinationReport(identity, orders)
        self._instance = os.urandom(32)
        self._scope = trio.CancelScope()
        self._cancelled_because: OptmigError | None = None
        self._actions: tuple[Action, ...] = ()
        self._arrival: Arrival | None = None
        self._manifest: Manifest | None = None
        self._digest = b""
        self._same_clock = False
        self._resumed_payload = b""
        self._started = trio.Event()
        self._start_error: OptmigError | None = None
        self._state = ""

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
        over = self.migration.ended or self._cancelled_because is not None
        if over and not self.migration.released:
            return
        self._actions = self.migration.handle(Event.CANCEL)
        self._cancelled_because = MigrationCancelled("cancelled; nothing was moved here")
        self._scope.cancel()

    async def token_delivered(self, payload: bytes) -> None:
        """Take the right to execute, and use it; a repetition is answered again.

        Raises:
            DecryptFailed, RemoteProtocolError: it is no token for this instance and state.
            RuntimeFailed: the program could not be started.

        """
        manifest = self._manifest
        if manifest is None or not self._digest:
            raise RemoteProtocolError("a token before READY")
        check_token(
            self._conversation.open_token(payload),
            migration_id=self.orders.binding.migration_id,
            generation=manifest.generation,
            instance=self._instance,
            state_digest=self._digest,
        )
        actions = self.migration.handle(Event.TOKEN_ACCEPTED)
        if Action.RUN in actions:
            with trio.CancelScope(shield=True):
                await self._start(manifest)
        if self._resumed_payload:
            await self._emit("resumed", {"payload": self._resumed_payload})

    async def daemon_back(self) -> None:
        """A daemon has connected: tell it where this side stands."""
        self._state = ""
        await self._enter()

    # ---- the migration ----

    async def run(self) -> None:
        """Carry the migration through; `ended` was emitted when this returns."""
        await self._enter()
        error: OptmigError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen)
                    nursery.start_soon(self._shut_streams_at_the_end)
                    if await self._up_to_ready(nursery):
                        await self._started.wait()
                    nursery.cancel_scope.cancel()
        except (Exception, BaseExceptionGroup) as group:
            error = root_cause(group, self._log)
            if error is None:
                raise
        finally:
            self.streams.close()
        if self.migration.released:
            await self._started.wait()
            error = None
        await self._end(error or self._start_error)

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

    async def _up_to_ready(self, nursery: trio.Nursery) -> bool:
        """Everything until the token is awaited; False if there is nothing to wait for."""
        keys = await self._conversation.established()
        proposal = await self._conversation.receive(Proposal)
        blockers = await trio.to_thread.run_sync(
            check_proposal, proposal, self.orders, self._digests
        )
        cipher = choose_cipher(proposal.ciphers) or ""
        record_bytes = min(proposal.record_bytes, RECORD_BYTES)
        going = not (blockers or proposal.dry_run or self.orders.dry_run)
        if going:
            await self._make_room(proposal, nursery)
        answer = Answer(
            cipher=cipher,
            record_bytes=record_bytes,
            blockers=[WireBlocker(b.code, b.subject, b.message[:1000]) for b in blockers],
            instance=self._instance,
        )
        if not going:
            await self._conversation.send(answer)
            return await self._stop_at_answer(blockers)
        self.migration.handle(Event.OFFERED)
        self._report.setup_done()
        await self._enter()
        await self._conversation.send(answer)
        self._arrival = arrival = Arrival(self._instance_here(), self.orders, self.migration)
        manifest = await arrival.receive_all(
            nursery, self._conversation, await self.streams.all(), keys, answer
        )
        if manifest.generation != proposal.generation + 1:
            raise RemoteProtocolError("the manifest names another generation")
        if not arrival.fits(manifest):
            raise self._differs("the manifest does not fit what has arrived")
        await self._verify(manifest, proposal, arrival.chain)
        return True

    async def _stop_at_answer(self, blockers: list[Blocker]) -> bool:
        if self.orders.dry_run:
            return False
        if blockers:
            raise MigrationBlocked(f"{len(blockers)} blocker(s) here", blockers=blockers)
        # The source has blockers of its own and only asked for ours; it will say so.
        await self._conversation.receive(Manifest)
        raise RemoteProtocolError("a manifest after nothing but a question")

    async def _make_room(self, proposal: Proposal, nursery: trio.Nursery) -> None:
        """Start the waiting process and populate its memory."""
        runs = resident_runs(proposal)
        self.enclave = enclave = await self._prepare()
        nursery.start_soon(self._watch_process, enclave)
        await populate(enclave, runs)

    async def _watch_process(self, enclave: Enclave) -> None:
        await enclave.process.exited.wait()
        if not self.migration.released:
            raise EnclaveError("the waiting process of the new instance has ended")

    async def _shut_streams_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.streams.shut()

    # ---- hand-off ----

    async def _verify(self, manifest: Manifest, proposal: Proposal, chain: bytes) -> None:
        """Make sure that the state here is the source's, put it in its place, and say READY."""
        enclave = self._instance_here()
        if manifest.arena_digest:
            with self._parts.measure("verify"):
                digest = await trio.to_thread.run_sync(enclave.arena.content_hash)
            if not hmac.compare_digest(digest, manifest.arena_digest):
                raise self._differs("the memory here differs from the memory at the source")
        with self._parts.measure("files"):
            blockers = await trio.to_thread.run_sync(
                preflight.check_needs, manifest.files, self._digests
            )
        if blockers:
            raise MigrationBlocked("files that the program opened meanwhile", blockers=blockers)
        self.migration.handle(Event.MANIFEST_EQUAL)
        await self._enter()
        with self._parts.measure("prepare"):
            await enclave.process.command(Command.PREPARE)
        self._manifest = manifest
        self._same_clock = proposal.boot_id == boot_id()
        self._digest = state_digest(
            self.orders.binding.migration_id,
            manifest.generation,
            chain,
            encode(manifest),
        )
        self.migration.handle(Event.PREPARED)
        try:
            await self._conversation.send(Ready(self._digest))
        except ChannelClosed:
            # It may have got out or not. If it has, the source may let go: so wait.
            self._log.warning("ready_perhaps_undelivered")

    async def _start(self, manifest: Manifest) -> None:
        enclave = self._instance_here()
        begun_s = time.monotonic()
        try:
            await enclave.process.command(Command.RUN)
        except OptmigError as error:
            self._actions = self.migration.handle(Event.FAULT)
            self._start_error = error
            self._started.set()
            raise
        self.migration.handle(Event.RUNNING)
        enclave.generation = manifest.generation
        running_ns = enclave.process.ctl["running_ns"]
        running_real_ns = time.time_ns() - (time.monotonic_ns() - running_ns)
        self._parts.parts_ms["run"] = round(running_ns * 1e-6 - begun_s * 1e3, 3)
        if self._same_clock:
            gap_ns = running_real_ns - manifest.parked_real_ns
            self._parts.parts_ms["program_gap"] = round(gap_ns * 1e-6, 3)
        self._resumed_payload = self._conversation.seal_resumed(
            ResumedReport(
                migration_id=self.orders.binding.migration_id,
                generation=manifest.generation,
                parts=dict(self._parts.parts_ms),
                running_real_ns=running_real_ns,
                # Made now that the program runs: on real hardware it may take its time.
                evidence=self._report.evidence_of(self._digest, manifest),
            )
        )
        self._started.set()

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
        if self._cancelled_because is not None:
            error, outcome = self._cancelled_because, "cancelled"
        elif error is None and outcome == "failed":
            outcome = "checked"
        elif error is not None and self.migration.phase is not Phase.FAILED:
            refused = isinstance(error, PeerRefused)
            self._actions = self.migration.handle(Event.PEER_REFUSED if refused else Event.FAULT)
            outcome = "failed"
        if error is not None and Action.SEND_REFUSAL in self._actions:
            await self._tell_source(error)
        if outcome != "completed":
            await self._destroy()
        self._log.info("migration_ended", outcome=outcome, error=error and error.message)
        received_bytes = self._arrival.received_bytes if self._arrival else 0
        report = self._report.fields(self._parts, received_bytes, self._appraiser.claims)
        await self._enter()
        fields = None if error is None else to_wire(error)
        await self._emit("ended", {"outcome": outcome, "error": fields, "report": report})

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
                self.enclave.process.kill()
                await self.enclave.process.exited.wait()
                await trio.to_thread.run_sync(self.enclave.arena.close)

    async def _enter(self) -> None:
        """Tell the daemon the state, if it is a new one."""
        state = self.migration.state.value
        if state != self._state:
            self._state = state
            await self._emit("state", {"state": state})
