"""Two shims' attested session over daemons that a test lets drop, change, repeat and reorder."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optmigd.protocol import session as session_module
from optmigd.protocol.errors import (
    AttestationFailed,
    ChannelClosed,
    DecryptFailed,
    HandshakeFailed,
    LocalProtocolError,
    RemoteProtocolError,
)
from optmigd.protocol.link import MAX_PAYLOAD_BYTES, WireBlocker
from optmigd.protocol.session import (
    Answer,
    Established,
    FileNeed,
    Manifest,
    Proposal,
    Ready,
    Refuse,
    ReleaseToken,
    ResumedReport,
    Role,
    RoundDone,
    SessionBinding,
    SessionChannel,
    SessionEvent,
    SessionMessage,
    SessionReceived,
    report_data,
)
from optmigd.protocol.session_messages import FromDestination, FromSource
from optmigd.protocol.versions import SESSION_VERSIONS
from optmigd.protocol.wire import decode, encode, pack

BINDING = SessionBinding(b"m" * 16, b"a" * 32, b"b" * 32, b"p" * 32)


@dataclass
class Shim:
    """One shim; its evidence is a measurement and the report data, or a recording it plays."""

    role: Role
    binding: SessionBinding = BINDING
    says: bytes = b"measurement-1"
    expects: bytes = b"measurement-1"
    plays: bytes | None = None
    seen: list[bytes] = field(default_factory=list)
    channel: SessionChannel = field(init=False)

    def __post_init__(self) -> None:
        number = 1 if self.role == "source" else 3
        self.channel = SessionChannel(
            role=self.role,
            ephemeral_private=bytes([number] * 32),
            static_private=bytes([number + 1] * 32),
            binding=self.binding,
            make_evidence=lambda report: self.plays or self.says + report,
            appraise=self.appraise,
        )

    def appraise(self, evidence: bytes, report: bytes) -> None:
        self.seen.append(evidence)
        if evidence != self.expects + report:
            raise AttestationFailed("another measurement, or evidence of another session")


def shake(source: Shim, destination: Shim) -> list[SessionEvent]:
    """Run the handshake; raise what one of them raises."""
    (first,) = source.channel.start()
    assert destination.channel.start() == []
    events, (second,) = destination.channel.receive(first)
    at_source, (third,) = source.channel.receive(second)
    at_destination, nothing = destination.channel.receive(third)
    assert (events, nothing) == ([], [])
    return at_source + at_destination


def established() -> tuple[SessionChannel, SessionChannel]:
    source, destination = Shim("source"), Shim("destination")
    shake(source, destination)
    return source.channel, destination.channel


def pump(receiver: SessionChannel, payloads: list[bytes]) -> list[SessionEvent]:
    events: list[SessionEvent] = []
    for payload in payloads:
        found, answers = receiver.receive(payload)
        assert answers == []
        events += found
    return events


PROPOSAL = Proposal(
    versions=SESSION_VERSIONS.as_pair(),
    ciphers=["aes-256-gcm", "chacha20-poly1305"],
    arena_bytes=1 << 32,
    resident_bytes=1 << 30,
    cpu_features=["avx2", "avx512f"],
    xsave_bytes=2696,
    kernel_release="6.12.0",
    page_bytes=4096,
    streams=2,
    files=[FileNeed("/etc/hosts", "external", 100, b"h" * 32)],
    own_dir="/data",
    generation=1,
    mode="precopy",
    dry_run=False,
    record_bytes=1 << 20,
)
ANSWER = Answer("aes-256-gcm", 1 << 20, [WireBlocker("memory", "x", "y")], b"i" * 32)
REFUSE = Refuse("cancelled", "")
MANIFEST = Manifest(3, 10, 20, b"c" * 32, 2, [], 123, b"")
READY = Ready(b"d" * 32)
EXAMPLES: list[tuple[Role, SessionMessage]] = [
    ("source", PROPOSAL),
    ("destination", ANSWER),
    ("destination", RoundDone(0, 1, 2, b"c" * 32)),
    ("source", REFUSE),
    ("destination", Refuse("failed", "no room")),
]
TOKEN = ReleaseToken(b"m" * 16, 2, b"i" * 32, b"d" * 32)
REPORT = ResumedReport(b"m" * 16, 2, {"resume": 0.4}, 123, b"evidence")


def test_both_are_attested_and_agree() -> None:
    source, destination = Shim("source"), Shim("destination")
    at_source, at_destination = shake(source, destination)
    assert isinstance(at_source, Established)
    assert at_source == at_destination
    assert source.channel.established
    assert destination.channel.established
    assert source.channel.export_keys() == destination.channel.export_keys()
    assert source.seen != destination.seen


def test_report_data_binds_role_and_handshake() -> None:
    assert (
        report_data("source", b"h")
        == hashlib.sha512(b"optmigd session evidence v1" + b"source" + b"h").digest()
    )
    assert len({report_data("source", b"h"), report_data("destination", b"h")}) == 2


def test_evidence_of_another_session_or_role_is_refused() -> None:
    source, destination = Shim("source"), Shim("destination")
    shake(source, destination)
    (recorded_of_destination,) = source.seen
    (recorded_of_source,) = destination.seen
    for recorded in (recorded_of_destination, recorded_of_source):
        replayer = Shim("destination", replace(BINDING, migration_id=b"n" * 16), plays=recorded)
        with pytest.raises(AttestationFailed):
            shake(Shim("source", replayer.binding), replayer)
    # The same keys, the same migration, but the other role's evidence.
    with pytest.raises(AttestationFailed):
        shake(Shim("source"), Shim("destination", plays=recorded_of_source))


@pytest.mark.parametrize("liar", ["source", "destination"])
def test_another_measurement_ends_the_session(liar: Role) -> None:
    source = Shim("source", says=b"evil" if liar == "source" else b"measurement-1")
    destination = Shim("destination", says=b"evil" if liar == "destination" else b"measurement-1")
    with pytest.raises(AttestationFailed):
        shake(source, destination)
    victim = destination if liar == "source" else source
    assert not victim.channel.established
    with pytest.raises(ChannelClosed):
        victim.channel.send(PROPOSAL if victim is source else ANSWER)
    with pytest.raises(ChannelClosed):
        victim.channel.receive(b"")
    with pytest.raises(ChannelClosed):
        victim.channel.export_keys()


def test_a_refused_destination_learns_nothing_of_the_source() -> None:
    source, destination = Shim("source"), Shim("destination", says=b"evil")
    (first,) = source.channel.start()
    _, (second,) = destination.channel.receive(first)
    with pytest.raises(AttestationFailed):
        source.channel.receive(second)
    assert destination.seen == []


@pytest.mark.parametrize(
    "other",
    [
        replace(BINDING, migration_id=b"x" * 16),
        replace(BINDING, source_host=b"x" * 32),
        replace(BINDING, destination_host=b"x" * 32),
        replace(BINDING, policy_digest=b"x" * 32),
        replace(BINDING, source_host=b"b" * 32, destination_host=b"a" * 32),
    ],
    ids=["migration", "source", "destination", "policy", "swapped"],
)
def test_shims_that_were_told_different_stories_do_not_meet(other: SessionBinding) -> None:
    with pytest.raises(HandshakeFailed, match="do not agree on the prologue"):
        shake(Shim("source"), Shim("destination", other))


def test_a_binding_has_fixed_lengths() -> None:
    with pytest.raises(LocalProtocolError, match=r"\[15, 32, 32, 32\]"):
        SessionBinding(b"m" * 15, b"a" * 32, b"b" * 32, b"p" * 32)


@given(st.integers(0, 2), st.data())
@settings(max_examples=60)
def test_every_changed_byte_of_the_handshake_is_refused(no: int, data: st.DataObject) -> None:
    channels = [Shim("source").channel, Shim("destination").channel]
    payloads = channels[0].start()
    for number in range(3):
        (payload,) = payloads
        if number == no:
            offset = data.draw(st.integers(0, len(payload) - 1))
            flipped = payload[offset] ^ data.draw(st.integers(1, 255))
            payload = payload[:offset] + bytes([flipped]) + payload[offset + 1 :]
        try:
            _, payloads = channels[1 - number % 2].receive(payload)
        except HandshakeFailed:
            return
    raise AssertionError("a changed handshake was accepted by both sides")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for channel in (Shim("destination").channel, *established()):
        try:
            events, _ = channel.receive(data)
        except (HandshakeFailed, DecryptFailed, RemoteProtocolError):
            continue
        # A first handshake message is any 32 bytes; what follows it will not open.
        assert events == []
        assert len(data) == 32


def test_a_payload_in_the_first_message_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="carries a payload"):
        Shim("destination").channel.receive(b"\5" * 32 + b"more")


def test_an_oversize_payload_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="a session payload of 60001 bytes"):
        Shim("destination").channel.receive(bytes(MAX_PAYLOAD_BYTES + 1))


def test_evidence_has_a_bound() -> None:
    source, destination = Shim("source"), Shim("destination", says=bytes(48_001))
    with pytest.raises(LocalProtocolError, match="evidence of"):
        shake(source, destination)


@pytest.mark.parametrize(("role", "message"), EXAMPLES, ids=lambda item: type(item).__name__)
def test_every_message_arrives(role: Role, message: SessionMessage) -> None:
    source, destination = established()
    sender, receiver = (source, destination) if role == "source" else (destination, source)
    assert pump(receiver, sender.send(message)) == [SessionReceived(message)]


def test_there_is_an_example_of_every_message() -> None:
    for role, union in (("source", FromSource), ("destination", FromDestination)):
        assert {type(message) for its, message in EXAMPLES if its == role} == set(union.__args__)


@pytest.mark.parametrize(("role", "message"), EXAMPLES, ids=lambda item: type(item).__name__)
def test_no_role_sends_or_accepts_the_others_messages(role: Role, message: SessionMessage) -> None:
    if isinstance(message, Refuse):
        return
    source, destination = established()
    sender, receiver = (destination, source) if role == "source" else (source, destination)
    with pytest.raises(LocalProtocolError, match=f"a {sender._role} does not send"):
        sender.send(message)
    transport = sender._transport
    assert transport is not None
    with pytest.raises(RemoteProtocolError):
        receiver.receive(transport.encrypt(b"\x01" + encode(message)))


def test_a_long_message_travels_in_fragments() -> None:
    source, destination = established()
    files = [FileNeed(f"/{n:0200d}", "shared", 0, b"") for n in range(2000)]
    message = msgspec.structs.replace(PROPOSAL, files=files)
    payloads = source.send(message)
    assert len(payloads) > 5
    assert max(len(payload) for payload in payloads) <= MAX_PAYLOAD_BYTES
    assert pump(destination, payloads) == [SessionReceived(message)]
    assert pump(destination, source.send(REFUSE)) == [SessionReceived(REFUSE)]


Tamper = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda p: [p[0], p[1][:-1] + bytes([p[1][-1] ^ 1]), *p[2:]],
        lambda p: [p[0], *p[2:]],
        lambda p: [p[0], p[0], *p[1:]],
        lambda p: [p[1], p[0], *p[2:]],
        lambda p: [p[0], p[1][:-1], *p[2:]],
        lambda p: [p[0], b"", *p[1:]],
    ],
    ids=["flip", "drop", "repeat", "reorder", "truncate", "insert-empty"],
)
@pytest.mark.parametrize("fragments", [False, True], ids=["messages", "fragments"])
def test_tampering_is_refused(tamper: Tamper, fragments: bool) -> None:
    source, destination = established()
    if fragments:
        files = [FileNeed(f"/{n:0200d}", "shared", 0, b"") for n in range(2000)]
        payloads = source.send(msgspec.structs.replace(PROPOSAL, files=files))
    else:
        payloads = [*source.send(PROPOSAL), *source.send(REFUSE), *source.send(REFUSE)]
    with pytest.raises(DecryptFailed):
        pump(destination, tamper(payloads))
    with pytest.raises(ChannelClosed):
        destination.receive(payloads[0])
    with pytest.raises(ChannelClosed):
        destination.send(ANSWER)


def test_a_message_reflected_to_its_sender_is_refused() -> None:
    source, _ = established()
    with pytest.raises(DecryptFailed):
        pump(source, source.send(PROPOSAL))


def test_endless_fragments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = established()
    transport = source._transport
    assert transport is not None
    monkeypatch.setattr(session_module, "MAX_MESSAGE_BYTES", 100_000)
    with pytest.raises(RemoteProtocolError, match="more than 100000 bytes"):
        pump(destination, [transport.encrypt(b"\x00" + bytes(50_001)) for _ in range(2)])


@pytest.mark.parametrize("plaintext", [b"", b"\x01", b"\x02x", b"\x01\xc0"])
def test_a_fragment_that_is_none_is_refused(plaintext: bytes) -> None:
    source, destination = established()
    transport = source._transport
    assert transport is not None
    with pytest.raises(RemoteProtocolError):
        destination.receive(transport.encrypt(plaintext))


def test_a_message_that_is_too_large_is_a_bug_here(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = established()
    monkeypatch.setattr(session_module, "MAX_MESSAGE_BYTES", 10)
    with pytest.raises(LocalProtocolError, match="Proposal of"):
        source.send(PROPOSAL)


def test_nothing_is_sent_before_appraisal() -> None:
    for shim in (Shim("source"), Shim("destination")):
        calls: list[Callable[[], object]] = [
            lambda shim=shim: shim.channel.send(Refuse("x", "")),  # type: ignore[misc]
            shim.channel.export_keys,
            lambda shim=shim: shim.channel.seal_token(TOKEN),  # type: ignore[misc]
            lambda shim=shim: shim.channel.handoff_seals().open_token(bytes(100)),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(LocalProtocolError):
                call()


def test_a_token_opens_any_number_of_times_and_is_made_once() -> None:
    source, destination = established()
    sealed = source.seal_token(TOKEN)
    assert destination.handoff_seals().open_token(sealed) == TOKEN
    assert destination.handoff_seals().open_token(sealed) == TOKEN
    with pytest.raises(LocalProtocolError, match="once"):
        source.seal_token(TOKEN)
    with pytest.raises(LocalProtocolError):
        destination.seal_token(TOKEN)
    with pytest.raises(LocalProtocolError):
        source.handoff_seals().open_token(sealed)
    confirmed = destination.handoff_seals().seal_resumed(REPORT)
    assert (
        source.handoff_seals().open_resumed(confirmed)
        == source.handoff_seals().open_resumed(confirmed)
        == REPORT
    )
    for wrong in (confirmed, sealed[:-1], sealed[:10], bytes(len(sealed)), bytes(60_001)):
        with pytest.raises(DecryptFailed):
            destination.handoff_seals().open_token(wrong)
    with pytest.raises(DecryptFailed):
        source.handoff_seals().open_resumed(sealed)


def test_manifest_and_ready_are_made_once_each_by_their_side_alone() -> None:
    source, destination = (channel.handoff_seals() for channel in established())
    manifest, ready = source.seal_manifest(MANIFEST), destination.seal_ready(READY)
    assert destination.open_manifest(manifest) == MANIFEST
    assert source.open_ready(ready) == READY
    again: list[Callable[[], object]] = [
        lambda: source.seal_manifest(MANIFEST),
        lambda: destination.seal_ready(READY),
        lambda: destination.seal_manifest(MANIFEST),
        lambda: source.seal_ready(READY),
        lambda: source.open_manifest(manifest),
        lambda: destination.open_ready(ready),
    ]
    for call in again:
        with pytest.raises(LocalProtocolError):
            call()
    token = source.seal_token(TOKEN)
    for wrong in (manifest[:-1], ready, token, bytes(len(manifest)), b""):
        with pytest.raises(DecryptFailed):
            destination.open_manifest(wrong)
    for wrong in (ready[:-1], manifest, bytes(len(ready)), b""):
        with pytest.raises(DecryptFailed):
            source.open_ready(wrong)


def test_a_manifest_of_many_files_is_one_frame_at_most() -> None:
    source, destination = (channel.handoff_seals() for channel in established())
    need = FileNeed("/" + "x" * 250, "shared", 0, b"")
    most = msgspec.structs.replace(MANIFEST, files=[need] * 3600)
    assert destination.open_manifest(source.seal_manifest(most)) == most
    source, _ = (channel.handoff_seals() for channel in established())
    with pytest.raises(LocalProtocolError, match="a manifest of"):
        source.seal_manifest(msgspec.structs.replace(MANIFEST, files=[need] * 8000))


def test_a_token_of_another_session_does_not_open() -> None:
    source, _ = established()
    other = replace(BINDING, migration_id=b"n" * 16)
    shims = Shim("source", other), Shim("destination", other)
    shake(*shims)
    with pytest.raises(DecryptFailed):
        shims[1].channel.handoff_seals().open_token(source.seal_token(TOKEN))


def test_a_spoilt_channel_releases_nothing_but_still_completes_what_was_released() -> None:
    source, destination = established()
    sealed = source.seal_token(TOKEN)
    for channel in (source, destination):
        with pytest.raises(DecryptFailed):
            channel.receive(b"garbage from a hostile daemon")
    assert destination.handoff_seals().open_token(sealed) == TOKEN
    assert (
        source.handoff_seals().open_resumed(destination.handoff_seals().seal_resumed(REPORT))
        == REPORT
    )
    source, _ = established()
    with pytest.raises(DecryptFailed):
        source.receive(b"garbage from a hostile daemon")
    with pytest.raises(ChannelClosed):
        source.seal_token(TOKEN)


def test_no_message_crosses_in_the_clear() -> None:
    source, destination = established()
    wire = b"".join(source.send(PROPOSAL)) + source.seal_token(TOKEN)
    wire += b"".join(destination.send(ANSWER)) + destination.handoff_seals().seal_resumed(REPORT)
    for secret in (b"avx512f", b"/etc/hosts", b"i" * 32, b"evidence"):
        assert secret not in wire
    assert source.export_keys().records_secret.hex() not in repr(source.export_keys())


@pytest.mark.parametrize(
    "changes",
    [
        {"versions": [1]},
        {"ciphers": []},
        {"streams": 0},
        {"record_bytes": 4095},
        {"record_bytes": (1 << 22) + 1},
        {"mode": "teleport"},
        {"files": [{"path": "/x", "kind": "socket", "size": 0, "sha256": b""}]},
        {"page_bytes": 1},
    ],
)
def test_a_proposal_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    fields = msgspec.to_builtins(PROPOSAL, builtin_types=(bytes,))
    assert decode(pack(fields), Proposal) == PROPOSAL
    with pytest.raises(RemoteProtocolError):
        decode(pack(fields | changes), Proposal)
