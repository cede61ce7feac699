"""Bulk work waits while its gate is shut: not for ever, and not where a program stands still."""

import threading
import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from optmigd.enclave_shim.migration import bulk_gate
from optmigd.enclave_shim.migration.bulk_gate import BulkGate


def passes(gate: BulkGate, within_s: float) -> bool:
    waiter = threading.Thread(target=gate.wait, daemon=True)
    waiter.start()
    waiter.join(within_s)
    return not waiter.is_alive()


def test_a_new_gate_is_open() -> None:
    assert passes(BulkGate(), 0.5)


def opened(gate: BulkGate) -> None:
    gate.set(shut=False)


@pytest.mark.parametrize("let_go", [opened, BulkGate.keep_open])
def test_work_waits_until_it_is_let_go(let_go: Callable[[BulkGate], None]) -> None:
    gate = BulkGate()
    gate.set(shut=True)
    waiter = threading.Thread(target=gate.wait)
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    let_go(gate)
    waiter.join(0.5)
    assert not waiter.is_alive()


def test_no_wait_is_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_gate, "LIMIT_S", 0.2)
    gate = BulkGate()
    gate.set(shut=True)
    begun_s = time.monotonic()
    gate.wait()
    assert time.monotonic() - begun_s >= 0.2
    assert passes(gate, 0.1), "the gate of a daemon that forgot it shuts again"


@pytest.mark.parametrize("let_go", [opened, BulkGate.keep_open])
async def test_a_task_waits_until_it_is_let_go(
    let_go: Callable[[BulkGate], None], autojump_clock: trio.testing.MockClock
) -> None:
    gate = BulkGate()
    await gate.opened()
    gate.set(shut=True)
    begun_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.opened)
        await trio.sleep(0.1)
        gate.set(shut=True)  # said again: that opens nothing
        await trio.sleep(0.1)
        assert len(nursery.child_tasks) == 1
        let_go(gate)
    assert trio.current_time() - begun_s == pytest.approx(0.2)


async def test_no_task_waits_longer_than_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    gate = BulkGate()
    gate.set(shut=True)
    begun_s = trio.current_time()
    for _ in range(3):
        await gate.opened()
    assert trio.current_time() - begun_s == pytest.approx(bulk_gate.LIMIT_S)
    assert passes(gate, 0.1)


def test_a_gate_that_is_kept_open_shuts_when_it_is_kept_no_longer() -> None:
    gate = BulkGate()
    gate.keep_open()
    gate.set(shut=True)
    assert passes(gate, 0.5)
    gate.keep_open(False)
    assert not passes(gate, 0.1)
    gate.set(shut=False)
