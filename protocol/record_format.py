"""What a record of a data stream looks like: header, page runs, file changes, counts.

All numbers are little-endian. Everything here is checked before memory is taken for it, because
the header arrives from a network that nobody trusts; it is authenticated only when the meta part
behind it opens.
"""

import struct
from enum import IntEnum
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.link import Digest, Size

PAGE_BYTES = 4096
MAGIC = 0x524F  # "OR" on the wire
HEADER = struct.Struct("<HBBHHIQIII")
HEADER_BYTES = HEADER.size
MIN_RECORD_BYTES = PAGE_BYTES
MAX_RECORD_BYTES = 1 << 22
DEFAULT_RECORD_BYTES = 1 << 20
MAX_META_BYTES = 1 << 16
MAX_SEQUENCE = 2**63 - 1  # the nonce is twice as large and has 64 bits

RUN = np.dtype([("first", "<u8"), ("count", "<u4")])
RUN_BYTES = RUN.itemsize
_ONE_RUN = struct.Struct("<QI")
MAX_RUNS = MAX_META_BYTES // RUN_BYTES
RunArray = npt.NDArray[np.void]


class Kind(IntEnum):
    """What a record carries."""

    PAGES = 1
    ZERO = 2
    END_OF_ROUND = 3
    FILE = 4


_KINDS = {int(kind): kind for kind in Kind}


class Header(Struct, frozen=True):
    """A header whose fields are within bounds. Lengths are those before sealing.

    `tag_bytes` is not in the header but a property of the negotiated cipher.
    """

    kind: Kind
    stream: int
    round_no: int
    sequence: int
    meta_bytes: int
    body_bytes: int
    tag_bytes: int
    raw: bytes

    @property
    def sealed_meta_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.meta_bytes + self.tag_bytes

    @property
    def sealed_body_bytes(self) -> int:
        """How many bytes follow the sealed meta: none where there is no body."""
        return self.body_bytes + self.tag_bytes if self.body_bytes else 0


def wire_bytes(meta_bytes: int, body_bytes: int, tag_bytes: int) -> int:
    """Return how many bytes a record takes on the wire."""
    return HEADER_BYTES + meta_bytes + tag_bytes + (body_bytes + tag_bytes if body_bytes else 0)


def max_wire_bytes(record_bytes: int, tag_bytes: int) -> int:
    """Return the size of a buffer that any record with `record_bytes` of content fits into."""
    return wire_bytes(MAX_META_BYTES, record_bytes, tag_bytes)


def pack_header(
    kind: Kind, stream: int, round_no: int, sequence: int, meta_bytes: int, body_bytes: int
) -> bytes:
    """Return the 32 bytes of a header."""
    return HEADER.pack(MAGIC, kind, 0, stream, 0, round_no, sequence, meta_bytes, body_bytes, 0)


def unpack_header(
    data: bytes | bytearray | memoryview, *, record_bytes: int, tag_bytes: int
) -> Header:
    """Read a header and check all that can be checked without its place in the stream.

    Args:
        data: 32 bytes.
        record_bytes: the most content that one record may have.
        tag_bytes: length of the negotiated cipher's tags.

    Raises:
        RemoteProtocolError: unknown kind, reserved field in use, or a length out of bounds.
    """
    if len(data) != HEADER_BYTES:
        raise RemoteProtocolError(f"a record header of {len(data)} bytes, not {HEADER_BYTES}")
    raw = bytes(data)
    fields = HEADER.unpack(raw)
    magic, kind_no, reserved_1, stream, reserved_2, round_no, sequence = fields[:7]
    meta_bytes, body_bytes, reserved_3 = fields[7:]
    kind = _KINDS.get(kind_no)
    if magic != MAGIC or kind is None:
        raise RemoteProtocolError("not a record, or one of an unknown kind", kind=kind_no)
    if reserved_1 or reserved_2 or reserved_3:
        raise RemoteProtocolError("a record with a reserved field in use")
    if sequence > MAX_SEQUENCE:
        raise RemoteProtocolError("a record with a sequence number out of range")
    if not 1 <= meta_bytes <= MAX_META_BYTES or body_bytes > record_bytes:
        raise RemoteProtocolError(
            "a record that is too large", meta_bytes=meta_bytes, body_bytes=body_bytes
        )
    if kind in (Kind.PAGES, Kind.ZERO) and meta_bytes % RUN_BYTES:
        raise RemoteProtocolError("a record whose page runs are cut off")
    if (body_bytes == 0) != (kind is not Kind.PAGES) and kind is not Kind.FILE:
        raise RemoteProtocolError(f"a record of kind {kind.name} with {body_bytes} bytes of body")
    return Header(kind, stream, round_no, sequence, meta_bytes, body_bytes, tag_bytes, raw)


def count_pages(runs: RunArray) -> int:
    """Return how many pages the runs name."""
    if len(runs) == 1:  # most records of a first round: spared numpy's start of a sum
        return int(runs["count"][0])
    return int(runs["count"].sum(dtype=np.uint64))


def pack_run(first: int, count: int) -> bytes:
    """Return the wire form of one run."""
    return _ONE_RUN.pack(first, count)


def parse_runs(content: bytes, *, arena_pages: int) -> RunArray:
    """Read page runs: sorted, none empty, none overlapping another, all inside the arena.

    Raises:
        RemoteProtocolError: they are anything else.
    """
    if not content or len(content) % RUN_BYTES:
        raise RemoteProtocolError("page runs that are cut off")
    runs = np.frombuffer(content, dtype=RUN)
    if len(runs) == 1:  # most records of a first round: the same checks without arrays
        only, count = _ONE_RUN.unpack(content)
        if count == 0:
            raise RemoteProtocolError("page runs that are empty, overlap or are out of order")
        if only + count > arena_pages:
            raise RemoteProtocolError("a page run that ends outside the arena")
        return runs
    first = runs["first"]
    end = first + runs["count"]
    # A sum that wraps around is not larger than `first`, just as that of an empty run.
    if not bool((first < end).all()) or not bool((first[1:] >= end[:-1]).all()):
        raise RemoteProtocolError("page runs that are empty, overlap or are out of order")
    if int(end[-1]) > arena_pages:
        raise RemoteProtocolError("a page run that ends outside the arena")
    return runs


class EndOfRound(Struct, frozen=True, forbid_unknown_fields=True):
    """Closes one round on one stream: what the round sent, and the chain up to here.

    Args:
        records: of this round, without this one.
        pages: with content.
        zero_pages: without.
        bytes: on the wire, without this record.
        chain: over all records of the stream before this one, of all rounds.
        last: whether no record follows on this stream.
    """

    records: Size
    pages: Size
    zero_pages: Size
    bytes: Size
    chain: Digest
    last: bool


class FileMeta(Struct, frozen=True, forbid_unknown_fields=True):
    """One change to a file that travels with the enclave.

    Args:
        root: `own` is the enclave's own directory, `io` its standard streams and output.
        path: relative, `/` between names, without `.`, `..` and empty names; "" is the root itself
            and only its mode can change.
        op: `write` puts the body at `offset`; `truncate` sets the size; `mkdir`, `delete` and
            `symlink` (to `target`) do what they say; `meta` sets mode and modification time.
        offset, size: bytes.
        mode: permission bits.
        mtime_ns: nanoseconds since 1970.
        target: what a symbolic link holds.

    The names are checked here; that no name leads out through a symbolic link is for the receiver,
    which must resolve them beneath the root.
    """

    root: Literal["own", "io"]
    path: Annotated[str, Meta(max_length=4096)]
    op: Literal["write", "truncate", "mkdir", "delete", "symlink", "meta"]
    offset: Size = 0
    size: Size = 0
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0
    mtime_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    target: Annotated[str, Meta(max_length=4096)] = ""


def check_file(meta: FileMeta, *, body_bytes: int) -> FileMeta:
    """Return the file change if it is in order.

    Raises:
        RemoteProtocolError: a name that leads out of the root, or a body where none belongs.
    """
    names = meta.path.split("/") if meta.path else []
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise RemoteProtocolError("a file name that leads out of its directory")
    if not names and meta.op != "meta":
        raise RemoteProtocolError("a change that would replace the directory itself")
    if body_bytes and meta.op != "write":
        raise RemoteProtocolError(f"a {meta.op} with content")
    if meta.offset + body_bytes > 2**63 - 1:
        raise RemoteProtocolError("content beyond the largest file")
    if (meta.op == "symlink") != bool(meta.target) or "\0" in meta.target:
        raise RemoteProtocolError("a link target where none belongs, or none where one belongs")
    return meta
