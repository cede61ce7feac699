"""Fuzz targets: the records of a data stream, as sealed by a peer that has the keys."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.protocol.record_format import (
    HEADER_BYTES,
    RUN,
    FileMeta,
    Kind,
    check_file,
    count_pages,
    pack_header,
    parse_runs,
    unpack_header,
)
from optmigd.protocol.records import EndOfRound, StreamOpener, StreamSealer
from optmigd.protocol.session import SessionKeys
from optmigd.protocol.wire import decode, encode
from tests.fuzz.targets import target

KEYS, MIGRATION_ID, CIPHER = SessionKeys(b"k" * 32), b"m" * 16, "chacha20-poly1305"
ARENA_PAGES, RECORD_BYTES = 64, 8192
_OUT = memoryview(bytearray(1 << 18))


def _runs(*pairs: tuple[int, int]) -> bytes:
    return np.array(list(pairs), dtype=RUN).tobytes()


def _step(kind: Kind, meta: bytes, body_pages: int = 0, *, body_bytes: int = -1) -> bytes:
    size = body_pages * 4096 if body_bytes < 0 else body_bytes
    return bytes([kind]) + len(meta).to_bytes(2, "big") + size.to_bytes(2, "big") + meta


def _records() -> list[bytes]:
    pages = _step(Kind.PAGES, _runs((0, 1), (5, 1)), 2)
    zero = _step(Kind.ZERO, _runs((7, 3), (60, 4)))
    change = FileMeta("own", "a/b", "write", offset=5)
    wrote = _step(Kind.FILE, encode(change), body_bytes=100)
    end, last = bytes([0x80]), bytes([0x81])  # the true end of the round, and of the last one
    false_end = _step(Kind.END_OF_ROUND, encode(EndOfRound(0, 0, 0, 0, bytes(32), False)))
    return [pages + zero + wrote + end + pages + end, false_end, zero + last + zero]


@target(_records)
def record_stream(data: bytes) -> None:
    """Records whose meta and lengths the fuzzer chose: what opens lies inside the arena."""
    sealer = StreamSealer(KEYS, MIGRATION_ID, 0, CIPHER, record_bytes=1 << 17)
    opener = StreamOpener(
        KEYS, MIGRATION_ID, 0, CIPHER, arena_pages=ARENA_PAGES, record_bytes=RECORD_BYTES
    )
    sealer.next_round(0)
    at = 0
    while at < len(data):
        if data[at] & 0x80:
            length = sealer.seal_end(_OUT, last=bool(data[at] & 1))
            at += 1
            round_no = sealer.round_no
        else:
            kind = Kind(1 + data[at] % 4)
            meta_bytes = int.from_bytes(data[at + 1 : at + 3], "big")
            body = bytes(int.from_bytes(data[at + 3 : at + 5], "big"))
            meta = data[at + 5 : at + 5 + meta_bytes]
            at += 5 + meta_bytes
            length = sealer._seal(kind, meta, body, _OUT)
            round_no = -1
        record = _OUT[:length]
        header = opener.parse_header(record[:HEADER_BYTES])
        meta_end = HEADER_BYTES + header.sealed_meta_bytes
        opened = opener.open_meta(header, record[HEADER_BYTES:meta_end])
        if header.body_bytes:
            opener.open_body(header, record[meta_end:], memoryview(bytearray(header.body_bytes)))
        if header.kind in (Kind.PAGES, Kind.ZERO):
            assert isinstance(opened, np.ndarray)
            assert int(opened["first"][-1]) + int(opened["count"][-1]) <= ARENA_PAGES
        if sealer.ended:
            return
        if round_no >= 0:
            sealer.next_round(round_no + 1)


@target(lambda: [pack_header(Kind.PAGES, 0, 0, 0, 12, 4096), pack_header(Kind.FILE, 1, 2, 3, 9, 0)])
def record_header(data: bytes) -> None:
    """A header that is accepted asks for no more memory than was negotiated."""
    header = unpack_header(data, record_bytes=RECORD_BYTES, tag_bytes=16)
    assert header.sealed_body_bytes <= RECORD_BYTES + 16


@target(lambda: [_runs((0, 1)), _runs((1, 2), (3, 61))])
def record_runs(data: bytes) -> None:
    """Runs that are accepted name each page of the arena once at most."""
    runs = parse_runs(data, arena_pages=ARENA_PAGES)
    assert 1 <= count_pages(runs) <= ARENA_PAGES


def _changes() -> list[bytes]:
    changes = (
        FileMeta("own", "a", "mkdir"),
        FileMeta("own", "a/f", "write", offset=3),
        FileMeta("own", "a/f", "truncate", size=2),
        FileMeta("own", "a/f", "meta", mode=0o640, mtime_ns=-1),
        FileMeta("own", "l", "symlink", target="../../outside"),
        FileMeta("own", "l/x", "write"),
        FileMeta("own", "l", "delete"),
        FileMeta("io", "output.log", "write"),
        FileMeta("io", "../outside", "write"),
    )
    encoded = [encode(change) for change in changes]
    return [b"".join(len(change).to_bytes(2, "big") + change for change in encoded), *encoded[:3]]


def _listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@target(_changes, OSError)
def file_changes(data: bytes) -> None:
    """Changes of files, carried out: nothing comes to be outside the two roots."""
    above = Path(tempfile.mkdtemp(prefix="optmigd-fuzz-"))
    own, io_dir = above / "own", above / "io"
    own.mkdir()
    io_dir.mkdir()
    receiver = FileReceiver(own, io_dir)
    at = 0
    try:
        while at < len(data):
            size = int.from_bytes(data[at : at + 2], "big")
            meta = decode(data[at + 2 : at + 2 + size], FileMeta)
            at += 2 + size
            content = b"12345678" if meta.op == "write" else b""
            if meta.offset > 1 << 20 or meta.size > 1 << 20:
                return  # the disk of whoever fuzzes
            receiver.apply(check_file(meta, body_bytes=len(content)), content)
    finally:
        assert _listing(above) == ["io", "own"]
        assert set(_listing(io_dir)) <= {"output.log", "stdin"}
        shutil.rmtree(above, ignore_errors=True)
