"""Frames on the first data stream: what is said there around the hand-off.

Behind the last record of the last round the source sends the manifest, the destination answers
READY the other way, and the source's daemon sends the token when it has journaled it. Every process
that a message wakes on its way costs a few tenths of a millisecond, and the program stands still:
so these go as the pages do. Each is sealed once (`optmigd.protocol.handoff_seals`); a frame by
itself promises nothing.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.wire import FrameDecoder, frame

_READ_BYTES = 1 << 16


@contextmanager
def broken_stream_told() -> Iterator[None]:
    """Raise what a socket's call raises as ChannelClosed, but not that it would block."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise ChannelClosed(f"a data stream broke: {error}") from error


def send_short_frame(sock: socket.socket, payload: bytes) -> None:
    """Send a frame of which the socket's buffer holds the whole: nothing waits to go that way.

    Raises:
        ChannelClosed: the stream has broken, or does not take it at once.

    """
    framed, sent = frame(payload), 0
    with suppress(BlockingIOError), broken_stream_told():
        sent = sock.send(framed, socket.MSG_DONTWAIT)
    if sent < len(framed):
        raise ChannelClosed("a data stream takes no more")


async def receive_frame(sock: socket.socket) -> bytes:
    """Receive a frame on a socket that nobody else reads.

    Raises:
        RemoteProtocolError: it is announced too long.
        ChannelClosed: the stream has ended or broken.

    """
    decoder = FrameDecoder()
    while (payload := decoder.next_frame()) is None:
        await trio.lowlevel.wait_readable(sock)
        try:
            with broken_stream_told():
                content = sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        if not content:
            raise ChannelClosed("a data stream ended before a message was whole")
        decoder.feed(content)
    return payload
