"""What a migration leaves behind: figures for people and programs, and a signed receipt.

Both sides sign the same core (who moved what to whom, and the digest of the state), and each
signs a receipt of its own that holds the core, the peer's evidence over it and what was measured.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from optmigd.enclave_shim.migration.common import (
    Binding,
    Enclave,
    Identity,
    Log,
    Params,
)
from optmigd.enclave_shim.migration.conversation import PeerRefused
from optmigd.enclave_shim.migration.instants import real_ns
from optmigd.enclave_shim.migration.rounds import Rounds
from optmigd.enclave_shim.migration.throttle import Throttle
from optmigd.enclave_shim.platforms import Claims
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.remembered import DestinationFacts, SourceFacts
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.convergence import (
    PAGE_BYTES,
    RoundStats,
    throughput,
)
from optmigd.protocol.errors import (
    AttestationFailed,
    ChannelClosed,
    MigrationFailed,
    MigrationTimeout,
    OptmigError,
)
from optmigd.protocol.session import Manifest, ResumedReport
from optmigd.protocol.wire import pack

_WITHIN = {"ready": ("verify", "files", "prepare"), "resume": ("run",)}

RECEIPT_LABEL = b"optmigd receipt v1"


def boot_id() -> str:
    """Names this running system; two agents with the same one share their clocks."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def receipt_data(body: bytes) -> bytes:
    """The 64 bytes of report data that evidence over a receipt carries."""
    return hashlib.sha512(RECEIPT_LABEL + body).digest()


@dataclass
class Parts:
    """Named parts of the downtime, in milliseconds, in the order they were measured."""

    parts_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.parts_ms[name] = round((time.monotonic() - start) * 1e3, 3)


def round_fields(stats: RoundStats) -> dict[str, Any]:
    """A round as events and reports show it."""
    rate = stats.dirty_pages / stats.duration_s if stats.duration_s > 0 else 0.0
    return {
        "round_no": stats.round_no,
        "pages": stats.pages,
        "zero_pages": stats.zero_pages,
        "bytes": stats.bytes,
        "duration_ms": round(stats.duration_s * 1e3, 3),
        "dirty_pages_rate": round(rate),
    }


def progress_fields(rounds: Rounds, total_bytes: int) -> Params:
    """How far a migration is, as `progress` events show it."""
    speed = throughput(rounds.history)
    last = rounds.history[-1] if rounds.history else None
    sent_bytes = rounds.transferred_bytes
    this_round_bytes = sent_bytes - sum(stats.bytes for stats in rounds.history)
    expected_ms = rounds.expected_downtime_ms
    return {
        "round_no": rounds.round_no,
        "transferred_bytes": sent_bytes,
        "remaining_bytes": max(rounds.dirty_pages * PAGE_BYTES - this_round_bytes, 0),
        "total_bytes": total_bytes,
        "dirty_pages_rate": round(last.dirty_pages / last.duration_s) if last else 0,
        "throughput_mbps": round(speed * 8e-6, 1),
        "expected_downtime_ms": round(expected_ms, 1) if math.isfinite(expected_ms) else None,
    }


def claims_fields(claims: Claims) -> dict[str, Any]:
    """An attestation result, as a receipt shows it."""
    return {
        "platform": claims.platform,
        "measurement": claims.measurement,
        "signer": claims.signer,
        "security_version": claims.security_version,
        "debug": claims.debug,
    }


def receipt_core(binding: Binding, identity: Identity, digest: bytes, manifest: Manifest) -> bytes:
    """The part of a receipt that both sides know alike, and sign."""
    return pack(
        {
            "migration_id": binding.migration_id,
            "source_host": binding.source_host,
            "destination_host": binding.destination_host,
            "policy_digest": identity.policy.digest(),
            "measurement": identity.measurement,
            "owner_generation": manifest.generation,
            "state_digest": digest,
            "rounds": manifest.round_no + 1,
            "pages": manifest.pages,
        }
    )


def root_cause(error: BaseException, log: Log) -> OptmigError | None:
    """The error to report out of a group that a nursery raised; None if it holds only cancellation.

    When one side gives up, much breaks at once. What the peer says weighs most, then what this side
    found wrong, then a broken stream. Anything else is a bug: it is logged, and ends the migration
    like any other failure, because the program must run on.
    """
    leaves = [leaf for leaf in _leaves(error) if not isinstance(leaf, trio.Cancelled)]
    for leaf in leaves:
        if not isinstance(leaf, Exception):
            raise leaf
        if not isinstance(leaf, OptmigError | OSError):
            log.error("migration_failed_unexpectedly", exc_info=leaf)
            return MigrationFailed(f"a bug in the shim agent: {type(leaf).__name__}: {leaf}")
    cause = min(leaves, key=_weight, default=None)
    if cause is None or isinstance(cause, OptmigError):
        return cause
    return MigrationFailed(f"a file failed: {cause}")


def _weight(leaf: BaseException) -> int:
    """The less the more it says."""
    if isinstance(leaf, PeerRefused):
        return 0
    return 2 if isinstance(leaf, ChannelClosed) else 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def timed_out(timeout_s: float) -> MigrationTimeout:
    """The error of a migration that took too long."""
    return MigrationTimeout(
        f"the migration was not over within {timeout_s:g} s; the enclave runs on at the source"
    )


class SourceReport:
    """Collects what the source knows of a migration, for `ended` and for its receipt."""

    def __init__(self, enclave: Enclave, facts: SourceFacts) -> None:
        self.facts = facts
        self.blockers: list[Blocker] = []
        self.forecast: Params | None = None
        self._enclave = enclave
        self._ended_s: float | None = None
        self._resumed: ResumedReport | None = None

    def setup_done(self) -> None:
        """Both sides are ready for the first round."""
        self.facts.setup_s = time.monotonic()

    def add_round(self, stats: RoundStats) -> Params:
        """Note a round; returns it as events show it."""
        self.facts.rounds.append(round_fields(stats))
        return self.facts.rounds[-1]

    def parked(self, process: Process) -> None:
        """The program stands still since `ctl.parked_ns`."""
        facts = self.facts
        facts.parked_ns = process.ctl["parked_ns"]
        facts.parked_real_ns = real_ns(facts.parked_ns)

    def held_back(self, throttle: Throttle) -> None:
        """What the program has lost to the throttle so far."""
        self.facts.throttle_permille = throttle.highest_permille
        self.facts.held_back_ms = throttle.held_ms

    def rounds_done(self, rounds: Rounds) -> None:
        """Nothing more is sent."""
        self.facts.transferred_bytes = rounds.transferred_bytes

    def releasing(
        self, binding: Binding, digest: bytes, manifest: Manifest, peer: Claims | None
    ) -> None:
        """All is sent and equal on both sides."""
        facts = self.facts
        facts.state_digest = digest
        facts.verified = bool(manifest.arena_digest)
        facts.core = receipt_core(binding, self._enclave.identity, digest, manifest)
        facts.peer = peer

    def resumed(self, report: ResumedReport) -> None:
        """The destination has confirmed that it runs; the downtime, as seen here, is over."""
        self._ended_s = time.monotonic()
        self._resumed = report

    def _peer_signed_the_same(self, report: ResumedReport) -> bool:
        """Whether the destination's evidence is over the core that this side knows.

        The hand-off does not hang on it: the confirmation itself was sealed by the attested peer.
        """
        try:
            claims = self._enclave.identity.platform.verify(report.evidence)
        except AttestationFailed:
            return False
        return claims.report_data == receipt_data(self.facts.core)

    def fields(self, parts: Parts) -> Params:
        """The report of Contract 1."""
        facts = self.facts
        ended_s = self._ended_s or time.monotonic()
        total_s = ended_s - facts.started_s
        moved_s = ended_s - (facts.setup_s or facts.started_s)
        speed = facts.transferred_bytes / moved_s if facts.setup_s else 0.0
        fields: Params = {
            "mode": facts.mode,
            "platform": self._enclave.identity.platform.name,
            "rounds": facts.rounds,
            "total_bytes": facts.total_bytes,
            "transferred_bytes": facts.transferred_bytes,
            "zero_pages": sum(entry["zero_pages"] for entry in facts.rounds),
            "setup_time_ms": _ms((facts.setup_s or ended_s) - facts.started_s),
            "total_time_ms": _ms(total_s),
            "throttle_permille": facts.throttle_permille,
            "held_back_ms": round(facts.held_back_ms, 3),
            "downtime_ms": None,
            "downtime_parts_ms": dict(parts.parts_ms),
            "throughput_mbps": round(speed * 8e-6, 1),
            "state_digest": facts.state_digest.hex(),
            "owner_generation": self._enclave.generation,
            "verified": None,
            "blockers": [blocker.as_fields() for blocker in self.blockers],
            "forecast": self.forecast,
            "receipt": None,
        }
        if self._resumed is not None:
            self._add_success(fields, self._resumed)
        return fields

    def _add_success(self, fields: Params, resumed: ResumedReport) -> None:
        facts, theirs = self.facts, dict(resumed.parts)
        # By this host's clock alone, which holds the way back of the confirmation too.
        confirmed_ms = _ms((self._ended_s or 0.0) - facts.parked_ns * 1e-9)
        gap_ms = theirs.pop("program_gap", None)
        exact = gap_ms is not None and 0 < gap_ms <= confirmed_ms
        fields["downtime_ms"] = gap_ms if exact else confirmed_ms
        fields["program_gap_ms"] = gap_ms
        fields["confirmed_ms"] = confirmed_ms
        fields["downtime_parts_ms"] = _all_parts(
            fields["downtime_parts_ms"], theirs, confirmed_ms - fields["downtime_ms"]
        )
        fields["owner_generation"] = resumed.generation
        fields["verified"] = True if facts.verified else None
        body = pack(
            {
                "role": "source",
                "core": facts.core,
                "peer": claims_fields(facts.peer) if facts.peer else None,
                "peer_evidence": resumed.evidence,
                "peer_evidence_valid": self._peer_signed_the_same(resumed),
                "downtime_ms": fields["downtime_ms"],
                "total_time_ms": fields["total_time_ms"],
                "transferred_bytes": facts.transferred_bytes,
            }
        )
        fields["receipt"] = make_receipt(self._enclave.identity, body)


class DestinationReport:
    """Collects what the destination knows of a migration, for `ended` and for its receipt."""

    def __init__(
        self, identity: Identity, binding: Binding, generation: int, facts: DestinationFacts
    ) -> None:
        self.facts = facts
        self._identity = identity
        self._binding = binding
        self._generation = generation
        self._core = b""
        self._digest = b""
        self._manifest: Manifest | None = None

    def setup_done(self) -> None:
        """This side is ready for the first round."""
        self.facts.setup_s = time.monotonic()

    def arrived(self, digest: bytes, manifest: Manifest) -> None:
        """All has arrived as it was sent, and the program runs here."""
        self._digest = digest
        self._manifest = manifest
        self._core = receipt_core(self._binding, self._identity, digest, manifest)

    def evidence(self) -> bytes:
        """This enclave's evidence over the receipt's core."""
        return self._identity.platform.evidence(
            self._identity.measurement, receipt_data(self._core)
        )

    def fields(self, parts: Parts) -> Params:
        """The report of Contract 1, as far as this side knows it."""
        facts, manifest = self.facts, self._manifest
        now_s = time.monotonic()
        fields: Params = {
            "platform": self._identity.platform.name,
            "transferred_bytes": facts.received_bytes,
            "setup_time_ms": _ms((facts.setup_s or now_s) - facts.started_s),
            "total_time_ms": _ms(now_s - facts.started_s),
            "downtime_parts_ms": dict(parts.parts_ms),
            "state_digest": self._digest.hex(),
            "owner_generation": manifest.generation if manifest else self._generation,
            "verified": True if manifest and manifest.arena_digest else None,
            "receipt": None,
        }
        if manifest is not None:
            body = pack(
                {
                    "role": "destination",
                    "core": self._core,
                    "peer": claims_fields(facts.peer) if facts.peer else None,
                    "parts_ms": dict(parts.parts_ms),
                    "transferred_bytes": facts.received_bytes,
                }
            )
            fields["receipt"] = make_receipt(self._identity, body)
        return fields


def _all_parts(
    ours: dict[str, float], theirs: dict[str, float], confirmation_ms: float
) -> dict[str, float]:
    """Both sides' parts of the downtime, in order, so that each millisecond counts once.

    What the destination measured lies within what the source waited for: `ready` and `token` are
    what is left of the waiting, the ways there and back.

    Args:
        ours: with `ready` and `resume`.
        theirs: by the destination's clock; each lies within one of these two.
        confirmation_ms: the end of `resume` that is no downtime, where that is known.

    """
    parts: dict[str, float] = {}
    for name, took_ms in ours.items():
        within = {part: theirs[part] for part in _WITHIN.get(name, ()) if part in theirs}
        left_ms = took_ms - sum(within.values())
        if name == "resume":
            left_ms -= confirmation_ms
        if left_ms < 0 and parts:  # the peer began before this side came back from sending
            before = next(reversed(parts))
            parts[before] = max(round(parts[before] + left_ms, 3), 0.0)
        left_ms = max(round(left_ms, 3), 0.0)
        # Of `resume` the way to the peer is left, of `ready` the way back.
        parts |= {"token": left_ms} | within if name == "resume" else within | {name: left_ms}
    return parts


def make_receipt(identity: Identity, body: bytes) -> Params:
    """A receipt: its body, and this enclave's evidence over it."""
    evidence = identity.platform.evidence(identity.measurement, receipt_data(body))
    return {"body": body, "evidence": evidence}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
