"""The switchover turn of a host: one at a time, in order, and nobody keeps it for ever."""

import pytest
import trio
from trio.testing import MockClock

from optmigd.daemon.turns import HOLD_S, PASS_S, Turns


async def test_one_at_a_time_and_in_order(autojump_clock: MockClock) -> None:
    turns = Turns()
    log: list[str] = []

    async def switch_over(name: str, after_s: float) -> None:
        await trio.sleep(after_s)
        with turns.join() as waiter:
            await waiter.turn()
            log.append(f"{name} has it")
            await trio.sleep(1)
            log.append(f"{name} is done")

    async with trio.open_nursery() as nursery:
        for number, name in enumerate("abcd"):
            nursery.start_soon(switch_over, name, number / 10)
    assert log == [f"{name} {what}" for name in "abcd" for what in ("has it", "is done")]


async def test_who_goes_away_in_line_is_left_out(autojump_clock: MockClock) -> None:
    turns = Turns()
    with turns.join() as first:
        await first.turn()
        with turns.join() as third:
            with turns.join():
                pass
            assert not third.called.is_set()
        assert not third.called.is_set()
    with turns.join() as last:
        await last.turn()
    assert trio.current_time() < HOLD_S


async def test_a_failure_gives_the_turn_back(autojump_clock: MockClock) -> None:
    turns = Turns()

    async def fail() -> None:
        with turns.join() as waiter:
            await waiter.turn()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    with trio.fail_after(0.1), turns.join() as waiter:
        await waiter.turn()


async def test_a_change_of_the_turn_is_told_with_the_switchover_that_has_it() -> None:
    turns = Turns()
    change = turns.next_change
    with turns.join(b"first") as first:
        await first.turn()
        assert change.is_set() and turns.switchover == b"first"
        with turns.join():
            assert turns.switchover == b"first"
    change = turns.next_change
    assert turns.switchover is None and not change.is_set()
    with turns.join():
        assert turns.switchover is None, "the start of an agent is no switchover"


async def test_a_turn_that_is_never_given_back_is_passed_over(autojump_clock: MockClock) -> None:
    turns = Turns()
    started = trio.current_time()
    with turns.join() as hung:
        await hung.turn()
        with turns.join() as second:
            await second.turn()
            assert trio.current_time() - started == pytest.approx(HOLD_S)
            with turns.join() as third:
                await third.turn()
                assert trio.current_time() - started == pytest.approx(2 * HOLD_S)


async def test_a_switchover_is_let_pass_by_others(autojump_clock: MockClock) -> None:
    turns = Turns()
    started = trio.current_time()
    passed_s: dict[bytes, float] = {}

    async def let_pass(migration_id: bytes) -> None:
        await turns.let_pass(migration_id)
        passed_s[migration_id] = trio.current_time() - started

    async with trio.open_nursery() as nursery:
        with turns.join(b"first") as first, turns.join(b"second"):
            await first.turn()
            for migration_id in (b"first", b"second", b"other"):
                nursery.start_soon(let_pass, migration_id)
            await trio.sleep(0.3)
    # The second had the turn as soon as the first had left, and left at once.
    assert passed_s == {b"first": 0.0, b"second": pytest.approx(0.3), b"other": pytest.approx(0.3)}


async def test_the_start_of_an_agent_is_not_waited_for(autojump_clock: MockClock) -> None:
    turns = Turns()
    started = trio.current_time()
    with turns.join() as agent, turns.join(b"first"):
        await agent.turn()
        await turns.let_pass(b"other")
    assert trio.current_time() == started


async def test_nobody_lets_a_switchover_pass_for_ever(autojump_clock: MockClock) -> None:
    turns = Turns()
    with turns.join(b"hung") as hung:
        await hung.turn()
        started = trio.current_time()
        await turns.let_pass(b"other")
        assert trio.current_time() - started == pytest.approx(PASS_S)
