"""Real agents that crash at chosen points of a move between two daemons.

The daemons know nothing of it but that a connection broke and was made again.
"""

import math
import sys

import pytest
import trio

from optmigd.bench.programs import Program
from optmigd.protocol.errors import MigrationFailed
from tests.support.busy import BUSY, EXIT_STATUS, let_finish
from tests.support.daemons import Pair, two_sites_of

AGENT = (sys.executable, "-P", "-m", "tests.support.fragile_agent")
TIMEOUT_S = 120.0


async def move(pair: Pair, program: Program) -> MigrationFailed | None:
    """Launch, move from a to b; why it did not arrive."""
    await pair.a.client.launch(
        program.image,
        enclave="e1",
        memory_bytes=256 << 20,
        args=BUSY,
        env={},
    )
    try:
        await pair.a.client.migrate("e1", "b", on_stall="switch", timeout_s=TIMEOUT_S)
    except MigrationFailed as error:
        return error
    return None


async def assert_it_ends_rightly(pair: Pair, expected: bytes, *, arrived: bool) -> None:
    """One host ran it to its end, and that one has the answer; the other has nothing left."""
    host, other = (pair.b, pair.a) if arrived else (pair.a, pair.b)
    let_finish((await host.client.status("e1"))["dir"])
    end = await host.client.wait("e1")
    assert (end["exit_status"], end["host"]) == (EXIT_STATUS, host.name)
    async with host.client.logs("e1") as pieces:
        output = b"".join([piece async for piece in pieces])
    assert output == expected
    # No event tells of it; the limit of the test ends it.
    while list(other.directory.glob("state/enclaves/*/output.log")):  # noqa: ASYNC110
        await trio.sleep(0.02)


@pytest.mark.parametrize("point", ["parked", "noted", "receiving"])
async def test_a_crash_before_the_release_leaves_it_at_the_source(
    point: str, integers: Program, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT", point)
    with trio.fail_after(170):
        async with two_sites_of(AGENT) as pair:
            error = await move(pair, integers)
            assert error is not None
            if point == "receiving":  # the destination's: its daemon says so
                assert error.message.startswith("host b: the connection to the shim agent was lost")
            else:  # the source's own, and its next one says so
                assert error.message.startswith("the shim agent crashed during the migration")
            assert (await pair.a.client.status("e1"))["state"] == "running"
            await assert_it_ends_rightly(pair, answer, arrived=False)


@pytest.mark.parametrize("point", ["released", "token out", "running", "confirmed"])
async def test_a_crash_after_the_release_completes_the_move(
    point: str, integers: Program, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT", point)
    with trio.fail_after(170):
        async with two_sites_of(AGENT) as pair:
            assert await move(pair, integers) is None
            await assert_it_ends_rightly(pair, answer, arrived=True)


async def test_a_confirmation_that_died_with_its_agent_is_shown_to_the_next(
    integers: Program, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after some time: as soon as there is a next one."""
    monkeypatch.setenv("DIES_AT", "confirmation in hand")
    monkeypatch.setattr("optmigd.daemon.delivery.CONFIRM_TIMEOUT_S", math.inf)
    with trio.fail_after(170):
        async with two_sites_of(AGENT) as pair:
            assert await move(pair, integers) is None
            await assert_it_ends_rightly(pair, answer, arrived=True)


async def test_a_crash_of_the_destination_after_ready_leaves_one_side_with_it(
    integers: Program, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the source had let go when the link broke is left to chance."""
    monkeypatch.setenv("DIES_AT", "ready said")
    with trio.fail_after(170):
        async with two_sites_of(AGENT) as pair:
            arrived = await move(pair, integers) is None
            await assert_it_ends_rightly(pair, answer, arrived=arrived)
