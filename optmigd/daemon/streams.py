"""Data streams: dialled with a ticket here, pumped by the shim agents.

The daemon connects a stream, hands it to the shim agent and keeps a duplicate for two purposes: to
`shutdown` it when the migration fails or is cancelled, which ends both ends' blocking calls at
once, and to send the journaled token on the first, past the other host's daemon. The kernel's own
sizing of socket buffers is left on: setting SO_SNDBUF would cap them at net.core.wmem_max, below
what autotuning reaches.
"""

import ipaddress
import socket
import struct
from contextlib import suppress

import trio

from optmigd.config import LimitSettings, Peer
from optmigd.enclave_shim.migration.handoff_frames import send_short_frame
from optmigd.protocol.errors import ChannelClosed, ConfigError, HostUnreachable, MigrationFailed
from optmigd.protocol.link import DATA_PREAMBLE, TICKET_OK

# Source: include/uapi/asm-generic/socket.h; Python 3.11 does not name it.
_SO_MAX_PACING_RATE = 47
_UNPACED = (1 << 8 * struct.calcsize("@L")) - 1


async def dial_stream(
    peer: Peer, ticket: bytes, limits: LimitSettings, congestion_control: str
) -> socket.socket:
    """Connect one data stream and have its ticket accepted.

    Args:
        peer: where to.
        ticket: of 32 bytes, from the peer's `Accepted`.
        limits: how long connecting and the ticket may take together, and how long a dead peer
            goes unnoticed.
        congestion_control: see `set_congestion_control`.

    Returns:
        A connected blocking socket, ready for the shim agent. The caller closes it.

    Raises:
        HostUnreachable: no connection in time.
        MigrationFailed: the peer refused the ticket.
    """
    try:
        with trio.fail_after(limits.handshake_timeout_s):
            stream = await trio.open_tcp_stream(peer.host, peer.port)
            async with _ClosedOnError(stream):
                tune_data_stream(stream.socket, limits.stream_idle_timeout_s)
                set_congestion_control(stream.socket, congestion_control)
                await stream.send_all(DATA_PREAMBLE + ticket)
                if await stream.receive_some(len(TICKET_OK)) != TICKET_OK:
                    raise MigrationFailed(
                        f"host {peer.name} refused the ticket of a data stream: it may have come "
                        "too late; migrate again",
                        host=peer.name,
                    )
                return take_socket(stream)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise HostUnreachable(
            f"no data stream to host {peer.name} at {peer.address}: "
            f"{str(error) or f'no answer within {limits.handshake_timeout_s:.0f} s'}",
            host=peer.name,
        ) from error


def tune_link(sock: trio.socket.SocketType, idle_timeout_s: float) -> None:
    """Send small messages at once, and end the connection when the peer is gone for so long."""
    tune_data_stream(sock, idle_timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(idle_timeout_s * 1000))


def tune_data_stream(sock: trio.socket.SocketType, idle_timeout_s: float) -> None:
    """The same, but a peer that is there and does not read may take as long as it likes.

    TCP_USER_TIMEOUT would end that too: a destination that stalls holds the source back, which is
    all that is wanted. Source: tcp(7).
    """
    probe_s = max(1, int(idle_timeout_s / 6))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2 * probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def set_congestion_control(sock: trio.socket.SocketType, name: str) -> None:
    """Have the kernel use that congestion control; empty: the system's own.

    But a connection within one machine has no congestion, and one that paces (bbr, a common
    default) sends it in small pieces by timers, which halves the speed: there it is reno, which
    every kernel allows.

    Raises:
        OSError: the kernel has no such congestion control, or does not allow it to this user.
    """
    if not name and _within_this_machine(sock):
        name = "reno"
    if name:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def check_congestion_control(name: str) -> None:
    """Find out whether `set_congestion_control` would work.

    Raises:
        ConfigError: it would not.
    """
    with socket.socket() as sock:
        try:
            if name:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as error:
            raise ConfigError(
                f"migration.congestion_control: {name!r} was refused ({error.strerror}); "
                "/proc/sys/net/ipv4/tcp_available_congestion_control lists those this host has, "
                "tcp_allowed_congestion_control those for users other than root",
                key="migration.congestion_control",
            ) from error


def _within_this_machine(sock: trio.socket.SocketType) -> bool:
    here, there = sock.getsockname()[0], sock.getpeername()[0]
    return bool(here == there or ipaddress.ip_address(there).is_loopback)


def take_socket(stream: trio.SocketStream) -> socket.socket:
    """Take a socket out of trio, as a blocking one; the stream is of no use afterwards."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(True)
    return sock


class StreamDuplicates:
    """The daemon's duplicates of one migration's data streams."""

    def __init__(self, count: int = 1) -> None:
        """Start with none.

        Args:
            count: how many there will be; a rate is divided among so many.
        """
        self._count = count
        self._pace = _UNPACED
        self._sockets: dict[int, socket.socket] = {}

    def keep(self, index: int, sock: socket.socket) -> None:
        """Own the socket of that stream from now on."""
        self._sockets[index] = sock
        self._set_pace(sock)

    def send_frame(self, payload: bytes) -> None:
        """Send a frame on the first stream, on which the agent here says nothing any more.

        It blocks for nothing, so any thread may call it, as long as nobody closes the streams.

        Raises:
            ChannelClosed: there is no such stream, it has broken, or it does not take all at once.
        """
        if 0 not in self._sockets:
            raise ChannelClosed("the data streams are gone")
        send_short_frame(self._sockets[0], payload)

    def pace(self, rate: int) -> None:
        """Let the kernel send at most so many bytes per second over all of them; 0: no limit."""
        # 0 is no limit, so a small limit must not be divided down to it.
        self._pace = -(-rate // self._count) or _UNPACED
        for sock in self._sockets.values():
            self._set_pace(sock)

    def _set_pace(self, sock: socket.socket) -> None:
        value = struct.pack("@L", self._pace)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, value)

    def cut(self) -> None:
        """End every stream for both hosts at once, and let go of it."""
        for sock in self._sockets.values():
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Let go of every stream; the shim agents' own descriptors stay as they are."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()


class _ClosedOnError:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def __aenter__(self) -> None:
        """Nothing to do."""

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stream.socket.close()
