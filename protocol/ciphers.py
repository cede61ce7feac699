"""The bulk ciphers of the data streams: their names, how one is chosen, and their keys."""

import hmac
from collections.abc import Sequence

from optmigd.protocol.aeads import AEGIS_256_AVAILABLE, Aegis256, Aes256Gcm, ChaCha20, Cipher
from optmigd.protocol.errors import LocalProtocolError, RemoteProtocolError
from optmigd.protocol.wiping import wipe

AEGIS_256 = "aegis-256"
AES_256_GCM = "aes-256-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"

# Those that are made of AES first.
_CIPHERS: dict[str, type[Cipher]] = {
    **({AEGIS_256: Aegis256} if AEGIS_256_AVAILABLE else {}),
    AES_256_GCM: Aes256Gcm,
    CHACHA20_POLY1305: ChaCha20,
}
_LABEL = b"optmigd records v2"
_DIRECTION = b"source to destination"
_ROUND_KEY = b"round key"
_NEXT_ROUND = b"next round"


def supported_ciphers(*, aes_in_hardware: bool) -> list[str]:
    """Return the names of the ciphers that a source proposes, the best first.

    Args:
        aes_in_hardware: whether the CPU has AES and carry-less multiplication; then which of the
            first ones is the best is for the shim to measure.
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


class RoundKeys:
    """The keys of one stream, one for each round, each to be had once.

    A ratchet: every round's secret is derived from the one before, which is then overwritten. So
    who looks into this memory finds nothing that opens a round that has ended.

    Args:
        records_secret: of the session; it is not kept.
        cipher: name of the negotiated cipher.
        stream: number of the stream.

    Source: RFC 5869, sections 2.2 and 2.3, with an empty salt and one block of output for the first
    round's secret.
    """

    def __init__(self, records_secret: bytes, cipher: str, stream: int) -> None:
        info = b"\0".join((_LABEL, _DIRECTION, cipher.encode("ascii"), b""))
        info += stream.to_bytes(2, "little")
        extracted = hmac.digest(bytes(32), records_secret, "sha256")
        self._secret = hmac.digest(extracted, info + b"\x01", "sha256")
        wipe(extracted)

    def next(self) -> bytes:
        """Return the next round's key, the first time that of round 0."""
        key = hmac.digest(self._secret, _ROUND_KEY, "sha256")
        following = hmac.digest(self._secret, _NEXT_ROUND, "sha256")
        wipe(self._secret)
        self._secret = following
        return key


def tag_bytes(cipher: str) -> int:
    """Return the length of the cipher's tags.

    Raises:
        LocalProtocolError: no cipher has this name.
    """
    return _class_of(cipher).tag_bytes


def cipher_under(key: bytes, cipher: str) -> Cipher:
    """Return the cipher of this name under a key of 32 bytes, which is its own from here on.

    Raises:
        LocalProtocolError: no cipher has this name.
    """
    return _class_of(cipher)(key)


def _class_of(cipher: str) -> type[Cipher]:
    if cipher not in _CIPHERS:
        raise LocalProtocolError(f"no cipher is called {cipher!r}")
    return _CIPHERS[cipher]
