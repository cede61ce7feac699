"""The agent's end of Contract 1: frames over a UNIX socket, from one daemon at a time.

A daemon may die and come back, so a connection is nothing that an agent depends on: a new one
replaces the old one, and what must not be lost is repeated on it (`Agent.repeat`). A frame may
carry one descriptor; the kernel keeps descriptors in step with the bytes they came with, so they
wait in a queue for the requests that take one.
"""

import array
import errno
import os
import socket
import struct
from collections import deque
from typing import Any, Protocol

import structlog
import trio

from optmigd.protocol.errors import ChannelClosed, OptmigError, RemoteProtocolError, to_wire
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

READ_BYTES = 1 << 16
MAX_WAITING_FDS = 64
MAX_RUNNING_REQUESTS = 32
METHODS_WITH_FD = frozenset({"add_stream"})

Params = dict[str, Any]


class Handler(Protocol):
    """Who answers: the agent."""

    async def request(self, method: str, params: Params, fd: int) -> Params:
        """Answer a request; `fd` is the descriptor that came with it, now the handler's, or -1.

        Raises:
            OptmigError: what the daemon is told instead.

        """

    def answered(self, method: str) -> None:
        """The answer to a request was sent, or nobody is there to take it."""

    async def event(self, event: str, params: Params) -> None:
        """Take a one-way message."""

    async def connected(self) -> None:
        """A daemon has connected: repeat what was left unanswered."""

    def disconnected(self) -> None:
        """The daemon's connection ended, and no other replaced it."""


class Connection:
    """One daemon's connection."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._decoder = FrameDecoder()
        self._fds: deque[int] = deque()
        self._lock = trio.Lock()
        self.scope = trio.CancelScope()

    async def send(self, message: Params) -> None:
        """Send one frame whole.

        Raises:
            ChannelClosed: the connection broke.

        Cancelled in the middle of the frame, it breaks the connection.
        """
        content = frame(pack(message))
        left = memoryview(content)
        async with self._lock:
            try:
                while left:
                    left = left[await self._sock.send(left) :]
            except (OSError, trio.ClosedResourceError) as error:
                raise ChannelClosed("the daemon's connection broke") from error
            except trio.Cancelled:
                if len(left) < len(content):
                    self.close()
                raise

    async def frames(self) -> "deque[Params]":
        """Wait for at least one frame; empty at the end of the connection.

        Raises:
            RemoteProtocolError: what came is not a frame of Contract 1.

        """
        found: deque[Params] = deque()
        while not found:
            content, ancillary, _, _ = await self._sock.recvmsg(
                READ_BYTES, socket.CMSG_SPACE(struct.calcsize("i"))
            )
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(value[: len(value) // fds.itemsize * fds.itemsize])
                    self._fds.extend(fds)
            if len(self._fds) > MAX_WAITING_FDS:
                raise RemoteProtocolError("more descriptors than requests that take one")
            if not content:
                break
            self._decoder.feed(content)
            for payload in self._decoder:
                message = unpack(payload)
                if not isinstance(message, dict) or not isinstance(message.get("params"), dict):
                    raise RemoteProtocolError("a frame without params")
                found.append(message)
        return found

    def take_fd(self) -> int:
        """Return the descriptor that came with the request that is being read; now the caller's.

        Raises:
            RemoteProtocolError: none came.

        """
        if not self._fds:
            raise RemoteProtocolError("this request needs a descriptor, and none came with it")
        return self._fds.popleft()

    def close(self) -> None:
        """End the connection; frames under way are lost."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())


class Server:
    """Accepts daemons on the keeper's socket, and talks to the newest."""

    def __init__(self, handler: Handler, log: structlog.stdlib.BoundLogger) -> None:
        self._handler = handler
        self._log = log
        self._current: Connection | None = None
        self._running = trio.Semaphore(MAX_RUNNING_REQUESTS)

    async def serve(
        self,
        listening: socket.socket,
        nursery: trio.Nursery,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept on a listening socket until cancelled; requests run in `nursery`.

        A request outlives the connection it came on.
        """
        with trio.socket.from_stdlib_socket(listening) as listener:
            task_status.started()
            async with trio.open_nursery() as connections:
                while True:
                    try:
                        sock, _ = await listener.accept()
                    except OSError as error:
                        if error.errno in (errno.ECONNABORTED, errno.EINTR):
                            continue
                        raise
                    if _is_trusted(sock):
                        connections.start_soon(self._talk, Connection(sock), nursery)
                    else:
                        self._log.warning("connection_of_another_user_refused")
                        sock.close()

    async def send(self, event: str, params: Params) -> None:
        """Send a one-way message to the daemon.

        Raises:
            ChannelClosed: there is no daemon at this moment.

        """
        if self._current is None:
            raise ChannelClosed("no daemon is connected")
        await self._current.send({"event": event, "params": params})

    async def _talk(self, connection: Connection, requests: trio.Nursery) -> None:
        if self._current is not None:
            self._current.scope.cancel()
        self._current = connection
        try:
            with connection.scope:
                await self._handler.connected()
                while frames := await connection.frames():
                    for message in frames:
                        await self._take(connection, message, requests)
        except (OptmigError, OSError, trio.ClosedResourceError) as error:
            self._log.warning("daemon_connection_broke", error=str(error))
        except Exception:  # an agent holds an enclave: no connection may end it
            self._log.exception("daemon_connection_failed")
        finally:
            connection.close()
            if self._current is connection:
                self._current = None
                self._handler.disconnected()

    async def _take(self, connection: Connection, message: Params, requests: trio.Nursery) -> None:
        if "event" in message:
            await self._handler.event(str(message["event"]), message["params"])
            return
        number, method = message.get("id"), message.get("method")
        if not isinstance(number, int) or number <= 0 or not isinstance(method, str):
            raise RemoteProtocolError("a frame that is neither request nor event")
        fd = connection.take_fd() if method in METHODS_WITH_FD else -1
        await self._running.acquire()
        requests.start_soon(self._answer, connection, number, method, message["params"], fd)

    async def _answer(
        self, connection: Connection, number: int, method: str, params: Params, fd: int
    ) -> None:
        try:
            result: Params = {
                "id": number,
                "result": await self._handler.request(method, params, fd),
            }
        except OptmigError as error:
            self._log.info("request_refused", method=method, code=error.code, error=error.message)
            result = {"id": number, "error": to_wire(error)}
        except Exception as error:  # an agent holds an enclave: no request may end it
            self._log.exception("request_failed", method=method)
            message = f"{type(error).__name__}: {error}"
            result = {"id": number, "error": to_wire(OptmigError(message))}
        finally:
            self._running.release()
        try:
            await connection.send(result)
        except ChannelClosed:
            self._log.warning("answer_undeliverable", method=method)
        self._handler.answered(method)


def _is_trusted(sock: trio.socket.SocketType) -> bool:
    """Whether the peer is the same user, or root."""
    size = struct.calcsize("iII")
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (0, os.geteuid())
