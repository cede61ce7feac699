"""Sealed records: what was sent arrives, and every kind of tampering is refused by name."""

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st
from nacl import bindings

from optmigd.protocol import records
from optmigd.protocol.ciphers import (
    AEGIS_256,
    AES_256_GCM,
    CHACHA20_POLY1305,
    RoundKeys,
    supported_ciphers,
)
from optmigd.protocol.errors import (
    ChannelClosed,
    DecryptFailed,
    LocalProtocolError,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.record_format import (
    MAX_META_BYTES,
    check_file,
    parse_runs,
    unpack_header,
)
from optmigd.protocol.records import (
    HEADER_BYTES,
    RUN,
    EndOfRound,
    FileMeta,
    Header,
    Kind,
    RunArray,
    StreamOpener,
    StreamSealer,
    overall_chain,
    state_digest,
)
from optmigd.protocol.session import SessionKeys
from tests.protocol.test_ciphers import ALL_CIPHERS, TAG_BYTES

KEYS = SessionKeys(bytes(range(32)))
MIGRATION = b"migration-id-016"
RECORD_BYTES = 1 << 16
ARENA_PAGES = 1000
PAGE = 4096

Meta = RunArray | EndOfRound | FileMeta


def runs(*pairs: tuple[int, int]) -> RunArray:
    return np.array(list(pairs), dtype=RUN)


def content(pages: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(pages * PAGE)


@dataclass
class Sender:
    """A sealer that returns records as bytes."""

    cipher: str = AES_256_GCM
    stream: int = 0
    keys: SessionKeys = KEYS
    migration_id: bytes = MIGRATION
    sealer: StreamSealer = field(init=False)

    def __post_init__(self) -> None:
        self.sealer = StreamSealer(
            self.keys, self.migration_id, self.stream, self.cipher, record_bytes=RECORD_BYTES
        )
        self.out = memoryview(bytearray(self.sealer.max_wire_bytes))
        self.sealer.next_round(0)

    def pages(self, *pairs: tuple[int, int], seed: int = 0) -> bytes:
        body = content(sum(count for _, count in pairs), seed)
        return bytes(self.out[: self.sealer.seal_pages(runs(*pairs), body, self.out)])

    def zero(self, *pairs: tuple[int, int]) -> bytes:
        return bytes(self.out[: self.sealer.seal_zero(runs(*pairs), self.out)])

    def file(self, meta: FileMeta, body: bytes = b"") -> bytes:
        return bytes(self.out[: self.sealer.seal_file(meta, body, self.out)])

    def end(self, *, last: bool = False) -> bytes:
        return bytes(self.out[: self.sealer.seal_end(self.out, last=last)])


def new_opener(cipher: str = AES_256_GCM, stream: int = 0) -> StreamOpener:
    return StreamOpener(
        KEYS, MIGRATION, stream, cipher, arena_pages=ARENA_PAGES, record_bytes=RECORD_BYTES
    )


def open_record(opener: StreamOpener, record: bytes) -> tuple[Header, Meta, bytes]:
    view = memoryview(record)
    header = opener.parse_header(view[:HEADER_BYTES])
    meta_end = HEADER_BYTES + header.sealed_meta_bytes
    meta = opener.open_meta(header, view[HEADER_BYTES:meta_end])
    body = bytearray(header.body_bytes)
    if header.body_bytes:
        opener.open_body(
            header, view[meta_end : meta_end + header.sealed_body_bytes], memoryview(body)
        )
    assert meta_end + header.sealed_body_bytes == len(record)
    return header, meta, bytes(body)


def conversation(sender: Sender) -> list[bytes]:
    """Two rounds with every kind of record."""
    first = [
        sender.pages((0, 2), (5, 1)),
        sender.zero((10, 900)),
        sender.file(FileMeta("own", "a/b.txt", "write", offset=3), b"hello"),
        sender.end(),
    ]
    sender.sealer.next_round(1)
    return [*first, sender.pages((5, 1), seed=1), sender.pages((0, 1), seed=2), sender.end()]


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_every_kind_of_record_arrives(cipher: str) -> None:
    sender, opener = Sender(cipher), new_opener(cipher)
    opened = [open_record(opener, record) for record in conversation(sender)]
    kinds = [header.kind for header, _, _ in opened]
    assert kinds == [
        Kind.PAGES,
        Kind.ZERO,
        Kind.FILE,
        Kind.END_OF_ROUND,
        Kind.PAGES,
        Kind.PAGES,
        Kind.END_OF_ROUND,
    ]
    _, meta, body = opened[0]
    assert isinstance(meta, np.ndarray)
    assert meta.tolist() == [(0, 2), (5, 1)]
    assert body == content(3)
    assert opened[2][1:] == (FileMeta("own", "a/b.txt", "write", offset=3), b"hello")
    end = opened[3][1]
    assert isinstance(end, EndOfRound)
    assert (end.records, end.pages, end.zero_pages) == (3, 3, 900)
    assert opener.chain == sender.sealer.chain
    assert opener.total_counts == sender.sealer.total_counts
    assert opener.total_counts.all_pages == 905
    assert opener.round_ended


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_no_content_is_in_the_clear(cipher: str) -> None:
    sender = Sender(cipher)
    marker = b"THE-SECRET-MARKER"
    page = marker.ljust(PAGE, b"\0")
    size = sender.sealer.seal_pages(runs((7, 1)), page, sender.out)
    record = bytes(sender.out[:size])
    assert marker not in record
    assert runs((7, 1)).tobytes() not in record
    assert marker not in sender.file(FileMeta("own", "x", "write"), marker)


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_equal_pages_look_different_each_time(cipher: str) -> None:
    sender = Sender(cipher)
    first, second = sender.pages((1, 1)), sender.pages((1, 1))
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


Change = Callable[[list[bytes]], list[bytes]]


def changed(records_: list[bytes], index: int, offset: int) -> list[bytes]:
    record = bytearray(records_[index])
    record[offset] ^= 1
    return [*records_[:index], bytes(record), *records_[index + 1 :]]


def refused(stream: list[bytes], cipher: str = AES_256_GCM) -> OptmigError:
    """Open a stream that must fail, and return why; afterwards the opener must stay dead."""
    opener = new_opener(cipher)
    for record in stream:
        try:
            open_record(opener, record)
        except (DecryptFailed, RemoteProtocolError) as error:
            with pytest.raises(ChannelClosed):
                opener.parse_header(bytes(HEADER_BYTES))
            return error
    raise AssertionError("a tampered stream was accepted")


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_every_flipped_bit_is_refused(cipher: str) -> None:
    stream = conversation(Sender(cipher))
    tag = TAG_BYTES[cipher]
    for index, record in enumerate(stream):
        header = unpack_header(record[:HEADER_BYTES], record_bytes=RECORD_BYTES, tag_bytes=tag)
        meta_end = HEADER_BYTES + header.sealed_meta_bytes
        last = len(record) - 1
        interesting = {*range(meta_end), meta_end, *range(last - tag, last + 1)}
        for offset in sorted(interesting & set(range(len(record)))):
            error = refused(changed(stream, index, offset), cipher)
            assert error, f"record {index}, byte {offset}"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda s: [*s[:1], *s[2:]],
        lambda s: [s[0], s[0], *s[1:]],
        lambda s: [s[1], s[0], *s[2:]],
        lambda s: s[1:],
        lambda s: [*s[:3], *s[4:]],
        lambda s: [*s[:4], *s[:4], *s[4:]],
        lambda s: [*s[:2], s[5], *s[3:]],
        lambda s: s[4:],
    ],
    ids=[
        "drop",
        "repeat",
        "reorder",
        "drop-first",
        "drop-end-of-round",
        "repeat-round",
        "splice-rounds",
        "skip-round",
    ],
)
@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_a_tampered_sequence_is_refused(tamper: Change, cipher: str) -> None:
    error = refused(tamper(conversation(Sender(cipher))), cipher)
    assert isinstance(error, DecryptFailed)
    assert "dropped, repeated or reordered" in error.message


def renumbered(record: bytes, sequence: int) -> bytes:
    return record[:12] + struct.pack("<Q", sequence) + record[20:]


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_renumbering_hides_nothing(cipher: str) -> None:
    stream = conversation(Sender(cipher))
    assert "changed" in refused([stream[0], renumbered(stream[0], 1)], cipher).message


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
@pytest.mark.parametrize(
    "other",
    [{"migration_id": b"another-migr-016"}, {"keys": SessionKeys(bytes(32))}],
    ids=["migration", "session"],
)
def test_a_record_from_elsewhere_does_not_open(cipher: str, other: dict[str, Any]) -> None:
    assert isinstance(refused([Sender(cipher, **other).pages((0, 1))], cipher), DecryptFailed)


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_a_record_under_another_cipher_does_not_open(cipher: str) -> None:
    for other in set(supported_ciphers(aes_in_hardware=True)) - {cipher}:
        record = memoryview(Sender(other).pages((0, 1)))
        opener = new_opener(cipher)
        header = opener.parse_header(record[:HEADER_BYTES])
        with pytest.raises(DecryptFailed):
            opener.open_meta(header, record[HEADER_BYTES:][: header.sealed_meta_bytes])


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_a_record_of_another_stream_does_not_open(cipher: str) -> None:
    record = bytearray(Sender(cipher, stream=1).pages((0, 1)))
    assert "another stream" in refused([bytes(record)], cipher).message
    record[4] = 0  # the stream's number in the header
    assert isinstance(refused([bytes(record)], cipher), DecryptFailed)


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_a_body_does_not_open_behind_another_meta(cipher: str) -> None:
    first, second = Sender(cipher).pages((0, 1), seed=1), Sender(cipher).pages((0, 1), seed=2)
    third = Sender(cipher).pages((1, 1), seed=2)
    meta_end = HEADER_BYTES + RUN.itemsize + TAG_BYTES[cipher]
    assert isinstance(refused([first[:meta_end] + third[meta_end:]], cipher), DecryptFailed)
    # The same key and nonce, as only a test can have it: the meta's tag binds the two parts.
    assert first[:meta_end] == second[:meta_end]


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_lengths_on_the_wire_are_those_of_the_cipher(cipher: str) -> None:
    sender, tag = Sender(cipher), TAG_BYTES[cipher]
    assert len(sender.pages((0, 1), (4, 2))) == 32 + 24 + tag + 3 * PAGE + tag
    assert len(sender.zero((8, 1))) == 32 + 12 + tag
    assert sender.sealer.total_counts.bytes == 32 + 24 + 32 + 12 + 3 * tag + 3 * PAGE
    assert sender.sealer.max_wire_bytes == 32 + MAX_META_BYTES + RECORD_BYTES + 2 * tag
    assert new_opener(cipher).tag_bytes == tag


def test_cutting_off_is_seen_at_the_end_of_the_round() -> None:
    sender, opener = Sender(), new_opener()
    open_record(opener, sender.pages((0, 1)))
    assert not opener.round_ended
    assert opener.chain == sender.sealer.chain
    sender.pages((1, 1))
    assert opener.chain != sender.sealer.chain


def test_an_end_of_round_must_fit_what_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("records", "pages", "zero_pages", "bytes"):
        sender = Sender()
        stream = [sender.pages((0, 1))]
        setattr(sender.sealer.round_counts, name, 77)
        error = refused([*stream, sender.end()])
        assert isinstance(error, RemoteProtocolError)
        assert "does not fit what has arrived" in error.message
    sender = Sender()
    stream = [sender.pages((0, 1))]
    monkeypatch.setattr(StreamSealer, "chain", bytes(32))
    bad_end = sender.end()
    monkeypatch.undo()
    assert "does not fit what has arrived" in refused([*stream, bad_end]).message


def header_bytes(**fields: int) -> bytes:
    values = {
        "magic": 0x524F,
        "kind": 1,
        "reserved_1": 0,
        "stream": 0,
        "reserved_2": 0,
        "round_no": 0,
        "sequence": 0,
        "meta_bytes": 12,
        "body_bytes": PAGE,
        "reserved_3": 0,
    } | fields
    return struct.pack("<HBBHHIQIII", *values.values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"magic": 0}, "not a record"),
        ({"kind": 0}, "unknown kind"),
        ({"kind": 5}, "unknown kind"),
        ({"reserved_1": 1}, "reserved"),
        ({"reserved_2": 1}, "reserved"),
        ({"reserved_3": 1}, "reserved"),
        ({"meta_bytes": 0}, "too large"),
        ({"meta_bytes": MAX_META_BYTES + 1}, "too large"),
        ({"meta_bytes": 2**32 - 1}, "too large"),
        ({"body_bytes": RECORD_BYTES + 1}, "too large"),
        ({"body_bytes": 2**32 - 1}, "too large"),
        ({"meta_bytes": 13}, "page runs are cut off"),
        ({"body_bytes": 0}, "with 0 bytes of body"),
        ({"body_bytes": PAGE - 1}, "part of a page"),
        ({"kind": 2}, "ZERO with 4096 bytes"),
        ({"kind": 3}, "END_OF_ROUND with 4096 bytes"),
        ({"sequence": 2**63}, "out of range"),
        ({"sequence": 1}, "dropped, repeated or reordered"),
        ({"round_no": 1}, "dropped, repeated or reordered"),
        ({"stream": 1}, "dropped, repeated or reordered"),
    ],
)
def test_a_header_out_of_bounds_is_refused_at_once(fields: dict[str, int], says: str) -> None:
    with pytest.raises((RemoteProtocolError, DecryptFailed), match=says):
        new_opener().parse_header(header_bytes(**fields))
    new_opener().parse_header(header_bytes())


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_header_is_parsed_or_refused(data: bytes) -> None:
    try:
        header = unpack_header(data, record_bytes=RECORD_BYTES, tag_bytes=16)
    except RemoteProtocolError:
        return
    assert header.meta_bytes <= MAX_META_BYTES
    assert header.body_bytes <= RECORD_BYTES


@given(st.binary(max_size=31) | st.binary(min_size=33, max_size=40))
def test_a_header_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack_header(data, record_bytes=RECORD_BYTES, tag_bytes=16)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 30), st.integers(2**64 - 40, 2**64 - 1)),
            st.one_of(st.integers(0, 12), st.just(2**32 - 1)),
        ),
        min_size=1,
        max_size=6,
    )
)
# What a removed check would let through, every time and not when chance finds it.
@example([(0, 32)])
@example([(31, 2)])
@example([(0, 0)])
# One run is read by other code than several.
@example([(0, 1), (31, 2)])
@example([(0, 1), (3, 0)])
@example([(0, 1), (2**64 - 1, 2**32 - 1)])
@example([(4, 2), (5, 1)])
@example([(2**64 - 1, 2**32 - 1)])
def test_page_runs_are_accepted_exactly_when_they_are_in_order(
    pairs: list[tuple[int, int]],
) -> None:
    position = 0
    good = True
    for first, count in pairs:
        good = good and first >= position and count > 0 and first + count <= 32
        position = first + count
    packed = b"".join(struct.pack("<QI", *pair) for pair in pairs)
    if good:
        assert parse_runs(packed, arena_pages=32).tolist() == pairs
    else:
        with pytest.raises(RemoteProtocolError):
            parse_runs(packed, arena_pages=32)


@given(st.binary(max_size=60))
def test_any_bytes_are_page_runs_or_refused(data: bytes) -> None:
    try:
        found = parse_runs(data, arena_pages=100)
    except RemoteProtocolError:
        return
    assert found.tobytes() == data


def test_runs_must_fit_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender()
    with pytest.raises(LocalProtocolError):
        sender.sealer.seal_pages(runs((0, 2)), content(1), sender.out)
    monkeypatch.setattr(records, "count_pages", lambda _: 1)
    size = sender.sealer.seal_pages(runs((0, 2)), content(1), sender.out)
    monkeypatch.undo()
    assert "do not fit its content" in refused([bytes(sender.out[:size])]).message


@pytest.mark.parametrize(
    "meta",
    [
        FileMeta("own", "../x", "write"),
        FileMeta("own", "/etc/passwd", "write"),
        FileMeta("own", "a//b", "write"),
        FileMeta("own", "a/./b", "delete"),
        FileMeta("own", "a/..", "mkdir"),
        FileMeta("own", "a\0b", "write"),
        FileMeta("own", "", "delete"),
        FileMeta("own", "x", "symlink"),
        FileMeta("own", "x", "symlink", target="a\0"),
        FileMeta("own", "x", "write", target="y"),
        FileMeta("own", "x", "write", offset=2**63 - 1),
    ],
)
def test_a_file_change_out_of_order_is_refused(meta: FileMeta) -> None:
    with pytest.raises(RemoteProtocolError):
        check_file(meta, body_bytes=1 if meta.op == "write" else 0)
    with pytest.raises(LocalProtocolError):
        Sender().file(meta, b"x" if meta.op == "write" else b"")


def test_content_belongs_to_writes_alone() -> None:
    with pytest.raises(RemoteProtocolError, match="truncate with content"):
        check_file(FileMeta("own", "x", "truncate"), body_bytes=1)
    check_file(FileMeta("own", "", "meta", mode=0o700), body_bytes=0)


@given(st.text(max_size=30) | st.text("./a", max_size=8))
@example("..")
@example("a/../../b")
@example("./a")
def test_an_accepted_file_name_stays_inside(path: str) -> None:
    try:
        check_file(FileMeta("own", path, "write"), body_bytes=0)
    except RemoteProtocolError:
        return
    depth = 0
    for name in path.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(name, 1)
        assert depth >= 1


def test_the_sealer_keeps_the_order_of_rounds() -> None:
    sender = Sender()
    with pytest.raises(LocalProtocolError, match="round 1 cannot follow round 0"):
        sender.sealer.next_round(1)
    sender.end()
    with pytest.raises(LocalProtocolError, match="no round is open"):
        sender.pages((0, 1))
    with pytest.raises(LocalProtocolError, match="round 2 cannot follow round 0"):
        sender.sealer.next_round(2)
    sender.sealer.next_round(1)
    with pytest.raises(LocalProtocolError, match="no round is open"):
        StreamSealer(KEYS, MIGRATION, 0, AES_256_GCM).seal_end(sender.out, last=False)


def test_nothing_follows_the_last_round() -> None:
    """Not even what the same session's keys have sealed."""
    honest, longer = Sender(), Sender()
    opener = new_opener()
    for record in (honest.pages((0, 1)), honest.end(last=True)):
        _, meta, _ = open_record(opener, record)
    assert isinstance(meta, EndOfRound) and meta.last and opener.ended
    with pytest.raises(LocalProtocolError, match="round 1 cannot follow round 0"):
        honest.sealer.next_round(1)
    for record in (longer.pages((0, 1)), longer.end()):
        assert len(record) > HEADER_BYTES
    longer.sealer.next_round(1)
    with pytest.raises(RemoteProtocolError, match="after the last round"):
        open_record(opener, longer.pages((1, 1)))


def test_the_sealer_refuses_what_does_not_fit() -> None:
    sender = Sender()
    chain = sender.sealer.chain
    with pytest.raises(LocalProtocolError, match="does not fit"):
        sender.pages((0, RECORD_BYTES // PAGE + 1))
    with pytest.raises(LocalProtocolError, match="does not fit"):
        sender.sealer.seal_zero(runs((0, 1)), sender.out[:50])
    with pytest.raises(LocalProtocolError, match="dtype"):
        sender.sealer.seal_zero(
            np.array([(0, 1)], dtype=[("first", "<i8"), ("count", "<i8")]), sender.out
        )
    with pytest.raises(LocalProtocolError, match="without pages"):
        sender.sealer.seal_zero(np.zeros(0, RUN), sender.out)
    assert sender.sealer.chain == chain
    open_record(new_opener(), sender.pages((0, 1)))


def test_the_opener_is_driven_in_order() -> None:
    record = memoryview(Sender().pages((0, 1)))
    opener = new_opener()
    header = opener.parse_header(record[:HEADER_BYTES])
    meta_end = HEADER_BYTES + header.sealed_meta_bytes
    body = memoryview(bytearray(PAGE))
    with pytest.raises(LocalProtocolError):
        opener.open_body(header, record[meta_end:], body)
    with pytest.raises(LocalProtocolError):
        opener.parse_header(record[:HEADER_BYTES])
    opener.open_meta(header, record[HEADER_BYTES:meta_end])
    with pytest.raises(LocalProtocolError):
        opener.open_meta(header, record[HEADER_BYTES:meta_end])
    with pytest.raises(LocalProtocolError):
        opener.parse_header(record[:HEADER_BYTES])
    with pytest.raises(LocalProtocolError, match="100 bytes of room for 4096"):
        opener.open_body(header, record[meta_end:], body[:100])
    opener.open_body(header, record[meta_end:], body)
    assert bytes(body) == content(1)


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_nothing_counts_before_it_is_verified(cipher: str) -> None:
    record = memoryview(changed([Sender(cipher).pages((0, 1))], 0, -1)[0])
    opener = new_opener(cipher)
    chain = opener.chain
    with pytest.raises(DecryptFailed):
        open_record(opener, bytes(record))
    assert opener.chain == chain
    assert opener.total_counts.records == 0


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_known_answers_of_records(cipher: str) -> None:
    """Figures of this format, version 3: if they change, the version must change with them."""
    key, record, chain = KNOWN[cipher]
    keys = RoundKeys(bytes(32), cipher, 2)
    keys.next()
    assert keys.next().hex() == key
    sender = Sender(cipher)
    sealed = sender.pages((3, 1))
    assert sealed[:32].hex() == KNOWN_HEADER
    assert sealed[32 : 32 + 12 + TAG_BYTES[cipher] + 16].hex() == record
    assert sender.sealer.chain.hex() == chain


def test_known_answers_of_digests() -> None:
    assert overall_chain([bytes(32), b"\1" * 32]).hex() == KNOWN_OVERALL
    assert state_digest(MIGRATION, 5, bytes(32), b"manifest").hex() == KNOWN_STATE


# For each cipher: stream 2's key of round 1; the sealed meta and the first 16 bytes of the sealed
# body of stream 0's first record; the chain after it.
KNOWN = {
    AEGIS_256: (
        "4ce6c7bf9c2d0a8aa41f1cf4f3925030c69111931ffa7f397a84bd3888f7d195",
        "2d3db8820f261415fec8c4c292a482397e5f5b5f960668c62b4583641d765ad4"
        "7bae6d522fe93941a5c911dea4ced9afb8e1dcb68f8bd3e57c3590e4",
        "a51f7d5ecc17d994fe9a5efde6f98cc24c3d1b17d2a6fe227ef90addc11ba060",
    ),
    AES_256_GCM: (
        "f976226e56dfd0dffc38167c88d58b28ccbbe4f96085403fb191f3d2fb078f4f",
        "ff07fcaa6378a756b2b232b0c1c7483b1c4f57e737ee3068688eed6906199f6933c2d526926ff95cb3e9ab25",
        "60d75dc5ae23a36a2805c80fa9378ec42ef7716175ade5ceb9aaa00476bea9f3",
    ),
    CHACHA20_POLY1305: (
        "598389f866fff75e36a424621a8b0c570d1bcf81ceb37642fd3d148d274a13f7",
        "9e2653f42ad9cf909d02febcb2de7960c300f908a520fd4076b07b38c818d09eec15ac48245b072a7617368d",
        "cbf9e752e44d18c2df991990f512e7cc24fad767e560b73bb7646924d9a417d7",
    ),
}
KNOWN_HEADER = "4f520100000000000000000000000000000000000c0000000010000000000000"
KNOWN_OVERALL = "1c3544dfd5561c330279d2571348e720facf0f7d42a4acb85562778bd7ae2b97"
KNOWN_STATE = "afaefe29e7f45cce7b5150ac827e951bef10a4238074a9393398b6095b1e93de"


def open_elsewhere(cipher: str, key: bytes, nonce: bytes, sealed: bytes, ad: bytes) -> bytes:
    """Open with the libraries' public calls."""
    match cipher:
        case "aes-256-gcm":
            return AESGCM(key).decrypt(nonce, sealed, ad)
        case "chacha20-poly1305":
            return ChaCha20Poly1305(key).decrypt(nonce, sealed, ad)
        case _:
            return bindings.crypto_aead_aegis256_decrypt(sealed, ad, nonce + bytes(20), key)


@pytest.mark.parametrize("cipher", ALL_CIPHERS)
def test_the_key_schedule_and_the_record_are_what_the_document_says(cipher: str) -> None:
    """Written from docs/protocol.md alone, with other libraries' calls."""
    info = b"optmigd records v2\0source to destination\0" + cipher.encode() + b"\0"
    info += struct.pack("<H", 0)
    first = HKDF(SHA256(), 32, salt=None, info=info).derive(KEYS.records_secret)
    second = hmac.digest(first, b"next round", "sha256")
    key = hmac.digest(second, b"round key", "sha256")
    sender = Sender(cipher)
    sender.end()
    sender.sealer.next_round(1)
    record = sender.pages((3, 1), seed=9)
    tag = 32 if cipher == "aegis-256" else 16
    ad = MIGRATION + record[:32]
    meta_end = 32 + 12 + tag
    # The second record of the stream: its sequence number is 1.
    meta_nonce, body_nonce = (bytes(4) + struct.pack("<Q", 2 * 1 + part) for part in (0, 1))
    meta = open_elsewhere(cipher, key, meta_nonce, record[32:meta_end], ad)
    assert struct.unpack("<QI", meta) == (3, 1)
    ad += record[meta_end - tag : meta_end]
    assert open_elsewhere(cipher, key, body_nonce, record[meta_end:], ad) == content(1, seed=9)


def test_digests_bind_every_part() -> None:
    base = state_digest(MIGRATION, 5, bytes(32), b"manifest")
    others = [
        state_digest(MIGRATION[::-1], 5, bytes(32), b"manifest"),
        state_digest(MIGRATION, 6, bytes(32), b"manifest"),
        state_digest(MIGRATION, 5, b"\1" * 32, b"manifest"),
        state_digest(MIGRATION, 5, bytes(32), b"manifesto"),
    ]
    assert len({base, *others}) == 5
    assert overall_chain([bytes(32), b"\1" * 32]) != overall_chain([b"\1" * 32, bytes(32)])
    assert overall_chain([]) != overall_chain([bytes(32)])
    with pytest.raises(LocalProtocolError):
        overall_chain([b"short"])
    with pytest.raises(LocalProtocolError):
        state_digest(b"short", 5, bytes(32), b"")
