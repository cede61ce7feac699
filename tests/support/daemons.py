"""Daemons in the test's own trio process, with fake shim agents and a network that can fail."""

# It waits for what only other processes know.
# ruff: noqa: ASYNC110

import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from optmigd.client import Client
from optmigd.config import HostIdentity, Settings, format_address, load_settings
from optmigd.daemon import Daemon, serve
from optmigd.protocol.link import DATA_PREAMBLE

FAKE_AGENT = (sys.executable, str(Path(__file__).with_name("fake_agent.py")))


class Wire:
    """A TCP proxy in front of one daemon: it can be frozen, cut and mended."""

    def __init__(self) -> None:
        self.target: tuple[str, int] = ("", 0)
        self.address: tuple[str, int] = ("", 0)
        self.refusing = False
        self.keeps_streams_back = False
        """Whether data streams are accepted, and what they say is not passed on."""
        self.first_bytes: list[bytes] = []
        """What each connection began with."""
        self._frozen: set[bool] = set()
        self._streams_pass = False
        self._data_streams: list[trio.SocketStream] = []
        self._thawed = trio.Event()
        self._open: list[trio.SocketStream] = []
        self._begun: list[trio.SocketStream] = []

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen on a free port of the loopback until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()[:2]
        task_status.started()
        await trio.serve_listeners(self._carry, listeners)

    def freeze(self, *, to_target: bool, from_target: bool, streams_too: bool = True) -> None:
        """Deliver nothing more in these directions, without a sign to either end.

        Args:
            to_target, from_target: the directions.
            streams_too: whether that befalls data streams as well as links.
        """
        self._streams_pass = not streams_too
        self._frozen = {to for to, frozen in ((True, to_target), (False, from_target)) if frozen}
        self._thawed = trio.Event()

    def cut(self, *, refuse: bool = False) -> None:
        """Break every connection; those after that pass again, unless `refuse`."""
        self.refusing = refuse
        for stream in self._open:
            stream.socket.close()
        self._open.clear()
        self._frozen.clear()
        self._thawed.set()

    def mend(self) -> None:
        """Let new connections pass."""
        self.refusing = False

    async def _carry(self, near: trio.SocketStream) -> None:
        if self.refusing:
            near.socket.close()
            return
        try:
            far = await trio.open_tcp_stream(*self.target)
        except OSError:
            near.socket.close()
            return
        self._open += [near, far]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, True)
                nursery.start_soon(self._pump, far, near, False)
        finally:
            near.socket.close()
            far.socket.close()

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, to_target: bool
    ) -> None:
        try:
            while content := await source.receive_some(65536):
                if to_target and sink not in self._begun:
                    self._begun.append(sink)
                    self.first_bytes.append(content[:64])
                    if content.startswith(DATA_PREAMBLE):
                        self._data_streams += [source, sink]
                        if self.keeps_streams_back:
                            await trio.sleep_forever()
                passes = self._streams_pass and source in self._data_streams
                if to_target in self._frozen and not passes:
                    await self._thawed.wait()
                await sink.send_all(content)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            source.socket.close()
            sink.socket.close()


@dataclass
class Site:
    """One host: its directory, and its daemon while it runs."""

    name: str
    directory: Path
    nursery: trio.Nursery
    overrides: dict[str, object] = field(default_factory=dict)
    agent_command: tuple[str, ...] = FAKE_AGENT
    daemon: Daemon | None = None
    _scope: trio.CancelScope | None = None
    _ended: trio.Event = field(default_factory=trio.Event)

    @property
    def settings(self) -> Settings:
        """Settings as an operator would give them; the port stays after the first start."""
        listen = format_address(*self.daemon.address) if self.daemon else "127.0.0.1:0"
        return load_settings(
            None,
            {
                "host.name": self.name,
                "host.listen": listen,
                "paths.state_dir": self.directory / "state",
                "paths.socket": self.directory / "control.sock",
                "paths.host_key": self.directory / "host.key",
                **self.overrides,
            },
        )

    @property
    def client(self) -> Client:
        """A client of the daemon."""
        return Client(self.directory / "control.sock")

    @property
    def identity(self) -> HostIdentity:
        """The host's key."""
        return HostIdentity.load(self.directory / "host.key")

    @property
    def instances(self) -> list[str]:
        """Names of all instance directories."""
        return sorted(path.name for path in (self.directory / "state" / "enclaves").iterdir())

    async def start(self) -> None:
        """Start the daemon and return when it is ready."""
        self.daemon = await self.nursery.start(self._run, self.settings)

    async def stop(self) -> None:
        """Stop the daemon as SIGTERM does, and return when it has stopped."""
        assert self._scope is not None
        self._scope.cancel()
        await self._ended.wait()

    async def stop_as_if_killed(self) -> None:
        """Stop the daemon and put its journal back: as if it had been killed at this instant."""
        state = self.directory / "state"
        kept = {path: path.read_bytes() for path in state.glob("journal.db*")}
        await self.stop()
        for path in state.glob("journal.db*"):
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)

    async def _run(self, settings: Settings, *, task_status: trio.TaskStatus[Daemon]) -> None:
        self._ended = trio.Event()
        with trio.CancelScope() as self._scope:
            await serve(settings, agent_command=self.agent_command, task_status=task_status)
        self._ended.set()

    def end_agents(self) -> None:
        """Kill the agents that this site has started; they outlive its daemon on purpose."""
        for path in self.directory.glob("state/enclaves/*/agent.pid"):
            pid = int(path.read_text())
            with suppress(FileNotFoundError, ProcessLookupError):
                if str(self.directory) in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    with suppress(ChildProcessError):
                        os.waitpid(pid, 0)


@dataclass
class Pair:
    """Two hosts that pin each other; what they say to `b` goes through `wire`."""

    a: Site
    b: Site
    wire: Wire
    directory: Path

    def image(self, content: bytes = b"image") -> Path:
        """Make a file that passes for an image."""
        header = b"\x7fELF\x02\x01\x01".ljust(16, b"\x00") + b"\x02\x00\x3e\x00"
        path = self.directory / f"image-{len(content)}"
        path.write_bytes(header.ljust(64, b"\x00") + content)
        return path

    async def launch(self, enclave: str = "e1", script: str = "", ends_when: str = "") -> None:
        """Launch a fake enclave on `a`."""
        await self.a.client.launch(
            self.image(os.urandom(100_000)),
            enclave=enclave,
            memory_bytes=1 << 20,
            policy=script.encode(),
            args=[ends_when] if ends_when else [],
        )


def two_sites(**overrides: object) -> AbstractAsyncContextManager[Pair]:
    """Run two daemons, a and b, until the block ends; their fake agents end with it."""
    return two_sites_of(FAKE_AGENT, overrides)


@asynccontextmanager
async def two_sites_of(
    agent_command: tuple[str, ...], overrides: Mapping[str, object] | None = None
) -> AsyncIterator[Pair]:
    """The same with agents of any kind."""
    # Short, because the path of a UNIX socket has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="optmigd-"))
    sites: list[Site] = []
    try:
        async with trio.open_nursery() as nursery:
            wire = Wire()
            await nursery.start(wire.serve)
            for name in ("a", "b"):
                (directory / name).mkdir()
                sites.append(
                    Site(name, directory / name, nursery, dict(overrides or {}), agent_command)
                )
                await sites[-1].start()
            a, b = sites
            assert a.daemon is not None and b.daemon is not None
            wire.target = b.daemon.address
            await a.client.host_add("b", format_address(*wire.address), b.identity.key_text)
            await b.client.host_add("a", format_address(*a.daemon.address), a.identity.key_text)
            yield Pair(a, b, wire, directory)
            nursery.cancel_scope.cancel()
    finally:
        for site in sites:
            site.end_agents()
        shutil.rmtree(directory)


async def eventually(holds: Callable[[], Any], what: str, timeout_s: float = 40.0) -> None:
    """Wait until a condition holds, which no event announces to the test."""
    with trio.move_on_after(timeout_s):
        while not holds():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"after {timeout_s} s still not so: {what}")


async def wait_released(site: Site) -> None:
    """Wait until the source's daemon has journaled a release token."""
    with trio.fail_after(40):
        while not await trio.to_thread.run_sync(_has_token, site.directory / "state/journal.db"):
            await trio.sleep(0.01)


def _has_token(journal: Path) -> bool:
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT token FROM migrations WHERE role = 'source'").fetchall()
    finally:
        connection.close()
    return any(token is not None for (token,) in rows)
