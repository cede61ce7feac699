"""Fuzz targets: handshakes and the sealed channels, as a stranger and as a hostile peer sees them.

A stranger's bytes rarely pass a tag. So beside the raw handshakes there are targets in which an
honest peer's keys seal what the fuzzer made: they reach what stands behind the tag.
"""

from optmigd.protocol.link import LINK_PREAMBLE, LinkChannel
from optmigd.protocol.noise import Handshake, keypair
from optmigd.protocol.session import SessionBinding, SessionChannel
from optmigd.protocol.session_messages import FromSource, RoundDone
from optmigd.protocol.versions import LINK_VERSIONS
from optmigd.protocol.wire import decode, encode, frame, pack
from tests.fuzz.targets import target

STATIC, EPHEMERAL = b"\x01" * 32, b"\x02" * 32
PEER_STATIC, PEER_EPHEMERAL = b"\x03" * 32, b"\x04" * 32
BINDING = SessionBinding(b"m" * 16, b"a" * 32, b"b" * 32, b"p" * 32)
LIMIT_BYTES = 60_000


def _handshake(*, initiator: bool, own: bool = True, prologue: bytes = b"fuzz") -> Handshake:
    static, ephemeral = (STATIC, EPHEMERAL) if own else (PEER_STATIC, PEER_EPHEMERAL)
    return Handshake(
        initiator=initiator,
        static=keypair(static),
        ephemeral_private=ephemeral,
        prologue=prologue,
    )


def _messages() -> list[bytes]:
    a, b = _handshake(initiator=True, own=False), _handshake(initiator=False)
    first = a.write(b"x")
    b.read(first)
    a.read(b.write(b"y"))
    return [frame(first) + frame(a.write(b"z")), frame(first)]


@target(_messages)
def noise_responder(data: bytes) -> None:
    """Messages 1 and 3 from anybody."""
    side = _handshake(initiator=False)
    cut = int.from_bytes(data[:4], "big") % (len(data) + 1)
    side.read(data[4 : 4 + cut])
    side.write(b"")
    side.read(data[4 + cut :][4:])
    assert side.complete
    side.finish()


def _answers() -> list[bytes]:
    a, b = _handshake(initiator=True), _handshake(initiator=False, own=False)
    b.read(a.write(b""))
    return [b.write(b"payload")]


@target(_answers)
def noise_initiator(data: bytes) -> None:
    """Message 2 from anybody."""
    side = _handshake(initiator=True)
    side.write(b"")
    side.read(data)
    side.write(b"")
    side.finish()


def _hellos() -> list[bytes]:
    hello = pack({"versions": LINK_VERSIONS.as_pair(), "name": "a"})
    future = pack({"versions": [7, 9], "name": ""})
    return [bytes([role]) + content for content in (hello, future) for role in range(4)]


@target(_hellos)
def link_hello(data: bytes) -> None:
    """A hello under an honest handshake: in each of the messages that carry one."""
    role, hello = (data[0] if data else 0) % 4, data[1:LIMIT_BYTES]
    initiator = role < 2
    side = LinkChannel(
        initiator=initiator,
        static=keypair(STATIC),
        ephemeral_private=EPHEMERAL,
        host_name="fuzz",
    )
    peer = _handshake(initiator=not initiator, own=False, prologue=LINK_PREAMBLE)
    good = pack({"versions": LINK_VERSIONS.as_pair(), "name": ""})
    if initiator:
        peer.read(side.start()[4:])
        side.receive_data(frame(peer.write(hello)))
        return
    side.receive_data(frame(peer.write(hello if role == 2 else good)))
    peer.read(side.data_to_send()[4:])
    side.receive_data(frame(peer.write(hello)))


@target(lambda: [pack({"t": "abort", "code": "x", "message": "y"}), pack({"t": "image-wanted"})])
def link_sealed(data: bytes) -> None:
    """A message that a pinned but hostile host seals."""
    side = LinkChannel(
        initiator=False, static=keypair(STATIC), ephemeral_private=EPHEMERAL, host_name="fuzz"
    )
    peer = _handshake(initiator=True, own=False, prologue=LINK_PREAMBLE)
    good = pack({"versions": LINK_VERSIONS.as_pair(), "name": ""})
    side.receive_data(frame(peer.write(good)))
    peer.read(side.data_to_send()[4:])
    side.receive_data(frame(peer.write(good)))
    side.receive_data(frame(peer.finish().encrypt(data[:LIMIT_BYTES])))


def _session() -> list[bytes]:
    evidence = encode_evidence(b"evidence")
    done = b"\x01" + encode(RoundDone(0, 1, 1, bytes(32)))
    return [bytes([kind]) + content for content in (evidence, done) for kind in range(4)]


def encode_evidence(evidence: bytes) -> bytes:
    """The payload of a session handshake's second and third message."""
    return pack({"evidence": evidence})


@target(_session)
def session_sealed(data: bytes) -> None:
    """What a hostile destination's shim seals for the source: evidence, fragments, confirmation."""
    kind, content = (data[0] if data else 0) % 4, data[1:LIMIT_BYTES]
    side = SessionChannel(
        role="source",
        ephemeral_private=EPHEMERAL,
        static_private=STATIC,
        binding=BINDING,
        make_evidence=lambda report: report,
        appraise=lambda evidence, report: None,
    )
    peer = _handshake(initiator=False, own=False, prologue=BINDING.prologue())
    (first,) = side.start()
    peer.read(first)
    payload = content if kind == 0 else encode_evidence(b"e")
    _, (third,) = side.receive(peer.write(payload))
    peer.read(third)
    transport = peer.finish()
    if kind == 1:
        side.receive(transport.encrypt(content))
    elif kind == 2:
        side.handoff_seals().open_resumed(content)
    elif kind == 3:
        side.handoff_seals().open_ready(content)


@target(lambda: [b"\x01" + encode(RoundDone(0, 1, 1, bytes(32)))])
def session_raw(data: bytes) -> None:
    """Payloads that a hostile daemon makes up, for a destination that waits for the handshake."""
    side = SessionChannel(
        role="destination",
        ephemeral_private=EPHEMERAL,
        static_private=STATIC,
        binding=BINDING,
        make_evidence=lambda report: report,
        appraise=lambda evidence, report: None,
    )
    middle = data[0] if data else 0
    side.receive(data[1 : 1 + middle])
    side.receive(data[1 + middle :])
    decode(data, FromSource)  # type: ignore[arg-type]
