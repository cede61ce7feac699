"""What the source finds out and makes before its first round."""

import socket

from optmigd.enclave_shim import preflight
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import RECORD_BYTES, Enclave, ExportOrders
from optmigd.enclave_shim.migration.pump import Sender
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.enclave_shim.tracker import Tracker
from optmigd.enclave_shim.trackers import missing
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.records import StreamSealer
from optmigd.protocol.session import Answer, FileNeed, SessionKeys


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


def make_rounds(
    enclave: Enclave,
    orders: ExportOrders,
    sockets: list[socket.socket],
    keys: SessionKeys,
    answer: Answer,
    gate: BulkGate,
    tracker: Tracker | None,
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
    files = TravellingFiles(enclave.own_dir, enclave.io_files, answer.record_bytes)
    return Rounds(enclave.arena, senders, files, tracker)
