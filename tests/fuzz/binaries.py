"""Fuzz targets: image files, evidence, rows of the journal, and who knocks on the port."""

import struct
from typing import Any, cast

import msgspec
import trio

from optmigd.config import HostIdentity, LimitSettings, load_settings
from optmigd.daemon.journal import InstanceRow, MigrationRow, _with_map
from optmigd.daemon.listener import PeerListener
from optmigd.daemon.tickets import Tickets
from optmigd.enclave_shim.image import RUNTIME_SECTION, parse
from optmigd.enclave_shim.platforms.sim import SIGNATURE_LABEL, SimPlatform
from optmigd.protocol.link import DATA_PREAMBLE, LINK_PREAMBLE, TICKET_BYTES
from tests.fuzz.targets import target

PLATFORM = SimPlatform(b"r" * 32)


def _image() -> bytes:
    """The smallest file that passes: one segment of code, and the runtime's section in it."""
    code = b"\xf4" * 32
    names = b"\0" + RUNTIME_SECTION + b"\0"
    code_at, names_at = 120, 152
    sections_at = names_at + len(names)
    base = 0x20_0000
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,
        62,
        1,
        base + code_at,
        64,
        sections_at,
        0,
        64,
        56,
        1,
        64,
        2,
        1,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, sections_at, sections_at, 4096)
    section = struct.Struct("<IIQQQQIIQQ")
    sections = section.pack(1, 1, 6, base + code_at, code_at, len(code), 0, 0, 1, 0)
    sections += section.pack(0, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return header + segment + code + names + sections


@target(lambda: [_image()])
def image_file(data: bytes) -> None:
    """An image: what is accepted can be measured, and its entry lies in code."""
    image = parse(data)
    assert len(image.measurement(bytes(32))) == 32
    assert any(s.vaddr <= image.entry < s.vaddr + len(s.content) for s in image.segments)


def _reports() -> list[bytes]:
    evidence = PLATFORM.evidence(bytes(32), bytes(64))
    report = msgspec.msgpack.decode(evidence)["report"]
    return [b"\x00" + evidence, b"\x01" + report]


@target(_reports)
def sim_evidence(data: bytes) -> None:
    """Evidence from anybody, and reports that the root itself has signed."""
    content = data[1:]
    if data[:1] == b"\x01":
        signature = PLATFORM._key.sign(SIGNATURE_LABEL + content).signature
        parts = {"platform": "sim", "report": content, "signature": signature}
        content = msgspec.msgpack.encode(parts)
    claims = PLATFORM.verify(content)
    assert (len(claims.measurement), len(claims.report_data)) == (32, 64)


@target(lambda: [msgspec.msgpack.encode({"policy": b"", "rounds": [{"pages": 1}]})])
def journal_row(data: bytes) -> None:
    """A damaged journal."""
    row = (b"m" * 16, "e", 1, "source", b"k" * 32, 1, "completed", 1.5, None, None, data)
    assert isinstance(MigrationRow(*_with_map(row)).result, dict)
    facts = ("e", 1, "running", 1, None, None, None, data)
    assert isinstance(InstanceRow(*_with_map(facts)).facts, dict)


class _Socket:
    """A socket that takes every option."""

    def setsockopt(self, *_: object) -> None:
        """Do nothing."""

    def getpeername(self) -> tuple[str, int]:
        """From one address."""
        return ("192.0.2.1", 1)

    def close(self) -> None:
        """Do nothing."""


class _Stream:
    """A connection on which the input arrives, a few bytes at a time."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.socket = _Socket()
        self._data, self._piece = data, piece

    async def receive_some(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        size = min(self._piece, most)
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def send_all(self, content: bytes) -> None:
        await trio.lowlevel.checkpoint()


class _Host:
    """As much of a host as a stranger meets."""

    def __init__(self) -> None:
        self.settings = load_settings(None, {"host.name": "fuzz"})
        self.identity = HostIdentity(b"\x01" * 32, b"\x02" * 32)
        self.name = "fuzz"
        self.tickets = Tickets()

        class _NoPeers:
            def by_key(self, key: bytes) -> None:
                return None

        self.peers = _NoPeers()

    @property
    def limits(self) -> LimitSettings:
        """Of the settings."""
        return self.settings.limits


_HOST = _Host()


@target(
    lambda: [
        b"\x08" + LINK_PREAMBLE + b"\0\0\0\x40" + b"x" * 64,
        b"\x28" + DATA_PREAMBLE + b"t" * TICKET_BYTES,
        b"\x01GET / HTTP/1.1",
    ]
)
def stranger(data: bytes) -> None:
    """Whatever is said to the port before anybody has shown who he is."""
    listener = PeerListener(cast("Any", _HOST))
    stream = cast("Any", _Stream(data[1:], max(1, data[0] if data else 1)))
    assert trio.run(listener._identify, stream, "192.0.2.1") is None
