"""The bulk ciphers of the data streams and the keys they run under.

Both are `cryptography`'s, which seal from one buffer straight into another: page content is never
copied in Python.
"""

import hmac
from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from optmigd.protocol.errors import DecryptFailed, LocalProtocolError, RemoteProtocolError

AES_256_GCM = "aes-256-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"
TAG_BYTES = 16

Buffer = bytes | bytearray | memoryview

_PRIMITIVES: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {
    AES_256_GCM: AESGCM,
    CHACHA20_POLY1305: ChaCha20Poly1305,
}
_LABEL = b"optmigd records v1"
_DIRECTION = b"source to destination"


class Cipher(Protocol):
    """An AEAD with a tag of 16 bytes behind the ciphertext."""

    def seal_into(self, nonce: bytes, plaintext: Buffer, ad: bytes, out: memoryview) -> None:
        """Seal `plaintext` into `out`, which is exactly 16 bytes longer."""

    def open_into(self, nonce: bytes, sealed: Buffer, ad: bytes, out: memoryview) -> None:
        """Open `sealed` into `out`, which is exactly 16 bytes shorter.

        What stands in `out` after an error is worthless: give it a scratch buffer.

        Raises:
            DecryptFailed: the tag does not fit.
        """


class _Aead:
    def __init__(self, primitive: AESGCM | ChaCha20Poly1305) -> None:
        self._primitive = primitive

    def seal_into(self, nonce: bytes, plaintext: Buffer, ad: bytes, out: memoryview) -> None:
        self._primitive.encrypt_into(nonce, plaintext, ad, out)

    def open_into(self, nonce: bytes, sealed: Buffer, ad: bytes, out: memoryview) -> None:
        try:
            self._primitive.decrypt_into(nonce, sealed, ad, out)
        except InvalidTag as error:
            raise DecryptFailed("a record was changed or belongs elsewhere") from error


def supported_ciphers(*, aes_in_hardware: bool) -> list[str]:
    """Return the names of the ciphers that a source proposes, the best first.

    Args:
        aes_in_hardware: whether the CPU has AES and carry-less multiplication.
    """
    names = [AES_256_GCM, CHACHA20_POLY1305]
    return names if aes_in_hardware else names[::-1]


def choose_cipher(proposed: Sequence[str]) -> str | None:
    """Return the first proposed cipher that this side has, or None."""
    return next((name for name in proposed if name in _PRIMITIVES), None)


def check_chosen(chosen: str, proposed: Sequence[str]) -> str:
    """Return the cipher that the destination chose, if it was one of those proposed.

    Raises:
        RemoteProtocolError: it was not.
    """
    if chosen not in proposed or chosen not in _PRIMITIVES:
        raise RemoteProtocolError("the destination chose a cipher that was not proposed")
    return chosen


def record_key(secret: bytes, cipher: str, round_no: int, stream: int) -> bytes:
    """Return the key of one stream in one round.

    HKDF-SHA256 with an empty salt; one block of output is the whole key.

    Source: RFC 5869, sections 2.2 and 2.3.
    """
    info = b"\0".join((_LABEL, _DIRECTION, cipher.encode("ascii"), b""))
    info += round_no.to_bytes(4, "little") + stream.to_bytes(2, "little")
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def record_cipher(secret: bytes, cipher: str, round_no: int, stream: int) -> Cipher:
    """Return the cipher of one stream in one round.

    Raises:
        LocalProtocolError: no cipher has this name.
    """
    if cipher not in _PRIMITIVES:
        raise LocalProtocolError(f"no cipher is called {cipher!r}")
    return _Aead(_PRIMITIVES[cipher](record_key(secret, cipher, round_no, stream)))
