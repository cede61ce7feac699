"""The bulk ciphers of the data streams: their names, how one is chosen, and their keys."""

import hmac
from collections.abc import Sequence

from optmigd.protocol.aeads import AEGIS_256_AVAILABLE, Aegis256, Aes256Gcm, ChaCha20, Cipher, wipe
from optmigd.protocol.errors import LocalProtocolError, RemoteProtocolError

AEGIS_256 = "aegis-256"
AES_256_GCM = "aes-256-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"

# The fastest first, where the CPU has AES.
_CIPHERS: dict[str, type[Cipher]] = {
    **({AEGIS_256: Aegis256} if AEGIS_256_AVAILABLE else {}),
    AES_256_GCM: Aes256Gcm,
    CHACHA20_POLY1305: ChaCha20,
}
_LABEL = b"optmigd records v1"
_DIRECTION = b"source to destination"


def supported_ciphers(*, aes_in_hardware: bool) -> list[str]:
    """Return the names of the ciphers that a source proposes, the best first.

    Args:
        aes_in_hardware: whether the CPU has AES and carry-less multiplication.
    """
    names = list(_CIPHERS)
    return names if aes_in_hardware else names[::-1]


def choose_cipher(proposed: Sequence[str]) -> str | None:
    """Return the first proposed cipher that this side has, or None."""
    return next((name for name in proposed if name in _CIPHERS), None)


def check_chosen(chosen: str, proposed: Sequence[str]) -> str:
    """Return the cipher that the destination chose, if it was one of those proposed.

    Raises:
        RemoteProtocolError: it was not.
    """
    if chosen not in proposed or chosen not in _CIPHERS:
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
    key = hmac.digest(extracted, info + b"\x01", "sha256")
    wipe(extracted)
    return key


def tag_bytes(cipher: str) -> int:
    """Return the length of the cipher's tags.

    Raises:
        LocalProtocolError: no cipher has this name.
    """
    return _class_of(cipher).tag_bytes


def record_cipher(secret: bytes, cipher: str, round_no: int, stream: int) -> Cipher:
    """Return the cipher of one stream in one round.

    Raises:
        LocalProtocolError: no cipher has this name.
    """
    return _class_of(cipher)(record_key(secret, cipher, round_no, stream))


def _class_of(cipher: str) -> type[Cipher]:
    if cipher not in _CIPHERS:
        raise LocalProtocolError(f"no cipher is called {cipher!r}")
    return _CIPHERS[cipher]
