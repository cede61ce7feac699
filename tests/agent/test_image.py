"""Images: what is accepted, what is measured, and that what is measured is what runs."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optmigd.bench.programs import Program
from optmigd.enclave_shim.image import Image, load, parse
from optmigd.protocol.errors import ImageInvalid

POLICY = bytes(32)


@pytest.fixture(scope="module")
def built(program: Callable[[str], Program]) -> Program:
    return program("integers")


@pytest.fixture(scope="module")
def content(built: Program) -> bytes:
    return built.image.read_bytes()


def test_a_built_image_is_accepted(built: Program) -> None:
    image = load(str(built.image))
    assert len(image.segments) >= 2
    assert any(s.vaddr <= image.entry < s.vaddr + len(s.content) for s in image.segments)


def test_an_ordinary_program_is_not_an_image(built: Program, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="runtime is not linked in"):
        load(str(built.native))
    with pytest.raises(ImageInvalid, match="not an enclave image"):
        load("/bin/sh")
    with pytest.raises(ImageInvalid, match="cannot be read"):
        load(str(tmp_path / "absent"))


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def loadable(content: bytes) -> list[int]:
    """File offsets of the loadable segments' program headers."""
    phoff, phsize, phnum = (
        struct.unpack_from("<Q", content, 32)[0],
        *struct.unpack_from("<HH", content, 54),
    )
    headers = [phoff + index * phsize for index in range(phnum)]
    return [at for at in headers if struct.unpack_from("<I", content, at)[0] == 1]


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, b"\x7fELG", "ELF"),
        (4, b"\x01", "64-bit"),
        (16, b"\x03\x00", "fixed-address"),
        (18, b"\x03\x00", "x86-64"),
        (24, bytes(8), "entry point"),
        (32, b"\xff" * 8, "program headers"),
        (54, b"\x10\x00", "program headers"),
        (56, b"\xff\xff", "program headers"),
        (56, b"\x00\x00", "program headers"),
        (40, b"\xff" * 8, "runtime"),
        (62, b"\xff\xff", "runtime"),
    ],
)
def test_a_broken_header_is_refused(content: bytes, offset: int, value: bytes, why: str) -> None:
    with pytest.raises(ImageInvalid, match=why):
        parse(patched(content, offset, value))


def test_broken_segments_are_refused(content: bytes) -> None:
    first = loadable(content)[0]
    for field, value, why in [
        (0, 2, "dynamically"),
        (0, 3, "dynamically"),
        (4, 7, "writable and executable"),
        (8, 1 << 60, "truncated"),
        (16, 1, "outside the addresses"),
        (16, 1 << 47, "outside the addresses"),
        (32, 1 << 50, "truncated"),
        (40, 1 << 50, "outside the addresses"),
    ]:
        size = 4 if field < 8 else 8
        with pytest.raises(ImageInvalid, match=why):
            parse(patched(content, first + field, value.to_bytes(size, "little")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 5000), changes=st.dictionaries(st.integers(0, 1500), st.integers(0, 255)))
def test_no_file_does_worse_than_being_refused(
    content: bytes, cut: int, changes: dict[int, int]
) -> None:
    broken = bytearray(content[: len(content) - cut])
    for position, value in changes.items():
        broken[position] = value
    try:
        image = parse(bytes(broken))
    except ImageInvalid:
        return
    assert image.segments


def flipped(image: Image, content: bytes, index: int) -> bytes:
    """The file with one byte of one segment's content changed."""
    at = loadable(content)[index]
    offset, size = struct.unpack_from("<Q", content, at + 8)[0], len(image.segments[index].content)
    position = offset + size // 2
    return patched(content, position, bytes([content[position] ^ 1]))


def test_the_measurement_covers_code_data_layout_and_policy(content: bytes) -> None:
    image = parse(content)
    seen = {image.measurement(POLICY), image.measurement(b"\x01" * 32)}
    indexes = [i for i, segment in enumerate(image.segments) if len(segment.content) > 2000]
    for index in indexes:
        seen.add(parse(flipped(image, content, index)).measurement(POLICY))
    bigger = patched(
        content,
        loadable(content)[-1] + 40,
        (image.segments[-1].memory_bytes + 4096).to_bytes(8, "little"),
    )
    seen.add(parse(bigger).measurement(POLICY))
    entry = patched(content, 24, (image.entry + 1).to_bytes(8, "little"))
    seen.add(parse(entry).measurement(POLICY))
    assert len(indexes) >= 2
    assert len(seen) == 2 + len(indexes) + 2


def test_the_measurement_is_the_same_each_time(content: bytes) -> None:
    assert parse(content).measurement(POLICY) == parse(content).measurement(POLICY)


def test_the_sealed_copy_cannot_be_changed(content: bytes) -> None:
    fd = parse(content).sealed_memfd()
    try:
        for attack in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, len(content) + 1),
        ):
            with pytest.raises(PermissionError):
                attack()
        assert os.pread(fd, len(content) + 1, 0) == content
    finally:
        os.close(fd)
