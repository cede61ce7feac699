"""The attested session of one migration, as a conversation between tasks.

The channel itself is sans-IO (`optmigd.protocol.session`); here its payloads go out as `session`
events of the agent and come in by `deliver`. One task, `listen`, opens everything that arrives, so
a refusal by the peer is noticed at once, whatever the role is doing.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import trio
from msgspec import Struct

from optmigd.enclave_shim.migration.common import Appraiser, Binding, Emit, Identity
from optmigd.protocol.errors import MigrationFailed, RemoteProtocolError
from optmigd.protocol.handoff_seals import HandoffSeals
from optmigd.protocol.session import (
    Established,
    Refuse,
    ReleaseToken,
    SessionBinding,
    SessionChannel,
    SessionKeys,
    SessionMessage,
)
from optmigd.protocol.wiping import wipe

MAX_WAITING_PAYLOADS = 256
MAX_WAITING_MESSAGES = 16

M = TypeVar("M", bound=Struct)


class PeerRefused(MigrationFailed):
    """The peer's shim has given up; its code is the error's field `peer_code`."""


class Conversation:
    """One side's conversation with the peer's shim.

    Args:
        channel: not yet started.
        emit: sends one payload to the peer, by way of the daemons.

    """

    def __init__(self, channel: SessionChannel, emit: Callable[[bytes], Awaitable[None]]) -> None:
        self._channel = channel
        self._emit = emit
        self._payload_in, self._payload_out = trio.open_memory_channel[bytes](MAX_WAITING_PAYLOADS)
        self._message_in, self._message_out = trio.open_memory_channel[SessionMessage](
            MAX_WAITING_MESSAGES
        )
        self._established = trio.Event()

    def deliver(self, payload: bytes) -> None:
        """Take a payload from the peer; `listen` opens it.

        Raises:
            RemoteProtocolError: more payloads wait than any legal conversation needs.

        """
        try:
            self._payload_in.send_nowait(payload)
        except trio.WouldBlock:
            raise RemoteProtocolError("the peer floods the session") from None

    async def listen(self) -> None:
        """Open what arrives, until cancelled.

        Raises:
            PeerRefused: the peer has given up.
            ProtocolError, ChannelError: what came is not what a peer may send; the session is dead.

        """
        for payload in self._channel.start():
            await self._emit(payload)
        async for payload in self._payload_out:
            events, answers = self._channel.receive(payload)
            for answer in answers:
                await self._emit(answer)
            for event in events:
                if isinstance(event, Established):
                    self._established.set()
                elif isinstance(event.message, Refuse):
                    raise PeerRefused(
                        f"the other shim has given up: {event.message.message}",
                        peer_code=event.message.code,
                    )
                else:
                    await self._message_in.send(event.message)

    async def established(self) -> SessionKeys:
        """Wait for the handshake and both appraisals; return the keys of the data streams."""
        await self._established.wait()
        return self._channel.export_keys()

    async def receive(self, kind: type[M]) -> M:
        """Return the next message, which must be of this kind.

        Raises:
            RemoteProtocolError: it is of another kind.

        """
        message = await self.receive_any()
        if not isinstance(message, kind):
            raise RemoteProtocolError(f"a {type(message).__name__} where none belongs")
        return message

    async def receive_any(self) -> SessionMessage:
        """Return the next message."""
        return await self._message_out.receive()

    async def send(self, message: SessionMessage) -> None:
        """Send a message; cancelled in the middle, the session is of no further use."""
        for payload in self._channel.send(message):
            await self._emit(payload)

    async def refuse(self, code: str, message: str) -> None:
        """Tell the peer that this side has given up, if the session still can."""
        if self._channel.established:
            await self.send(Refuse(code=code[:64], message=message[:1000]))

    def seal_token(self, token: ReleaseToken) -> bytes:
        """Seal the right to execute; see `SessionChannel.seal_token`."""
        return self._channel.seal_token(token)

    def close(self) -> None:
        """Overwrite the session's keys; nothing is said any more. See `SessionChannel.close`."""
        self._channel.close()

    def handoff_seals(self) -> HandoffSeals:
        """What seals and opens token and confirmation; see `SessionChannel.handoff_seals`."""
        return self._channel.handoff_seals()


def open_conversation(
    role: Literal["source", "destination"],
    identity: Identity,
    binding: Binding,
    appraiser: Appraiser,
    emit: Emit,
) -> Conversation:
    """A new conversation for one migration, with keys of its own."""

    async def emit_payload(payload: bytes) -> None:
        await emit("session", {"payload": payload})

    ephemeral_private, static_private = os.urandom(32), os.urandom(32)
    channel = SessionChannel(
        role=role,
        ephemeral_private=ephemeral_private,
        static_private=static_private,
        binding=SessionBinding(
            binding.migration_id,
            binding.source_host,
            binding.destination_host,
            identity.policy.digest(),
        ),
        make_evidence=lambda data: identity.platform.evidence(identity.measurement, data),
        appraise=appraiser,
    )
    wipe(ephemeral_private)  # the channel has copies, which it overwrites itself
    wipe(static_private)
    return Conversation(channel, emit_payload)
