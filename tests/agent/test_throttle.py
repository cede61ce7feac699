"""How long the throttle holds a program, and how the switchover takes it over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from optmigd.enclave_shim.migration.throttle import LONGEST_HOLD_S, Throttle, hold_s
from optmigd.enclave_shim.process import Process


@pytest.mark.parametrize("permille", [100, 500, 990])
@pytest.mark.parametrize("ran_s", [0.0005, 0.005])
def test_a_program_is_held_in_proportion_to_how_long_it_ran(ran_s: float, permille: int) -> None:
    held_s = hold_s(ran_s, permille)
    assert held_s / (held_s + ran_s) == pytest.approx(permille / 1000)


def test_no_hold_is_longer_than_people_would_bear() -> None:
    assert hold_s(0.5, 990) == LONGEST_HOLD_S


class Program:
    """In the place of a process: notes when it is parked and resumed."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.parked = trio.Event()

    async def quiesce(self, timeout_s: float) -> None:
        self.story.append("parked")
        self.parked.set()

    def resume(self) -> None:
        self.story.append("resumed")
        self.parked = trio.Event()


@asynccontextmanager
async def throttled(permille: int) -> AsyncIterator[tuple[Program, Throttle]]:
    """A program under a throttle that runs until the block is left."""
    program = Program()
    throttle = Throttle(cast(Process, program))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(throttle.run)
            throttle.permille = permille
            yield program, throttle
            nursery.cancel_scope.cancel()


async def test_a_program_that_is_not_held_back_is_parked_at_once() -> None:
    async with throttled(0) as (program, throttle):
        await trio.testing.wait_all_tasks_blocked()
        await throttle.park()
    assert program.story == ["parked"]


async def test_parked_for_good_ends_a_hold_and_begins_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optmigd.enclave_shim.migration.throttle.hold_s", lambda *_: 1000.0)
    async with throttled(500) as (program, throttle):
        await program.parked.wait()
        assert await throttle.park() >= 0
        assert throttle.held_ms < 30_000
    assert program.story == ["parked", "resumed", "parked"]


async def test_parked_for_good_does_not_wait_for_the_next_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optmigd.enclave_shim.migration.throttle.PERIOD_S", 1000.0)
    async with throttled(500) as (program, throttle):
        await trio.testing.wait_all_tasks_blocked()
        await throttle.park()
    assert program.story == ["parked"]


async def test_a_throttle_that_is_ended_lets_the_program_run() -> None:
    async with throttled(990) as (program, _):
        await program.parked.wait()
    assert program.story[-1] == "resumed"
