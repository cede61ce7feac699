"""What the source finds out and makes before its first round."""

import socket
from collections.abc import Awaitable, Callable

import trio

from optmigd.enclave_shim import preflight
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import RECORD_BYTES, Enclave, ExportOrders
from optmigd.enclave_shim.migration.conversation import Conversation
from optmigd.enclave_shim.migration.forecast import forecast_fields, sample_dirty
from optmigd.enclave_shim.migration.proposal import make_proposal
from optmigd.enclave_shim.migration.pump import Sender
from optmigd.enclave_shim.migration.report import SourceReport
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.enclave_shim.tracker import Tracker
from optmigd.enclave_shim.trackers import missing
from optmigd.enclave_shim.written_files import WrittenFiles
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.ciphers import check_chosen
from optmigd.protocol.errors import MigrationBlocked, RemoteProtocolError
from optmigd.protocol.records import StreamSealer
from optmigd.protocol.session import Answer, FileNeed, Proposal, SessionKeys


def find_blockers(enclave: Enclave, orders: ExportOrders) -> tuple[list[FileNeed], list[Blocker]]:
    """What the destination must have, and all that is in the way here; blocks on the disk."""
    found = preflight.open_files(enclave.arena, enclave.identity.image.symbols)
    needs, blockers = preflight.file_needs(found, enclave.digests)
    files = TravellingFiles(enclave.own_dir, enclave.io_files, RECORD_BYTES)
    blockers = [*found.blockers, *blockers, *files.blockers()]
    tracker, why = missing(enclave)
    if orders.mode == "precopy" and why:
        message = f"{why}; --mode stop-and-copy works without a tracker"
        blockers.append(Blocker("tracker", tracker, message))
    return needs, blockers


async def propose(
    enclave: Enclave,
    orders: ExportOrders,
    conversation: Conversation,
    report: SourceReport,
    arm: Callable[[], Awaitable[None]],
) -> Answer:
    """Find all blockers of both sides, and have the destination make itself ready.

    Args:
        enclave, orders: what is to be moved, and how.
        conversation: established.
        report: takes what is found out.
        arm: begins tracking, while the destination makes itself ready.

    Raises:
        MigrationBlocked: something is in the way, here or there; nothing was moved.
        ProtocolError: the destination chose what was not proposed.
        OptmigError: as `arm` and the conversation.

    """
    needs, blockers = await trio.to_thread.run_sync(find_blockers, enclave, orders)
    only_ask = orders.dry_run or bool(blockers)
    can_sample = orders.dry_run and not missing(enclave)[1]
    sample = await sample_dirty(enclave) if can_sample else None
    proposal: Proposal = await trio.to_thread.run_sync(
        lambda: make_proposal(enclave, orders, needs, dry_run=only_ask)
    )
    report.facts.total_bytes = proposal.resident_bytes
    await conversation.send(proposal)
    async with trio.open_nursery() as nursery:
        if orders.mode == "precopy" and not only_ask:
            nursery.start_soon(arm)
        answer = await conversation.receive(Answer)
    blockers += [Blocker(b.code, b.subject, b.message) for b in answer.blockers]
    report.blockers = blockers
    if orders.dry_run:
        if sample is not None:
            report.forecast = forecast_fields(proposal, orders, sample)
    elif blockers:
        listed = "; ".join(f"{b.subject}: {b.message}" for b in blockers[:5])
        raise MigrationBlocked(
            f"{len(blockers)} blocker(s), nothing was moved: {listed}", blockers=blockers
        )
    else:
        check_chosen(answer.cipher, proposal.ciphers)
        if answer.record_bytes > proposal.record_bytes:
            raise RemoteProtocolError("the destination wants larger records than proposed")
    return answer


def make_rounds(
    enclave: Enclave,
    orders: ExportOrders,
    sockets: list[socket.socket],
    keys: SessionKeys,
    answer: Answer,
    gate: BulkGate,
    tracker: Tracker | None,
    written: WrittenFiles | None,
) -> Rounds:
    """Put streams, tracker and files together; nothing is sent yet."""
    senders = [
        Sender(
            sock,
            StreamSealer(
                keys,
                orders.binding.migration_id,
                index,
                answer.cipher,
                record_bytes=answer.record_bytes,
            ),
            enclave.arena,
            gate,
            streams=orders.streams,
            record_bytes=answer.record_bytes,
        )
        for index, sock in enumerate(sockets)
    ]
    keys.forget()  # every stream has derived its own
    files = TravellingFiles(enclave.own_dir, enclave.io_files, answer.record_bytes, written)
    return Rounds(enclave.arena, senders, files, tracker)
