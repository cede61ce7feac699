"""Steps of the source's switchover that stand on their own.

Everything here happens while the program is parked, so nothing here logs, and nothing works page by
page in Python.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from optmigd.enclave_shim import preflight
from optmigd.enclave_shim.migration.common import Enclave
from optmigd.enclave_shim.migration.conversation import Conversation
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.protocol.errors import MigrationBlocked, RemoteProtocolError
from optmigd.protocol.handoff import Event, Migration
from optmigd.protocol.session import FileNeed, Manifest, Ready, RoundDone


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Keep the garbage collector out of the switchover."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def needs_when_parked(enclave: Enclave) -> list[FileNeed]:
    """The program's open files, read again now that it is parked.

    Raises:
        MigrationBlocked: it took up what cannot be moved since the preflight.

    """
    found = preflight.open_files(enclave.arena)
    needs, unreadable = await trio.to_thread.run_sync(preflight.file_needs, found, enclave.digests)
    if blockers := [*found.blockers, *unreadable]:
        listed = "; ".join(f"{b.subject}: {b.message}" for b in blockers[:5])
        raise MigrationBlocked(
            f"the program took up what cannot be moved: {listed}", blockers=blockers
        )
    return needs


async def make_manifest(
    enclave: Enclave, rounds: Rounds, needs: list[FileNeed], parked_real_ns: int, *, verify: bool
) -> Manifest:
    """State what the destination must have now that everything was sent.

    Args:
        enclave, rounds: what was sent.
        needs: the program's open files.
        parked_real_ns: CLOCK_REALTIME when it was parked.
        verify: add a digest of the whole memory (seconds per GiB: for rehearsals and tests).

    """
    arena_digest = b""
    if verify:
        arena_digest = await trio.to_thread.run_sync(enclave.arena.content_hash)
    totals = rounds.totals
    return Manifest(
        round_no=rounds.round_no - 1,
        records=totals.records,
        pages=totals.all_pages,
        chain=rounds.chain,
        generation=enclave.generation + 1,
        files=needs,
        parked_real_ns=parked_real_ns,
        arena_digest=arena_digest,
    )


async def receive_ready(conversation: Conversation, rounds: Rounds, migration: Migration) -> Ready:
    """Wait for READY; the confirmation of the last round may come before it.

    Raises:
        RemoteProtocolError: another message came, or the round's account differs.

    """
    while True:
        message = await conversation.receive_any()
        if isinstance(message, Ready):
            return message
        if not isinstance(message, RoundDone):
            raise RemoteProtocolError(f"a {type(message).__name__} where none belongs")
        rounds.confirm(message)
        migration.handle(Event.ROUND_DONE)
