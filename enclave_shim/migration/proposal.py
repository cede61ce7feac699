"""What the source proposes and how the destination judges it: compatibility of two hosts."""

import platform

import numpy as np

from optmigd.enclave_shim import abi, cpu, preflight
from optmigd.enclave_shim.arena import Runs, coarse_runs
from optmigd.enclave_shim.cipher_speed import fastest_first
from optmigd.enclave_shim.migration.common import (
    RECORD_BYTES,
    Enclave,
    ExportOrders,
    ReceiveOrders,
    page_count,
)
from optmigd.enclave_shim.migration.report import boot_id
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.ciphers import choose_cipher, supported_ciphers
from optmigd.protocol.errors import RemoteProtocolError, VersionMismatch
from optmigd.protocol.record_format import RUN, parse_runs
from optmigd.protocol.session import FileNeed, Proposal
from optmigd.protocol.session_messages import MAX_RESIDENT_RUNS
from optmigd.protocol.versions import SESSION_VERSIONS, negotiate, window_from_peer


def make_proposal(
    enclave: Enclave, orders: ExportOrders, needs: list[FileNeed], *, dry_run: bool
) -> Proposal:
    """What this host proposes to move, as it is now."""
    features = cpu.features()
    runs = coarse_runs(enclave.arena.resident_runs(), MAX_RESIDENT_RUNS)
    return Proposal(
        versions=SESSION_VERSIONS.as_pair(),
        ciphers=_ciphers(features),
        arena_bytes=enclave.arena.size_bytes,
        resident_bytes=enclave.arena.resident_bytes(),
        cpu_features=list(features),
        xsave_bytes=cpu.xsave_bytes(),
        kernel_release=platform.release()[:255] or "unknown",
        page_bytes=abi.PAGE_BYTES,
        streams=orders.streams,
        files=needs,
        own_dir=enclave.virtual_dir,
        generation=enclave.generation,
        mode=orders.mode,
        dry_run=dry_run,
        record_bytes=RECORD_BYTES,
        resident_runs=runs.tobytes(),
        boot_id=boot_id(),
    )


def _ciphers(features: tuple[str, ...]) -> list[str]:
    """The ciphers to propose, the best first.

    Without AES in hardware ChaCha20 leads whatever the clock says: what stands in for the hardware
    may keep no constant time.
    """
    in_hardware = {"aes", "pclmulqdq", "avx"} <= set(features)
    names = supported_ciphers(aes_in_hardware=in_hardware)
    return fastest_first(tuple(names)) if in_hardware else names


def check_proposal(
    proposal: Proposal, orders: ReceiveOrders, digests: preflight.DigestCache
) -> list[Blocker]:
    """Everything that keeps this host from taking the enclave; blocks while it reads files.

    Raises:
        RemoteProtocolError: the proposal contradicts what the daemons agreed on.

    """
    agreed = (orders.memory_bytes, orders.streams, orders.generation, orders.virtual_dir)
    found = (proposal.arena_bytes, proposal.streams, proposal.generation, proposal.own_dir)
    if agreed != found:
        raise RemoteProtocolError(
            "the source's shim proposes something else than its daemon offered",
            offered=agreed,
            proposed=found,
        )
    blockers = []
    try:
        negotiate(SESSION_VERSIONS, window_from_peer(proposal.versions))
    except VersionMismatch as error:
        blockers.append(Blocker("version", "session", error.message))
    if choose_cipher(proposal.ciphers) is None:
        blockers.append(Blocker("cipher", ", ".join(proposal.ciphers), "none of these is known"))
    if proposal.page_bytes != abi.PAGE_BYTES:
        message = f"the source has pages of {proposal.page_bytes} bytes, this host of 4096"
        blockers.append(Blocker("page-size", str(proposal.page_bytes), message))
    if lacking := cpu.missing(proposal.cpu_features, cpu.features()):
        message = "this host's CPU lacks them; move to a host whose CPU has them"
        blockers.append(Blocker("cpu-features", " ".join(lacking), message))
    if proposal.xsave_bytes > cpu.xsave_bytes():
        message = (
            f"the source's register state takes {proposal.xsave_bytes} bytes, this host's CPU "
            f"saves {cpu.xsave_bytes()}"
        )
        blockers.append(Blocker("xsave", str(proposal.xsave_bytes), message))
    blockers.extend(preflight.check_memory(proposal.resident_bytes))
    blockers.extend(preflight.check_needs(proposal.files, digests))
    return blockers


def resident_runs(proposal: Proposal) -> Runs:
    """The memory to populate before the first round.

    Raises:
        RemoteProtocolError: the runs are malformed, or name more than the arena.

    """
    if not proposal.resident_runs:
        return np.empty(0, dtype=RUN)
    return parse_runs(proposal.resident_runs, arena_pages=page_count(proposal.arena_bytes))
