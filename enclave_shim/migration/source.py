"""The source's role: send everything, then what changed, then let go.

The order (`optmigd.protocol.states` has the table that this walks):

1. `setup`: blockers of both sides, attested session, the destination's memory and process ready.
2. `active`: rounds. Send; collect what was written meanwhile, while the destination confirms that
   it has it all; decide. To switch over, send what was collected last as a part of the last round.
3. `pre-switchover`, `switchover`: park the program, collect for the last time, send the rest, the
   files' last changes and, behind them, the manifest. The destination answers READY with its own
   digest, on the same data stream.
4. The point of no return: the token is sealed and noted in the vault, the instance is made unable
   to run, the table says `released`. There is no checkpoint between these, so no cancel can come
   between them. Only then the token is let out.
5. RESUMED comes back: the memory is freed (see `departure`).

Before 4 every end but success unwinds: streams stopped, tracker disarmed, program resumed, the
destination told to give up. After 4 nothing does: `run` waits for RESUMED as long as it takes.
"""

import dataclasses
import hmac
import time
from contextlib import ExitStack
from functools import partial

import trio

from optmigd.enclave_shim.migration.common import (
    Appraiser,
    Emit,
    Enclave,
    ExportOrders,
    Log,
    Params,
)
from optmigd.enclave_shim.migration.conversation import open_conversation
from optmigd.enclave_shim.migration.departure import Departure, free
from optmigd.enclave_shim.migration.forecast import FIXED_DOWNTIME_MS
from optmigd.enclave_shim.migration.part import Announcer, Part
from optmigd.enclave_shim.migration.report import (
    Parts,
    SourceReport,
    progress_fields,
    root_cause,
    timed_out,
)
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.enclave_shim.migration.sending import Sending
from optmigd.enclave_shim.migration.setup import make_rounds, propose
from optmigd.enclave_shim.migration.switchover import (
    make_manifest,
    needs_when_parked,
    quiet_interpreter,
    ready_limit_s,
)
from optmigd.enclave_shim.migration.throttle import Throttle
from optmigd.enclave_shim.migration.turn import SwitchoverTurn
from optmigd.enclave_shim.remembered import Memory, SourceFacts, UnderWay
from optmigd.enclave_shim.tracker import Tracker
from optmigd.enclave_shim.trackers import make_tracker
from optmigd.enclave_shim.written_files import WrittenFiles
from optmigd.protocol.convergence import (
    Abort,
    OnStall,
    Settings,
    SwitchOver,
    decide,
    worth_sending_ahead,
)
from optmigd.protocol.convergence import Throttle as HoldBack
from optmigd.protocol.errors import (
    AlreadyReleased,
    ChannelClosed,
    EnclaveError,
    MigrationCancelled,
    MigrationFailed,
    NotConverging,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.handoff import Action, Event, Migration, Role
from optmigd.protocol.records import state_digest
from optmigd.protocol.session import (
    Answer,
    Manifest,
    ReleaseToken,
    RoundDone,
)
from optmigd.protocol.wire import encode

PROGRESS_INTERVAL_S = 0.5
FAREWELL_TIMEOUT_S = 2.0
TRIES_AHEAD = 3
"""So often what sending ahead leaves is counted on; a program may write more just then."""


class Source(Part):
    """One migration away from here; `run` it once.

    Args:
        enclave: what moves.
        orders: how.
        memory: the vault, for the agent after this one.
        emit: sends events of this migration to the daemon.
        log: bound to the migration.

    """

    enclave: Enclave

    def __init__(
        self, enclave: Enclave, orders: ExportOrders, memory: Memory, emit: Emit, log: Log
    ) -> None:
        migration = Migration(Role.SOURCE)
        binding = orders.binding
        announcer = Announcer(migration, binding.migration_id, emit, memory)
        super().__init__(binding, migration, announcer, enclave=enclave, streams=orders.streams)
        self.orders = orders
        self._memory = memory
        self._emit = emit
        self._log = log
        self._parts = Parts()
        who = enclave.identity
        self._appraiser = Appraiser(who)
        self._conversation = open_conversation("source", who, binding, self._appraiser, emit)
        self._report = SourceReport(enclave, SourceFacts(orders.mode, time.monotonic()))
        self._scope = trio.CancelScope()
        self._cancelled_because: OptmigError | None = None
        self._actions: tuple[Action, ...] = ()
        self._tracker: Tracker | None = None
        self._written: WrittenFiles | None = None
        self._rounds: Rounds | None = None
        self._sending = Sending(self.streams, self.bulk_gate)
        self._throttle = Throttle(enclave.process)
        self._turn = SwitchoverTurn(emit, wanted=orders.ask_for_turn)
        self._tries_ahead = TRIES_AHEAD
        self._departure: Departure | None = None
        self._quiet = ExitStack()  # until the program runs, here or there
        memory.note_migration(UnderWay(binding.migration_id, "source"))

    # ---- what the agent calls ----

    def deliver(self, payload: bytes) -> None:
        """Take a payload of the attested session; after release nothing more is expected."""
        if not self.migration.released:
            self._conversation.deliver(payload)

    def cancel(self) -> None:
        """End the migration; `run` unwinds.

        Raises:
            AlreadyReleased: the point of no return is past.

        """
        self._give_up(MigrationCancelled("cancelled; the enclave runs on at the source"))

    def change_orders(
        self,
        *,
        downtime_limit_ms: float | None = None,
        max_bandwidth: int | None = None,
        on_stall: OnStall | None = None,
    ) -> Params:
        """Change them: bandwidth at once, the rest for every decision from now on; see `Part`."""
        if self.migration.released:
            raise AlreadyReleased("the enclave has been released: nothing is left to change")
        if self.migration.ended or self._cancelled_because is not None:
            raise EnclaveError("the migration has ended")
        given: Params = {
            "downtime_limit_ms": downtime_limit_ms,
            "max_bandwidth": max_bandwidth,
            "on_stall": on_stall,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        self.orders = dataclasses.replace(self.orders, **changes)
        if max_bandwidth is not None:
            self.streams.pace(max_bandwidth)
        if self.orders.on_stall != "throttle":
            self._throttle.permille = 0
        self._log.info("orders_changed", **changes)
        return {name: getattr(self.orders, name) for name in given}

    def take_turn(self) -> None:
        """Switch over when it has converged; see `SwitchoverTurn`. From here on it gives no way."""
        self.bulk_gate.keep_open()
        self._turn.give()

    def daemon_lost(self) -> None:
        """The daemon's connection has ended: before release that ends the migration."""
        if not self.migration.released:
            self._give_up(MigrationCancelled("the connection to the daemon at the source ended"))

    def _give_up(self, why: OptmigError) -> None:
        if self.migration.ended or self._cancelled_because is not None:
            return  # what the first cancel asked for is still to be carried out
        self._actions = self.migration.handle(Event.CANCEL)
        self._cancelled_because = why
        self._scope.cancel()

    async def daemon_back(self) -> None:
        """A daemon has connected: tell it again what it may have missed."""
        if self._departure is not None:
            await self._departure.daemon_back()
        else:
            await super().daemon_back()

    async def resumed_delivered(self, payload: bytes) -> None:
        """Take the destination's confirmation that it runs; see `Departure`."""
        if self._departure is None:
            raise RemoteProtocolError("a confirmation of what was not released")
        await self._departure.resumed_delivered(payload)

    # ---- the migration ----

    async def run(self) -> None:
        """Carry the migration through; `ended` was emitted when this returns."""
        await self.announcer.enter()
        try:
            error = await self._move()
            if self._departure is not None:
                self._conversation.close()
                await self._departure.complete()
                self.bulk_gate.keep_open(False)
                await free(self.enclave, self.bulk_gate)
                await self._disarm()
                self._log.info("source_freed")
            else:
                await self._end(error)
        finally:
            self._quiet.close()
            self._conversation.close()
            self.streams.close()

    async def _move(self) -> OptmigError | None:
        """Everything up to the point of no return; the error if it was not reached."""
        failure: OptmigError | None = None
        if self.orders.timeout_s:  # 0: no limit
            self._scope.deadline = trio.current_time() + self.orders.timeout_s
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._conversation.listen)
                    nursery.start_soon(self._watch_process)
                    await self._up_to_release(nursery)
                    nursery.cancel_scope.cancel()
        except (Exception, BaseExceptionGroup) as error:
            failure = root_cause(error, self._log)
            if failure is None:
                raise
        if self.migration.released:
            return None
        if self._cancelled_because is not None:
            failure = self._cancelled_because
        elif self._scope.cancelled_caught:
            failure = timed_out(self.orders.timeout_s)
            self._actions = self.migration.handle(Event.TIMEOUT)
        elif failure is not None:
            self._actions = self.migration.handle(Event.FAULT)
        return failure

    async def _watch_process(self) -> None:
        await self.enclave.process.exited.wait()
        status = self.enclave.process.exit_status
        raise EnclaveError(f"the program ended with status {status} while it was being moved")

    async def _up_to_release(self, nursery: trio.Nursery) -> None:
        keys = await self._conversation.established()
        self._log.info("peer_accepted", platform=self.enclave.identity.platform.name)
        answer = await propose(
            self.enclave, self.orders, self._conversation, self._report, self._arm
        )
        if self.orders.dry_run:
            return
        self.migration.handle(Event.ACCEPTED)
        self._rounds = rounds = make_rounds(
            self.enclave,
            self.orders,
            await self.streams.all(),
            keys,
            answer,
            self.bulk_gate,
            self._tracker,
            self._written,
        )
        self._report.setup_done()
        try:
            with trio.CancelScope() as active:
                nursery.start_soon(self._tell_progress, rounds, active)
                nursery.start_soon(self._throttle.run)
                if self.orders.mode == "precopy":
                    await self.announcer.enter()
                    await self._pre_copy(rounds)
                active.cancel()
            self._quiet.enter_context(quiet_interpreter())
            await self._switch_over(rounds, answer)
        finally:
            self._report.rounds_done(rounds)

    # ---- setup ----

    async def _arm(self) -> None:
        """Begin tracking, while the destination makes itself ready."""
        self._tracker = make_tracker(self.enclave, self.bulk_gate.wait)
        self._written = WrittenFiles(self.enclave.process.ctl, self.enclave.arena)
        self._written.watch()
        await trio.to_thread.run_sync(self._tracker.arm)

    # ---- rounds ----

    async def _pre_copy(self, rounds: Rounds) -> None:
        """Send rounds until the decision is to switch over."""
        await self.bulk_gate.opened()
        await trio.to_thread.run_sync(rounds.begin)
        while True:
            await self.bulk_gate.opened()
            await self._sending.send(rounds.send)
            await rounds.collect_while_confirmed(partial(self._conversation.receive, RoundDone))
            self.migration.handle(Event.ROUND_DONE)
            stats = rounds.record(throttle_permille=self._throttle.permille)
            fields = self._report.add_round(stats)
            dirty = {"dirty_pages": stats.dirty_pages, "hot_pages": stats.hot_pages}
            self._log.info("round_completed", **fields, **dirty)
            await self._emit("round", fields)
            decision = decide(rounds.history, self._settings())
            match decision:
                case SwitchOver(reason=reason, ahead=ahead):
                    if await self._turn.came():
                        self._log.info("switchover_decided", reason=reason, ahead=ahead)
                        self.bulk_gate.keep_open()  # another's switchover may have shut it
                        if not ahead:
                            if worth_sending_ahead(rounds.history):
                                await self._sending.send(rounds.send_ahead)
                            return
                        if await self._come_within_limit(rounds):
                            return
                        self._tries_ahead -= 1
                        self.bulk_gate.keep_open(False)
                    else:
                        # It has run on: or the next round would leave that to the last one.
                        await trio.to_thread.run_sync(rounds.collect)
                case HoldBack(permille=permille):
                    self._log.info("program_held_back", permille=permille)
                    self._throttle.permille = permille
                    rounds.hot_pages.stop()
                case Abort(reason=reason):
                    raise NotConverging(reason)

    async def _come_within_limit(self, rounds: Rounds) -> bool:
        """Send ahead while that leaves less; whether what is left may wait for the park."""
        await self._sending.send_ahead(rounds)
        return rounds.expected_downtime_ms <= self.orders.downtime_limit_ms

    def _settings(self) -> Settings:
        return Settings(
            downtime_limit_ms=self.orders.downtime_limit_ms,
            on_stall=self.orders.on_stall,
            fixed_ms=FIXED_DOWNTIME_MS,
            ahead=self._tries_ahead > 0,
        )

    async def _tell_progress(self, rounds: Rounds, active: trio.CancelScope) -> None:
        while not active.cancel_called:
            await trio.sleep(PROGRESS_INTERVAL_S)
            if not active.cancel_called:
                await self._emit(
                    "progress", progress_fields(rounds, self._report.facts.total_bytes)
                )

    # ---- switchover ----

    async def _switch_over(self, rounds: Rounds, answer: Answer) -> None:
        """Park the program, send the rest, and cross the point of no return."""
        process, parts, binding = self.enclave.process, self._parts, self.orders.binding
        seals = self._conversation.handoff_seals()
        manifest: Manifest | None = None
        self.bulk_gate.keep_open()
        self.migration.handle(Event.CONVERGED)
        await self.announcer.enter()
        parts.parts_ms["quiesce"] = round(1e3 * await self._throttle.park(), 3)
        self._report.held_back(self._throttle)
        self._report.parked(process)
        self.migration.handle(Event.QUIESCED)
        with parts.measure("last_scan"):
            if self.orders.mode == "precopy":
                rounds.collect(parked=True)
            else:
                rounds.begin()
            needs = await needs_when_parked(self.enclave)
        arena_digest = b""
        if self.orders.verify:  # seconds per GiB
            with parts.measure("hash"):
                arena_digest = await trio.to_thread.run_sync(self.enclave.arena.content_hash)
        parked_real_ns = self._report.facts.parked_real_ns

        def seal_manifest() -> bytes:
            nonlocal manifest
            manifest = make_manifest(self.enclave, rounds, needs, parked_real_ns, arena_digest)
            return seals.seal_manifest(manifest)

        with parts.measure("last_pages"):
            await self._sending.send_last(rounds, seal_manifest, self.orders.switchover_stall_s)
        assert manifest is not None
        # What could wait until the destination has something to do did.
        await self.announcer.enter()
        self._report.add_round(rounds.record())
        self.migration.handle(Event.MANIFEST_SENT)
        ours = state_digest(
            binding.migration_id, manifest.generation, manifest.chain, encode(manifest)
        )
        with parts.measure("ready"):
            limit_s = ready_limit_s(
                self.enclave, self.orders.switchover_stall_s, verify=self.orders.verify
            )
            ready = await self._sending.receive_ready(seals, limit_s)
        if not hmac.compare_digest(ready.digest, ours):
            raise MigrationFailed("the destination has received another state than was sent")
        if Action.SEAL_TOKEN not in self.migration.handle(Event.READY_EQUAL):
            raise MigrationCancelled("cancelled as the destination became ready")
        released_s = time.monotonic()
        self._report.rounds_done(rounds)
        self._report.releasing(binding, ours, manifest, self._appraiser.claims)
        departure = Departure(
            self.enclave,
            binding,
            self.migration,
            self._conversation.seal_token(
                ReleaseToken(binding.migration_id, manifest.generation, answer.instance, ours)
            ),
            seals,
            self._report,
            parts,
            released_s,
            self.announcer,
            self._emit,
            self._log,
        )
        # From here to the end of this function nothing may wait: see the module's text.
        departure.note(self._memory)
        process.release()
        self.migration.handle(Event.TOKEN_MADE)
        self._departure = departure

    # ---- the end ----

    async def _end(self, error: OptmigError | None) -> None:
        """Unwind: the program runs on, the destination learns that it is over."""
        with trio.CancelScope(shield=True):
            if Action.RESUME_SOURCE in self._actions and not self.enclave.process.exited.is_set():
                self.enclave.process.resume()
            if error is not None and Action.DESTROY_DESTINATION in self._actions:
                await self._tell_destination(error)
            await self._disarm()
            if not self.migration.ended and self._cancelled_because is not None:
                self.migration.handle(Event.UNWOUND)
        outcome = "failed"
        if error is None:
            outcome = "checked"
        elif self._cancelled_because is not None:
            outcome = "cancelled"
        self._log.info("migration_ended", outcome=outcome, error=error and error.message)
        await self.announcer.enter()
        await self.announcer.end(outcome, error, self._report.fields(self._parts))

    async def _disarm(self) -> None:
        """Stop tracking: not before the token is out or the program resumed, for it takes time."""
        if self._written is not None:
            self._written.unwatch()
        if self._tracker is not None:
            await trio.to_thread.run_sync(self._tracker.disarm)

    async def _tell_destination(self, error: OptmigError) -> None:
        """Best effort: a destination without a token can do no harm, it only wastes memory."""
        with trio.move_on_after(FAREWELL_TIMEOUT_S):
            try:
                await self._conversation.refuse(error.code, "the source has ended the migration")
            except ChannelClosed:
                self._log.info("destination_not_told")
