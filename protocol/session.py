"""The attested session: how two shims make sure of each other over daemons they do not trust.

A Noise XX handshake with keys made for this one migration, whose second and third message carry
evidence. The evidence's report data is a digest over the running handshake hash, so evidence of
another session, another migration or the other role does not fit. The prologue binds protocol,
migration, both hosts and both policies: if the daemons told the two shims different stories, the
handshake fails.

Order of trust: the source appraises the destination before it sends anything of its own that is
sealed, and the destination appraises the source before it believes anything. If appraisal raises,
the channel is dead.

Messages are cut into fragments that fit into the link's `Session` message. The messages of the
hand-off do not go through the counted channel; see `handoff_seals`. Token and confirmation can be
opened any number of times, also after the channel has failed: past the point of no return, a daemon
that spoils the channel must not be able to lose the enclave with it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from optmigd.protocol.errors import (
    ChannelClosed,
    LocalProtocolError,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.handoff_seals import HandoffSeals, Role
from optmigd.protocol.link import MAX_PAYLOAD_BYTES
from optmigd.protocol.noise import TAG_BYTES, Handshake, Transport, keypair
from optmigd.protocol.session_messages import (
    MAX_EVIDENCE_BYTES,
    Answer,
    FileNeed,
    FromDestination,
    FromSource,
    Manifest,
    Proposal,
    Ready,
    Refuse,
    ReleaseToken,
    ResumedReport,
    RoundDone,
    SessionMessage,
)
from optmigd.protocol.wiping import wipe
from optmigd.protocol.wire import decode, encode

__all__ = [
    "Answer",
    "Appraise",
    "Established",
    "FileNeed",
    "MakeEvidence",
    "Manifest",
    "Proposal",
    "Ready",
    "Refuse",
    "ReleaseToken",
    "ResumedReport",
    "Role",
    "RoundDone",
    "SessionBinding",
    "SessionChannel",
    "SessionEvent",
    "SessionKeys",
    "SessionMessage",
    "SessionReceived",
    "report_data",
]

MakeEvidence = Callable[[bytes], bytes]
Appraise = Callable[[bytes, bytes], None]

FRAGMENT_BYTES = MAX_PAYLOAD_BYTES
MAX_MESSAGE_BYTES = 1 << 20
_CHUNK_BYTES = FRAGMENT_BYTES - TAG_BYTES - 1
_MORE, _LAST = b"\x00", b"\x01"
_PROLOGUE_LABEL = b"optmigd session v1"
_REPORT_LABEL = b"optmigd session evidence v1"


@dataclass(frozen=True)
class SessionBinding:
    """What both shims must have been told alike.

    Args:
        migration_id: 16 bytes.
        source_host, destination_host: the hosts' static public keys, 32 bytes each.
        policy_digest: SHA-256 of the owner's policy, 32 bytes; both sides must have the same.
    """

    migration_id: bytes
    source_host: bytes
    destination_host: bytes
    policy_digest: bytes

    def __post_init__(self) -> None:
        lengths = [len(part) for part in self._parts()]
        if lengths != [16, 32, 32, 32]:
            raise LocalProtocolError(f"a session binding of {lengths} bytes, not [16, 32, 32, 32]")

    def _parts(self) -> tuple[bytes, ...]:
        return self.migration_id, self.source_host, self.destination_host, self.policy_digest

    def prologue(self) -> bytes:
        """Return the handshake's prologue; all parts have fixed lengths."""
        return _PROLOGUE_LABEL + b"".join(self._parts())


def report_data(role: Role, handshake_hash: bytes) -> bytes:
    """Return the 64 bytes that evidence of `role` must carry.

    Args:
        role: of the shim that makes the evidence.
        handshake_hash: `h` after the message's tokens and before its payload.
    """
    return hashlib.sha512(_REPORT_LABEL + role.encode("ascii") + handshake_hash).digest()


@dataclass(frozen=True)
class SessionKeys:
    """The secret that the data streams' keys are derived from; see `records`."""

    records_secret: bytes = field(repr=False)

    def forget(self) -> None:
        """Overwrite it, when every stream has derived its own."""
        wipe(self.records_secret)


@dataclass(frozen=True)
class Established:
    """Both handshakes and this side's appraisal of the peer have succeeded."""

    handshake_hash: bytes


@dataclass(frozen=True)
class SessionReceived:
    """A message arrived, whole, unchanged and in order."""

    message: SessionMessage


SessionEvent = Established | SessionReceived


class _Evidence(Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of handshake messages 2 and 3."""

    evidence: Annotated[bytes, Meta(min_length=1, max_length=MAX_EVIDENCE_BYTES)]


class SessionChannel:
    """One side of an attested session.

    Args:
        role: the source is the Noise initiator.
        ephemeral_private, static_private: 32 fresh random bytes each, for this session only.
        binding: what both sides must agree on.
        make_evidence: called with the 64 bytes of report data, returns this shim's evidence.
        appraise: called with the peer's evidence and the report data it must carry; raises
            `AttestationFailed` if it is not acceptable.
    """

    def __init__(
        self,
        *,
        role: Role,
        ephemeral_private: bytes,
        static_private: bytes,
        binding: SessionBinding,
        make_evidence: MakeEvidence,
        appraise: Appraise,
    ) -> None:
        self._role: Role = role
        self._peer: Role = "destination" if role == "source" else "source"
        self._binding = binding
        self._make_evidence = make_evidence
        self._appraise = appraise
        self._static = keypair(static_private)
        self._handshake = Handshake(
            initiator=role == "source",
            static=self._static,
            ephemeral_private=ephemeral_private,
            prologue=binding.prologue(),
        )
        self._transport: Transport | None = None
        self._greeted = False
        self._partial = bytearray()
        self._broken: OptmigError | None = None
        self._keys: SessionKeys | None = None
        self._seals: HandoffSeals | None = None

    @property
    def established(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and self._broken is None

    def start(self) -> list[bytes]:
        """Return the payloads that open the session; the destination has none.

        Raises:
            LocalProtocolError: it was called before.
        """
        return [self._handshake.write(b"")] if self._role == "source" else []

    def receive(self, payload: bytes) -> tuple[list[SessionEvent], list[bytes]]:
        """Take one payload from the peer; return what it means and the payloads to send back.

        Raises:
            HandshakeFailed: changed on its way, or the two sides were told different things.
            AttestationFailed: from `appraise`.
            DecryptFailed: a message was changed, repeated, dropped or reordered.
            RemoteProtocolError: out of bounds, of an unknown kind, or not for this role.
            ChannelClosed: an earlier call raised one of these.
        """
        self._refuse_if_broken()
        try:
            if len(payload) > FRAGMENT_BYTES:
                raise RemoteProtocolError(f"a session payload of {len(payload)} bytes")
            if self._transport is None:
                return self._receive_handshake(payload)
            message = self._receive_fragment(self._transport, payload)
        except Exception as error:
            self._broken = error if isinstance(error, OptmigError) else OptmigError(str(error))
            raise
        return ([] if message is None else [SessionReceived(message)]), []

    def send(self, message: SessionMessage) -> list[bytes]:
        """Return the payloads of a message, to be sent before those of any later one.

        Raises:
            LocalProtocolError: not established, the other role's message, or too large.
            ChannelClosed: the channel has failed.
        """
        transport = self._ready_transport()
        if not isinstance(message, FromSource if self._role == "source" else FromDestination):
            raise LocalProtocolError(f"a {self._role} does not send {type(message).__name__}")
        encoded = encode(message)
        if len(encoded) > MAX_MESSAGE_BYTES:
            raise LocalProtocolError(
                f"{type(message).__name__} of {len(encoded)} bytes; at most {MAX_MESSAGE_BYTES} fit"
            )
        payloads = []
        for start in range(0, len(encoded), _CHUNK_BYTES):
            last = start + _CHUNK_BYTES >= len(encoded)
            chunk = encoded[start : start + _CHUNK_BYTES]
            payloads.append(transport.encrypt((_LAST if last else _MORE) + chunk))
        return payloads

    def export_keys(self) -> SessionKeys:
        """Return the secret for the data streams; there is one object of it, to be forgotten.

        Raises:
            LocalProtocolError: the session is not established.
            ChannelClosed: the channel has failed.
        """
        self._ready_transport()
        assert self._keys is not None
        return self._keys

    def seal_token(self, token: ReleaseToken) -> bytes:
        """Seal the right to execute. A session makes one token and never a second.

        Raises:
            LocalProtocolError: not established, not the source, or a token was made before.
            ChannelClosed: the channel has failed.
        """
        self._refuse_if_broken()
        return self.handoff_seals().seal_token(token)

    def _receive_handshake(self, payload: bytes) -> tuple[list[SessionEvent], list[bytes]]:
        content = self._handshake.read(payload)
        if self._role == "destination" and not self._greeted:
            self._greeted = True
            if content:
                raise RemoteProtocolError("the first handshake message carries a payload")
            return [], [self._handshake.write(self._evidence)]
        evidence = decode(content, _Evidence).evidence
        self._appraise(evidence, report_data(self._peer, self._handshake.hash_before_payload))
        answers = [] if self._handshake.complete else [self._handshake.write(self._evidence)]
        self._transport = transport = self._handshake.finish()
        wipe(self._static.private)
        self._keys = SessionKeys(transport.export(b"records"))
        self._seals = HandoffSeals(
            self._role,
            self._binding.migration_id,
            token_key=transport.export(b"token"),
            resumed_key=transport.export(b"resumed"),
            manifest_key=transport.export(b"manifest"),
            ready_key=transport.export(b"ready"),
        )
        transport.forget_exporter()
        return [Established(self._transport.handshake_hash)], answers

    def _evidence(self, handshake_hash: bytes) -> bytes:
        evidence = self._make_evidence(report_data(self._role, handshake_hash))
        if len(evidence) > MAX_EVIDENCE_BYTES:
            raise LocalProtocolError(
                f"evidence of {len(evidence)} bytes; at most {MAX_EVIDENCE_BYTES} fit"
            )
        return encode(_Evidence(evidence))

    def _receive_fragment(self, transport: Transport, payload: bytes) -> SessionMessage | None:
        plaintext = transport.decrypt(payload)
        flag, chunk = plaintext[:1], plaintext[1:]
        if flag not in (_MORE, _LAST) or not chunk:
            raise RemoteProtocolError("a session fragment that is none")
        if len(self._partial) + len(chunk) > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(f"a session message of more than {MAX_MESSAGE_BYTES} bytes")
        self._partial += chunk
        if flag == _MORE:
            return None
        encoded = bytes(self._partial)
        self._partial.clear()
        allowed = FromDestination if self._role == "source" else FromSource
        return decode(encoded, allowed, max_bytes=MAX_MESSAGE_BYTES)  # type: ignore[arg-type]

    def handoff_seals(self) -> HandoffSeals:
        """Return what seals and opens the hand-off's messages, apart from the counted channel.

        Raises:
            LocalProtocolError: the session is not established.
        """
        if self._seals is None:
            raise LocalProtocolError("the session is not established")
        return self._seals

    def close(self) -> None:
        """Overwrite the channel's keys: nothing is sent or received any more.

        Token and confirmation have keys of their own, which stay: see `handoff_seals`.
        """
        self._broken = self._broken or ChannelClosed("the session is over")
        if self._transport is not None:
            self._transport.forget()
        if self._keys is not None:
            self._keys.forget()

    def _ready_transport(self) -> Transport:
        self._refuse_if_broken()
        if self._transport is None:
            raise LocalProtocolError("the session is not established")
        return self._transport

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise ChannelClosed("the session has failed before", cause=self._broken.code)
