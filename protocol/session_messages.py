"""The messages that two shims exchange inside the attested session.

Those of `SessionMessage` travel sealed, in fragments, inside the link's `Session` messages;
`session.py` has the channel that carries them. Those of the hand-off (`Manifest`, `Ready`,
`ReleaseToken`, `ResumedReport`) are sealed once each, by `handoff_seals.py`. A struct's fields are
its wire format: names, types and bounds.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from optmigd.protocol.link import (
    MAX_STREAMS,
    Digest,
    ErrorCode,
    MigrationId,
    Name,
    Pair,
    PathText,
    Size,
    Text,
    WireBlockers,
)

MAX_FILES = 8192
MAX_RESIDENT_RUNS = 4096
RUN_BYTES = 12  # of record_format.RUN, which this module must not import
MAX_EVIDENCE_BYTES = 48_000

Count32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Streams = Annotated[int, Meta(ge=1, le=MAX_STREAMS)]
RecordBytes = Annotated[int, Meta(ge=4096, le=1 << 22)]
OptionalDigest = Annotated[bytes, Meta(max_length=32)]


class FileNeed(Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the program has open and that does not travel in its own directory.

    Args:
        path: as the program named it.
        kind: `external` must exist with this size and digest; `shared` is opened where it is;
            `device` is one of the few that every host has.
        size: bytes; 0 where it does not matter.
        sha256: content digest; empty where it does not matter.
    """

    path: PathText
    kind: Literal["external", "shared", "device"]
    size: Size
    sha256: OptionalDigest


FileNeeds = Annotated[list[FileNeed], Meta(max_length=MAX_FILES)]


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """What every session message has: immutable, tagged, no unknown fields."""


class Proposal(_Message, frozen=True, tag="proposal"):
    """Source: what moves and how. Sizes in bytes; `versions` is (lowest, highest).

    Args:
        resident_runs: page runs (dtype `RUN`) that cover the memory in use, for the destination to
            populate; coarse, at most 4096 of them.
        boot_id: names the running system of the source's host. Where the destination's is the same
            both have one clock, and the gap that the program saw is known exactly.
    """

    versions: Pair
    ciphers: Annotated[list[Name], Meta(min_length=1, max_length=16)]
    arena_bytes: Size
    resident_bytes: Size
    cpu_features: Annotated[list[Name], Meta(max_length=1024)]
    xsave_bytes: Size
    kernel_release: Name
    page_bytes: Annotated[int, Meta(ge=4096, le=1 << 21)]
    streams: Streams
    files: FileNeeds
    own_dir: PathText
    generation: Size
    mode: Literal["precopy", "stop-and-copy"]
    dry_run: bool
    record_bytes: RecordBytes
    resident_runs: Annotated[bytes, Meta(max_length=MAX_RESIDENT_RUNS * RUN_BYTES)] = b""
    boot_id: Annotated[str, Meta(max_length=64)] = ""


class Answer(_Message, frozen=True, tag="answer"):
    """Destination: how, or why not. No blockers: accepted.

    Args:
        cipher: the chosen one of the proposal's.
        record_bytes: content of one record at most; not above the proposal's.
        blockers: every reason why not.
        instance: 32 random bytes that name this destination instance; only a token for it counts.
    """

    cipher: Annotated[str, Meta(max_length=255)]
    record_bytes: RecordBytes
    blockers: WireBlockers
    instance: Digest


class RoundDone(_Message, frozen=True, tag="round-done"):
    """Destination: round `round_no` has arrived whole; all counts are totals so far.

    Args:
        round_no: the round.
        records: over all streams and rounds.
        pages: likewise, with content and zero pages together.
        chain: `overall_chain` over all streams.
    """

    round_no: Count32
    records: Size
    pages: Size
    chain: Digest


class Manifest(_Message, frozen=True, tag="manifest"):
    """Source: all has been sent; this is what you must have.

    Args:
        round_no: the last round.
        records, pages: totals over all rounds and streams; zero pages are counted too.
        chain: `overall_chain` over all streams.
        generation: the generation that the destination will have.
        files: what must be open after the move.
        parked_real_ns: CLOCK_REALTIME when the program was parked.
        arena_digest: content digest of the whole arena; empty unless verification was asked for.
    """

    round_no: Count32
    records: Size
    pages: Size
    chain: Digest
    generation: Size
    files: FileNeeds
    parked_real_ns: Size
    arena_digest: OptionalDigest


class Ready(_Message, frozen=True, tag="ready"):
    """Destination: all verified, everything in place, this is my state digest."""

    digest: Digest


class ReleaseToken(_Message, frozen=True, tag="release-token"):
    """Source: the right to execute, for one instance, once."""

    migration_id: MigrationId
    generation: Size
    destination_instance: Digest
    state_digest: Digest


class ResumedReport(_Message, frozen=True, tag="resumed-report"):
    """Destination: the program runs.

    Args:
        parts: parts of the downtime that were measured here, in milliseconds.
        running_real_ns: CLOCK_REALTIME of the first instruction.
        evidence: over the receipt.
    """

    migration_id: MigrationId
    generation: Size
    parts: dict[Name, float]
    running_real_ns: Size
    evidence: Annotated[bytes, Meta(max_length=MAX_EVIDENCE_BYTES)]


class Refuse(_Message, frozen=True, tag="refuse"):
    """Either, before release: this migration ends."""

    code: ErrorCode
    message: Text


FromSource = Proposal | Refuse
FromDestination = Answer | RoundDone | Refuse
SessionMessage = Proposal | Answer | RoundDone | Refuse
