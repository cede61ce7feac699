"""Two daemons' channels over a wire that a test may cut, feed byte by byte, or change."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.protocol import link
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import (
    ChannelClosed,
    DecryptFailed,
    HandshakeFailed,
    LocalProtocolError,
    RemoteProtocolError,
    VersionMismatch,
)
from optmigd.protocol.link import (
    Abort,
    Accepted,
    HandshakeDone,
    LinkChannel,
    LinkMessage,
    Offer,
    Query,
    Received,
    Refused,
    Session,
    WireBlocker,
    decode_link,
    encode_link,
    fit_blockers,
)
from optmigd.protocol.noise import MAX_PLAINTEXT_BYTES, keypair
from optmigd.protocol.versions import LINK_VERSIONS, Window
from optmigd.protocol.wire import frame, pack

DIALLER, ACCEPTOR = keypair(b"\1" * 32), keypair(b"\2" * 32)
OFFER = Offer(
    migration_id=b"m" * 16,
    enclave="pagerank",
    generation=3,
    image_sha256=b"i" * 32,
    image_bytes=123,
    memory_bytes=1 << 32,
    resident_bytes=1 << 30,
    streams=2,
    policy=b"[policy]",
    own_dir="/data",
    shared=["/mnt/shared"],
    dry_run=False,
    mode="precopy",
)


def channel(*, initiator: bool, versions: Window = LINK_VERSIONS) -> LinkChannel:
    return LinkChannel(
        initiator=initiator,
        static=DIALLER if initiator else ACCEPTOR,
        ephemeral_private=(b"\3" if initiator else b"\4") * 32,
        versions=versions,
        host_name="a" if initiator else "b",
    )


@dataclass
class Pair:
    """A dialler and an acceptor after the handshake."""

    dialler: LinkChannel = field(default_factory=lambda: channel(initiator=True))
    acceptor: LinkChannel = field(default_factory=lambda: channel(initiator=False))

    def shake(self) -> tuple[HandshakeDone, HandshakeDone]:
        assert self.acceptor.receive_data(self.dialler.start()) == []
        (at_dialler,) = self.dialler.receive_data(self.acceptor.data_to_send())
        (at_acceptor,) = self.acceptor.receive_data(self.dialler.data_to_send())
        assert isinstance(at_dialler, HandshakeDone)
        assert isinstance(at_acceptor, HandshakeDone)
        return at_dialler, at_acceptor


def test_both_sides_learn_host_key_name_and_version() -> None:
    at_dialler, at_acceptor = Pair().shake()
    assert at_dialler == HandshakeDone(ACCEPTOR.public, "b", 1)
    assert at_acceptor == HandshakeDone(DIALLER.public, "a", 1)


def test_messages_go_both_ways_byte_by_byte() -> None:
    pair = Pair()
    pair.shake()
    messages: list[LinkMessage] = [OFFER, Session(b"opaque" * 1000), Query("ping", {})]
    for sender, receiver in (
        (pair.dialler, pair.acceptor),
        (pair.acceptor, pair.dialler),
    ):
        wire = b"".join(sender.send(message) for message in messages)
        events = [event for byte in wire for event in receiver.receive_data(bytes([byte]))]
        assert events == [Received(message) for message in messages]


def test_the_handshake_works_byte_by_byte() -> None:
    a, b = channel(initiator=True), channel(initiator=False)
    events: list[object] = []
    to_b, to_a = a.start(), b""
    while to_a or to_b:
        for byte in to_b:
            events += b.receive_data(bytes([byte]))
        to_b, to_a = b"", b.data_to_send()
        for byte in to_a:
            events += a.receive_data(bytes([byte]))
        to_b, to_a = a.data_to_send(), b""
    assert [type(event) for event in events] == [HandshakeDone, HandshakeDone]


def test_nothing_is_processed_before_the_caller_has_seen_the_key() -> None:
    """The third handshake message and an offer in one segment: the offer waits."""
    pair = Pair()
    pair.acceptor.receive_data(pair.dialler.start())
    pair.dialler.receive_data(pair.acceptor.data_to_send())
    segment = pair.dialler.data_to_send() + pair.dialler.send(OFFER)
    assert pair.acceptor.receive_data(segment) == [HandshakeDone(DIALLER.public, "a", 1)]
    assert pair.acceptor.receive_data(b"") == [Received(OFFER)]


def test_a_version_mismatch_is_told_to_both_sides() -> None:
    a = channel(initiator=True, versions=Window(2, 3))
    b = channel(initiator=False, versions=Window(1, 1))
    with pytest.raises(VersionMismatch) as at_acceptor:
        b.receive_data(a.start())
    assert at_acceptor.value.fields == {"ours": (1, 1), "theirs": (2, 3)}
    with pytest.raises(VersionMismatch) as at_dialler:
        a.receive_data(b.data_to_send())
    assert at_dialler.value.fields == {"ours": (2, 3), "theirs": (1, 1)}
    assert a.data_to_send() == b""


def test_the_highest_common_version_is_spoken() -> None:
    pair = Pair(
        channel(initiator=True, versions=Window(1, 3)),
        channel(initiator=False, versions=Window(1, 2)),
    )
    assert [done.version for done in pair.shake()] == [2, 2]


def flip(frames: list[bytes]) -> list[bytes]:
    middle = bytearray(frames[1])
    middle[-1] ^= 0x40
    return [frames[0], bytes(middle), frames[2]]


@pytest.mark.parametrize(
    "tamper",
    [
        flip,
        lambda f: [f[0], f[2]],
        lambda f: [f[0], f[0], f[1], f[2]],
        lambda f: [f[1], f[0], f[2]],
        lambda f: [f[0], frame(f[1][4:-1]), f[2]],
        lambda f: [f[0], frame(f[1][4:] + b"\0"), f[2]],
        lambda f: [f[0], frame(b""), f[1], f[2]],
    ],
    ids=["flip", "drop", "repeat", "reorder", "truncate", "extend", "insert-empty"],
)
def test_tampering_with_messages_is_refused(
    tamper: Callable[[list[bytes]], list[bytes]],
) -> None:
    pair = Pair()
    pair.shake()
    frames = [pair.dialler.send(Session(b"%d" % number)) for number in range(3)]
    with pytest.raises(DecryptFailed):
        pair.acceptor.receive_data(b"".join(tamper(frames)))
    with pytest.raises(ChannelClosed):
        pair.acceptor.receive_data(b"")
    with pytest.raises(ChannelClosed):
        pair.acceptor.send(Session(b"x"))


@given(st.integers(0, 2), st.data())
def test_every_changed_byte_of_the_handshake_is_refused(no: int, data: st.DataObject) -> None:
    a, b = channel(initiator=True), channel(initiator=False)
    wires = [a.start]
    receivers = [b, a, b]
    wires += [b.data_to_send, a.data_to_send]
    for number, (wire, receiver) in enumerate(zip(wires, receivers, strict=True)):
        message = bytearray(wire())
        if number == no:
            offset = data.draw(st.integers(0, len(message) - 1))
            message[offset] ^= data.draw(st.integers(1, 255))
        try:
            events = receiver.receive_data(bytes(message))
        except (HandshakeFailed, RemoteProtocolError):
            return
        if number > 0 and number == no:
            # A length made larger only makes the receiver wait; nothing was believed.
            assert events == []
            assert offset < 4
            return
        if number == no and offset < 4 and not receiver.data_to_send():
            return
    raise AssertionError("a changed handshake was accepted by both sides")


@given(st.binary(max_size=300))
def test_any_bytes_from_a_stranger_are_refused_or_waited_for(data: bytes) -> None:
    for initiator in (True, False):
        stranger = channel(initiator=initiator)
        stranger.start()
        try:
            events = stranger.receive_data(data)
        except (HandshakeFailed, RemoteProtocolError, VersionMismatch):
            continue
        assert events == []


def test_an_oversize_frame_is_refused_at_its_length() -> None:
    with pytest.raises(RemoteProtocolError, match="a frame of 65536 bytes"):
        channel(initiator=False).receive_data(b"\x00\x01\x00\x00")


def test_nothing_is_sent_before_the_handshake() -> None:
    with pytest.raises(LocalProtocolError):
        channel(initiator=True).send(OFFER)
    dialler = channel(initiator=True)
    dialler.start()
    with pytest.raises(LocalProtocolError):
        dialler.start()


def test_names_and_offers_do_not_cross_in_the_clear() -> None:
    pair = Pair()
    wire = pair.dialler.start()
    pair.acceptor.receive_data(wire)
    answer = pair.acceptor.data_to_send()
    pair.dialler.receive_data(answer)
    wire += answer + pair.dialler.data_to_send() + pair.dialler.send(OFFER)
    assert b"pagerank" not in wire
    assert ACCEPTOR.public not in wire
    assert DIALLER.public not in wire


EXAMPLES: list[LinkMessage] = [
    OFFER,
    link.ImageWanted(),
    link.ImageChunk(0, b"elf", last=True),
    Accepted([b"t" * 32]),
    Refused([WireBlocker("memory", "4 GiB", "too little")]),
    Session(b"x"),
    link.Token(b"x"),
    link.Resumed(b"x"),
    Abort("failed", "sorry"),
    link.Finished("completed"),
    Query("logs", {"enclave": "x", "follow": True}),
    link.QueryEvent({"content": b"x"}),
    link.QueryResult({"state": "released"}),
    link.QueryError("unknown-enclave", "no", {"enclave": "x"}),
    link.Redeliver(b"m" * 16, b"x"),
]


def test_there_is_an_example_of_every_message() -> None:
    kinds = {type(message) for message in EXAMPLES}
    assert kinds == set(LinkMessage.__args__)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_arrives_and_tolerates_no_stranger(message: LinkMessage) -> None:
    assert decode_link(encode_link(message)) == message
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    with pytest.raises(RemoteProtocolError):
        decode_link(pack(fields | {"unknown": 1}))
    with pytest.raises(RemoteProtocolError):
        decode_link(pack(fields | {"t": "unknown"}))
    for name in fields:
        with pytest.raises(RemoteProtocolError):
            decode_link(pack({key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"migration_id": b"m" * 15},
        {"enclave": ""},
        {"generation": -1},
        {"memory_bytes": 2**63},
        {"streams": 0},
        {"streams": 65},
        {"policy": b"x" * 32_769},
        {"shared": ["x"] * 65},
        {"mode": "teleport"},
        {"image_sha256": b""},
        {"dry_run": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_offer_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    fields = msgspec.to_builtins(OFFER, builtin_types=(bytes,))
    with pytest.raises(RemoteProtocolError):
        decode_link(pack(fields | changes))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = decode_link(data)
    except RemoteProtocolError:
        return
    assert decode_link(encode_link(message)) == message


def test_a_message_too_large_for_one_frame_is_a_bug_here() -> None:
    with pytest.raises(LocalProtocolError, match=r"QueryEvent of \d+ bytes; at most 65519 fit"):
        encode_link(link.QueryEvent({"content": bytes(66_000)}))


def test_any_number_of_blockers_fits_into_a_refusal() -> None:
    many = [Blocker("file-absent", "p" * 5000, "m" * 9000) for _ in range(1000)]
    few = [Blocker("memory", "x", "y")] * 3
    refusal = Refused(fit_blockers(many))
    assert len(encode_link(refusal)) <= MAX_PLAINTEXT_BYTES
    assert decode_link(encode_link(refusal)) == refusal
    named = len(refusal.blockers) - 1
    assert f"{1000 - named} more blockers" in refusal.blockers[-1].message
    assert [wire.blocker() for wire in fit_blockers(few)] == few
    short = fit_blockers([Blocker("memory", "x", "y")] * 1000)
    assert len(short) == link.MAX_BLOCKERS
