"""Waiting for the turn: what was collected before the wait is not switched over with after it."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from optmigd.enclave_shim.migration.turn import ANSWER_S, FRESH_S, LIMIT_S, PAUSE_S, SwitchoverTurn


class Asked:
    """Counts how often the daemon was asked."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self, event: str, params: dict[str, Any]) -> None:
        self.events.append(event)


async def test_without_turns_it_switches_over_at_once() -> None:
    asked = Asked()
    assert await SwitchoverTurn(asked, wanted=False).came()
    assert asked.events == []


async def test_the_daemon_is_asked_once(autojump_clock: MockClock) -> None:
    asked = Asked()
    turn = SwitchoverTurn(asked, wanted=True)
    for _ in range(3):
        assert not await turn.came()
    assert asked.events == ["converged"]


@pytest.mark.parametrize(("after_s", "at_once"), [(FRESH_S / 2, True), (ANSWER_S / 2, False)])
async def test_an_answer_that_takes_its_time_costs_a_round(
    autojump_clock: MockClock, after_s: float, at_once: bool
) -> None:
    turn = SwitchoverTurn(Asked(), wanted=True)
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await trio.sleep(after_s)
            turn.give()

        nursery.start_soon(answer)
        assert await turn.came() is at_once
    assert await turn.came()


async def test_what_was_written_while_it_waited_goes_before(autojump_clock: MockClock) -> None:
    turn = SwitchoverTurn(Asked(), wanted=True)
    assert not await turn.came()
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            await trio.sleep(PAUSE_S / 2)
            turn.give()

        nursery.start_soon(answer)
        assert not await turn.came()
    assert await turn.came()


async def test_a_daemon_that_never_answers_holds_it_up_for_a_while_only(
    autojump_clock: MockClock,
) -> None:
    turn = SwitchoverTurn(Asked(), wanted=True)
    begun_s = trio.current_time()
    while not await turn.came():
        pass
    assert LIMIT_S < trio.current_time() - begun_s < LIMIT_S + 1
