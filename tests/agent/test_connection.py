"""The agent's end of Contract 1 outlives every connection, however it breaks."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio

from optmigd.enclave_shim.connection import Server
from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

MORE_THAN_A_SOCKET_HOLDS = bytes(1_000_000)


class Silent:
    """A handler that only notes who came and went."""

    def __init__(self) -> None:
        self.came = trio.Event()
        self.went = trio.Event()
        self.fails = False
        self.answered_methods: list[str] = []

    async def request(self, method: str, params: dict[str, Any], fd: int) -> dict[str, Any]:
        return {}

    def answered(self, method: str) -> None:
        self.answered_methods.append(method)

    async def event(self, event: str, params: dict[str, Any]) -> None:
        if self.fails:
            raise ZeroDivisionError

    async def connected(self) -> None:
        self.came.set()

    def disconnected(self) -> None:
        self.went.set()


class Door:
    """A server at a path, and the way to it."""

    def __init__(self, server: Server, handler: Silent, path: Path) -> None:
        self.server = server
        self.handler = handler
        self.path = path

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[trio.SocketStream]:
        """A connection that the handler has noticed."""
        self.handler.came, self.handler.went = trio.Event(), trio.Event()
        async with await trio.open_unix_socket(self.path) as daemon:
            await self.handler.came.wait()
            yield daemon


@asynccontextmanager
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    """A listening server until the end of the block."""
    handler, path = Silent(), tmp_path / "agent.sock"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    with structlog.testing.capture_logs(), listening:
        server = Server(handler, structlog.get_logger())
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listening, nursery)
            yield Door(server, handler, path)
            nursery.cancel_scope.cancel()


async def it_still_serves(served: Door) -> None:
    async with served.daemon() as daemon:
        await served.server.send("state", {"state": "active"})
        decoder = FrameDecoder()
        decoder.feed(await daemon.receive_some(4096))
        assert unpack(next(iter(decoder))) == {"event": "state", "params": {"state": "active"}}


async def test_a_send_cancelled_in_a_frame_ends_no_more_than_its_connection(tmp_path: Path) -> None:
    async with door(tmp_path) as served:
        async with served.daemon():
            with trio.move_on_after(0.2) as scope:
                await served.server.send("state", {"large": MORE_THAN_A_SOCKET_HOLDS})
            assert scope.cancelled_caught
            await served.handler.went.wait()
            with pytest.raises(ChannelClosed):
                await served.server.send("state", {})
        await it_still_serves(served)


async def test_a_send_cancelled_before_a_frame_ends_nothing(tmp_path: Path) -> None:
    async with door(tmp_path) as served, served.daemon() as daemon:
        with trio.CancelScope() as scope:
            scope.cancel()
            await served.server.send("state", {})
        assert scope.cancelled_caught
        await served.server.send("state", {"state": "active"})
        decoder = FrameDecoder()
        decoder.feed(await daemon.receive_some(4096))
        assert unpack(next(iter(decoder))) == {"event": "state", "params": {"state": "active"}}


async def test_a_mistake_in_a_handler_ends_no_more_than_its_connection(tmp_path: Path) -> None:
    async with door(tmp_path) as served:
        served.handler.fails = True
        async with served.daemon() as daemon:
            await daemon.send_all(frame(pack({"event": "session", "params": {}})))
            await served.handler.went.wait()
        await it_still_serves(served)


async def test_the_handler_hears_of_an_answer_when_it_was_sent(tmp_path: Path) -> None:
    """So an agent that is told to end does so behind its answer, not instead of it."""
    async with door(tmp_path) as served, served.daemon() as daemon:
        await daemon.send_all(frame(pack({"id": 1, "method": "shutdown", "params": {}})))
        while not served.handler.answered_methods:
            await trio.lowlevel.checkpoint()
        with socket.fromfd(daemon.socket.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
            decoder = FrameDecoder()
            decoder.feed(waiting.recv(4096, socket.MSG_DONTWAIT))  # it is there already
            assert unpack(next(iter(decoder))) == {"id": 1, "result": {}}
    assert served.handler.answered_methods == ["shutdown"]
