"""Bulk ciphers: published answers, buffers of every kind, and a choice that nobody can lower."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import nacl
import numpy as np
import pytest

from optmigd.protocol import aeads, ciphers
from optmigd.protocol.aeads import AEGIS_256_AVAILABLE, Aegis256, Cipher
from optmigd.protocol.ciphers import (
    AEGIS_256,
    AES_256_GCM,
    CHACHA20_POLY1305,
    RoundKeys,
    check_chosen,
    choose_cipher,
    cipher_under,
    supported_ciphers,
    tag_bytes,
)
from optmigd.protocol.errors import DecryptFailed, LocalProtocolError, RemoteProtocolError

needs_aegis = pytest.mark.skipif(not AEGIS_256_AVAILABLE, reason="no AEGIS-256 in this PyNaCl")
ALL_CIPHERS = [pytest.param(AEGIS_256, marks=needs_aegis), AES_256_GCM, CHACHA20_POLY1305]
TAG_BYTES = {AEGIS_256: 32, AES_256_GCM: 16, CHACHA20_POLY1305: 16}
NONCE = bytes(range(12))

# Source: draft-irtf-cfrg-aegis-aead-18, appendix A.3, test vectors 1 to 5: associated data, plain
# text, ciphertext, tag of 256 bits.
AEGIS_KEY = bytes.fromhex("1001" + 30 * "00")
AEGIS_NONCE = bytes.fromhex("100002" + 29 * "00")
AEGIS_VECTORS = [
    (
        b"",
        bytes(16),
        "754fc3d8c973246dcc6d741412a4b236",
        "1181a1d18091082bf0266f66297d167d2e68b845f61a3b0527d31fc7b7b89f13",
    ),
    (b"", b"", "", "6a348c930adbd654896e1666aad67de989ea75ebaa2b82fb588977b1ffec864a"),
    (
        bytes(range(8)),
        bytes(range(32)),
        "f373079ed84b2709faee373584585d60accd191db310ef5d8b11833df9dec711",
        "b7d28d0c3c0ebd409fd22b44160503073a547412da0854bfb9723020dab8da1a",
    ),
    (
        bytes(range(8)),
        bytes(range(14)),
        "f373079ed84b2709faee37358458",
        "8c1cc703c81281bee3f6d9966e14948b4a175b2efbdc31e61a98b4465235c2d9",
    ),
    (
        bytes(range(0x2A)),
        bytes(range(0x10, 0x38)),
        "57754a7d09963e7c787583a2e7b859bb24fa1e04d49fd550b2511a358e3bca252a9b1b8b30cc4a67",
        "a3aca270c006094d71c20e6910b5161c0826df233d08919a566ec2c05990f734",
    ),
]


def new_cipher(name: str) -> Cipher:
    return cipher_under(RoundKeys(bytes(32), name, 0).next(), name)


def sealed_by(
    cipher: Cipher, plaintext: aeads.Buffer, ad: bytes = b"", nonce: bytes = NONCE
) -> bytes:
    out = bytearray(len(plaintext) + cipher.tag_bytes)
    cipher.seal_into(nonce, plaintext, ad, memoryview(out))
    return bytes(out)


def opened_by(cipher: Cipher, sealed: aeads.Buffer, ad: bytes = b"", nonce: bytes = NONCE) -> bytes:
    out = bytearray(len(sealed) - cipher.tag_bytes)
    cipher.open_into(nonce, sealed, ad, memoryview(out))
    return bytes(out)


@needs_aegis
@pytest.mark.parametrize(("ad", "plaintext", "ciphertext", "tag"), AEGIS_VECTORS)
def test_the_published_vectors_of_aegis_256(
    ad: bytes, plaintext: bytes, ciphertext: str, tag: str
) -> None:
    cipher = Aegis256(AEGIS_KEY)
    sealed = sealed_by(cipher, plaintext, ad, AEGIS_NONCE)
    assert sealed.hex() == ciphertext + tag
    assert opened_by(cipher, sealed, ad, AEGIS_NONCE) == plaintext
    for index in range(len(sealed)):
        bad = bytearray(sealed)
        bad[index] ^= 1
        with pytest.raises(DecryptFailed):
            opened_by(cipher, bad, ad, AEGIS_NONCE)
    with pytest.raises(DecryptFailed):
        opened_by(cipher, sealed, ad + b"x", AEGIS_NONCE)


@needs_aegis
def test_a_short_nonce_of_aegis_256_is_filled_with_zeros() -> None:
    cipher = Aegis256(AEGIS_KEY)
    assert sealed_by(cipher, b"x") == sealed_by(cipher, b"x", nonce=NONCE + bytes(20))
    assert sealed_by(cipher, b"x") != sealed_by(cipher, b"x", nonce=NONCE[::-1])


@needs_aegis
def test_aegis_256_never_runs_out_of_its_buffers() -> None:
    """Pointers go to C: every length that does not fit is refused before that."""
    cipher = Aegis256(AEGIS_KEY)
    for room in (0, 35, 37, 1000):
        with pytest.raises(LocalProtocolError, match="bytes of room to seal 4"):
            cipher.seal_into(NONCE, b"four", b"", memoryview(bytearray(room)))
    for room in (0, 3, 5, 1000):
        with pytest.raises(LocalProtocolError, match="bytes of room to open 36"):
            cipher.open_into(NONCE, bytes(36), b"", memoryview(bytearray(room)))
    with pytest.raises(DecryptFailed):
        cipher.open_into(NONCE, bytes(31), b"", memoryview(bytearray(0)))
    for nonce in (b"", bytes(11), bytes(33)):
        with pytest.raises(LocalProtocolError, match="nonce"):
            cipher.seal_into(nonce, b"", b"", memoryview(bytearray(32)))
    for key in (b"", bytes(31), bytes(33)):
        with pytest.raises(LocalProtocolError, match="key"):
            Aegis256(key)


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_every_kind_of_buffer_is_sealed_and_opened_in_place(name: str) -> None:
    cipher = new_cipher(name)
    content = np.random.default_rng(1).bytes(4096)
    array = np.frombuffer(content, dtype=np.uint8).copy()
    read_only = array.copy()
    read_only.flags.writeable = False
    shifted = memoryview(bytearray(1) + content)[1:]
    sources: list[aeads.Buffer] = [
        content,
        bytearray(content),
        memoryview(content),
        array.data,
        read_only.data,
        shifted,
    ]
    expected = sealed_by(cipher, content, b"ad")
    for source in sources:
        frame = np.zeros(4096 + cipher.tag_bytes + 20, dtype=np.uint8)
        cipher.seal_into(NONCE, source, b"ad", frame.data[10:-10])
        assert frame[10:-10].tobytes() == expected
        assert not frame[:10].any() and not frame[-10:].any()
    for sealed in (expected, bytearray(expected), memoryview(expected)):
        frame = np.zeros(4096 + 20, dtype=np.uint8)
        cipher.open_into(NONCE, sealed, b"ad", frame.data[10:-10])
        assert frame[10:-10].tobytes() == content
        assert not frame[:10].any() and not frame[-10:].any()


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_nothing_is_written_to_a_read_only_buffer(name: str) -> None:
    cipher = new_cipher(name)
    target = bytes(4 + cipher.tag_bytes)
    with pytest.raises((BufferError, TypeError, ValueError)):
        cipher.seal_into(NONCE, b"four", b"", memoryview(target))
    assert target == bytes(len(target))


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_no_buffer_is_held_after_an_error(name: str) -> None:
    cipher = new_cipher(name)
    sealed, out = bytearray(100 + cipher.tag_bytes), bytearray(100)
    with memoryview(out) as view, pytest.raises(DecryptFailed) as caught:
        cipher.open_into(NONCE, sealed, b"", view)
    out.append(0)  # a BufferError, if somebody held it
    sealed.append(0)
    assert caught.value.__traceback__ is not None


@contextmanager
def being_written(array: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Iterator[None]:
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            array.fill(value)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_memory_that_changes_while_it_is_sealed_still_opens(name: str) -> None:
    """The source seals pages that its program goes on writing."""
    cipher = new_cipher(name)
    content = np.zeros(1 << 18, dtype=np.uint8)
    out = memoryview(bytearray(len(content) + cipher.tag_bytes))
    back = np.zeros_like(content)
    mixed = 0
    with being_written(content):
        for count in range(10_000):
            nonce = count.to_bytes(12, "little")
            cipher.seal_into(nonce, content.data, b"", out)
            cipher.open_into(nonce, out, b"", back.data)
            mixed += int(back.min() != back.max())
            if count >= 200 and mixed >= 20:
                break
    assert mixed, "the writer never met the cipher"


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_tags_have_the_length_of_their_cipher(name: str) -> None:
    assert tag_bytes(name) == new_cipher(name).tag_bytes == TAG_BYTES[name]
    with pytest.raises(LocalProtocolError):
        tag_bytes("none")
    with pytest.raises(LocalProtocolError):
        new_cipher("none")


def test_keys_differ_by_round_stream_cipher_and_session() -> None:
    ratchets = [
        RoundKeys(secret, cipher, stream)
        for secret in (bytes(32), b"\1" * 32)
        for cipher in TAG_BYTES
        for stream in (0, 1, 256)
    ]
    keys = {ratchet.next() for _ in range(300) for ratchet in ratchets}
    assert len(keys) == 2 * 3 * 3 * 300


@needs_aegis
def test_the_fastest_cipher_is_proposed_first() -> None:
    in_hardware = supported_ciphers(aes_in_hardware=True)
    assert in_hardware == [AEGIS_256, AES_256_GCM, CHACHA20_POLY1305]
    assert supported_ciphers(aes_in_hardware=False)[0] == CHACHA20_POLY1305
    assert sorted(supported_ciphers(aes_in_hardware=False)) == sorted(in_hardware)


def test_ciphers_are_chosen_from_what_both_have() -> None:
    assert choose_cipher(["aegis-9000", CHACHA20_POLY1305, AES_256_GCM]) == CHACHA20_POLY1305
    assert choose_cipher(["aegis-9000"]) is None
    assert choose_cipher([]) is None


def without_aegis(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = {name: cls for name, cls in ciphers._CIPHERS.items() if name != AEGIS_256}
    monkeypatch.setattr(ciphers, "_CIPHERS", rest)


def test_a_side_without_aegis_256_still_finds_a_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    without_aegis(monkeypatch)
    assert supported_ciphers(aes_in_hardware=True) == [AES_256_GCM, CHACHA20_POLY1305]
    assert choose_cipher([AEGIS_256, AES_256_GCM, CHACHA20_POLY1305]) == AES_256_GCM
    with pytest.raises(LocalProtocolError):
        new_cipher(AEGIS_256)


@needs_aegis
@pytest.mark.parametrize("what", ["module", "function", "size"])
def test_aegis_256_is_not_offered_where_libsodium_differs(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    ffi, sodium = aeads._find_libsodium()
    assert sodium is not None
    names = [name for name in dir(sodium) if "aegis256" in name]
    functions = {name: getattr(sodium, name) for name in names}
    if what == "function":
        del functions["crypto_aead_aegis256_decrypt"]
    elif what == "size":
        functions["crypto_aead_aegis256_abytes"] = lambda: 16
    module = SimpleNamespace(ffi=ffi, lib=SimpleNamespace(**functions))
    if what == "module":
        monkeypatch.delattr(nacl, "_sodium")
        monkeypatch.setitem(sys.modules, "nacl._sodium", None)
    else:
        monkeypatch.setattr(nacl, "_sodium", module)
    assert aeads._find_libsodium() == (None, None)


@pytest.mark.parametrize("name", ALL_CIPHERS)
def test_a_cipher_that_was_not_proposed_is_refused(name: str) -> None:
    """A destination cannot lower the choice to what the source did not name."""
    others = [other for other in TAG_BYTES if other != name]
    assert check_chosen(name, [*others, name]) == name
    for proposed in (others, others[:1], []):
        with pytest.raises(RemoteProtocolError, match="not proposed"):
            check_chosen(name, proposed)


def test_a_cipher_that_this_side_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteProtocolError, match="not proposed"):
        check_chosen("none", ["none"])
    with pytest.raises(RemoteProtocolError, match="not proposed"):
        check_chosen("", [AES_256_GCM])
    without_aegis(monkeypatch)
    with pytest.raises(RemoteProtocolError, match="not proposed"):
        check_chosen(AEGIS_256, [AEGIS_256, AES_256_GCM])
