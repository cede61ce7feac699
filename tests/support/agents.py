"""Real shim agents without daemons: a small relay that plays both daemons of a migration.

It does what Contract 1 asks of a daemon and no more: passes sockets, relays opaque payloads. Hooks
let a test change, drop or repeat what is relayed.
"""

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from optmigd.protocol.errors import from_wire
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

Message = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]

RESUMED_LIMIT_S = 20.0


class AgentHandle:
    """One agent process and this test's connection to it.

    Args:
        directory: INSTANCE_DIR.
        dies_at: a point of `tests.support.fragile_agent` at which its first agent kills itself.

    """

    def __init__(self, directory: Path, dies_at: str = "") -> None:
        self.directory = directory
        self.lost = trio.Event()
        self._dies_at = dies_at
        self.events: list[Message] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._changed = trio.Event()
        self._answers: dict[int, Message] = {}
        self._last_id = 0
        self._stream: trio.SocketStream | None = None
        self._streams: list[trio.SocketStream] = []
        self._sending = trio.Lock()
        self.on_event: Callable[[str, Message], None] = lambda event, params: None

    def start(self, *arguments: str, module: tuple[str, ...] = ("optmigd.enclave_shim",)) -> None:
        """Start the process and wait until it listens; `module` with its own arguments first."""
        if self._dies_at:
            module = ("tests.support.fragile_agent",)
        read, write = os.pipe()
        with open(self.directory / "agent.err", "ab") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    *module,
                    "--dir",
                    str(self.directory),
                    "--ready-fd",
                    str(write),
                    *arguments,
                ],
                pass_fds=[write],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(ROOT), "DIES_AT": self._dies_at},
            )
        os.close(write)
        ready = os.read(read, 1)
        os.close(read)
        if ready != b"\x01":
            raise RuntimeError((self.directory / "agent.err").read_text())

    async def connect(self, nursery: trio.Nursery) -> None:
        """Connect as a daemon does; a second call replaces the first connection."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        handle = os.open(self.directory, os.O_PATH)
        await sock.connect(f"/proc/self/fd/{handle}/agent.sock")
        os.close(handle)
        self._stream = trio.SocketStream(sock)
        self._streams.append(self._stream)
        self.lost = trio.Event()
        nursery.start_soon(self._read, self._stream, self.lost)

    @property
    def worker_pid(self) -> int:
        """The agent's own process; `process` is its keeper."""
        return int((self.directory / "agent.worker.pid").read_text())

    async def crash(self, nursery: trio.Nursery) -> None:
        """Kill the agent, leave its keeper alone, and connect to the next one."""
        os.kill(self.worker_pid, signal.SIGKILL)
        await self.recover(nursery)

    async def recover(self, nursery: trio.Nursery) -> None:
        """Wait until the agent has died, and connect to the next one."""
        await self.lost.wait()
        await self.connect(nursery)

    async def disconnect(self) -> None:
        """Break the connection."""
        assert self._stream is not None
        await self._stream.aclose()

    async def _read(self, stream: trio.SocketStream, lost: trio.Event) -> None:
        try:
            await self._read_all(stream)
        finally:
            lost.set()

    async def _read_all(self, stream: trio.SocketStream) -> None:
        decoder = FrameDecoder()
        while True:
            try:
                content = await stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not content:
                return
            decoder.feed(content)
            for payload in decoder:
                message = unpack(payload)
                assert isinstance(message, dict)
                if "event" in message:
                    self.heard(message["event"], message["params"])
                    self.events.append(message)
                    self.on_event(message["event"], message["params"])
                else:
                    self._answers[message["id"]] = message
                self._changed.set()
                self._changed = trio.Event()

    def heard(self, event: str, params: Message) -> None:
        """Look at an event before anybody else does; for hostile daemons."""

    async def request(self, method: str, fd: int | None = None, **params: object) -> Message:
        """Ask, and return the result or raise the agent's error."""
        self._last_id += 1
        number = self._last_id
        await self.send({"id": number, "method": method, "params": params}, fd)
        while number not in self._answers:
            await self._changed.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            error = answer["error"]
            raise from_wire(error["code"], error["message"], error["fields"])
        result: Message = answer["result"]
        return result

    async def runs(self) -> bool:
        """Whether the program runs on; its threads may first have to wait for a processor."""
        with trio.move_on_after(RESUMED_LIMIT_S):
            while (await self.request("status"))["state"] == "parked":  # noqa: ASYNC110 (no event)
                await trio.sleep(0.01)
        return bool((await self.request("status"))["state"] == "running")

    async def notify(self, event: str, **params: object) -> None:
        """Send a one-way message."""
        await self.send({"event": event, "params": params})

    async def send(self, message: Message, fd: int | None = None) -> None:
        """Send a frame, with a descriptor if one is given."""
        assert self._stream is not None
        content = frame(pack(message))
        async with self._sending:
            if fd is not None:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
                sent = await self._stream.socket.sendmsg([content], rights)
                content = content[sent:]
            await self._stream.send_all(content)

    async def wait_event(self, name: str, count: int = 1) -> Message:
        """Wait until the event has come `count` times; return the last one's params."""
        while True:
            found = [item["params"] for item in self.events if item["event"] == name]
            if len(found) >= count:
                params: Message = found[count - 1]
                return params
            await self._changed.wait()

    def output(self) -> bytes:
        """What the program has written so far."""
        return (self.directory / "output.log").read_bytes()

    def log(self) -> str:
        """The agent's own log and errors."""
        return "".join(
            (self.directory / name).read_text()
            for name in ("agent.log", "agent.err")
            if (self.directory / name).exists()
        )

    def kill(self) -> None:
        """End the process; its program goes with it."""
        for stream in self._streams:
            stream.socket.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@asynccontextmanager
async def agents(
    tmp_path: Path, count: int, *arguments: str, dies_at: Mapping[int, str] | None = None
) -> AsyncIterator[list[AgentHandle]]:
    """That many agents, connected; all are ended afterwards. `dies_at`: see `AgentHandle`."""
    handles = []
    try:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                directory = tmp_path / f"agent{number}"
                directory.mkdir(mode=0o700)
                handle = AgentHandle(directory, (dies_at or {}).get(number, ""))
                handles.append(handle)
                handle.start(*arguments)
                await handle.connect(nursery)
            yield handles
            nursery.cancel_scope.cancel()
    finally:
        for handle in handles:
            handle.kill()


def launch_params(image: Path, **changes: object) -> Message:
    """Parameters of `launch`, with defaults."""
    params: Message = {
        "enclave": "test",
        "image": str(image),
        "policy": b"",
        "args": [],
        "env": {},
        "memory_bytes": 256 << 20,
        "own_dir": "",
        "shared": [],
        "stdin": "",
    }
    return params | changes


SOURCE_HOST, DESTINATION_HOST = b"\x01" * 32, b"\x02" * 32


@dataclass
class Move:
    """One migration between two agents, relayed by `run`."""

    hosts: list[AgentHandle]
    image: Path
    memory_bytes: int = 256 << 20
    generation: int = 1
    streams: int = 2
    policy: bytes = b""
    export: Message = field(default_factory=dict)
    receive: Message = field(default_factory=dict)
    migration_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    to_destination: Callable[[bytes], list[bytes]] = lambda payload: [payload]
    to_source: Callable[[bytes], list[bytes]] = lambda payload: [payload]
    keep_duplicates: bool = False
    duplicates: list[socket.socket] = field(default_factory=list)
    deliver_token: bool = True
    deliver_resumed: bool = True

    @property
    def source(self) -> AgentHandle:
        """Where it starts."""
        return self.hosts[0]

    @property
    def destination(self) -> AgentHandle:
        """Where it goes."""
        return self.hosts[1]

    async def begin(self, nursery: trio.Nursery) -> None:
        """Start both sides and the relay; returns when both have agreed to begin."""
        to_source, to_destination = (trio.open_memory_channel[Message](1000) for _ in range(2))
        self.source.on_event = lambda event, params: to_destination[0].send_nowait(
            {"event": event, "params": params}
        )
        self.destination.on_event = lambda event, params: to_source[0].send_nowait(
            {"event": event, "params": params}
        )
        nursery.start_soon(self._relay, to_destination[1], self.destination, self.to_destination)
        nursery.start_soon(self._relay, to_source[1], self.source, self.to_source)
        await self.order_receive()
        await self.order_export()

    async def order_receive(self) -> None:
        """Ask the destination alone to get ready."""
        await self.destination.request(
            "receive",
            **{
                "migration_id": self.migration_id,
                "enclave": "test",
                "generation": self.generation,
                "image": str(self.image),
                "policy": self.policy,
                "memory_bytes": self.memory_bytes,
                "resident_bytes": 0,
                "streams": self.streams,
                "dry_run": False,
                "source_host": SOURCE_HOST,
                "destination_host": DESTINATION_HOST,
                "own_dir": "/enclave",
                **self.receive,
            },
        )

    async def order_export(self) -> None:
        """Ask the source alone to begin."""
        await self.source.request(
            "export",
            **{
                "migration_id": self.migration_id,
                "mode": "precopy",
                "streams": self.streams,
                "downtime_limit_ms": 50.0,
                "max_bandwidth": 0,
                "on_stall": "switch",
                "verify": False,
                "timeout_s": 60.0,
                "dry_run": False,
                "source_host": SOURCE_HOST,
                "destination_host": DESTINATION_HOST,
                **self.export,
            },
        )

    async def add_streams(self) -> None:
        """Make TCP connections over loopback and pass their ends."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for index in range(self.streams):
                with socket.create_connection(listener.getsockname()) as ours:
                    theirs, _ = listener.accept()
                    if self.keep_duplicates:
                        self.duplicates.append(ours.dup())
                    with theirs:
                        await self.source.request(
                            "add_stream",
                            fd=ours.fileno(),
                            migration_id=self.migration_id,
                            index=index,
                        )
                        await self.destination.request(
                            "add_stream",
                            fd=theirs.fileno(),
                            migration_id=self.migration_id,
                            index=index,
                        )

    async def up_to_release(self, nursery: trio.Nursery) -> bytes:
        """Carry it to the point of no return; the sealed token that the source lets out."""
        await self.begin(nursery)
        await self.add_streams()
        return bytes((await self.source.wait_event("release"))["payload"])

    def cut(self) -> None:
        """Break the data streams, as a daemon can."""
        while self.duplicates:
            with self.duplicates.pop() as sock:
                sock.shutdown(socket.SHUT_RDWR)

    async def run(self) -> tuple[Message, Message]:
        """Carry it through; both sides' `ended`."""
        before = [
            sum(item["event"] == "ended" for item in agent.events)
            for agent in (self.source, self.destination)
        ]
        async with trio.open_nursery() as nursery:
            await self.begin(nursery)
            await self.add_streams()
            there = await self.destination.wait_event("ended", before[1] + 1)
            here = await self.source.wait_event("ended", before[0] + 1)
            nursery.cancel_scope.cancel()
        return here, there

    async def _relay(
        self,
        inbox: "trio.MemoryReceiveChannel[Message]",
        to: AgentHandle,
        change: Callable[[bytes], list[bytes]],
    ) -> None:
        async for message in inbox:
            # What is on its way to an agent that dies is lost.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._pass_on(message, to, change)

    async def _pass_on(
        self, message: Message, to: AgentHandle, change: Callable[[bytes], list[bytes]]
    ) -> None:
        event, params = message["event"], message["params"]
        if params.get("migration_id") != self.migration_id:
            return
        if event == "session":
            for payload in change(params["payload"]):
                await to.notify("session", migration_id=self.migration_id, payload=payload)
        elif event == "release" and self.deliver_token:
            await self.give_token(params["payload"])
        elif event == "resumed" and self.deliver_resumed:
            await to.notify(
                "resumed_delivered", migration_id=self.migration_id, payload=params["payload"]
            )

    async def give_token(self, token: bytes) -> None:
        """Deliver the token to the destination."""
        await self.destination.notify(
            "token_delivered", migration_id=self.migration_id, payload=token
        )
