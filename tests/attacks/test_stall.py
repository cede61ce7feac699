"""A destination that stalls while the program is parked cannot hold it: the program runs on."""

import socket
from pathlib import Path

import pytest
import trio

from optmigd.bench.programs import Program
from tests.attacks.hostile import HostileMove
from tests.conftest import BuildProgram
from tests.support.agents import AgentHandle, agents, launch_params

MEMORY_BYTES = 128 << 20
STALL = {"mode": "stop-and-copy", "switchover_stall_s": 1.0}


@pytest.fixture(scope="module")
def ledger(program: BuildProgram) -> Program:
    return program("stepper")


async def _launched(source: AgentHandle, ledger: Program) -> None:
    params = launch_params(ledger.image, args=["0"], memory_bytes=MEMORY_BYTES)
    await source.request("launch", **params)
    while b"begun" not in source.output():  # noqa: ASYNC110 (no event tells of it)
        await trio.sleep(0.01)


async def _runs_on(source: AgentHandle) -> None:
    ended = await source.wait_event("ended")
    assert (ended["outcome"], ended["error"]["code"]) == ("failed", "timeout"), ended
    assert "stood still" in ended["error"]["message"]
    assert await source.runs()
    sample = await source.request("sample_dirty", interval_s=0.3)
    assert sample["written_pages"] > 0


async def test_a_destination_that_reads_nothing(tmp_path: Path, ledger: Program) -> None:
    with trio.fail_after(120):
        async with agents(tmp_path, 2) as hosts:
            await _launched(hosts[0], ledger)
            move = HostileMove(hosts, ledger.image, MEMORY_BYTES, streams=1, export=STALL)
            ours, unread = socket.socketpair()
            with ours, unread:
                async with trio.open_nursery() as nursery:
                    await move.begin(nursery)
                    await hosts[0].request(
                        "add_stream", ours.fileno(), migration_id=move.migration_id, index=0
                    )
                    await _runs_on(hosts[0])
                    nursery.cancel_scope.cancel()


async def test_a_destination_that_never_says_ready(tmp_path: Path, ledger: Program) -> None:
    """It has received everything; its host keeps back what it says about it."""
    with trio.fail_after(120):
        async with agents(tmp_path, 2) as hosts:
            await _launched(hosts[0], ledger)
            move = HostileMove(
                hosts,
                ledger.image,
                MEMORY_BYTES,
                export=STALL,
                at_ready=lambda payload: [],
            )
            async with trio.open_nursery() as nursery:
                await move.begin(nursery)
                await move.connect_streams(nursery)
                await _runs_on(hosts[0])
                nursery.cancel_scope.cancel()
