"""Crowds at every door: what they cost is bounded, and nothing of them is left afterwards.

The daemon is a process of its own, so its descriptors and its memory can be counted from outside.
What is guaranteed: strangers from one address never keep peers of other addresses out, not even
while they are there; whoever fills the places of all addresses keeps peers out for as long as he
keeps filling them, and no longer than the handshake's time-out after that. On the UNIX sockets only
processes of the daemon's own user are let in at all.
"""

import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from optmigd.bench.hosts import Host
from optmigd.blocking import BlockingClient
from optmigd.daemon.control import MAX_CONNECTIONS
from optmigd.protocol.errors import ChannelClosed
from optmigd.protocol.link import DATA_PREAMBLE, LINK_PREAMBLE
from tests.conftest import BuildProgram
from tests.daemon.test_strangers import link_as_a
from tests.support.daemons import two_sites

CROWD = 3000
UNIX_CROWD = 300
MAX_HALF_OPEN = 32  # config/default.toml
MARGIN_FDS = 40
MARGIN_BYTES = 64 << 20


def fds(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_bytes(pid: int) -> int:
    """How much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def room_for_a_crowd() -> Iterator[None]:
    """Let this process open as many sockets as a crowd needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 500:
        pytest.skip(f"this process may open {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CROWD + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowd(
    address: tuple[str, int], says: bytes, count: int = CROWD
) -> Iterator[list[socket.socket]]:
    """So many connections from one address, each of which says the beginning of something."""
    with ExitStack() as opened:
        sockets = []
        for _ in range(count):
            one = socket.socket()
            opened.callback(one.close)
            one.bind(("127.0.0.2", 0))
            one.settimeout(20)
            with suppress(ConnectionResetError, BrokenPipeError):
                one.connect(address)
                one.sendall(says)
            sockets.append(one)
        yield sockets


def knock(path: str) -> socket.socket:
    """Connect to a UNIX socket; wait while its queue is full."""
    one = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + 20
    while one.connect_ex(path):
        assert time.monotonic() < deadline, "the queue stays full"
        time.sleep(0.005)
    return one


def still_open(sockets: list[socket.socket]) -> int:
    """How many of the connections the other end has not closed."""
    poll = select.poll()
    for one in sockets:
        poll.register(one, select.POLLIN | select.POLLHUP)
    return len(sockets) - len(poll.poll(0))


@pytest.mark.parametrize(
    "says", [b"", LINK_PREAMBLE + b"\0\0", DATA_PREAMBLE + b"half"], ids=["silent", "link", "data"]
)
def test_thousands_of_half_open_connections(
    says: bytes, fresh_pair: tuple[Host, Host], program: BuildProgram
) -> None:
    alpha, beta = fresh_pair
    host, _, port = beta.client.host_identity()["listen"].rpartition(":")
    pid = beta.process.pid
    alpha.client.launch(
        program("stepper").image, enclave="honest", memory_bytes=128 << 20, args=["0"]
    )
    before_fds, before_bytes = fds(pid), rss_bytes(pid)
    with crowd((host, int(port)), says) as strangers:
        assert fds(pid) <= before_fds + MAX_HALF_OPEN + MARGIN_FDS
        eventually(lambda: still_open(strangers) <= MAX_HALF_OPEN // 2)
        assert rss_bytes(pid) <= before_bytes + MARGIN_BYTES
        # They are still there, as many as may be; an honest peer comes all the same.
        moved = alpha.client.migrate("honest", "beta", mode="stop-and-copy")
        assert moved["state"] == "completed"
    assert beta.client.status("honest")["state"] == "running"
    beta.client.stop("honest")
    eventually(lambda: fds(pid) <= before_fds + 4)


def test_hundreds_of_silent_clients(fresh_pair: tuple[Host, Host]) -> None:
    host = fresh_pair[0]
    pid, path = host.process.pid, host.folder / "control.sock"
    before = fds(pid)
    with ExitStack() as opened:
        for number in range(UNIX_CROWD):
            one = knock(str(path))
            opened.callback(one.close)
            if number % 2:
                with suppress(BrokenPipeError):
                    one.sendall(b"\0\0\1\0half a frame")
        eventually(lambda: fds(pid) <= before + MAX_CONNECTIONS + 4)
    eventually(lambda: fds(pid) <= before + 1)
    assert BlockingClient(path).ping()["name"] == "alpha"


def test_hundreds_of_daemons_at_an_agents_door(
    fresh_pair: tuple[Host, Host], program: BuildProgram
) -> None:
    """Each connection replaces the one before; the daemon comes back, and the program runs on."""
    host = fresh_pair[0]
    host.client.launch(program("stepper").image, enclave="e", memory_bytes=128 << 20, args=["0"])
    (directory,) = (host.folder / "state" / "enclaves").glob("e@*")
    agent = int((directory / "agent.pid").read_text())
    before_fds, before_bytes = fds(agent), rss_bytes(agent)
    with ExitStack() as opened:
        handle = os.open(directory, os.O_PATH)
        opened.callback(os.close, handle)
        for number in range(UNIX_CROWD):
            one = knock(f"/proc/self/fd/{handle}/agent.sock")
            opened.callback(one.close)
            if number % 2:
                with suppress(BrokenPipeError):
                    one.sendall(b"\0\0\1\0half a frame")
        eventually(lambda: fds(agent) <= before_fds + 4)
        assert rss_bytes(agent) <= before_bytes + MARGIN_BYTES
    eventually(lambda: host.client.status("e")["state"] == "running")
    assert host.client.stop("e")["exit_status"] == 137


async def test_a_peer_that_says_nothing_after_the_handshake_is_given_up() -> None:
    async with two_sites(**{"limits.link_idle_timeout_s": 1.0}) as pair:
        with trio.fail_after(20), pytest.raises(ChannelClosed):
            async with await link_as_a(pair) as link:
                await link.receive()
