"""Steps of the source's switchover that stand on their own.

Everything here happens while the program is parked, so nothing here logs, and nothing works page by
page in Python.
"""

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from optmigd.enclave_shim import preflight
from optmigd.enclave_shim.migration.common import Enclave
from optmigd.enclave_shim.migration.handoff_frames import receive_frame
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.protocol.errors import MigrationBlocked, MigrationTimeout
from optmigd.protocol.handoff_seals import HandoffSeals
from optmigd.protocol.session import FileNeed, Manifest, Ready

VERIFY_BYTES_PER_S = 50e6


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


@contextmanager
def small_heap() -> Iterator[None]:
    """Keep what is there now out of the garbage collector's sight, so that its runs are short.

    For the destination, which does not know when the program is parked until it is to run.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def needs_when_parked(enclave: Enclave) -> list[FileNeed]:
    """The program's open files, read again now that it is parked.

    Raises:
        MigrationBlocked: it took up what cannot be moved since the preflight.

    """
    found = preflight.open_files(enclave.arena, enclave.identity.image.symbols)
    # Only what must be looked up on the disk is worth a thread.
    if not (found.needed or found.blockers):
        return []
    needs, unreadable = await trio.to_thread.run_sync(preflight.file_needs, found, enclave.digests)
    if blockers := [*found.blockers, *unreadable]:
        listed = "; ".join(f"{b.subject}: {b.message}" for b in blockers[:5])
        raise MigrationBlocked(
            f"the program took up what cannot be moved: {listed}", blockers=blockers
        )
    return needs


def make_manifest(
    enclave: Enclave,
    rounds: Rounds,
    needs: list[FileNeed],
    parked_real_ns: int,
    arena_digest: bytes,
) -> Manifest:
    """State what the destination must have now that the last round was sent.

    Args:
        enclave, rounds: what was sent.
        needs: the program's open files.
        parked_real_ns: CLOCK_REALTIME when it was parked.
        arena_digest: of the whole memory, if that is to be compared; or empty.

    """
    totals = rounds.totals
    return Manifest(
        round_no=rounds.round_no,
        records=totals.records,
        pages=totals.all_pages,
        chain=rounds.chain,
        generation=enclave.generation + 1,
        files=needs,
        parked_real_ns=parked_real_ns,
        arena_digest=arena_digest,
    )


async def end_if_stalled(rounds: Rounds, limit_s: float) -> None:
    """Run beside the last round: the program stands still, so the peer may not stand still as well.

    Raises:
        MigrationTimeout: not one more record could be sent for that many seconds.

    """
    sent_bytes = -1
    while rounds.transferred_bytes != sent_bytes:
        sent_bytes = rounds.transferred_bytes
        await trio.sleep(limit_s)
    raise MigrationTimeout(
        f"the destination has taken nothing for {limit_s:g} s while the program stood still; "
        "the enclave runs on at the source"
    )


def ready_limit_s(enclave: Enclave, stall_s: float, *, verify: bool) -> float:
    """How long READY may take: the comparison of both memories, if asked for, takes its time."""
    return stall_s + (enclave.arena.resident_bytes() / VERIFY_BYTES_PER_S if verify else 0.0)


async def receive_ready(stream: socket.socket, seals: HandoffSeals, limit_s: float) -> Ready:
    """Wait for READY.

    Args:
        stream: the first data stream, which carried the manifest.
        seals: to open it.
        limit_s: how long.

    Raises:
        DecryptFailed, RemoteProtocolError: something else came.
        ChannelClosed: the data stream broke.
        MigrationTimeout: nothing came for that many seconds.

    """
    payload = None
    with trio.move_on_after(limit_s):
        payload = await receive_frame(stream)
    if payload is None:
        raise MigrationTimeout(
            f"the destination has said nothing for {limit_s:g} s while the program stood "
            "still; the enclave runs on at the source"
        )
    return seals.open_ready(payload)
