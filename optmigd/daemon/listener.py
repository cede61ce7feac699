"""The TCP listener: where strangers knock.

Until a connection has shown who it is (a completed handshake, or a ticket) it is worth nothing: it
has a deadline, it counts against a bound for all and a smaller one for its address, and it is
dropped without a word. So neither a slow nor a silent nor a chattering stranger keeps peers out.
"""

from collections import Counter

import structlog
import trio

from optmigd.daemon import query
from optmigd.daemon.host import Host
from optmigd.daemon.link import Link, accept
from optmigd.daemon.streams import take_socket, tune_data_stream, tune_link
from optmigd.protocol.errors import (
    ChannelClosed,
    HandshakeFailed,
    OptmigError,
    RemoteProtocolError,
)
from optmigd.protocol.link import (
    DATA_PREAMBLE,
    LINK_PREAMBLE,
    PREAMBLE_BYTES,
    TICKET_BYTES,
    TICKET_OK,
)

MAX_CONVERSATIONS = 256
"""Authenticated conversations at once."""


class PeerListener:
    """Serves the connections of one TCP listener."""

    def __init__(self, host: Host) -> None:
        """Serve for `host`."""
        self._host = host
        self._half_open: Counter[str] = Counter()
        self._conversations = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end; a handler for `trio.serve_listeners`."""
        log = structlog.get_logger()
        try:
            address = str(stream.socket.getpeername()[0])
            log = log.bind(address=address)
            link = await self._identify(stream, address)
            if link is not None:
                log = log.bind(peer=link.peer.name)
                await self._converse(link)
        except (OptmigError, trio.BrokenResourceError, OSError) as error:
            code = error.code if isinstance(error, OptmigError) else "channel-closed"
            quiet = isinstance(error, ChannelClosed)
            level = "info" if quiet else "warning"
            getattr(log, level)("connection_ended", code=code, error=str(error))
        except Exception:
            # A mistake of ours in one conversation must not end the daemon for all.
            log.exception("conversation_crashed")
        finally:
            stream.socket.close()

    async def _identify(self, stream: trio.SocketStream, address: str) -> Link | None:
        """Return the link, or None for a data stream, which is then with its shim agent."""
        limits = self._host.settings.limits
        total = self._half_open.total()
        per_address = max(1, limits.max_half_open // 2)
        if total >= limits.max_half_open or self._half_open[address] >= per_address:
            raise HandshakeFailed(
                f"{total} connections have not said who they are, {self._half_open[address]} of "
                "them from this address: refused one more (limits.max_half_open)"
            )
        self._half_open[address] += 1
        try:
            with trio.fail_after(limits.handshake_timeout_s):
                preamble = await _exactly(stream, PREAMBLE_BYTES)
                if preamble == LINK_PREAMBLE:
                    tune_link(stream.socket, limits.link_idle_timeout_s)
                    return await accept(
                        stream, self._host.identity, self._host.name, self._host.peers
                    )
                if preamble != DATA_PREAMBLE:
                    raise RemoteProtocolError("expected the preamble of optmigd, found another")
                await self._take_data_stream(stream)
                return None
        except trio.TooSlowError:
            raise HandshakeFailed(
                f"nothing that says who it is within {limits.handshake_timeout_s:g} s"
            ) from None
        finally:
            self._half_open[address] -= 1
            if not self._half_open[address]:
                del self._half_open[address]

    async def _take_data_stream(self, stream: trio.SocketStream) -> None:
        # Read to the byte: what follows the ticket is for the shim agent.
        ticket = self._host.tickets.redeem(await _exactly(stream, TICKET_BYTES))
        if ticket is None:
            raise RemoteProtocolError(
                "a data stream with a ticket that is unknown, used or expired"
            )
        index, take = ticket
        idle_timeout_s = self._host.settings.limits.stream_idle_timeout_s
        tune_data_stream(stream.socket, idle_timeout_s)
        await stream.send_all(TICKET_OK)
        await take(index, take_socket(stream))

    async def _converse(self, link: Link) -> None:
        if self._conversations >= MAX_CONVERSATIONS:
            raise ChannelClosed(f"more than {MAX_CONVERSATIONS} conversations at once")
        self._conversations += 1
        try:
            async with link:
                await query.converse(self._host, link)
        finally:
            self._conversations -= 1


async def _exactly(stream: trio.SocketStream, size_bytes: int) -> bytes:
    content = b""
    while len(content) < size_bytes:
        more = await stream.receive_some(size_bytes - len(content))
        if not more:
            raise ChannelClosed("the connection was closed before it said who it is")
        content += more
    return content
