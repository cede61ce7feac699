"""Bytes from strangers: bounds come before memory, and everything else is refused by name."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.protocol.errors import LocalProtocolError, RemoteProtocolError
from optmigd.protocol.wire import (
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_STRING_BYTES,
    FrameDecoder,
    check_bounds,
    decode,
    encode,
    frame,
    pack,
    unpack,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(plain)
def test_what_is_packed_is_unpacked(value: object) -> None:
    assert unpack(pack(value)) == value


@given(plain, st.data())
def test_every_truncation_is_refused(value: object, data: st.DataObject) -> None:
    packed = pack(value)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(RemoteProtocolError):
        unpack(packed[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_named_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except RemoteProtocolError:
        return
    assert unpack(pack(value)) == value or value != value  # NaN


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x91" * (MAX_DEPTH + 1) + b"\xc0", "nested deeper"),
        (b"\xdd" + struct.pack(">I", 2**32 - 1), "more items than it holds"),
        (b"\xdf" + struct.pack(">I", 2**31), "more items than it holds"),
        (b"\xdb" + struct.pack(">I", 2**32 - 1), "a string of 4294967295 bytes"),
        (b"\xc6" + struct.pack(">I", 2**32 - 1), "ends too early"),
        (b"\xd9", "ends too early"),
        (b"\xc0\xc0", "1 bytes after the end"),
        (b"", "ends too early"),
        (b"\xd4\x01\x00", "does not use"),
        (b"\xc7\x00\x01", "does not use"),
        (b"\xc1", "does not use"),
        (b"\x81\x01\x02", "a key that is no string"),
        (b"\x81\x90\x02", "a key that is no string"),
        (b"\x82\xa1a\x01\xa1a\x02", "a key twice"),
        (b"\xa1\xff", "broken msgpack"),
        (b"\x92\xdc\xff\xff" + b"\x80" * 65536, "of more than 65536 items"),
    ],
)
def test_hostile_msgpack_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        unpack(data)


def test_the_bounds_themselves_are_allowed() -> None:
    check_bounds(b"\x91" * MAX_DEPTH + b"\xc0")
    check_bounds(pack("x" * MAX_STRING_BYTES))
    check_bounds(b"\xdd" + struct.pack(">I", MAX_ITEMS - 1) + b"\xc0" * (MAX_ITEMS - 1))


def test_a_message_over_the_bound_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="a message of 11 bytes; at most 10"):
        unpack(b"\x00" * 11, max_bytes=10)


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800"])
def test_what_msgpack_cannot_carry_is_a_bug_here(value: object) -> None:
    with pytest.raises(LocalProtocolError):
        pack(value)


class Cat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t", tag="cat"):
    lives: int


class Dog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t", tag="dog"):
    name: str


PET: Any = Cat | Dog


def test_a_tagged_union_gives_the_right_struct() -> None:
    assert decode(encode(Cat(9)), PET) == Cat(9)
    assert decode(encode(Dog("rex")), PET) == Dog("rex")


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": "cow", "name": "x"},
        {"t": "dog"},
        {"t": "dog", "name": 5},
        {"t": "dog", "name": "x", "extra": 1},
        {"name": "x"},
        ["dog"],
        None,
    ],
)
def test_unknown_kinds_and_fields_are_refused(wrong: object) -> None:
    with pytest.raises(RemoteProtocolError, match="not a message of this protocol"):
        decode(pack(wrong), PET)


def test_a_struct_that_cannot_be_encoded_is_a_bug_here() -> None:
    with pytest.raises(LocalProtocolError):
        encode(Dog("\ud800"))


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_frames_survive_any_cutting(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    decoder = FrameDecoder(300)
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        decoder.feed(stream[:size])
        found += decoder
        stream = stream[size:]
    assert found == payloads
    assert decoder.buffered_bytes == 0


def test_an_oversize_frame_is_refused_when_its_length_is_known() -> None:
    decoder = FrameDecoder(100)
    decoder.feed(b"\x00\x00\x00")
    with pytest.raises(RemoteProtocolError, match="a frame of 101 bytes is announced; at most 100"):
        decoder.feed(b"\x65")
    held = decoder.buffered_bytes
    with pytest.raises(RemoteProtocolError):
        decoder.feed(b"x" * 1000)
    assert decoder.buffered_bytes == held


def test_an_oversize_frame_behind_another_is_refused() -> None:
    decoder = FrameDecoder(100)
    decoder.feed(frame(b"fine") + b"\xff\xff\xff\xff")
    assert decoder.next_frame() == b"fine"
    with pytest.raises(RemoteProtocolError):
        decoder.next_frame()


def test_no_frame_is_made_over_the_bound() -> None:
    with pytest.raises(LocalProtocolError):
        frame(b"x" * 11, max_frame_bytes=10)


def test_threads_that_decode_the_first_message_of_a_class_at_once() -> None:
    """The library underneath ends the process there (see `wire`), so another one has to try."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.first_decoders"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
