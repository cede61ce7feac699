"""The link's shell: one `LinkChannel` on one TCP connection.

A conversation has one task that receives, which is therefore the only reader; writers take turns.
The shell adds what a sans-IO channel cannot have: deadlines, the comparison of the peer's key with
its pin, and the rule that a connection on which a write was cancelled half-way is broken.
"""

import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from optmigd.config import HostIdentity, LimitSettings, Peer, PeerBook, fingerprint
from optmigd.daemon.streams import tune_link
from optmigd.protocol.errors import (
    ChannelClosed,
    HandshakeFailed,
    HostKeyMismatch,
    HostUnreachable,
    OptmigError,
    RemoteProtocolError,
    from_wire,
)
from optmigd.protocol.link import (
    LINK_PREAMBLE,
    Abort,
    HandshakeDone,
    LinkChannel,
    LinkMessage,
    QueryError,
    Received,
)
from optmigd.protocol.noise import keypair

_READ_BYTES = 1 << 16

M = TypeVar("M", bound=LinkMessage)


class Link:
    """An authenticated conversation with a pinned peer."""

    def __init__(self, stream: trio.SocketStream, channel: LinkChannel, peer: Peer) -> None:
        """Use `dial` or `accept`."""
        self.peer = peer
        self._stream = stream
        self._channel = channel
        self._received: deque[LinkMessage] = deque()
        self._write_lock = trio.Lock()
        self._broken = False

    async def __aenter__(self) -> "Link":
        """Nothing to do: a link is made open."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.aclose()

    async def send(self, message: LinkMessage) -> None:
        """Send one message; waits while the peer does not read.

        Raises:
            ChannelClosed: the connection has ended.

        Cancelled before anything was written, the link stays usable; half-way, it is broken.
        """
        async with self._write_lock:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._broken:
                raise ChannelClosed(f"the link to host {self.peer.name} has broken")
            content = self._channel.send(message)
            self._broken = True
            try:
                await self._stream.send_all(content)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise self._lost(error) from error
            self._broken = False

    async def receive(self, *, timeout_s: float | None = None) -> LinkMessage:
        """Return the next message.

        Args:
            timeout_s: give up after so many seconds; None: wait as long as the connection lives.

        Raises:
            ChannelClosed: the connection ended, or nothing came in time.
            OptmigError: what the peer sent breaks the protocol or was altered.

        Cancelled, nothing is lost.
        """
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            while not self._received:
                try:
                    content = await self._stream.receive_some(_READ_BYTES)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise self._lost(error) from error
                if not content:
                    raise ChannelClosed(f"host {self.peer.name} closed the link")
                self._take(content)
            return self._received.popleft()
        raise ChannelClosed(f"host {self.peer.name} sent nothing for {timeout_s:.0f} s")

    async def expect(self, type_: type[M], *, timeout_s: float | None = None) -> M:
        """Return the next message, which must be of one type.

        Raises:
            OptmigError: the peer said `Abort` or `QueryError` instead: as the class of its code.
            RemoteProtocolError: it is of another type.
            ChannelClosed: as `receive`.
        """
        message = await self.receive(timeout_s=timeout_s)
        if isinstance(message, type_):
            return message
        raise refusal(message, self.peer)

    async def aclose(self) -> None:
        """Close the connection; what was sent still arrives."""
        await trio.aclose_forcefully(self._stream)

    def _take(self, content: bytes) -> None:
        for event in self._channel.receive_data(content):
            if isinstance(event, Received):
                self._received.append(event.message)

    def _lost(self, error: Exception) -> ChannelClosed:
        return ChannelClosed(f"the link to host {self.peer.name} broke: {error}")


def refusal(message: LinkMessage, peer: Peer) -> OptmigError:
    """Return the error that stands for an unwelcome message of a peer."""
    if isinstance(message, Abort):
        return from_wire(message.code, f"host {peer.name}: {message.message}", {"host": peer.name})
    if isinstance(message, QueryError):
        return from_wire(message.code, message.message, message.fields)
    return RemoteProtocolError(
        f"host {peer.name} sent {type(message).__name__} where the protocol does not allow it",
        host=peer.name,
    )


async def dial(peer: Peer, identity: HostIdentity, host_name: str, limits: LimitSettings) -> Link:
    """Open a conversation with a peer.

    Args:
        peer: its address and the key it must prove.
        identity: this host's key.
        host_name: what this host calls itself.
        limits: how long connecting and the handshake may take together, and how long a dead peer
            goes unnoticed.

    Raises:
        HostUnreachable: no connection, or no handshake in time.
        HostKeyMismatch: who answers there has another key.
        HandshakeFailed, VersionMismatch: who answers does not speak our protocol.
    """
    try:
        with trio.fail_after(limits.handshake_timeout_s):
            stream = await trio.open_tcp_stream(peer.host, peer.port)
            try:
                tune_link(stream.socket, limits.link_idle_timeout_s)
                channel = _channel(identity, host_name, initiator=True)
                await stream.send_all(LINK_PREAMBLE + channel.start())

                def check(done: HandshakeDone) -> Peer:
                    if done.remote_static != peer.key:
                        raise HostKeyMismatch(
                            f"expected host {peer.name} with key {peer.fingerprint} at "
                            f"{peer.address}, found {fingerprint(done.remote_static)}: either "
                            "another host answers there or its key has changed; compare with "
                            "`optmigctl host identity` there, then `optmigctl host add` it again",
                            host=peer.name,
                        )
                    return peer

                return await _shake_hands(stream, channel, check)
            except BaseException:
                stream.socket.close()
                raise
    except trio.TooSlowError as error:
        raise HostUnreachable(
            f"host {peer.name} at {peer.address} did not answer within "
            f"{limits.handshake_timeout_s:g} s",
            host=peer.name,
        ) from error
    except OSError as error:
        raise HostUnreachable(
            f"no connection to host {peer.name} at {peer.address}: {error}; is `optmigd serve` "
            "running there?",
            host=peer.name,
        ) from error


async def accept(
    stream: trio.SocketStream, identity: HostIdentity, host_name: str, peers: PeerBook
) -> Link:
    """Answer a conversation whose preamble was read. The caller sets the deadline.

    Raises:
        HandshakeFailed: also when the key that dials is not pinned here; the dialler is told.
        VersionMismatch, RemoteProtocolError: the dialler does not speak our protocol.
    """
    channel = _channel(identity, host_name, initiator=False)
    unknown: list[HandshakeDone] = []

    def check(done: HandshakeDone) -> Peer:
        peer = peers.by_key(done.remote_static)
        if peer is None:
            unknown.append(done)
            return Peer(name="?", host="", port=0, key=done.remote_static)
        return peer

    link = await _shake_hands(stream, channel, check)
    if unknown:
        key = fingerprint(unknown[0].remote_static)
        await link.send(
            Abort(
                HandshakeFailed.code,
                f"host {host_name} does not know the key {key} of the host that dials: "
                "`optmigctl host add` it there",
            )
        )
        raise HandshakeFailed(
            f"a host with key {key} that calls itself {unknown[0].remote_name!r} is not among the "
            "peers: `optmigctl host add` it if it should be",
            key=key,
        )
    return link


async def _shake_hands(
    stream: trio.SocketStream, channel: LinkChannel, check: Callable[[HandshakeDone], Peer]
) -> Link:
    """Run the handshake; `check` accepts the peer before anything more is sent or processed."""
    while True:
        try:
            content = await stream.receive_some(_READ_BYTES)
        except trio.BrokenResourceError as error:
            raise HandshakeFailed(f"the connection broke in the handshake: {error}") from error
        if not content:
            raise HandshakeFailed(
                "the connection was closed in the handshake: there is no optmigd at this address, "
                "or it has no room for another connection"
            )
        try:
            events = channel.receive_data(content)
        except OptmigError:
            await _write(stream.send_all, channel.data_to_send())
            raise
        peer = None
        for event in events:
            if isinstance(event, HandshakeDone):
                peer = check(event)
        await _write(stream.send_all, channel.data_to_send())
        if peer is not None:
            link = Link(stream, channel, peer)
            link._take(b"")
            return link


async def _write(send_all: Callable[[bytes], Awaitable[None]], content: bytes) -> None:
    try:
        await send_all(content)
    except trio.BrokenResourceError as error:
        raise HandshakeFailed(f"the connection broke in the handshake: {error}") from error


def _channel(identity: HostIdentity, host_name: str, *, initiator: bool) -> LinkChannel:
    return LinkChannel(
        initiator=initiator,
        static=keypair(identity.private),
        ephemeral_private=secrets.token_bytes(32),
        host_name=host_name,
    )
