"""Taking up a migration where an agent that crashed has left it.

What is to be done follows from two things alone: the note in the vault, and the control block that
the runtime shares.

| noted | control block | what the new agent does |
|---|---|---|
| under way, source | not released | lets the program run on; the migration has failed |
| released | not released | the same: the token was never let out, and is forgotten |
| released | released | lets the token out, until it is confirmed |
| under way, destination | | destroys the waiting instance; the migration has failed |
| awaiting the token | told to run | confirms that the program runs |
| awaiting the token | not told to run | waits for the token |
| over | | tells the end again |
"""

from contextlib import suppress

import trio

from optmigd.enclave_shim.migration.common import Binding, Emit, Enclave, Log, Replace
from optmigd.enclave_shim.migration.departure import Departure, free
from optmigd.enclave_shim.migration.part import Announcer, Part
from optmigd.enclave_shim.migration.report import (
    DestinationReport,
    Parts,
    SourceReport,
    root_cause,
)
from optmigd.enclave_shim.migration.takeover import Takeover
from optmigd.enclave_shim.remembered import (
    AwaitingToken,
    Memory,
    MigrationNote,
    Over,
    Released,
    UnderWay,
)
from optmigd.enclave_shim.tracker import KernelTracker
from optmigd.protocol.errors import (
    ChannelClosed,
    MigrationCancelled,
    MigrationFailed,
    OptmigError,
    RemoteProtocolError,
    TrackerUnavailable,
    to_wire,
)
from optmigd.protocol.handoff import Event, Migration, Phase, Role
from optmigd.protocol.handoff_seals import HandoffSeals
from optmigd.protocol.handoff_seals import Role as RoleName


def resume_part(
    note: MigrationNote,
    enclave: Enclave | None,
    memory: Memory,
    emit: Emit,
    log: Log,
    replace: Replace,
) -> Part:
    """What the note stands for; `run` it like any other part.

    Args:
        note: from the vault.
        enclave: the instance that was taken up, if there is one.
        memory: the vault.
        emit, log: of this migration.
        replace: replaces a waiting process that has ended.

    """
    if isinstance(note, AwaitingToken) and enclave is not None:
        return ResumedArrival(note, enclave, memory, emit, log, replace)
    if isinstance(note, Released) and enclave is not None and enclave.process.released:
        return ResumedDeparture(note, enclave, memory, emit, log)
    if not isinstance(note, Over):
        note = _failed(note)
        memory.note_end(note)
    return Concluded(note, enclave, memory, emit)


def migration_id_of(note: MigrationNote) -> bytes:
    """Which migration a note is about."""
    if isinstance(note, UnderWay | Over):
        return note.migration_id
    return note.binding.migration_id


def _failed(note: UnderWay | Released | AwaitingToken) -> Over:
    role: RoleName = "source" if isinstance(note, Released) else "destination"
    if isinstance(note, UnderWay):
        role = note.role
    where = "the enclave runs on here" if role == "source" else "nothing was moved here"
    error = MigrationFailed(f"the shim agent crashed during the migration; {where}")
    return Over(migration_id_of(note), role, "failed", to_wire(error), {})


async def let_run(enclave: Enclave) -> None:
    """Let a program run on that the agent before this one may have parked, untracked."""
    process = enclave.process
    if process.released:
        return
    process.resume()
    # An armed page costs one fault when it is written, and then no more: so it does no harm if it
    # stays armed, because the process has ended or cannot be tracked.
    with suppress(TrackerUnavailable, OSError):
        await trio.to_thread.run_sync(KernelTracker(process, enclave.arena).disarm)


class Concluded(Part):
    """A migration that is over. What is not to run here any more is freed."""

    def __init__(self, over: Over, enclave: Enclave | None, memory: Memory, emit: Emit) -> None:
        role = Role.SOURCE if over.role == "source" else Role.DESTINATION
        completed = over.outcome == "completed"
        migration = Migration(role, Phase.COMPLETED if completed else Phase.FAILED)
        # The hosts play no part any more.
        binding = Binding(over.migration_id, b"", b"")
        announcer = Announcer(migration, over.migration_id, emit, memory)
        super().__init__(binding, migration, announcer, enclave=enclave)
        self._over = over
        self._emit = emit
        self._stays = completed == (role is Role.DESTINATION)

    async def run(self) -> None:
        """Free what does not stay, and tell the end."""
        if self.enclave is not None and not self._stays:
            await free(self.enclave, self.bulk_gate)
        await self.announcer.recall(self._over)

    def cancel(self) -> None:
        """Nothing is left to end; see `Part`."""
        self.migration.handle(Event.CANCEL)

    async def daemon_back(self) -> None:
        """A daemon has connected: repeat the confirmation, and the end."""
        if self._over.confirmation:
            await self._emit("resumed", {"payload": self._over.confirmation})
        await super().daemon_back()

    async def token_delivered(self, payload: bytes) -> None:
        """The token again: it is answered again."""
        if not self._over.confirmation:
            raise RemoteProtocolError("a token for an instance that is gone")
        await self._emit("resumed", {"payload": self._over.confirmation})

    async def resumed_delivered(self, payload: bytes) -> None:
        """The confirmation again: the end is told again."""
        await self.announcer.repeat_end()


class ResumedDeparture(Part):
    """A released source."""

    enclave: Enclave

    def __init__(
        self, note: Released, enclave: Enclave, memory: Memory, emit: Emit, log: Log
    ) -> None:
        migration = Migration(Role.SOURCE, Phase.RELEASED)
        migration_id = note.binding.migration_id
        announcer = Announcer(migration, migration_id, emit, memory)
        super().__init__(note.binding, migration, announcer, enclave=enclave)
        self._departure = Departure(
            enclave,
            note.binding,
            migration,
            note.token,
            HandoffSeals("source", migration_id, token_key=b"", resumed_key=note.resumed_key),
            SourceReport(enclave, note.facts),
            Parts(note.parts_ms),
            note.released_s,
            announcer,
            emit,
            log,
        )

    async def run(self) -> None:
        """Wait for the confirmation, and free everything."""
        await self._departure.complete()
        await free(self.enclave, self.bulk_gate)

    def cancel(self) -> None:
        """Too late; see `Part`."""
        self.migration.handle(Event.CANCEL)

    async def daemon_back(self) -> None:
        """A daemon has connected: let the token out again."""
        await self._departure.daemon_back()

    async def resumed_delivered(self, payload: bytes) -> None:
        """Take the destination's confirmation; see `Departure`."""
        await self._departure.resumed_delivered(payload)


class ResumedArrival(Part):
    """A destination that has said READY, or was about to."""

    enclave: Enclave

    def __init__(
        self,
        note: AwaitingToken,
        enclave: Enclave,
        memory: Memory,
        emit: Emit,
        log: Log,
        replace: Replace,
    ) -> None:
        phase = Phase.COMPLETED if note.confirmation else Phase.AWAITING_TOKEN
        migration = Migration(Role.DESTINATION, phase)
        migration_id = note.binding.migration_id
        announcer = Announcer(migration, migration_id, emit, memory)
        super().__init__(note.binding, migration, announcer, enclave=enclave)
        self._log = log
        self._parts = Parts(note.parts_ms)
        self._report = DestinationReport(
            enclave.identity, note.binding, note.generation, note.facts
        )
        self._takeover = Takeover(
            enclave,
            note.binding,
            migration,
            generation=note.generation,
            instance=note.instance,
            digest=note.digest,
            manifest=note.manifest,
            same_clock=note.same_clock,
            seals=HandoffSeals(
                "destination",
                migration_id,
                token_key=note.token_key,
                resumed_key=note.resumed_key,
            ),
            report=self._report,
            parts=self._parts,
            memory=memory,
            emit=emit,
            log=log,
            replace=replace,
            confirmation=note.confirmation,
        )
        self._scope = trio.CancelScope()
        self._cancelled_because: OptmigError | None = None

    async def run(self) -> None:
        """Wait for the token, if it was not used yet, and tell the end."""
        error: OptmigError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._takeover.keep_waiting)
                    await self._started()
                    nursery.cancel_scope.cancel()
        except (Exception, BaseExceptionGroup) as group:
            error = root_cause(group, self._log)
            if error is None:
                raise
        if self.migration.released:
            await self._takeover.started.wait()
            error = None
        await self._end(error or self._takeover.start_error)

    async def _started(self) -> None:
        takeover = self._takeover
        if not takeover.started.is_set() and self.enclave.process.start_asked:
            with trio.CancelScope(shield=True):
                await takeover.take_up_start()
            with suppress(ChannelClosed):  # `daemon_back` repeats it
                await takeover.repeat()
        await takeover.started.wait()

    async def _end(self, error: OptmigError | None) -> None:
        outcome = "completed" if self.migration.released else "failed"
        if self._cancelled_because is not None:
            error, outcome = self._cancelled_because, "cancelled"
        elif error is not None and self.migration.phase is not Phase.FAILED:
            self.migration.handle(Event.FAULT)
            outcome = "failed"
        if outcome != "completed":
            with trio.CancelScope(shield=True):
                await free(self.enclave, self.bulk_gate)
        self._log.info("migration_ended", outcome=outcome, error=error and error.message)
        await self.announcer.enter()
        report = self._report.fields(self._parts)
        await self.announcer.end(outcome, error, report, self._takeover.confirmation)

    def cancel(self) -> None:
        """Destroy this side: its daemon has decided so; see `Part`."""
        if self.migration.ended and not self.migration.released:
            return
        self.migration.handle(Event.CANCEL)
        self._cancelled_because = MigrationCancelled("cancelled; nothing was moved here")
        self._scope.cancel()

    async def daemon_back(self) -> None:
        """A daemon has connected: tell it where this side stands."""
        await self._takeover.repeat()
        await self.announcer.enter(again=True)
        await super().daemon_back()

    async def token_delivered(self, payload: bytes) -> None:
        """Take the right to execute, and use it; see `Takeover`."""
        await self._takeover.token_delivered(payload)
