"""Fuzz targets: frames, and the messages that stand in them, on all four wires."""

from typing import Any, cast

import msgspec

from optmigd.config import load_settings
from optmigd.daemon.answers import mapping
from optmigd.daemon.control import _Connection
from optmigd.daemon.host import Host
from optmigd.daemon.requests import _METHODS, _options
from optmigd.enclave_shim import requests as agent_requests
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.link import (
    Abort,
    Accepted,
    ImageChunk,
    Offer,
    Query,
    Refused,
    Session,
    WireBlocker,
    decode_link,
    encode_link,
)
from optmigd.protocol.session_messages import (
    FromDestination,
    FromSource,
    Manifest,
    Ready,
    Refuse,
    ReleaseToken,
    ResumedReport,
    RoundDone,
)
from optmigd.protocol.wire import FrameDecoder, decode, encode, frame, pack, unpack
from tests.fuzz.targets import target

MAX_FRAME_BYTES = 4096


def _plain() -> list[bytes]:
    nested: object = 1
    for _ in range(15):
        nested = [nested]
    values = [None, {"a": [1, -1, 2.5, True, b"b", "c" * 300]}, nested, 2**64 - 1, -(2**63), {}]
    return [pack(value) for value in values]


@target(_plain)
def wire_unpack(data: bytes) -> None:
    """Bounded msgpack: what is accepted can be written, and means the same when read again."""
    packed = pack(unpack(data))
    assert pack(unpack(packed)) == packed


@target(lambda: [b"\x07" + frame(b"one") + frame(b"") + frame(b"x" * 300)])
def wire_frames(data: bytes) -> None:
    """However the stream is cut, the frames are the same, and little is held."""
    step = data[0] + 1 if data else 1
    content = data[1:]
    decoder = FrameDecoder(MAX_FRAME_BYTES)
    found = bytearray()
    for at in range(0, len(content), step):
        decoder.feed(content[at : at + step])
        for payload in decoder:
            found += frame(payload)
        assert decoder.buffered_bytes < MAX_FRAME_BYTES + 4 + step
    assert content.startswith(bytes(found))
    assert len(found) + decoder.buffered_bytes == len(content)


def _link() -> list[bytes]:
    id_ = bytes(16)
    offer = Offer(
        migration_id=id_,
        enclave="e",
        generation=1,
        image_sha256=bytes(32),
        image_bytes=1,
        memory_bytes=1 << 20,
        resident_bytes=0,
        streams=2,
        policy=b"",
        own_dir="/enclave",
        shared=["/s"],
        dry_run=False,
        mode="precopy",
    )
    others = (
        Accepted([bytes(32)]),
        Refused([WireBlocker("memory", "host", "too little")]),
        Abort("failed", "why"),
        ImageChunk(0, b"image", True),
        Session(b"payload"),
        Query("status", {"enclave": "e", "generation": 1}),
    )
    return [encode_link(message) for message in (offer, *others)]


@target(_link)
def link_message(data: bytes) -> None:
    """A link message that is accepted is written and read as itself."""
    message = decode_link(data)
    assert encode_link(decode_link(encode_link(message))) == encode_link(message)


def _session() -> list[bytes]:
    manifest = Manifest(1, 2, 3, bytes(32), 2, [], 5, b"")
    report = ResumedReport(bytes(16), 2, {"run": 1.5}, 7, b"evidence")
    token = ReleaseToken(bytes(16), 2, bytes(32), bytes(32))
    rest = (RoundDone(0, 1, 1, bytes(32)), Ready(bytes(32)), Refuse("failed", "why"))
    messages: tuple[msgspec.Struct, ...] = (manifest, report, token, *rest)
    return [bytes([kind]) + encode(message) for message in messages for kind in range(6)]


@target(_session)
def session_message(data: bytes) -> None:
    """A message of the attested session, as each side reads it."""
    sealed_once = (Manifest, Ready, ReleaseToken, ResumedReport)
    kinds: tuple[Any, ...] = (FromSource, FromDestination, *sealed_once)
    kind: Any = kinds[data[0] % 6 if data else 0]
    message = decode(data[1:], kind)
    assert encode(decode(encode(message), kind)) == encode(message)


_AGENT: dict[str, type[msgspec.Struct]] = {
    "launch": agent_requests.Launch,
    "receive": agent_requests.Receive,
    "export": agent_requests.Export,
    "add_stream": agent_requests.AddStream,
    "cancel": agent_requests.Which,
    "sample_dirty": agent_requests.Sample,
    "session": agent_requests.Payload,
}


def _agent() -> list[bytes]:
    id_, key = bytes(16), bytes(32)
    launch: dict[str, object] = {
        "enclave": "e",
        "image": "/i",
        "policy": b"",
        "args": ["1"],
        "env": {"A": "b"},
    }
    launch |= {"memory_bytes": 1 << 20, "own_dir": "", "shared": [], "stdin": ""}
    hosts = {"source_host": key, "destination_host": key, "migration_id": id_, "dry_run": False}
    receive = {"enclave": "e", "generation": 1, "image": "/i", "policy": b"", "own_dir": "/e"}
    receive |= {"memory_bytes": 1 << 20, "resident_bytes": 0, "streams": 2, **hosts}
    export = {"mode": "precopy", "streams": 2, "downtime_limit_ms": 5.0, "max_bandwidth": 0}
    export |= {"on_stall": "switch", "verify": False, "timeout_s": 0.0, **hosts}
    stream, sample = {"migration_id": id_, "index": 0}, {"interval_s": 1.0}
    payload = {"migration_id": id_, "payload": b"x"}
    asked = (launch, receive, export, stream, {"migration_id": id_}, sample, payload)
    return [
        pack({"id": 1, "method": method, "params": params})
        for method, params in zip(_AGENT, asked, strict=True)
    ]


@target(_agent)
def agent_request(data: bytes) -> None:
    """What a hostile daemon asks of an agent."""
    message = unpack(data)
    if not isinstance(message, dict) or not isinstance(message.get("params"), dict):
        raise RemoteProtocolError("a frame without params")
    kind = _AGENT.get(str(message.get("method")))
    if kind is not None:
        agent_requests.read_params(message["params"], kind)


class _Starts:
    """Stands for a nursery: notes what would be started."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict[str, Any]]] = []

    def start_soon(self, _: object, number: int, method: str, params: Any, scope: object) -> None:
        assert number > 0
        self.started.append((method, params))


class _OnlySettings:
    settings = load_settings(None, {"host.name": "fuzz"})


def _control() -> list[bytes]:
    migrate = {"enclave": "e", "host": "b", "mode": "precopy", "streams": 2, "timeout_s": 1.0}
    requests = (
        {"id": 1, "method": "migrate", "params": migrate | {"on_stall": "abort", "verify": True}},
        {"id": 2, "method": "check", "params": {"enclave": "e", "host": "b"}},
        {"id": 1, "cancel": True},
        {"id": 3, "method": "status", "params": {"enclave": "e"}},
    )
    return [b"".join(frame(pack(request)) for request in requests)]


@target(_control)
def control_request(data: bytes) -> None:
    """What a client asks of the daemon, up to the point where it would be carried out."""
    connection = _Connection(cast("Any", None), cast("Any", None), cast("Any", None))
    nursery = _Starts()
    decoder = FrameDecoder()
    decoder.feed(data)
    for payload in decoder:
        connection._take(mapping(unpack(payload), "request"), cast("Any", nursery))
    for method, params in nursery.started:
        if method in _METHODS and method in ("migrate", "check"):
            _options(cast("Host", _OnlySettings), params, dry_run=method == "check")
