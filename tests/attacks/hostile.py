"""Hostile daemons between two honest shims, and the enclave that they never get.

`HostileMove` is a migration whose daemons lie: they change, drop, repeat, reorder and splice what
they relay, both session payloads and records. `Victim` is one running enclave that all attacks of a
module are made against: each must end with a named error, leave the program running where it was
and nothing at the destination; then an honest daemon moves it, with both memories compared, and the
next attack begins from there. At the end the program's answer must be the one of a native run.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from optmigd.bench.programs import Program
from optmigd.enclave_shim.abi import QUIESCE_SIGNAL
from optmigd.protocol.ciphers import tag_bytes
from optmigd.protocol.errors import OptmigError
from optmigd.protocol.record_format import HEADER, HEADER_BYTES, MAGIC
from optmigd.protocol.wire import LENGTH_BYTES, frame
from tests.support.agents import AgentHandle, Message, Move, launch_params

MEMORY_BYTES = 128 << 20
GRACE_S = 1.0
_MAGIC = MAGIC.to_bytes(2, "little")

TamperSession = Callable[[int, bytes], list[bytes]]
"""Gets the number of a payload and the payload; returns what is delivered instead."""
TamperFrame = Callable[[bytes], list[bytes]]
"""Gets a sealed message of a data stream; returns what is sent instead."""
TamperRecord = Callable[[int, int, bytes], "list[bytes] | None"]
"""Gets stream, number and a whole record; returns what is sent instead, None to cut the stream."""


def _as_it_is(number: int, payload: bytes) -> list[bytes]:
    return [payload]


def _frame_as_it_is(payload: bytes) -> list[bytes]:
    return [payload]


def _record_as_it_is(stream: int, number: int, record: bytes) -> list[bytes] | None:
    return [record]


@dataclass
class Recording:
    """All that went by in one migration."""

    migration_id: bytes = b""
    to_destination: list[bytes] = field(default_factory=list)
    to_source: list[bytes] = field(default_factory=list)
    records: dict[int, list[bytes]] = field(default_factory=dict)
    manifest: bytes = b""
    ready: bytes = b""
    token: bytes = b""
    resumed: bytes = b""


@dataclass
class HostileMove(Move):
    """A migration between honest shims whose daemons tamper.

    Attributes:
        at_destination, at_source: change the session payloads on their way there.
        at_records: changes the records of the data streams.
        at_manifest, at_ready: change what the shims say to each other on the first of them.
        crossed: the streams arrive under each other's numbers.
        recorded: what went by, before it was changed.

    """

    at_destination: TamperSession = _as_it_is
    at_source: TamperSession = _as_it_is
    at_records: TamperRecord = _record_as_it_is
    at_manifest: TamperFrame = _frame_as_it_is
    at_ready: TamperFrame = _frame_as_it_is
    crossed: bool = False
    recorded: Recording = field(default_factory=Recording)
    _near: list[trio.SocketStream] = field(default_factory=list)
    _far: list[trio.SocketStream] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Put the recorder and the tampering between the two relays."""
        recorded = self.recorded
        recorded.migration_id = self.migration_id

        def to_destination(payload: bytes) -> list[bytes]:
            recorded.to_destination.append(payload)
            return self.at_destination(len(recorded.to_destination) - 1, payload)

        def to_source(payload: bytes) -> list[bytes]:
            recorded.to_source.append(payload)
            return self.at_source(len(recorded.to_source) - 1, payload)

        self.to_destination, self.to_source = to_destination, to_source

    async def connect_streams(self, nursery: trio.Nursery) -> None:
        """Connect the two shims' data streams through this process."""
        for index in range(self.streams):
            ours, near = trio.socket.socketpair()
            far, theirs = trio.socket.socketpair()
            there = self.streams - 1 - index if self.crossed else index
            with near, theirs:
                common = {"migration_id": self.migration_id}
                await self.source.request("add_stream", near.fileno(), index=index, **common)
                await self.destination.request("add_stream", theirs.fileno(), index=there, **common)
            ends = trio.SocketStream(ours), trio.SocketStream(far)
            self._near.append(ends[0])
            self._far.append(ends[1])
            nursery.start_soon(self._carry, index, *ends)
            nursery.start_soon(self._carry_back, *ends)

    async def _carry(self, index: int, near: trio.SocketStream, far: trio.SocketStream) -> None:
        log = self.recorded.records.setdefault(index, [])
        try:
            while True:
                start = await _exactly(near, LENGTH_BYTES)
                if start[:2] != _MAGIC:  # behind the last record
                    self.recorded.manifest = await _exactly(near, int.from_bytes(start, "big"))
                    for payload in self.at_manifest(self.recorded.manifest):
                        await far.send_all(frame(payload))
                    continue
                record = await _record(near, start, self._tag_bytes)
                log.append(record)
                pieces = self.at_records(index, len(log) - 1, record)
                if pieces is None:
                    return
                for piece in pieces:
                    await far.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            return  # one end has gone: the other is told below
        finally:
            near.socket.close()
            far.socket.close()

    async def _carry_back(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            while True:
                length = int.from_bytes(await _exactly(far, LENGTH_BYTES), "big")
                self.recorded.ready = await _exactly(far, length)
                for payload in self.at_ready(self.recorded.ready):
                    await near.send_all(frame(payload))

    def _tag_bytes(self) -> int:
        """Of the cipher that the shims agreed on: it is in nothing that a daemon can read."""
        lines = (self.destination.directory / "agent.log").read_text().splitlines()
        chosen = [entry for line in lines if (entry := json.loads(line))["event"] == "room_made"]
        return tag_bytes(chosen[-1]["cipher"])

    def say_to_source(self, payload: bytes) -> None:
        """Put a message into the first stream's way back."""
        with socket.socket(fileno=os.dup(self._near[0].socket.fileno())) as way_back:
            way_back.send(frame(payload))

    async def say_to_destination(self, content: bytes, *, then_cut: bool = False) -> None:
        """Put bytes into the first stream, where the token comes behind the manifest."""
        await self._far[0].send_all(content)
        if then_cut:
            self._far[0].socket.close()

    async def spoil_streams(self) -> None:
        """Say something on every data stream that nobody sealed, and cut them all."""
        for far in self._far:
            await far.send_all(bytes(200))
            far.socket.close()

    async def assault(self) -> tuple[Message, Message]:
        """Carry the migration through as far as it goes; return both sides' `ended`.

        When one side has ended the daemons tell the other, as honest ones would.
        """
        async with trio.open_nursery() as nursery:
            await self.begin(nursery)
            nursery.start_soon(self._connect_if_it_lives, nursery)
            sides = (self.source, self.destination)
            async with trio.open_nursery() as either:
                for side in sides:
                    either.start_soon(_first, side, either.cancel_scope)
            for side in sides:
                with trio.move_on_after(GRACE_S):
                    await side.wait_event("ended")
            for side in sides:
                if not any(item["event"] == "ended" for item in side.events):
                    await side.request("cancel", migration_id=self.migration_id)
            here, there = [await side.wait_event("ended") for side in sides]
            nursery.cancel_scope.cancel()
        return here, there

    async def _connect_if_it_lives(self, nursery: trio.Nursery) -> None:
        with suppress(OptmigError):  # it has ended: there is nothing to connect any more
            await self.connect_streams(nursery)


async def _first(side: AgentHandle, scope: trio.CancelScope) -> None:
    await side.wait_event("ended")
    scope.cancel()


async def _exactly(stream: trio.SocketStream, size_bytes: int) -> bytes:
    content = b""
    while len(content) < size_bytes:
        more = await stream.receive_some(size_bytes - len(content))
        if not more:
            raise EOFError
        content += more
    return content


async def _record(
    stream: trio.SocketStream, start: bytes, tag_bytes_now: Callable[[], int]
) -> bytes:
    header = start + await _exactly(stream, HEADER_BYTES - len(start))
    tag = tag_bytes_now()
    meta_bytes, body_bytes = HEADER.unpack(header)[7:9]
    rest = meta_bytes + tag + (body_bytes + tag if body_bytes else 0)
    return header + await _exactly(stream, rest)


class Handle(AgentHandle):
    """A daemon's connection that can call a migration by another number than the test does."""

    def __init__(self, directory: Path) -> None:
        """For the agent of that directory, which runs already."""
        super().__init__(directory)
        self.known_as: dict[bytes, bytes] = {}

    async def send(self, message: Message, fd: int | None = None) -> None:
        """Send a frame, under the agent's own number for the migration."""
        params = message["params"]
        its = self.known_as.get(params.get("migration_id"), params.get("migration_id"))
        if its is not None:
            params = {**params, "migration_id": its}
        await super().send({**message, "params": params}, fd)

    async def forget_the_last_migration(self) -> None:
        """Drop what an agent repeats to every daemon that connects; the end of a program stays."""
        await self.request("status")  # answered after that
        self.events = [item for item in self.events if item["event"] not in ("resumed", "ended")]

    def heard(self, event: str, params: Message) -> None:
        """Translate back; called for every event before anybody sees it."""
        for ours, its in self.known_as.items():
            if params.get("migration_id") == its:
                params["migration_id"] = ours


class Victim:
    """One enclave, moved on honestly after every attack; `close` checks its answer."""

    def __init__(self, program: Program) -> None:
        """Launch it, and record one honest move."""
        self.program = program
        self.folder = Path(tempfile.mkdtemp(prefix="optmigd-"))  # short: paths of sockets
        self.generation = 1
        self.attacks = 0
        self.recording = Recording()
        self._agents: list[AgentHandle] = []
        self._source = self._new_agent()

    def _new_agent(self) -> AgentHandle:
        directory = self.folder / str(len(self._agents))
        directory.mkdir(mode=0o700)
        agent = AgentHandle(directory)
        self._agents.append(agent)
        agent.start()
        return agent

    async def launch(self) -> None:
        """Start the program and make one honest move, of which everything is recorded."""
        async with self.hosts(1) as (source,):
            params = launch_params(self.program.image, args=["0"], memory_bytes=MEMORY_BYTES)
            await source.request("launch", **params)
            while b"begun" not in source.output():  # noqa: ASYNC110 (no event tells of it)
                await trio.sleep(0.01)
        await self.move_honestly(self.recording)

    async def move_honestly(self, recording: Recording | None = None) -> None:
        """Move it to a fresh agent with both memories compared; that is the source from then on."""
        async with self.hosts() as (source, destination):
            move = self.hostile(source, destination, export={"verify": True})
            if recording is not None:
                move = self.hostile(source, destination, recorded=recording)
            here, there = await move.assault()
            assert (here["outcome"], here["error"]) == ("completed", None), here
            assert (there["outcome"], there["error"]) == ("completed", None), there
            assert recording is not None or here["report"]["verified"] is True
            for item in source.events + destination.events:
                if item["event"] == "release":
                    move.recorded.token = item["params"]["payload"]
                if item["event"] == "resumed":
                    move.recorded.resumed = item["params"]["payload"]
        self.moved_to(destination)

    def moved_to(self, destination: AgentHandle) -> None:
        """The enclave lives there now; its former agent ends."""
        self._source.kill()
        self._source = next(a for a in self._agents if a.directory == destination.directory)
        self.generation += 1

    def hostile(self, source: AgentHandle, destination: AgentHandle, **how: object) -> HostileMove:
        """A move of this enclave as it is now."""
        fields: dict[str, object] = {"generation": self.generation, "streams": 2, **how}
        return HostileMove([source, destination], self.program.image, MEMORY_BYTES, **fields)  # type: ignore[arg-type]

    @asynccontextmanager
    async def hosts(self, count: int = 2) -> AsyncIterator[list[Handle]]:
        """The source's agent and fresh ones for destinations, connected until the block ends."""
        with trio.fail_after(60):
            fresh = [self._new_agent() for _ in range(count - 1)]
            handles = [Handle(agent.directory) for agent in (self._source, *fresh)]
            try:
                async with trio.open_nursery() as nursery:
                    for handle in handles:
                        await handle.connect(nursery)
                        await handle.forget_the_last_migration()
                    yield handles
                    nursery.cancel_scope.cancel()
            finally:
                for handle in handles:
                    handle.kill()

    async def stands_unharmed(self, source: AgentHandle, destination: AgentHandle) -> None:
        """Before release: it runs on at the source, and nothing of it is at the destination."""
        assert await source.runs()
        status = await destination.request("status")
        assert (status["state"], status["resident_bytes"]) == ("booting", 0)
        agent = next(a for a in self._agents if a.directory == destination.directory)
        assert programs(agent) == []
        agent.kill()

    async def fails(self, move: HostileMove, *codes: str) -> None:
        """An attack ends with one of these codes on one side, and with nothing at the destination.

        Every few attacks, and at the end of the module, an honest daemon moves the enclave.
        """
        here, there = await move.assault()
        found = {side["error"]["code"] for side in (here, there) if side["error"]}
        assert found & set(codes), (here, there)
        assert "completed" not in (here["outcome"], there["outcome"])
        await self.stands_unharmed(move.source, move.destination)
        self.attacks += 1

    def signal_program(self, agent: AgentHandle) -> None:
        """Send every signal that asks a process to go on to the program of an agent."""
        for pid in programs(next(a for a in self._agents if a.directory == agent.directory)):
            for number in (signal.SIGCONT, QUIESCE_SIGNAL, signal.SIGUSR1):
                os.kill(pid, number)

    def close(self) -> None:
        """Let the program end and compare its answer; end every agent."""
        try:
            (self._source.directory / "own" / "stop").touch()
            trio.run(self._wait_exit)
            said = self._source.output()
            steps = next(line for line in said.splitlines() if line.startswith(b"steps"))
            native = subprocess.run(
                [self.program.native, steps.split()[1]], check=True, capture_output=True
            )
            assert said == native.stdout
        finally:
            for agent in self._agents:
                agent.kill()

    async def _wait_exit(self) -> None:
        async with self.hosts(1) as (handle,):
            assert (await handle.wait_event("exited"))["exit_status"] == 0


def programs(agent: AgentHandle) -> list[int]:
    """The living children of an agent's keeper, but for the agent itself."""
    assert agent.process is not None
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == agent.process.pid and fields[0] != "Z":
                    found.append(int(entry))
    return [pid for pid in found if pid != agent.worker_pid]


def flipped(content: bytes, at: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)
