"""Bounded msgpack and length-prefixed frames: where bytes from strangers become objects.

Before any object is made, one pass over the bytes counts items and depth and checks every announced
length. A frame of one megabyte could otherwise ask for a hundred times its size in empty maps, or
for a recursion as deep as it is long. The pass makes nothing, so a refused frame costs nothing.
"""

import threading
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgpack  # type: ignore[import-untyped]
import msgspec

from optmigd.protocol.errors import LocalProtocolError, RemoteProtocolError

MAX_FRAME_BYTES = 1 << 20
MAX_STRING_BYTES = 1 << 17
MAX_DEPTH = 16
MAX_ITEMS = 1 << 16
LENGTH_BYTES = 4

T = TypeVar("T")

# What follows a msgpack type byte. Source: the msgpack specification, "Formats".
_FIXED_BYTES = {
    0xC0: 0, 0xC2: 0, 0xC3: 0,
    0xCA: 4, 0xCB: 8,
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_BINARY_LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_STRING_LENGTH = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY_LENGTH = {0xDC: 2, 0xDD: 4}
_MAP_LENGTH = {0xDE: 2, 0xDF: 4}


def check_bounds(data: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
    """Refuse msgpack that is too large, too deep, truncated, or more than one object.

    It makes no object. Types that the protocol never uses (extensions) are refused too.

    Raises:
        RemoteProtocolError: with what was wrong, and never with the content.
    """
    size = len(data)
    if size > max_bytes:
        raise RemoteProtocolError(f"a message of {size} bytes; at most {max_bytes} are allowed")
    position = 0
    items = 0
    open_counts = [1]  # how many objects are still to come on each level
    while open_counts:
        if open_counts[-1] == 0:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise RemoteProtocolError(f"a message of more than {MAX_ITEMS} items")
        if position >= size:
            raise RemoteProtocolError("a message that ends too early")
        kind = data[position]
        position += 1
        children = -1
        if kind < 0x80 or kind >= 0xE0:
            continue
        if kind < 0x90:
            children = 2 * (kind & 0x0F)
        elif kind < 0xA0:
            children = kind & 0x0F
        elif kind < 0xC0:
            position += kind & 0x1F
        elif kind in _FIXED_BYTES:
            position += _FIXED_BYTES[kind]
        else:
            length, position = _announced(data, kind, position)
            if kind in _ARRAY_LENGTH:
                children = length
            elif kind in _MAP_LENGTH:
                children = 2 * length
            else:
                position += length
        if position > size:
            raise RemoteProtocolError("a message that ends too early")
        if children >= 0:
            if children > size - position:  # each child takes a byte at least
                raise RemoteProtocolError("a message that announces more items than it holds")
            if len(open_counts) > MAX_DEPTH:
                raise RemoteProtocolError(f"a message nested deeper than {MAX_DEPTH}")
            open_counts.append(children)
    if position != size:
        raise RemoteProtocolError(f"{size - position} bytes after the end of a message")


def _announced(data: bytes, kind: int, position: int) -> tuple[int, int]:
    """Return the length that follows the type byte `kind`, and the position after it."""
    for table in (_STRING_LENGTH, _BINARY_LENGTH, _ARRAY_LENGTH, _MAP_LENGTH):
        if kind in table:
            end = position + table[kind]
            length = int.from_bytes(data[position:end], "big")
            if table is _STRING_LENGTH and length > MAX_STRING_BYTES:
                raise RemoteProtocolError(
                    f"a string of {length} bytes; at most {MAX_STRING_BYTES} are allowed"
                )
            return length, end
    raise RemoteProtocolError(f"a msgpack type that the protocol does not use (0x{kind:02x})")


def _string_keys(pairs: list[tuple[object, object]]) -> dict[object, object]:
    if not all(isinstance(key, str) for key, _ in pairs):
        raise RemoteProtocolError("a map with a key that is no string")
    result = dict(pairs)
    if len(result) != len(pairs):
        raise RemoteProtocolError("a map with a key twice")
    return result


def pack(obj: object) -> bytes:
    """Return msgpack of plain values: None, bool, int, float, str, bytes, list, tuple, dict.

    Raises:
        LocalProtocolError: the value has another type, or a number does not fit.
    """
    try:
        return bytes(msgpack.packb(obj))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot be written as msgpack: {error}") from error


def unpack(data: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> object:
    """Read one msgpack object whose keys are all strings, within bounds.

    Raises:
        RemoteProtocolError: the bytes are anything else.
    """
    check_bounds(data, max_bytes=max_bytes)
    try:
        result: object = msgpack.unpackb(data, object_pairs_hook=_string_keys, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"broken msgpack: {error}") from error
    return result


def encode(struct: msgspec.Struct) -> bytes:
    """Return the one encoding of a message.

    Raises:
        LocalProtocolError: a field holds what msgpack cannot carry.
    """
    try:
        return msgspec.msgpack.encode(struct)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise LocalProtocolError(
            f"{type(struct).__name__} cannot be written as msgpack: {error}"
        ) from error


_making_decoders = threading.Lock()
"""msgspec notes on a class what it knows of it, and uses a note that another thread has half
written: two threads that make the first decoder of a class at once end the process."""


@lru_cache(maxsize=64)
def _cached_decoder(type_: Hashable) -> msgspec.msgpack.Decoder[Any]:
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cast("type[Any]", type_))
    return decoder


def _decoder(type_: Hashable) -> msgspec.msgpack.Decoder[Any]:
    with _making_decoders:
        return _cached_decoder(type_)


def decode(data: bytes, type_: type[T], *, max_bytes: int = MAX_FRAME_BYTES) -> T:
    """Read one message of `type_`, a struct or a union of tagged structs.

    Raises:
        RemoteProtocolError: the bytes are out of bounds, no msgpack, of an unknown kind, or a field
            is missing, unknown, of a wrong type or out of its range.
    """
    check_bounds(data, max_bytes=max_bytes)
    try:
        result: T = _decoder(cast("Hashable", type_)).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a message of this protocol: {error}") from error
    return result


def frame(payload: bytes, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Return `payload` with its length before it (u32, big-endian).

    Raises:
        LocalProtocolError: it is longer than `max_frame_bytes`.
    """
    if len(payload) > max_frame_bytes:
        raise LocalProtocolError(
            f"a frame of {len(payload)} bytes; at most {max_frame_bytes} are allowed"
        )
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def announced_bytes(
    length: bytes | bytearray | memoryview, *, max_frame_bytes: int = MAX_FRAME_BYTES
) -> int:
    """Return how long a frame is, by the bytes before it.

    Raises:
        RemoteProtocolError: longer than `max_frame_bytes`.
    """
    announced = int.from_bytes(length, "big")
    if announced > max_frame_bytes:
        raise RemoteProtocolError(
            f"a frame of {announced} bytes is announced; at most {max_frame_bytes} are allowed"
        )
    return announced


class FrameDecoder:
    """Cuts a byte stream into frames.

    A length over the bound is refused as soon as its four bytes have arrived. Whoever takes all
    frames after each `feed` never holds more than one frame and one feed.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the rest of their frame, or to be taken."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived.

        Raises:
            RemoteProtocolError: the first frame that waits is announced too long. The stream is
                useless from here on; every later call raises it again.
        """
        self._waiting_length()
        self._buffer += data
        self._waiting_length()

    def next_frame(self) -> bytes | None:
        """Return the next whole frame without its length, or None while it is incomplete.

        Raises:
            RemoteProtocolError: the frame is announced too long.
        """
        length = self._waiting_length()
        if length is None or len(self._buffer) < LENGTH_BYTES + length:
            return None
        end = LENGTH_BYTES + length
        payload = bytes(memoryview(self._buffer)[LENGTH_BYTES:end])
        del self._buffer[:end]
        return payload

    def __iter__(self) -> Iterator[bytes]:
        """Take all frames that are complete."""
        while (payload := self.next_frame()) is not None:
            yield payload

    def _waiting_length(self) -> int | None:
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = self._buffer[:LENGTH_BYTES]
        return announced_bytes(length, max_frame_bytes=self._max_frame_bytes)
