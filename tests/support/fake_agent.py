"""A shim agent without enclave: contract 1 as a program of its own, for tests of the daemon.

Its 'program' writes one line for each owner generation to its output and ends when the file named
by its first argument appears, with the status that stands in it. Its 'arena' (argument, generation
and the output so far) travels over the data streams, so a migration succeeds only if the daemons
really pass the sockets.

The policy of the enclave, which the daemons hand on unread, is a script in JSON, by role:

    {"source": {"hold_at": "active"}, "destination": {"fail_at": "active"}}

`hold_at`: stop in that state until cancelled; the file `held` in INSTANCE_DIR says that it does.
`hold_until`: a file; wait in `hold_at` until it is there. `fail_at`: end as failed in that state,
with `code`. `die_at`: end the agent. `refuse`: blockers of the destination. `ignore_tokens`: how
many tokens the destination leaves unanswered. `listens_on`: "stream": the destination takes the
token from the first data stream, and not from its daemon. `resumed_when`: a file; the destination
runs, and does not say so until it is there. `release_first`: let a cancel lose the race against the
release: ends the hold, and answers when it has released. `converge`: the source asks for its
switchover turn and waits for it; the file that it names gets a line when it has it, and one when it
has moved. At the top, `status_blockers` are the source's own, `launch_error` refuses to launch, and
`unknown` are methods that neither side knows. The file `exited` in INSTANCE_DIR says that the
program has ended, `withdrawn` that it was cancelled, `kept` that a cancel came after the token,
`gives_way` whether its bulk work is to wait.
"""

# It polls, and touches files where it likes: it is a scripted program, not a daemon.
# ruff: noqa: ASYNC110, ASYNC230, ASYNC240

import argparse
import hashlib
import json
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from optmigd.protocol.errors import (
    AlreadyReleased,
    EnclaveError,
    MigrationBlocked,
    MigrationError,
    OptmigError,
    RemoteProtocolError,
    to_wire,
)
from optmigd.protocol.wire import FrameDecoder, frame, pack, unpack

Params = dict[str, Any]
READY = b"ready"
FILLER_BYTES = 200_000
MEASUREMENT = "ab" * 32


class Refused(Exception):
    """The scripted end of a migration, with its code."""


class Daemon:
    """The connection to the daemon; the newest counts. What must not be lost is said again."""

    def __init__(self) -> None:
        self._stream: trio.SocketStream | None = None
        self._lock = trio.Lock()
        self._connected = trio.Event()
        self.repeated: dict[str, Params] = {}
        self.lost: Callable[[], None] = lambda: None

    async def tell(self, event: str, params: Params) -> None:
        """Send an event; while no daemon is there, wait for one."""
        while True:
            await self._connected.wait()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._send({"event": event, "params": params})
                return
            await trio.sleep(0.01)

    async def tell_for_good(self, event: str, params: Params) -> None:
        """Send an event now, and again to every later daemon."""
        self.repeated[event] = params
        await self.tell(event, params)

    async def _send(self, message: Params) -> None:
        async with self._lock:
            if self._stream is None:
                raise trio.ClosedResourceError
            await self._stream.send_all(frame(pack(message)))

    async def serve(self, stream: trio.SocketStream, agent: "Agent") -> None:
        """Serve one daemon until it leaves or another replaces it."""
        if self._stream is not None:
            self._stream.socket.close()
        self._stream = stream
        self._connected.set()
        try:
            for event, params in list(self.repeated.items()):  # the program may end meanwhile
                await self._send({"event": event, "params": params})
            async with trio.open_nursery() as nursery:
                async for message, fd in _messages(stream):
                    if "event" in message:
                        agent.hear(message["event"], message["params"])
                    else:
                        nursery.start_soon(self._answer, agent, message, fd)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        if self._stream is stream:
            self._stream = None
            self._connected = trio.Event()
            self.lost()

    async def _answer(self, agent: "Agent", message: Params, fd: int | None) -> None:
        try:
            reply = {"result": await agent.answer(message["method"], message["params"], fd)}
        except OptmigError as error:
            reply = {"error": to_wire(error)}
        await self._send({"id": message["id"], **reply})


async def _messages(stream: trio.SocketStream) -> AsyncIterator[tuple[Params, int | None]]:
    decoder = FrameDecoder()
    fds: list[int] = []
    while True:
        content, ancillary, _, _ = await stream.socket.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 8))
        for _level, kind, rights in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds.extend(struct.unpack(f"={len(rights) // 4}i", rights))
        if not content:
            return
        decoder.feed(content)
        for payload in decoder:
            message = unpack(payload)
            assert isinstance(message, dict)
            with_fd = message.get("method") == "add_stream"
            yield message, fds.pop(0) if with_fd else None


class Agent:
    """The enclave and at most one migration of it."""

    def __init__(self, directory: Path, daemon: Daemon, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.daemon = daemon
        self.nursery = nursery
        self.state = "booting"
        self.exit_status: int | None = None
        self.script: Params = {}
        self.arena: Params = {}
        self.memory_bytes = 0
        self.migrating = False
        self.said_ready = self.link_lost = False
        self.migration_id = b""
        self.params: Params = {}
        self.streams: dict[int, socket.socket] = {}
        self.heard: trio.MemorySendChannel[tuple[str, bytes]]
        self.turn = trio.Event()
        self.scope = trio.CancelScope()
        self.tokens = 0
        self.confirmation = b""
        daemon.lost = self.daemon_lost

    def daemon_lost(self) -> None:
        """A source without a daemon gives up, as contract 1 says."""
        if self.state == "running" and self.migration_id and not self.confirmation:
            self.scope.cancel()

    def hear(self, event: str, params: Params) -> None:
        """Take an event of the daemon."""
        if event == "hold":
            (self.directory / "gives_way").write_text("yes" if params["hold"] else "no")
        elif params["migration_id"] == self.migration_id:
            self.heard.send_nowait((event, params["payload"]))

    async def answer(self, method: str, params: Params, fd: int | None) -> Params:
        """Carry out a request."""
        if method in self.script.get("unknown", ()):
            raise RemoteProtocolError(f"this agent knows no method {method!r}")
        handler: Callable[[Params, int | None], Awaitable[Params]] = getattr(self, f"do_{method}")
        return await handler(params, fd)

    async def do_launch(self, params: Params, _fd: int | None) -> Params:
        self.script = json.loads(params["policy"] or b"{}")
        if "launch_error" in self.script:
            raise MigrationError(self.script["launch_error"])
        self.arena = {"ends_when": params["args"][0] if params["args"] else "", "generation": 1}
        self.memory_bytes = params["memory_bytes"]
        self._run_program()
        return {**self._identity(), "pid": os.getpid()}

    async def do_status(self, _params: Params, _fd: int | None) -> Params:
        blockers = self.script.get("status_blockers", [])
        return {
            **self._identity(),
            "state": self.state,
            "exit_status": self.exit_status,
            "memory_bytes": self.memory_bytes,
            "resident_bytes": 1 << 20,
            "generation": self.arena.get("generation", 0),
            "pid": os.getpid(),
            "blockers": blockers,
        }

    async def do_stop(self, _params: Params, _fd: int | None) -> Params:
        await self._exit(143)
        return {"exit_status": 143}

    async def do_shutdown(self, _params: Params, _fd: int | None) -> Params:
        self.nursery.start_soon(self._leave)
        return {}

    async def _leave(self) -> None:
        await trio.sleep(0.02)  # the answer goes out first
        os._exit(0)

    async def do_export(self, params: Params, _fd: int | None) -> Params:
        if self.migrating:
            raise EnclaveError("another migration is in progress")
        self._begin(params)
        self.nursery.start_soon(self._migrate, self._export, "source")
        return {}

    async def do_receive(self, params: Params, _fd: int | None) -> Params:
        self.script = json.loads(params["policy"] or b"{}")
        mine = self.script.get("destination", {})
        if "refuse" in mine:
            raise MigrationBlocked("refused", blockers=mine["refuse"])
        self.memory_bytes = params["memory_bytes"]
        self.state = "waiting"
        self._begin(params)
        self.nursery.start_soon(self._migrate, self._receive, "destination")
        return self._identity()

    async def do_add_stream(self, params: Params, fd: int | None) -> Params:
        assert fd is not None and params["migration_id"] == self.migration_id
        self.streams[params["index"]] = socket.socket(fileno=fd)
        return {}

    async def do_cancel(self, params: Params, _fd: int | None) -> Params:
        mine = self.script.get("source", {})
        if self.confirmation:
            (self.directory / "kept").touch()
            raise AlreadyReleased("it runs here")
        if "release_first" in mine and self.state != "waiting":
            Path(mine["hold_until"]).touch()
            while self.state != "released":
                await trio.sleep(0.01)
        if self.state == "released":
            raise AlreadyReleased("too late")
        if params["migration_id"] != self.migration_id:
            raise EnclaveError("no such migration")
        (self.directory / "withdrawn").touch()
        self.scope.cancel()
        return {}

    async def do_link_lost(self, params: Params, _fd: int | None) -> Params:
        if self.migrating and not self.said_ready and params["migration_id"] == self.migration_id:
            self.link_lost = True
            self.scope.cancel()
        return {}

    async def do_take_turn(self, _params: Params, _fd: int | None) -> Params:
        self.turn.set()
        return {}

    async def do_set(self, params: Params, _fd: int | None) -> Params:
        if params.pop("migration_id") != self.migration_id or not self.migrating:
            raise EnclaveError("no such migration")
        if self.state == "released":
            raise AlreadyReleased("too late")
        (self.directory / "set").write_text(json.dumps(params))
        return {}

    def _identity(self) -> Params:
        return {"measurement": MEASUREMENT, "platform": "sim", "tracker": "kernel"}

    def _begin(self, params: Params) -> None:
        self.params = params
        self.migrating = True
        self.said_ready = self.link_lost = False
        self.confirmation = b""
        self.migration_id = params["migration_id"]
        self.streams = {}
        self.turn = trio.Event()
        self.scope = trio.CancelScope()
        self.heard, self.to_hear = trio.open_memory_channel[tuple[str, bytes]](64)

    def _run_program(self) -> None:
        self.state = "running"
        with open(self.directory / "output.log", "a") as output:
            output.write(self.arena.pop("output", ""))
            output.write(f"generation {self.arena['generation']}\n")
        self.nursery.start_soon(self._program)

    async def _program(self) -> None:
        # The file may be there and not yet be written.
        while not (status := _content(self.arena["ends_when"])):
            if self.state != "running":
                return
            await trio.sleep(0.01)
        if self.state == "running":
            await self._exit(int(status))

    async def _exit(self, status: int) -> None:
        self.state = "exited"
        self.exit_status = status
        (self.directory / "exited").touch()
        await self.daemon.tell_for_good("exited", {"exit_status": status})

    async def _migrate(self, role: Callable[[Params], Awaitable[Params]], name: str) -> None:
        error: Params | None = None
        report: Params = {}
        outcome = "completed"
        with self.scope:
            try:
                report = await role(self.script.get(name, {}))
                outcome = "checked" if self.params["dry_run"] else "completed"
            except Refused as refused:
                outcome = "failed"
                error = {"code": str(refused), "message": "scripted", "fields": {}}
            except OSError as lost:  # of a data stream: the other side has ended
                await trio.lowlevel.checkpoint()  # told to give up before, it was cancelled
                outcome = "failed"
                error = {"code": "failed", "message": str(lost), "fields": {}}
        if self.scope.cancelled_caught:
            outcome = "failed" if self.link_lost else "cancelled"
            code = "channel-closed" if self.link_lost else "cancelled"
            error = {"code": code, "message": code, "fields": {}}
        for stream in self.streams.values():
            stream.close()
        self.migrating = False
        ended = {"outcome": outcome, "error": error, "report": report}
        self.daemon.repeated["ended"] = {"migration_id": self.migration_id, **ended}
        await self.daemon.tell("ended", {"migration_id": self.migration_id, **ended})

    async def _enter(self, state: str, mine: Params) -> None:
        # `ready` is a place in the script alone: just before the release.
        if state != "ready" and state != mine.get("unsaid"):
            await self._tell("state", {"state": state})
        if mine.get("fail_at") == state:
            raise Refused(mine.get("code", "failed"))
        if mine.get("hold_at") == state:
            (self.directory / "held").touch()
            until = mine.get("hold_until", "")
            while not os.path.exists(until):
                await trio.sleep(0.01)
        if mine.get("die_at") == state:
            os._exit(9)

    async def _tell(self, event: str, params: Params) -> None:
        await self.daemon.tell(event, {"migration_id": self.migration_id, **params})

    async def _say(self, payload: bytes) -> None:
        await self._tell("session", {"payload": payload})

    async def _hear(self, event: str) -> bytes:
        heard, payload = await self.to_hear.receive()
        if heard != event:
            raise Refused("protocol")
        return payload

    async def _export(self, mine: Params) -> Params:
        await self._enter("setup", mine)
        await self._say(b"hello")
        if await self._hear("session") != b"hello to you":
            raise Refused("attestation-failed")
        if self.params["dry_run"]:
            return {"blockers": [], "forecast": {"rounds": 3, "downtime_ms": 12.5}}
        await self._enter("active", mine)
        output = (self.directory / "output.log").read_text()
        content = json.dumps({**self.arena, "output": output}).encode()
        parts = [content] + [os.urandom(FILLER_BYTES)] * (self.params["streams"] - 1)
        while len(self.streams) < len(parts):
            await trio.sleep(0.005)
        for index, part in enumerate(parts):
            message = struct.pack(">I", len(part)) + part
            await trio.to_thread.run_sync(self.streams[index].sendall, message)
        rounds = [_round(number) for number in range(2)]
        for one in rounds:
            await self._tell("round", one)
            await self._tell("progress", {**_progress(), "round_no": one["round_no"]})
        if "converge" in mine:
            await self._tell("converged", {})
            await self.turn.wait()
            await _note(mine["converge"], f"{self.params['migration_id'].hex()} turn")
        await self._enter("switchover", mine)
        digest = hashlib.sha256(b"".join(parts)).digest()
        await trio.to_thread.run_sync(self.streams[0].sendall, digest)
        if await _read(self.streams[0], len(READY)) != READY:
            raise Refused("failed")
        generation = self.arena["generation"] + 1
        token = b"token" + struct.pack(">I", generation) + digest
        await self._enter("ready", mine)
        self.state = "released"
        self.daemon.repeated["release"] = {"migration_id": self.migration_id, "payload": token}
        with trio.CancelScope(shield=True):
            await self._tell("release", {"payload": token})
            if await self._hear("resumed_delivered") != b"resumed " + token:
                raise Refused("failed")
        del self.daemon.repeated["release"]
        if "converge" in mine:
            await _note(mine["converge"], f"{self.params['migration_id'].hex()} left")
        return {
            "rounds": rounds,
            "total_bytes": len(content),
            "transferred_bytes": sum(map(len, parts)),
            "downtime_ms": 1.5,
            "owner_generation": generation,
            "state_digest": digest.hex(),
            "platform": "sim",
            "receipt": {"body": b"body of the source", "evidence": b"evidence"},
        }

    async def _receive(self, mine: Params) -> Params:
        await self._enter("setup", mine)
        if await self._hear("session") != b"hello":
            raise Refused("attestation-failed")
        if not self.params["dry_run"]:
            await self._tell("state", {"state": "active"})  # before the answer: see Contract 1
        await self._say(b"hello to you")
        if self.params["dry_run"]:
            return {}
        await self._enter("active", mine)
        parts = []
        while len(self.streams) < self.params["streams"]:
            await trio.sleep(0.005)
        for index in range(self.params["streams"]):
            parts.append(await _read_part(self.streams[index]))
        digest = hashlib.sha256(b"".join(parts)).digest()
        if await _read(self.streams[0], len(digest)) != digest:
            raise Refused("failed")
        await self._enter("switchover", mine)
        self.said_ready = True
        await trio.to_thread.run_sync(self.streams[0].sendall, READY)
        self.arena = json.loads(parts[0])
        self.arena["generation"] += 1
        expected = b"token" + struct.pack(">I", self.arena["generation"]) + digest
        for _ in range(mine.get("ignore_tokens", 0) + 1):
            if await self._token(mine) != expected:
                raise Refused("failed")
        self.confirmation = b"resumed " + expected
        self._run_program()
        if mine.get("die_at") == "resumed":
            os._exit(9)
        while "resumed_when" in mine and not os.path.exists(mine["resumed_when"]):
            await trio.sleep(0.01)
        await self._tell("resumed", {"payload": self.confirmation})
        self.nursery.start_soon(self._confirm_again, expected, self.migration_id, self.to_hear)
        return {"receipt": {"body": b"body of the destination", "evidence": b"evidence"}}

    async def _token(self, mine: Params) -> bytes:
        if mine.get("listens_on") == "stream":
            return await _read_part(self.streams[0])
        return await self._hear("token_delivered")

    async def _confirm_again(
        self,
        expected: bytes,
        migration_id: bytes,
        to_hear: trio.MemoryReceiveChannel[tuple[str, bytes]],
    ) -> None:
        async for event, payload in to_hear:
            if event == "token_delivered" and payload == expected:
                again = {"migration_id": migration_id, "payload": self.confirmation}
                await self.daemon.tell("resumed", again)


async def _note(path: str, line: str) -> None:
    """Add a line, and let others do so meanwhile."""
    with open(path, "a") as file:
        file.write(line + "\n")
    await trio.sleep(0.05)


def _content(path: str) -> str:
    return Path(path).read_text() if os.path.isfile(path) else ""


def _round(number: int) -> Params:
    return {
        "round_no": number,
        "pages": 100 >> number,
        "zero_pages": 1,
        "bytes": 4096 * (100 >> number),
        "duration_ms": 1.5,
        "dirty_pages_rate": 10.0,
    }


def _progress() -> Params:
    return {
        "transferred_bytes": 1000,
        "remaining_bytes": 10,
        "total_bytes": 1010,
        "dirty_pages_rate": 10.0,
        "throughput_mbps": 99.0,
        "expected_downtime_ms": None,
    }


async def _read(stream: socket.socket, size: int) -> bytes:
    """The next bytes of a stream; fewer if it ends."""
    return await trio.to_thread.run_sync(
        lambda: stream.recv(size, socket.MSG_WAITALL), abandon_on_cancel=True
    )


async def _read_part(stream: socket.socket) -> bytes:
    header = await _read(stream, 4)
    if len(header) < 4:
        raise Refused("failed")
    return await _read(stream, struct.unpack(">I", header)[0])


async def main() -> None:
    """Serve until told to shut down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    os.chdir(options.dir)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind("agent.sock")
    os.chmod("agent.sock", 0o600)
    listener.listen(4)
    Path("agent.pid").write_text(str(os.getpid()))
    daemon = Daemon()
    async with trio.open_nursery() as nursery:
        agent = Agent(options.dir, daemon, nursery)
        if options.ready_fd is not None:
            os.write(options.ready_fd, b"!")
            os.close(options.ready_fd)
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(daemon.serve, trio.SocketStream(sock), agent)


if __name__ == "__main__":
    sys.exit(trio.run(main))
