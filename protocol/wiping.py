"""Overwriting secrets, as far as Python lets one."""

import ctypes

_BYTES_HEADER = bytes.__basicsize__ - 1
"""Where CPython keeps the content of `bytes`: behind the object's header, with a zero after it."""


def wipe(secret: bytes) -> None:
    """Overwrite a secret in memory with zeros.

    Python gives no way to erase `bytes`, so this writes through their immutability. It is sound for
    an object that was computed at run time and that only the caller holds: never for a literal, nor
    for a value of at most one byte, which Python shares.
    """
    if len(secret) > 1:
        ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def own_copy(secret: bytes) -> bytes:
    """Return a copy that nobody else holds, so that it may be wiped; no third copy is made."""
    return bytes(memoryview(secret))
