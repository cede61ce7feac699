"""The link: how two daemons talk, as typed messages and as a sans-IO channel.

A link connection carries one conversation: a migration or a query. It authenticates *hosts*. Inside
a migration it carries the attested session of the two shims as opaque payloads, which the daemons
can neither read nor change unnoticed.

How to drive a `LinkChannel` (h2's way; nothing here touches a socket)::

    channel = LinkChannel(initiator=True, static=..., ephemeral_private=..., host_name="a")
    write(LINK_PREAMBLE + channel.start())
    loop:
        events = channel.receive_data(read())
        write(channel.data_to_send())     # also when receive_data raised: the peer learns why
        HandshakeDone: compare remote_static with the pinned key before anything else
        Received: a message

After `HandshakeDone`, `channel.send(message)` returns the bytes to write. The acceptor learns who
dials in the third handshake message; bytes that came in the same read behind it are kept back until
`receive_data` is called again (with `b""`), so nothing is processed before the check.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct

from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import ChannelClosed, LocalProtocolError, OptmigError
from optmigd.protocol.noise import (
    MAX_MESSAGE_BYTES,
    MAX_PLAINTEXT_BYTES,
    Handshake,
    KeyPair,
    Transport,
)
from optmigd.protocol.versions import LINK_VERSIONS, Window, negotiate, window_from_peer
from optmigd.protocol.wire import FrameDecoder, decode, encode, frame

LINK_PREAMBLE = b"OPTMIGL1"
DATA_PREAMBLE = b"OPTMIGD1"
PREAMBLE_BYTES = 8
TICKET_BYTES = 32
TICKET_OK = b"\x01"

MAX_PAYLOAD_BYTES = 60_000
MAX_CHUNK_BYTES = 60_000
MAX_POLICY_BYTES = 32_768
MAX_STREAMS = 64
MAX_BLOCKERS = 256

MigrationId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
ErrorCode = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=8192)]
PathText = Annotated[str, Meta(max_length=4096)]
Payload = Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]
Pair = tuple[Annotated[int, Meta(ge=0, le=0xFFFF)], Annotated[int, Meta(ge=0, le=0xFFFF)]]


class WireBlocker(Struct, frozen=True, forbid_unknown_fields=True):
    """A `Blocker` inside a message."""

    code: ErrorCode
    subject: Text
    message: Text

    @classmethod
    def of(cls, blocker: Blocker) -> "WireBlocker":
        """Return the wire form; over-long texts are cut so that a refusal always fits."""
        return cls(blocker.code[:64], blocker.subject[:4096], blocker.message[:4096])

    def blocker(self) -> Blocker:
        """Return the plain form."""
        return Blocker(self.code, self.subject, self.message)


WireBlockers = Annotated[list[WireBlocker], Meta(max_length=MAX_BLOCKERS)]


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """What every link message has: immutable, tagged, no unknown fields."""


class Offer(_Message, frozen=True, tag="offer"):
    """Dialler: this enclave, with these needs. Sizes in bytes."""

    migration_id: MigrationId
    enclave: Name
    generation: Size
    image_sha256: Digest
    image_bytes: Size
    memory_bytes: Size
    resident_bytes: Size
    streams: Annotated[int, Meta(ge=1, le=MAX_STREAMS)]
    policy: Annotated[bytes, Meta(max_length=MAX_POLICY_BYTES)]
    own_dir: PathText
    shared: Annotated[list[PathText], Meta(max_length=64)]
    dry_run: bool
    mode: Annotated[str, Meta(pattern="^(precopy|stop-and-copy)$")]


class ImageWanted(_Message, frozen=True, tag="image-wanted"):
    """Acceptor: I do not have this image, send it."""


class ImageChunk(_Message, frozen=True, tag="image-chunk"):
    """Dialler: the next piece of the image."""

    offset: Size
    content: Annotated[bytes, Meta(max_length=MAX_CHUNK_BYTES)]
    last: bool


class Accepted(_Message, frozen=True, tag="accepted"):
    """Acceptor: one ticket for each data stream (none in a dry run)."""

    tickets: Annotated[list[Digest], Meta(max_length=MAX_STREAMS)]


class Refused(_Message, frozen=True, tag="refused"):
    """Either: every reason why not, at once."""

    blockers: WireBlockers


class Session(_Message, frozen=True, tag="session"):
    """Both: bytes from shim to shim."""

    payload: Payload


class Token(_Message, frozen=True, tag="token"):
    """Dialler: the sealed right to execute."""

    payload: Payload


class Resumed(_Message, frozen=True, tag="resumed"):
    """Acceptor: the enclave runs here; sealed for the source shim."""

    payload: Payload


class Abort(_Message, frozen=True, tag="abort"):
    """Both: this migration ends; the code says why, the details are in the sender's log."""

    code: ErrorCode
    message: Text


class Finished(_Message, frozen=True, tag="finished"):
    """Both: how the conversation ended."""

    outcome: ErrorCode


class Query(_Message, frozen=True, tag="query"):
    """Dialler: a question about an enclave, or a ping."""

    method: ErrorCode
    params: dict[str, Any]


class QueryEvent(_Message, frozen=True, tag="query-event"):
    """Acceptor: one part of a long answer."""

    event: dict[str, Any]


class QueryResult(_Message, frozen=True, tag="query-result"):
    """Acceptor: the answer."""

    result: Any


class QueryError(_Message, frozen=True, tag="query-error"):
    """Acceptor: the question failed."""

    code: ErrorCode
    message: Text
    fields: dict[str, Any]


class Redeliver(_Message, frozen=True, tag="redeliver"):
    """Dialler: the token of an earlier conversation once more."""

    migration_id: MigrationId
    payload: Payload


LinkMessage = (
    Offer
    | ImageWanted
    | ImageChunk
    | Accepted
    | Refused
    | Session
    | Token
    | Resumed
    | Abort
    | Finished
    | Query
    | QueryEvent
    | QueryResult
    | QueryError
    | Redeliver
)


def encode_link(message: LinkMessage) -> bytes:
    """Return the bytes of a message.

    Raises:
        LocalProtocolError: it breaks a bound that the peer would refuse it for.
    """
    encoded = encode(message)
    if len(encoded) > MAX_PLAINTEXT_BYTES:
        raise LocalProtocolError(
            f"{type(message).__name__} of {len(encoded)} bytes; at most {MAX_PLAINTEXT_BYTES} fit "
            f"in one link message"
        )
    return encoded


def decode_link(data: bytes) -> LinkMessage:
    """Read a message.

    Raises:
        RemoteProtocolError: unknown kind, unknown or missing field, or a broken bound.
    """
    return decode(data, LinkMessage, max_bytes=MAX_PLAINTEXT_BYTES)  # type: ignore[arg-type]


def fit_blockers(blockers: list[Blocker]) -> list[WireBlocker]:
    """Return as many blockers as one `Refused` can carry; a last one counts the rest."""
    budget = MAX_PLAINTEXT_BYTES - 2048
    fitting: list[WireBlocker] = []
    for blocker in blockers:
        wire = WireBlocker.of(blocker)
        budget -= len(encode(wire))
        if budget < 0 or len(fitting) == MAX_BLOCKERS - 1:
            rest = len(blockers) - len(fitting)
            text = f"{rest} more blockers do not fit in the refusal; mend these and check again"
            fitting.append(WireBlocker("policy", "more", text))
            break
        fitting.append(wire)
    return fitting


class _Hello(Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of each handshake message; the name is empty in the first, which is not secret."""

    versions: Pair
    name: Annotated[str, Meta(max_length=255)]


@dataclass(frozen=True)
class HandshakeDone:
    """The channel is up. `remote_static` is proven, `remote_name` is only what the peer says."""

    remote_static: bytes
    remote_name: str
    version: int


@dataclass(frozen=True)
class Received:
    """A message arrived, unchanged and in order."""

    message: LinkMessage


LinkEvent = HandshakeDone | Received


class LinkChannel:
    """One side of a link connection, after its preamble.

    Args:
        initiator: whether this side dialled.
        static: this host's key pair.
        ephemeral_private: 32 fresh random bytes.
        versions: what this side speaks.
        host_name: told to the peer, sealed; 255 characters at most.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: KeyPair,
        ephemeral_private: bytes,
        versions: Window = LINK_VERSIONS,
        host_name: str,
    ) -> None:
        self._initiator = initiator
        self._versions = versions
        self._name = host_name
        self._handshake = Handshake(
            initiator=initiator,
            static=static,
            ephemeral_private=ephemeral_private,
            prologue=LINK_PREAMBLE,
        )
        self._transport: Transport | None = None
        self._frames = FrameDecoder(MAX_MESSAGE_BYTES)
        self._outgoing = bytearray()
        self._broken: OptmigError | None = None
        self._messages_read = 0

    def start(self) -> bytes:
        """Return the first bytes to write after the preamble; the acceptor has none.

        Raises:
            LocalProtocolError: it was called before.
        """
        if not self._initiator:
            return b""
        return self._handshake_frame(name="")

    def data_to_send(self) -> bytes:
        """Take the handshake bytes that wait to be written; write them also after an error."""
        waiting = bytes(self._outgoing)
        self._outgoing.clear()
        return waiting

    def receive_data(self, data: bytes) -> list[LinkEvent]:
        """Take bytes from the peer and return what they mean.

        `HandshakeDone` always comes alone: call again with `b""` once the peer is accepted.

        Raises:
            HandshakeFailed: the handshake was tampered with or the keys are refused.
            VersionMismatch: no version in common.
            DecryptFailed: a message was changed, repeated, dropped or reordered.
            RemoteProtocolError: a frame or a message out of bounds or unknown.
            ChannelClosed: an earlier call raised one of these.
        """
        if self._broken is not None:
            raise ChannelClosed("the link has failed before", cause=self._broken.code)
        try:
            self._frames.feed(data)
            events: list[LinkEvent] = []
            for payload in self._frames:
                if self._transport is not None:
                    events.append(Received(decode_link(self._transport.decrypt(payload))))
                elif (done := self._read_handshake(payload)) is not None:
                    return [done]
        except OptmigError as error:
            self._broken = error
            raise
        return events

    def send(self, message: LinkMessage) -> bytes:
        """Return the bytes of a message, to be written before those of any later one.

        Raises:
            LocalProtocolError: the handshake is not complete, or the message is too large.
            ChannelClosed: the channel has failed.
        """
        if self._broken is not None:
            raise ChannelClosed("the link has failed before", cause=self._broken.code)
        if self._transport is None:
            raise LocalProtocolError("no message can be sent before the handshake is complete")
        return frame(self._transport.encrypt(encode_link(message)))

    def _handshake_frame(self, *, name: str) -> bytes:
        hello = _Hello(self._versions.as_pair(), name)
        return frame(self._handshake.write(encode(hello)))

    def _read_handshake(self, payload: bytes) -> HandshakeDone | None:
        hello = decode(self._handshake.read(payload), _Hello)
        self._messages_read += 1
        # The acceptor answers before it compares: so the dialler learns both windows as well.
        if not self._initiator and self._messages_read == 1:
            self._outgoing += self._handshake_frame(name=self._name)
        version = negotiate(self._versions, window_from_peer(hello.versions))
        if self._initiator:
            self._outgoing += self._handshake_frame(name=self._name)
        if not self._handshake.complete:
            return None
        self._transport = self._handshake.finish()
        return HandshakeDone(self._handshake.remote_static, hello.name, version)
