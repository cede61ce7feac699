"""The daemon's side of an agent's connection."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio

from optmigd.daemon.agents import Agent
from optmigd.daemon.journal import InstanceRow, Journal
from optmigd.daemon.registry import Registry
from optmigd.daemon.spawn import AgentProcess


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="optmigd-") as folder:  # short enough for a socket
        yield Path(folder)


@pytest.fixture
def process() -> Iterator[AgentProcess]:
    """A process that ends when it is killed, and answers nothing."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield AgentProcess(child.pid)
    finally:
        child.kill()
        child.wait()


async def ignore(status: int | None) -> None:
    """Take an agent's exit status."""


async def test_an_agent_that_is_asked_to_go_while_the_daemon_stops_holds_nothing_up(
    directory: Path, process: AgentProcess
) -> None:
    agent = Agent(directory, process, structlog.get_logger(), ignore)
    begun = trio.current_time()
    with trio.socket.socket(trio.socket.AF_UNIX) as server:
        await server.bind(str(directory / "agent.sock"))
        server.listen()
        async with trio.open_nursery() as nursery, trio.open_nursery() as daemon:
            daemon.start_soon(agent.run)
            connection, _ = await server.accept()
            with connection:
                nursery.start_soon(lambda: agent.shut_down(grace_s=30))
                assert b"shutdown" in await connection.recv(1000)
                daemon.cancel_scope.cancel()  # the daemon stops before there is an answer
    assert trio.current_time() - begun < 15


@pytest.mark.parametrize(
    ("state", "leaving"), [("running", False), ("incoming", False), ("moved", True), ("lost", True)]
)
async def test_an_enclave_that_is_here_no_longer_leaves_until_its_agent_has_ended(
    state: str, leaving: bool, directory: Path, process: AgentProcess
) -> None:
    async with trio.open_nursery() as nursery:
        journal = await Journal.open(directory / "journal.sqlite")
        registry = Registry(directory / "enclaves", journal, nursery, [], None)
        instance = registry.restore(InstanceRow("e1", 1, state, 1))
        assert not registry.leaving()  # nothing of it is left
        instance.agent = Agent(directory, process, structlog.get_logger(), ignore)
        assert registry.leaving() == leaving
        nursery.start_soon(instance.agent.run)
        process.kill()
        await instance.agent.gone.wait()
        assert not registry.leaving()
        await journal.close()
