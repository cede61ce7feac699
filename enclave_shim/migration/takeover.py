"""The destination from READY on: wait for the token, run, confirm.

READY is not said before all that this needs is in the vault, so an agent that takes over waits for
the token as the one before did, with the waiting process untouched. The confirmation is sealed once
and kept; it is noted in the vault before it is let out, and what is repeated is what was noted. An
agent that died between sealing and noting has let nothing out: then the next one seals anew.

The waiting process itself can be killed. It has never run and its memory is still here, so it is
replaced: the source may have let go already.
"""

import time

import msgspec
import trio

from optmigd.enclave_shim.abi import Command
from optmigd.enclave_shim.migration.common import Binding, Emit, Enclave, Log, Replace
from optmigd.enclave_shim.migration.instants import real_ns
from optmigd.enclave_shim.migration.report import DestinationReport, Parts
from optmigd.enclave_shim.remembered import AwaitingToken, Memory
from optmigd.protocol.errors import EnclaveError, OptmigError, RuntimeFailed
from optmigd.protocol.handoff import Action, Event, Migration, Phase, check_token
from optmigd.protocol.handoff_seals import HandoffSeals
from optmigd.protocol.session import Manifest, ResumedReport

MAX_REPLACEMENTS = 5
"""A process that ends this often while it only waits will not run either."""


class Takeover:
    """A destination that has all it needs but the token.

    Args:
        enclave, binding, migration: what arrives, in which migration, and its place in the table.
        generation: the owner's before the move.
        instance: 32 bytes that name this instance.
        digest, manifest: of the state that has arrived.
        same_clock: whether the source runs on this very system.
        seals: to open the token and seal the confirmation.
        report, parts: what is known of the migration.
        memory, emit, log: the vault, the daemon, and the log.
        replace: replaces the waiting process when it has ended.

    Attributes:
        started: set when the program runs, or could not be started (`start_error`).
        actions: what the table asks for after a failed start.
        confirmation: sealed; empty before the program runs.

    """

    def __init__(
        self,
        enclave: Enclave,
        binding: Binding,
        migration: Migration,
        *,
        generation: int,
        instance: bytes,
        digest: bytes,
        manifest: Manifest,
        same_clock: bool,
        seals: HandoffSeals,
        report: DestinationReport,
        parts: Parts,
        memory: Memory,
        emit: Emit,
        log: Log,
        replace: Replace,
        confirmation: bytes = b"",
    ) -> None:
        self.started = trio.Event()
        self.start_error: OptmigError | None = None
        self.actions: tuple[Action, ...] = ()
        self.confirmation = confirmation
        self._enclave = enclave
        self._binding = binding
        self._migration = migration
        self._generation = generation
        self._instance = instance
        self._digest = digest
        self._manifest = manifest
        self._same_clock = same_clock
        self._seals = seals
        self._report = report
        self._parts = parts
        self._memory = memory
        self._emit = emit
        self._log = log
        self._replace = replace
        self._replacements = 0
        self._replacing = trio.Lock()
        if confirmation:
            report.arrived(digest, manifest)
            self.started.set()

    def note(self) -> None:
        """Note all this in the vault: READY may be said after that."""
        self._memory.note_migration(
            AwaitingToken(
                binding=self._binding,
                generation=self._generation,
                instance=self._instance,
                digest=self._digest,
                manifest=msgspec.structs.replace(self._manifest, files=[]),
                same_clock=self._same_clock,
                token_key=b"" if self.confirmation else self._seals.token_key,
                resumed_key=b"" if self.confirmation else self._seals.resumed_key,
                confirmation=self.confirmation,
                facts=self._report.facts,
                parts_ms=self._parts.parts_ms,
            ),
            generation=self._manifest.generation if self.confirmation else 0,
        )

    async def token_delivered(self, payload: bytes) -> None:
        """Take the right to execute, and use it; a repetition is answered again.

        Raises:
            DecryptFailed, RemoteProtocolError: it is no token for this instance and state.
            RuntimeFailed: the program could not be started.

        """
        if not self.confirmation:
            check_token(
                self._seals.open_token(payload),
                migration_id=self._binding.migration_id,
                generation=self._manifest.generation,
                instance=self._instance,
                state_digest=self._digest,
            )
        with trio.CancelScope(shield=True):
            if Action.RUN in self._migration.handle(Event.TOKEN_ACCEPTED):
                await self._run(told=False)
            await self.repeat()

    async def take_up_start(self) -> None:
        """The agent before this one has used the token: confirm it in its place.

        Raises:
            RuntimeFailed: the program could not be started.

        """
        self._migration.handle(Event.TOKEN_ACCEPTED)
        await self._run(told=True)

    async def repeat(self) -> None:
        """Confirm that the program runs, if it does."""
        if self.confirmation:
            await self._emit("resumed", {"payload": self.confirmation})

    async def keep_waiting(self) -> None:
        """Replace the waiting process whenever it ends, until it is told to run.

        Raises:
            EnclaveError: it has ended too often.

        """
        while self._migration.phase is Phase.AWAITING_TOKEN:
            await self._enclave.process.exited.wait()
            async with self._replacing:
                if self._migration.phase is Phase.AWAITING_TOKEN:
                    await self._replace_ended()
        await trio.sleep_forever()

    async def _replace_ended(self) -> None:
        enclave = self._enclave
        while enclave.process.exited.is_set():
            status = enclave.process.exit_status
            if self._replacements == MAX_REPLACEMENTS:
                raise EnclaveError(
                    f"the waiting process of the new instance has ended {MAX_REPLACEMENTS} times "
                    f"and once more, with status {status}"
                )
            self._replacements += 1
            self._log.warning("waiting_process_replaced", exit_status=status)
            try:
                await self._replace(enclave)
            except RuntimeFailed as error:
                self._log.warning("replacement_failed", error=error.message)

    async def _run(self, *, told: bool) -> None:
        """Have the program run, and confirm it.

        Args:
            told: whether it was told to by an earlier agent.

        """
        begun_s = time.monotonic()
        try:
            async with self._replacing:
                await self._start(told=told)
        except OptmigError as error:
            self.actions = self._migration.handle(Event.FAULT)
            self.start_error = error
            self.started.set()
            raise
        self._migration.handle(Event.RUNNING)
        manifest = self._manifest
        self._enclave.generation = manifest.generation
        running_ns = self._enclave.process.ctl["running_ns"]
        running_real_ns = real_ns(running_ns)
        self._parts.parts_ms["run"] = round(max(running_ns * 1e-6 - begun_s * 1e3, 0.0), 3)
        if self._same_clock:
            gap_ns = running_real_ns - manifest.parked_real_ns
            self._parts.parts_ms["program_gap"] = round(gap_ns * 1e-6, 3)
        self._report.arrived(self._digest, manifest)
        self.confirmation = self._seals.seal_resumed(
            ResumedReport(
                migration_id=self._binding.migration_id,
                generation=manifest.generation,
                parts=dict(self._parts.parts_ms),
                running_real_ns=running_real_ns,
                # Made now that the program runs: on real hardware it may take its time.
                evidence=self._report.evidence(),
            )
        )
        self.note()
        self._seals.forget()
        self.started.set()

    async def _start(self, *, told: bool) -> None:
        """Start the program in the process that waits, or in one that replaces it.

        A process that ends before it says that the program runs has not run any of it.
        """
        while True:
            process = self._enclave.process
            try:
                await (process.started() if told else process.command(Command.RUN))
            except RuntimeFailed:
                if not process.exited.is_set() or process.ran:
                    raise
            else:
                return
            await self._replace_ended()
            told = False
