"""Noise: the published vectors, the project's own, and how it behaves when things go wrong."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.protocol.errors import (
    ChannelClosed,
    DecryptFailed,
    HandshakeFailed,
    LocalProtocolError,
)
from optmigd.protocol.noise import (
    MAX_MESSAGE_BYTES,
    MAX_NONCE,
    MAX_PLAINTEXT_BYTES,
    CipherState,
    Handshake,
    Transport,
    keypair,
    shared_secret,
)
from tests.channel.vectors import OWN, PUBLISHED, Vector, ciphertexts, load

PUBLISHED_VECTORS = load(PUBLISHED) if PUBLISHED.exists() else []


def check(vector: Vector) -> None:
    sent, handshake_hash = ciphertexts(vector)
    assert sent == [message["ciphertext"] for message in vector["messages"]]
    assert handshake_hash == vector["handshake_hash"]


@pytest.mark.skipif(not PUBLISHED_VECTORS, reason=f"no published vectors at {PUBLISHED}")
def test_the_published_vectors_are_those_expected() -> None:
    names = [vector["protocol_name"] for vector in PUBLISHED_VECTORS]
    assert "Noise_XX_25519_ChaChaPoly_BLAKE2b" in names
    assert len(set(names)) == len(names) >= 36


@pytest.mark.parametrize("vector", PUBLISHED_VECTORS, ids=lambda v: v["protocol_name"])
def test_a_published_vector(vector: Vector) -> None:
    check(vector)


@pytest.mark.parametrize("vector", load(OWN), ids=["link", "session", "empty"])
def test_an_own_vector(vector: Vector) -> None:
    check(vector)


A, B = keypair(b"\1" * 32), keypair(b"\2" * 32)


def pair(prologue: bytes = b"p", other_prologue: bytes = b"p") -> tuple[Handshake, Handshake]:
    return (
        Handshake(initiator=True, static=A, ephemeral_private=b"\3" * 32, prologue=prologue),
        Handshake(initiator=False, static=B, ephemeral_private=b"\4" * 32, prologue=other_prologue),
    )


def finished() -> tuple[Transport, Transport]:
    a, b = pair()
    b.read(a.write())
    a.read(b.write())
    b.read(a.write())
    return a.finish(), b.finish()


def test_both_learn_the_other_and_agree() -> None:
    a, b = pair()
    assert b.read(a.write(b"one")) == b"one"
    hashes: list[bytes] = []

    def evidence(handshake_hash: bytes) -> bytes:
        hashes.append(handshake_hash)
        return b"evidence"

    assert a.read(b.write(evidence)) == b"evidence"
    assert hashes == [a.hash_before_payload] == [b.hash_before_payload]
    assert b.read(a.write(evidence)) == b"evidence"
    assert hashes[1] == a.hash_before_payload == b.hash_before_payload
    assert (a.remote_static, b.remote_static) == (B.public, A.public)
    ta, tb = a.finish(), b.finish()
    assert ta.handshake_hash == tb.handshake_hash
    for number in range(3):
        assert tb.decrypt(ta.encrypt(b"%d" % number, b"ad"), b"ad") == b"%d" % number
        assert ta.decrypt(tb.encrypt(b"%d" % number)) == b"%d" % number
    assert ta.export(b"x") == tb.export(b"x")
    assert len({ta.export(b"x"), ta.export(b"y"), ta.handshake_hash[:32]}) == 3


def test_another_prologue_is_refused() -> None:
    a, b = pair(b"v1", b"v2")
    b.read(a.write())
    with pytest.raises(HandshakeFailed, match="do not agree on the prologue"):
        a.read(b.write())


@given(st.integers(0, 2), st.data())
def test_every_changed_byte_ends_the_handshake(message_no: int, data: st.DataObject) -> None:
    sides = pair()
    for number in range(3):
        writer, reader = sides[number % 2], sides[1 - number % 2]
        message = bytearray(writer.write(b"payload"))
        if number == message_no:
            message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            reader.read(bytes(message))
        except HandshakeFailed:
            with pytest.raises(ChannelClosed):
                reader.read(bytes(message))
            with pytest.raises(ChannelClosed):
                reader.write()
            return
    raise AssertionError("a changed message was accepted by both sides")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_second_message(data: bytes) -> None:
    a, _ = pair()
    a.write()
    with pytest.raises(HandshakeFailed):
        a.read(data)


@pytest.mark.parametrize("size", [0, 31])
def test_a_first_message_that_is_too_short_is_refused(size: int) -> None:
    _, b = pair()
    with pytest.raises(HandshakeFailed, match="ends too early"):
        b.read(bytes(size))


def test_an_overlong_message_is_refused() -> None:
    _, b = pair()
    with pytest.raises(HandshakeFailed, match="impossible length"):
        b.read(bytes(MAX_MESSAGE_BYTES + 1))
    a, _ = pair()
    with pytest.raises(LocalProtocolError, match="at most 65535"):
        a.write(bytes(MAX_MESSAGE_BYTES))


# Points of small order on curve25519. Source: https://cr.yp.to/ecdh.html, "validation".
SMALL_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point.hex()[:8])
def test_a_key_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(HandshakeFailed, match="small order"):
        shared_secret(b"\5" * 32, point)
    _, b = pair()
    b.read(point)
    with pytest.raises(HandshakeFailed, match="small order"):
        b.write()


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(HandshakeFailed, match="32 bytes"):
        shared_secret(b"\5" * 32, bytes(size))
    with pytest.raises(HandshakeFailed, match="32 bytes"):
        shared_secret(b"\5" * size, A.public)
    with pytest.raises(LocalProtocolError):
        keypair(bytes(size))
    with pytest.raises(LocalProtocolError):
        CipherState(bytes(size))


def test_messages_are_written_and_read_in_turn() -> None:
    a, b = pair()
    wrong: list[Callable[[], object]] = [
        lambda: a.read(b""),
        b.write,
        a.finish,
        lambda: a.remote_static,
    ]
    for call in wrong:
        with pytest.raises(LocalProtocolError):
            call()
    b.read(a.write())
    with pytest.raises(LocalProtocolError):
        a.write()
    a.read(b.write())
    b.read(a.write())
    with pytest.raises(LocalProtocolError):
        a.read(b"")
    a.finish()
    for call in (a.finish, a.write):
        with pytest.raises(ChannelClosed):
            call()


def test_a_nonce_advances_on_success_only() -> None:
    a, b = finished()
    first, second = a.encrypt(b"first"), a.encrypt(b"second")
    for bad in (second, first[:-1], first[:15], b"", b"x" * 70_000):
        with pytest.raises(DecryptFailed):
            b.decrypt(bad)
        assert b.recv.nonce == 0
    with pytest.raises(DecryptFailed):
        b.decrypt(first, b"other ad")
    assert b.decrypt(first) == b"first"
    with pytest.raises(DecryptFailed):
        b.decrypt(first)
    assert b.decrypt(second) == b"second"
    with pytest.raises(LocalProtocolError):
        a.encrypt(bytes(MAX_PLAINTEXT_BYTES + 1))
    assert a.send.nonce == 2


def test_a_message_sent_back_to_its_sender_is_refused() -> None:
    a, _ = finished()
    with pytest.raises(DecryptFailed):
        a.decrypt(a.encrypt(b"mine"))


def test_a_counter_that_is_used_up_is_refused() -> None:
    cipher = CipherState(bytes(32))
    cipher._nonce = MAX_NONCE
    with pytest.raises(LocalProtocolError, match="used up"):
        cipher.encrypt(b"")
    with pytest.raises(LocalProtocolError, match="used up"):
        cipher.decrypt(bytes(16))


def test_secrets_do_not_show() -> None:
    assert repr(A.private)[2:-1] not in repr(A)
    assert A.private.hex() not in repr(A)
