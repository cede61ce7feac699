"""Enclave images: which ELF files are accepted, and what their measurement covers.

An image is a static, non-relocatable x86-64 ELF made by `optmig-cc`. It is checked before anything
is started, because what the kernel's loader makes of a malformed file is not ours to promise. What
is measured is what runs: the bytes that were checked are copied into a sealed memfd, which nobody
can change any more, and that memfd is executed.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from functools import cached_property

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.places import Symbols, read_symbols
from optmigd.protocol.errors import ImageInvalid

MAX_IMAGE_BYTES = 1 << 30
MAX_SEGMENTS = 64
MAX_SECTIONS = 4096
RUNTIME_SECTION = b"optmig_text"  # holds the runtime, its entry point included
MARKS_SECTION = b"optmig_marks"  # notes of the compiler tracker's pass
MEASUREMENT_LABEL = b"optmigd image v1"

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<QQIQ")
ET_EXEC, EM_X86_64 = 2, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PF_X, PF_W = 1, 2
LOWEST_ADDRESS = 0x10000
HIGHEST_ADDRESS = abi.CTL_BASE


@dataclass(frozen=True)
class Segment:
    """One loadable segment: where it goes, what it holds."""

    vaddr: int
    memory_bytes: int
    flags: int
    content: memoryview


@dataclass(frozen=True)
class Image:
    """A checked image.

    Attributes:
        content: the whole file.
        entry: where it starts.
        segments: what is loaded, and measured.
        mark_blockers: why a program built for the compiler tracker cannot be tracked by it; part of
            what is loaded.
    """

    content: bytes
    entry: int
    segments: tuple[Segment, ...]
    mark_blockers: tuple[str, ...] = ()

    @cached_property
    def symbols(self) -> Symbols:
        """The names of its functions, for people."""
        return read_symbols(self.content)

    def measurement(self, policy_digest: bytes) -> bytes:
        """32 bytes that stand for the code, its initial data and the owner's policy."""
        digest = hashlib.sha256(MEASUREMENT_LABEL)
        digest.update(struct.pack("<QI", self.entry, len(self.segments)))
        for segment in self.segments:
            digest.update(
                _SEGMENT.pack(
                    segment.vaddr, segment.memory_bytes, segment.flags, len(segment.content)
                )
            )
            digest.update(segment.content)
        digest.update(policy_digest)
        return digest.digest()

    def sealed_memfd(self) -> int:
        """A new memfd with the image that can never change again; the caller closes it."""
        fd = os.memfd_create("optmig-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(self.content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)
            os.fchmod(fd, 0o500)
        except BaseException:
            os.close(fd)
            raise
        return fd


def load(path: str) -> Image:
    """Read and check an image file.

    Raises:
        ImageInvalid: it cannot be read, or is not an image (the message says what is wrong).

    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ImageInvalid(f"the image {path} cannot be read: {error.strerror}") from error
    return parse(content, path)


def parse(content: bytes, name: str = "image") -> Image:
    """Check an image.

    Raises:
        ImageInvalid: it is not a static x86-64 ELF made by optmig-cc.

    """

    def refuse(why: str) -> ImageInvalid:
        return ImageInvalid(f"{name} is not an enclave image: {why}; build it with optmig-cc")

    if len(content) > MAX_IMAGE_BYTES:
        raise refuse(f"larger than {MAX_IMAGE_BYTES} bytes")
    if len(content) < _EHDR.size or content[:6] != b"\x7fELF\x02\x01":
        raise refuse("not a 64-bit little-endian ELF file")
    header = _EHDR.unpack_from(content)
    (_, kind, machine, _, entry, phoff, shoff, _, _, phsize, phnum, shsize, shnum, shstr) = header
    if machine != EM_X86_64:
        raise refuse("not for x86-64")
    if kind != ET_EXEC:
        raise refuse("not a fixed-address executable")
    if phsize != _PHDR.size or not 0 < phnum <= MAX_SEGMENTS:
        raise refuse("implausible program headers")
    if phoff + phnum * phsize > len(content):
        raise refuse("truncated program headers")
    segments: list[Segment] = []
    for index in range(phnum):
        (type_, flags, offset, vaddr, _, file_bytes, memory_bytes, _) = _PHDR.unpack_from(
            content, phoff + index * phsize
        )
        if type_ in (PT_INTERP, PT_DYNAMIC):
            raise refuse("dynamically linked")
        if type_ != PT_LOAD or memory_bytes == 0:
            continue
        if file_bytes > memory_bytes or offset + file_bytes > len(content):
            raise refuse("truncated, or a segment larger in the file than in memory")
        if vaddr < LOWEST_ADDRESS or vaddr + memory_bytes > HIGHEST_ADDRESS:
            raise refuse("a segment outside the addresses an image may use")
        if flags & PF_X and flags & PF_W:
            raise refuse("a segment both writable and executable")
        if segments and vaddr < segments[-1].vaddr + segments[-1].memory_bytes:
            raise refuse("overlapping or unsorted segments")
        body = memoryview(content)[offset : offset + file_bytes]
        segments.append(Segment(vaddr, memory_bytes, flags, body))
    if not any(
        segment.flags & PF_X and segment.vaddr <= entry < segment.vaddr + len(segment.content)
        for segment in segments
    ):
        raise refuse("its entry point is in no executable segment")
    runtime = _section(content, shoff, shsize, shnum, shstr, RUNTIME_SECTION)
    if runtime is None or not runtime[0] <= entry < runtime[0] + runtime[1]:
        raise refuse("the optmig runtime is not linked in")
    notes = _section(content, shoff, shsize, shnum, shstr, MARKS_SECTION)
    return Image(content, entry, tuple(segments), _mark_blockers(segments, notes))


def _mark_blockers(segments: list[Segment], notes: tuple[int, int] | None) -> tuple[str, ...]:
    """The notes that the compiler driver left in the image, out of its loaded bytes."""
    if notes is None:
        return ()
    address, size_bytes = notes
    for segment in segments:
        start = address - segment.vaddr
        if start >= 0 and start + size_bytes <= len(segment.content):
            texts = bytes(segment.content[start : start + size_bytes]).split(b"\0")
            found = dict.fromkeys(text.decode(errors="replace") for text in texts)
            return tuple(text for text in found if text not in ("", "marked"))
    return ("its notes about marks are not in a loaded segment",)


def _section(
    content: bytes, shoff: int, shsize: int, shnum: int, shstr: int, wanted: bytes
) -> tuple[int, int] | None:
    """Address and size of a section, if the file has it and its table is sound."""
    if shsize != _SHDR.size or not 0 < shnum <= MAX_SECTIONS or shstr >= shnum:
        return None
    if shoff + shnum * shsize > len(content):
        return None
    headers = [_SHDR.unpack_from(content, shoff + index * shsize) for index in range(shnum)]
    names_at, names_bytes = headers[shstr][4], headers[shstr][5]
    names = content[names_at : names_at + names_bytes]
    for name, _, _, address, _, size_bytes, *_ in headers:
        if names[name : name + len(wanted) + 1] == wanted + b"\0":
            return address, size_bytes
    return None
