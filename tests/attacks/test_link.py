"""A hostile network between two daemons: it changes what crosses the link and the tickets.

The daemons are real, in this process; what stands behind them does not matter here, so the shims
are scripted (`tests/support/fake_agent.py`). The network sees only ciphertext; it can cut it up by
its frames, which have their lengths in the clear.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from optmigd.config import format_address
from optmigd.protocol.errors import OptmigError
from optmigd.protocol.link import DATA_PREAMBLE, LINK_PREAMBLE
from optmigd.protocol.wire import frame
from tests.attacks.hostile import flipped
from tests.support.daemons import Pair, eventually, two_sites

PATIENT = {"limits.handshake_timeout_s": 5.0, "limits.link_idle_timeout_s": 60.0}
SHORT = {"limits.handshake_timeout_s": 3.0, "limits.link_idle_timeout_s": 6.0}
NAMED = {
    "handshake-failed",
    "decrypt-failed",
    "remote-protocol",
    "channel-closed",
    "host-unreachable",
    "failed",
    "version-mismatch",
}

Tamper = Callable[[int, bytes, list[bytes]], list[bytes]]
"""Gets a frame's number, the frame, and those that went the other way; returns what is sent."""


class Network:
    """Carries connections to one daemon; hostile as long as it is told to be."""

    def __init__(self, target: tuple[str, int]) -> None:
        """Carry to that address."""
        self.target = target
        self.to_target: Tamper | None = None
        self.from_target: Tamper | None = None
        self.ticket: Callable[[bytes], bytes] | None = None
        self.earlier: list[bytes] = []
        """Frames to the target, of all conversations so far."""
        self.hits = 0

    async def carry(self, near: trio.SocketStream) -> None:
        """Carry one connection."""
        far = await trio.open_tcp_stream(*self.target)
        try:
            preamble = await near.receive_some(len(LINK_PREAMBLE))
            await far.send_all(preamble)
            async with trio.open_nursery() as nursery:
                if preamble == LINK_PREAMBLE:
                    there: list[bytes] = []
                    back: list[bytes] = []
                    nursery.start_soon(self._frames, near, far, self.to_target, there, back)
                    nursery.start_soon(self._frames, far, near, self.from_target, back, there)
                else:
                    assert preamble == DATA_PREAMBLE
                    nursery.start_soon(self._bytes, near, far, self.ticket)
                    nursery.start_soon(self._bytes, far, near, None)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one end has gone; the other is closed now
        finally:
            near.socket.close()
            far.socket.close()

    async def _frames(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        tamper: Tamper | None,
        seen: list[bytes],
        other: list[bytes],
    ) -> None:
        waiting = b""
        while content := await source.receive_some(65536):
            waiting += content
            while len(waiting) >= 4 and len(waiting) >= 4 + (
                size := int.from_bytes(waiting[:4], "big")
            ):
                whole, waiting = waiting[: 4 + size], waiting[4 + size :]
                pieces = [whole] if tamper is None else tamper(len(seen), whole, other)
                self.hits += pieces != [whole]
                seen.append(whole)
                if sink.socket.getpeername() == self.target:
                    self.earlier.append(whole)
                for piece in pieces:
                    await sink.send_all(piece)
        source.socket.close()
        sink.socket.close()

    async def _bytes(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        change: Callable[[bytes], bytes] | None,
    ) -> None:
        while content := await source.receive_some(65536):
            if change is not None:
                self.hits += 1
                content, change = change(content), None
            await sink.send_all(content)
        source.socket.close()
        sink.socket.close()


@asynccontextmanager
async def hostile_network(**limits: float) -> AsyncIterator[tuple[Pair, Network]]:
    """Two daemons; what a says to b goes through the network, also that of data streams."""
    async with two_sites(**(PATIENT | limits)) as pair, trio.open_nursery() as nursery:
        assert pair.b.daemon is not None
        network = Network(pair.b.daemon.address)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, network.carry, listeners)
        address = format_address(*listeners[0].socket.getsockname()[:2])
        await pair.a.client.host_add("b", address, pair.b.identity.key_text)
        yield pair, network
        nursery.cancel_scope.cancel()


async def _fails_and_then_works(pair: Pair, network: Network) -> None:
    """The move fails by name; the enclave runs on; without the attack it moves."""
    await pair.launch()
    with trio.fail_after(60), pytest.raises(OptmigError) as refused:
        await pair.a.client.migrate("e1", "b")
    assert refused.value.code in NAMED, refused.value
    assert network.hits
    status = await pair.a.client.status("e1")
    assert (status["state"], status["host"]) == ("running", "a")
    await eventually(lambda: pair.b.instances == [], "b has destroyed what it had")
    network.to_target = network.from_target = network.ticket = None
    assert (await pair.a.client.migrate("e1", "b"))["state"] == "completed"
    assert (await pair.b.client.status("e1"))["state"] == "running"


CHANGES: dict[str, Tamper] = {
    "flip": lambda n, f, o: [flipped(f, -1)],
    "repeat": lambda n, f, o: [f, f],
    "truncate": lambda n, f, o: [frame(f[4:-1])],
    "extend": lambda n, f, o: [frame(f[4:] + b"\0")],
    "longer-length": lambda n, f, o: [b"\xff\xff\xff\xff" + f[4:]],
    "insert": lambda n, f, o: [frame(bytes(64)), f],
    "reflect": lambda n, f, o: [o[-1]],
}
PLACES = [("to_target", 1), ("from_target", 0), ("from_target", 1)]


CASES = [("to_target", 2, change) for change in CHANGES] + [
    (*place, change) for place in PLACES for change in ("flip", "reflect")
]


@pytest.mark.parametrize(("direction", "number", "change"), CASES)
async def test_a_frame_of_the_link_is_changed(direction: str, number: int, change: str) -> None:
    async with hostile_network() as (pair, network):

        def tamper(found: int, whole: bytes, other: list[bytes]) -> list[bytes]:
            return CHANGES[change](found, whole, other) if found == number else [whole]

        setattr(network, direction, tamper)
        await _fails_and_then_works(pair, network)


@pytest.mark.parametrize(("direction", "number"), [("to_target", 2), ("from_target", 0)])
async def test_a_dropped_frame_ends_in_time(direction: str, number: int) -> None:
    async with hostile_network(**SHORT) as (pair, network):
        setattr(network, direction, lambda n, f, o: [] if n == number else [f])
        await _fails_and_then_works(pair, network)


async def test_frames_change_places() -> None:
    held: list[bytes] = []

    def swap(number: int, whole: bytes, other: list[bytes]) -> list[bytes]:
        if number == 1:
            held.append(whole)
            return []
        return [whole, *held] if number == 2 else [whole]

    async with hostile_network() as (pair, network):
        network.to_target = swap
        await _fails_and_then_works(pair, network)


@pytest.mark.parametrize("number", [0, 2])
async def test_frames_of_an_earlier_conversation(number: int) -> None:
    """The network plays in what it recorded of the same two hosts a moment ago."""
    async with hostile_network() as (pair, network):
        await pair.launch("earlier")
        assert (await pair.a.client.migrate("earlier", "b"))["state"] == "completed"
        before = list(network.earlier)
        network.to_target = lambda n, f, o: [before[n]] if n == number else [f]
        await pair.launch("e2")
        with trio.fail_after(60), pytest.raises(OptmigError) as refused:
            await pair.a.client.migrate("e2", "b")
        assert refused.value.code in NAMED
        assert (await pair.a.client.status("e2"))["state"] == "running"


@pytest.mark.parametrize("window", [b"\x92\x00\x00", b"\x92\x07\x09", b"\x92\x01\x09"])
async def test_the_version_window_in_the_clear_is_changed(window: bytes) -> None:
    """Message 1 is not sealed: a downgrade or an upgrade of it must fail in what follows."""

    def tamper(number: int, whole: bytes, other: list[bytes]) -> list[bytes]:
        if number:
            return [whole]
        assert whole.count(b"\x92\x01\x01") == 1
        return [frame(whole[4:].replace(b"\x92\x01\x01", window))]

    async with hostile_network() as (pair, network):
        network.to_target = tamper
        await _fails_and_then_works(pair, network)


@pytest.mark.parametrize("change", ["flip", "none"])
async def test_a_ticket_is_changed(change: str) -> None:
    async with hostile_network() as (pair, network):
        network.ticket = {"flip": lambda t: flipped(t, 3), "none": lambda t: bytes(len(t))}[change]
        await _fails_and_then_works(pair, network)
