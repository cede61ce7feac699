"""The daemon's end of contract 1: one shim agent, asked and listened to.

The connection may break and be made again (the agent outlives the daemon); the process may not.
So an `Agent` reconnects as long as the process lives, and everything that waits on it learns of
the process's end. Events of a migration go to whoever subscribed to it, through a bounded channel:
an agent that talks faster than its migration is relayed waits.
"""

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from optmigd.daemon.answers import mapping
from optmigd.daemon.spawn import AgentProcess
from optmigd.protocol.errors import (
    ChannelClosed,
    OptmigError,
    RemoteProtocolError,
    RuntimeFailed,
    from_wire,
)
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

EVENTS_BOUND = 64
REQUEST_TIMEOUT_S = 30.0
_RECONNECT_FIRST_S = 0.05
_RECONNECT_LAST_S = 2.0
_LAST_WORDS_S = 1.0
_READ_BYTES = 1 << 16

Event = dict[str, Any]

CONNECTION_LOST: Event = {"event": "connection_lost", "params": {}}
"""What a subscriber receives when the connection broke and events may be missing."""


class AgentConnectionLost(ChannelClosed):
    """The connection to the shim agent broke; it may have crashed, and its next says so."""

    def __init__(self) -> None:
        super().__init__(
            "the connection to the shim agent was lost: it may have crashed, see its agent.log"
        )


class Agent:
    """One shim agent: `run` in a nursery, then `request`, `notify` and `subscribe`."""

    def __init__(
        self,
        directory: Path,
        process: AgentProcess,
        log: structlog.stdlib.BoundLogger,
        on_exited: Callable[[int | None], Awaitable[None]],
    ) -> None:
        """Attach to a started agent.

        Args:
            directory: INSTANCE_DIR.
            process: its process.
            log: bound to the enclave.
            on_exited: awaited once, with the program's exit status; None if the agent ended
                without saying it.
        """
        self.directory = directory
        self.process = process
        self.gone = trio.Event()
        self._log = log
        self._on_exited = on_exited
        self.exit_reported = False
        self._left = False
        self.exit_status: int | None = None
        self._stream: trio.SocketStream | None = None
        self._connected = trio.Event()
        self._disconnected = trio.Event()
        self._disconnected.set()
        self._write_lock = trio.Lock()
        self._answers: dict[int, trio.MemorySendChannel[Event]] = {}
        self._subscribers: dict[bytes, trio.MemorySendChannel[Event]] = {}
        self._last_id = 0

    async def run(self) -> None:
        """Keep connected until the process has ended. Cancelled, it leaves the agent running."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connected)
                await self.process.wait()
                # What it said last may still lie in the socket: read to its end.
                with trio.move_on_after(_LAST_WORDS_S):
                    await self._disconnected.wait()
                nursery.cancel_scope.cancel()
            self.gone.set()
        finally:
            self._left = True
            self._disconnect()
        for channel in self._subscribers.values():
            channel.close()
        self._subscribers.clear()
        self._log.info("agent_ended")
        await self._report_exit(None)

    async def request(
        self,
        method: str,
        params: Event | None = None,
        *,
        fd: int | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Event:
        """Ask the agent and return its result.

        Args:
            method, params: as contract 1 says.
            fd: a descriptor that goes with the frame; it stays open and the caller's.
            timeout_s: how long connecting and answering may take together.

        Raises:
            OptmigError: what the agent answered instead.
            ChannelClosed: the connection broke before the answer: it may have been done.
            RuntimeFailed: the agent has ended, or gave no answer in time.

        Cancelled, the request may or may not have been carried out.
        """
        self._last_id += 1
        number = self._last_id
        answer_in, answer_out = trio.open_memory_channel[Event](1)
        self._answers[number] = answer_in
        try:
            with trio.fail_after(timeout_s):
                await self.connected()
                await self._send({"id": number, "method": method, "params": params or {}}, fd)
                answer = await answer_out.receive()
        except trio.TooSlowError:
            raise RuntimeFailed(
                f"the shim agent gave no answer to {method!r} within {timeout_s:.0f} s"
            ) from None
        except trio.EndOfChannel:
            raise ChannelClosed(f"the shim agent's connection ended during {method!r}") from None
        finally:
            self._answers.pop(number, None)
        if "error" in answer:
            error = mapping(answer["error"], "error")
            raise from_wire(
                str(error.get("code", "")),
                str(error.get("message", "")),
                mapping(error.get("fields") or {}, "fields"),
            )
        return mapping(answer.get("result"), "result")

    async def notify(self, event: str, params: Event) -> None:
        """Send a one-way message.

        Raises:
            ChannelClosed: there is no connection: it did not arrive.

        Cancelled in the middle, it breaks the connection, which is then made again.
        """
        await self._send({"event": event, "params": params}, None)

    def subscribe(self, migration_id: bytes) -> trio.MemoryReceiveChannel[Event]:
        """Return the channel of all events of one migration; it ends with the agent's process.

        There is one subscriber for each migration; it must receive, or close the channel.
        """
        send, receive = trio.open_memory_channel[Event](EVENTS_BOUND)
        self._subscribers[migration_id] = send
        if self.gone.is_set():
            send.close()
        return receive

    async def shut_down(self, *, grace_s: float = 10.0) -> None:
        """End the agent and its program; killed if it does not go within `grace_s` seconds.

        Shielded from cancellation, for at most `grace_s` and the kernel's time to kill it. Without
        `run` there is no connection to ask politely.
        """
        if self.gone.is_set():
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_s):
                if await self._ask_to_go(grace_s):
                    await self.process.wait()
                    return
            self._log.info("agent_killed", pid=self.process.pid)
            self.process.kill()
            await self.process.wait()

    async def _ask_to_go(self, grace_s: float) -> bool:
        """Whether it goes; it cannot be asked any more once `run` was cancelled."""
        while not self._left:
            try:
                await self.request("shutdown", timeout_s=grace_s)
            except ChannelClosed as error:
                # It may well go before it has answered. If not: is there another connection?
                self._log.debug("agent_shutdown_unanswered", error=error.message)
            except OptmigError as error:
                self._log.debug("agent_shutdown_refused", error=error.message)
                return not self._left
            else:
                return True
        return self.gone.is_set()

    async def connected(self) -> None:
        """Wait until there is a connection.

        Raises:
            RuntimeFailed: the agent has ended, or `run` was cancelled.
        """
        while self._stream is None:
            if self.gone.is_set():
                raise RuntimeFailed(
                    f"the shim agent has ended: see {self.directory / 'agent.log'}",
                )
            if self._left:
                raise RuntimeFailed("this daemon stops, and no longer talks to its shim agents")
            await self._connected.wait()

    async def disconnected(self) -> None:
        """Wait for the end of the connection that there is; without one, return at once."""
        await self._disconnected.wait()

    async def _keep_connected(self) -> None:
        delay_s = _RECONNECT_FIRST_S
        while True:
            try:
                stream = await connect(self.directory)
            except OSError as error:
                self._log.debug("agent_unreachable", error=str(error))
            else:
                self._stream = stream
                self._disconnected = trio.Event()
                self._connected.set()
                delay_s = _RECONNECT_FIRST_S
                try:
                    await self._read(stream)
                except (OptmigError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    self._log.warning("agent_connection_lost", error=str(error))
                finally:
                    self._disconnect()
                await self._tell_subscribers_of_loss()
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RECONNECT_LAST_S)

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None
        self._disconnected.set()
        waited_for, self._connected = self._connected, trio.Event()
        waited_for.set()
        for answer in self._answers.values():
            answer.close()

    async def _tell_subscribers_of_loss(self) -> None:
        for migration_id in list(self._subscribers):
            await self._publish(migration_id, CONNECTION_LOST)

    async def _read(self, stream: trio.SocketStream) -> None:
        decoder = FrameDecoder()
        while content := await stream.receive_some(_READ_BYTES):
            decoder.feed(content)
            while (payload := decoder.next_frame()) is not None:
                await self._take(mapping(unpack(payload), "frame"))

    async def _take(self, message: Event) -> None:
        if "event" not in message:
            number = message.get("id")
            answer = self._answers.pop(number, None) if isinstance(number, int) else None
            if answer is not None:
                answer.send_nowait(message)
            return
        params = mapping(message.get("params"), "params")
        if message["event"] == "exited":
            status = params.get("exit_status")
            if not isinstance(status, int):
                raise RemoteProtocolError(f"expected an exit status, found {status!r}")
            await self._report_exit(status)
            return
        migration_id = params.get("migration_id")
        if isinstance(migration_id, bytes) and migration_id in self._subscribers:
            await self._publish(migration_id, {"event": message["event"], "params": params})
        else:
            self._log.debug("agent_event_ignored", agent_event=str(message["event"]))

    async def _publish(self, migration_id: bytes, event: Event) -> None:
        try:
            await self._subscribers[migration_id].send(event)
        except trio.BrokenResourceError:
            self._subscribers.pop(migration_id, None)

    async def _report_exit(self, status: int | None) -> None:
        if not self.exit_reported:
            self.exit_reported = True
            self.exit_status = status
            await self._on_exited(status)

    async def _send(self, message: Event, fd: int | None) -> None:
        content = frame(pack(message))
        async with self._write_lock:
            stream = self._stream
            if stream is None:
                raise ChannelClosed("there is no connection to the shim agent at this moment")
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                if fd is None:
                    await stream.send_all(content)
                else:
                    await _send_with_fd(stream, content, fd)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise ChannelClosed(f"the shim agent's connection broke: {error}") from error
            except trio.Cancelled:
                # It had to wait, so half a frame may be out: the reader will connect again.
                stream.socket.shutdown(socket.SHUT_RDWR)
                raise


async def _send_with_fd(stream: trio.SocketStream, content: bytes, fd: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", fd))]
    sent = await stream.socket.sendmsg([content], rights)
    await stream.send_all(content[sent:])


async def connect(directory: Path) -> trio.SocketStream:
    """Connect to the agent of an instance directory.

    Through the directory's descriptor, because the path of a UNIX socket may have 107 bytes only.

    Raises:
        OSError: nobody listens there.
    """
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await sock.connect(f"/proc/self/fd/{handle}/agent.sock")
        except BaseException:
            sock.close()
            raise
    finally:
        os.close(handle)
    return trio.SocketStream(sock)


async def find_agent(directory: Path) -> AgentProcess | None:
    """Return the running agent of an instance directory, None if none runs.

    The process is the one that listens on the socket, as the kernel says: a stale agent.pid or a
    process number used again cannot mislead.
    """
    try:
        stream = await connect(directory)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise
        return None
    async with stream:
        pid, _, _ = peer_credentials(stream)
    try:
        return AgentProcess(pid)
    except ProcessLookupError:
        return None


def peer_credentials(stream: trio.SocketStream) -> tuple[int, int, int]:
    """Return process, user and group of the other end of a UNIX socket."""
    content = stream.socket.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII")
    )
    pid, uid, gid = struct.unpack("=iII", content)
    return pid, uid, gid
