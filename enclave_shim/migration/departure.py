"""The source past the point of no return: there is only forward.

The token is let out, and let out again to every daemon that connects, until the destination's
sealed confirmation comes; then everything is freed. Nothing resumes the program any more. It all
follows from what the vault holds, so an agent that takes over does exactly the same.
"""

import time

import msgspec
import trio

from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import Binding, Emit, Enclave, Log
from optmigd.enclave_shim.migration.part import Announcer
from optmigd.enclave_shim.migration.report import Parts, SourceReport
from optmigd.enclave_shim.remembered import Memory, Released
from optmigd.protocol.errors import ChannelClosed, RemoteProtocolError
from optmigd.protocol.handoff import Action, Event, Migration
from optmigd.protocol.handoff_seals import HandoffSeals

NOTED_ROUNDS = 256
"""The vault keeps the last ones of a very long migration only."""


class Departure:
    """A released source's way to its end.

    Args:
        enclave, binding, migration: what leaves, in which migration, and its place in the table.
        token: sealed.
        seals: to open the confirmation.
        report, parts: what is known of the migration.
        released_s: when it was released (CLOCK_MONOTONIC).
        announcer, emit, log: to the daemon, and to the log.

    """

    def __init__(
        self,
        enclave: Enclave,
        binding: Binding,
        migration: Migration,
        token: bytes,
        seals: HandoffSeals,
        report: SourceReport,
        parts: Parts,
        released_s: float,
        announcer: Announcer,
        emit: Emit,
        log: Log,
    ) -> None:
        self._enclave = enclave
        self._binding = binding
        self._migration = migration
        self._token = token
        self._seals = seals
        self._report = report
        self._parts = parts
        self._released_s = released_s
        self._announcer = announcer
        self._emit = emit
        self._log = log
        self._resumed = trio.Event()

    def note(self, memory: Memory) -> None:
        """Note the token in the vault; the source may be made unable to run after that."""
        facts = self._report.facts
        memory.note_migration(
            Released(
                binding=self._binding,
                token=self._token,
                resumed_key=self._seals.resumed_key,
                facts=msgspec.structs.replace(facts, rounds=facts.rounds[-NOTED_ROUNDS:]),
                parts_ms=self._parts.parts_ms,
                released_s=self._released_s,
            )
        )

    async def daemon_back(self) -> None:
        """Let the token out again if it is unanswered."""
        if Action.SEND_TOKEN in self._migration.handle(Event.RECONNECTED):
            await self._send_token()
        await self._announcer.repeat_end()

    async def resumed_delivered(self, payload: bytes) -> None:
        """Take the destination's confirmation that it runs; a repetition is answered by the end.

        Raises:
            DecryptFailed, RemoteProtocolError: it is not this migration's confirmation.

        """
        if self._resumed.is_set():
            await self._announcer.repeat_end()
            return
        report = self._seals.open_resumed(payload)
        expected = (self._binding.migration_id, self._enclave.generation + 1)
        if (report.migration_id, report.generation) != expected:
            raise RemoteProtocolError("a confirmation of another migration or generation")
        self._seals.forget()
        self._migration.handle(Event.RESUMED_RECEIVED)
        self._report.resumed(report)
        self._resumed.set()

    async def complete(self) -> None:
        """Let the token out, wait for the confirmation as long as it takes, and end the process.

        The memory is still there when this returns: `free` gives it back.
        """
        try:
            await self._send_token()
            self._log.info("released", generation=self._enclave.generation + 1)
        except ChannelClosed:
            self._log.warning("release_waits_for_daemon")  # `daemon_back` repeats it
        self._parts.parts_ms["release"] = _ms_since(self._released_s)
        sent_s = time.monotonic()
        await self._resumed.wait()
        self._parts.parts_ms["resume"] = _ms_since(sent_s)
        fields = self._report.fields(self._parts)
        self._enclave.process.kill()
        await self._announcer.enter()
        await self._announcer.end("completed", None, fields)

    async def _send_token(self) -> None:
        await self._emit("release", {"payload": self._token})


async def free(enclave: Enclave, gate: BulkGate) -> None:
    """End a process that will never run again, and give its memory back as the gate allows."""
    enclave.process.kill()
    await enclave.process.exited.wait()
    await trio.to_thread.run_sync(enclave.arena.close, gate.wait)


def _ms_since(start_s: float) -> float:
    return round((time.monotonic() - start_s) * 1e3, 3)
