"""The control socket: requests of clients on this machine.

Only the daemon's own user and root may connect: by the socket's mode and by the credentials that
the kernel reports. One connection may hold several requests; each is a task, so a slow one holds up
no other, and all end with the connection.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from optmigd.daemon.agents import peer_credentials
from optmigd.daemon.answers import Params, internal_error, mapping
from optmigd.protocol.errors import ConfigError, OptmigError, RemoteProtocolError, to_wire
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

MAX_CONNECTIONS = 64
MAX_REQUESTS = 32
"""Requests in flight on one connection."""
FRAME_TIMEOUT_S = 10.0
"""How long a frame that has begun may take to arrive. Between frames a client may be silent."""
WRITE_TIMEOUT_S = 60.0
"""How long a client may leave answers unread."""
_READ_BYTES = 1 << 16
_OUTGOING_BOUND = 16

Emit = Callable[[Params], Awaitable[None]]
Answer = Callable[[Emit, str, Params], Awaitable[Params]]


def bind_control_socket(path: Path) -> trio.SocketListener:
    """Make the control socket, mode 0600; a socket that nobody listens on any more is replaced.

    Raises:
        ConfigError: another daemon listens there, or the path cannot be used.
    """
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        raise ConfigError(f"the control socket {path} cannot be used: {error}") from error
    else:
        raise ConfigError(
            f"another daemon listens on {path}: stop it, or choose another socket with --socket",
            socket=str(path),
        )
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        listener.bind(os.fspath(path))
        # Nobody can connect before listen(): there is no moment with a wider mode.
        path.chmod(0o600)
        listener.listen(16)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"the control socket {path} cannot be made: {error}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


class ControlServer:
    """Serves the connections of one control socket."""

    def __init__(self, answer: Answer, log: structlog.stdlib.BoundLogger) -> None:
        """Answer requests with `answer(emit, method, params)`."""
        self._answer = answer
        self._log = log
        self._connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end; a handler for `trio.serve_listeners`."""
        async with stream:
            _, uid, _ = peer_credentials(stream)
            if uid not in (0, os.geteuid()):
                self._log.warning("client_refused", uid=uid)
                return
            if self._connections >= MAX_CONNECTIONS:
                self._log.warning("client_refused", connections=self._connections)
                return
            self._connections += 1
            try:
                await _Connection(stream, self._answer, self._log).serve()
            finally:
                self._connections -= 1


class _Connection:
    def __init__(
        self, stream: trio.SocketStream, answer: Answer, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._stream = stream
        self._answer = answer
        self._log = log
        self._requests: dict[int, trio.CancelScope] = {}
        self._outgoing, self._to_write = trio.open_memory_channel[Params](_OUTGOING_BOUND)

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            error = await self._serve_requests()
            if error is not None:
                self._log.warning("client_misunderstood", error=error.message)
                await self._outgoing.send({"id": 0, "error": to_wire(error)})
            self._outgoing.close()
            # The writer ends the connection when it has written what is left.
            nursery.cancel_scope.deadline = trio.current_time() + FRAME_TIMEOUT_S

    async def _serve_requests(self) -> OptmigError | None:
        """Take requests until the client leaves, or is not understood; that ends all of them."""
        error = None
        async with trio.open_nursery() as nursery:
            try:
                await self._read(nursery)
            except trio.BrokenResourceError:
                self._log.debug("client_broke_off")
            except RemoteProtocolError as found:
                error = found
            nursery.cancel_scope.cancel()
        return error

    async def _read(self, nursery: trio.Nursery) -> None:
        decoder = FrameDecoder()
        while True:
            deadline_s = FRAME_TIMEOUT_S if decoder.buffered_bytes else float("inf")
            content = None
            with trio.move_on_after(deadline_s):
                content = await self._stream.receive_some(_READ_BYTES)
            if content is None:
                raise RemoteProtocolError(
                    f"expected the rest of a frame within {FRAME_TIMEOUT_S:.0f} s"
                )
            if not content:
                return
            decoder.feed(content)
            while (payload := decoder.next_frame()) is not None:
                self._take(mapping(unpack(payload), "request"), nursery)

    def _take(self, request: Params, nursery: trio.Nursery) -> None:
        number = request.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            raise RemoteProtocolError("expected a request with a number above 0 as its id")
        if request.get("cancel") is True and set(request) == {"id", "cancel"}:
            if number in self._requests:
                self._requests[number].cancel()
            return
        method = request.get("method")
        if set(request) - {"id", "method", "params"} or not isinstance(method, str):
            raise RemoteProtocolError("expected a request of id, method and params")
        if number in self._requests:
            raise RemoteProtocolError(f"request {number} is still in progress")
        if len(self._requests) >= MAX_REQUESTS:
            raise RemoteProtocolError(f"more than {MAX_REQUESTS} requests on one connection")
        params = mapping(request.get("params", {}), "params")
        scope = self._requests[number] = trio.CancelScope()
        nursery.start_soon(self._carry_out, number, method, params, scope)

    async def _carry_out(
        self, number: int, method: str, params: Params, scope: trio.CancelScope
    ) -> None:
        async def emit(event: Params) -> None:
            await self._outgoing.send({"id": number, "event": event})

        reply: Params = {"id": number, "error": to_wire(OptmigError("the request was ended"))}
        with scope:
            try:
                reply = {"id": number, "result": await self._answer(emit, method, params)}
            except OptmigError as error:
                reply = {"id": number, "error": to_wire(error)}
            except Exception:
                # A mistake of ours in one request must not end the daemon for all.
                self._log.exception("request_crashed", method=method)
                reply = {"id": number, "error": to_wire(internal_error())}
        del self._requests[number]
        await self._outgoing.send(reply)

    async def _write(self, connection: trio.CancelScope) -> None:
        async for message in self._to_write:
            try:
                with trio.fail_after(WRITE_TIMEOUT_S):
                    await self._stream.send_all(frame(pack(message)))
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                self._log.debug("client_lost", error=str(error))
                break
            except OptmigError as error:
                self._log.error("answer_not_sent", error=error.message)
                break
        connection.cancel()
