"""Frames on the first data stream: what the shims say to each other around the hand-off.

Behind the last record of the last round the source sends the manifest, and the destination answers
READY the other way. Every process that a message wakes on its way costs a few tenths of a
millisecond, and the program stands still: so these two go as the pages do, from shim to shim.
Each is sealed once (`optmigd.protocol.handoff_seals`); a frame by itself promises nothing.
"""

import socket

import trio

from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.wire import FrameDecoder, frame

_READ_BYTES = 1 << 16


def send_short_frame(sock: socket.socket, payload: bytes) -> None:
    """Send a frame of which the socket's buffer holds the whole: nothing was sent that way before.

    Raises:
        ChannelClosed: the stream has broken, or does not take it at once.

    """
    framed = frame(payload)
    try:
        sent = sock.send(framed, socket.MSG_DONTWAIT)
    except OSError as error:
        raise ChannelClosed(f"a data stream broke: {error}") from error
    if sent < len(framed):
        raise ChannelClosed("a data stream takes nothing on its way back")


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
            content = sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError as error:
            raise ChannelClosed(f"a data stream broke: {error}") from error
        if not content:
            raise ChannelClosed("a data stream ended before a message was whole")
        decoder.feed(content)
    return payload
