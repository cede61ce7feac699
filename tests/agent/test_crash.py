"""What a crash of a shim agent leaves: an enclave that runs on, and a migration that ends rightly.

The agents kill themselves at chosen points (tests/support/fragile_agent.py), or the test kills
them. In the end exactly one side runs the program, and its answer is that of a native run.
"""

# It waits for what only other processes know.
# ruff: noqa: ASYNC110

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from optmigd.bench.programs import Program
from tests.support.agents import AgentHandle, Move, agents, launch_params
from tests.support.busy import BUSY, ends_rightly
from tests.support.fragile_agent import CANCELLED_WITH_READY, SPOILED_BEFORE_READY

ENDLESS = ["10000000000"]
MEMORY_BYTES = 256 << 20


@asynccontextmanager
async def running(
    tmp_path: Path,
    integers: Program,
    count: int,
    *,
    args: list[str] | None = None,
    **dies_at: str,
) -> AsyncIterator[tuple[list[AgentHandle], trio.Nursery]]:
    """Agents, the first of which runs the program; `source` and `destination` may be fragile."""
    points = {("source", "destination").index(side): point for side, point in dies_at.items()}
    with trio.fail_after(120):
        async with (
            agents(tmp_path, count, dies_at=points) as hosts,
            trio.open_nursery() as nursery,
        ):
            params = launch_params(integers.image, args=args or list(BUSY))
            await hosts[0].request("launch", **params)
            yield hosts, nursery
            nursery.cancel_scope.cancel()


async def status_of(agent: AgentHandle, key: str) -> object:
    return (await agent.request("status"))[key]


async def eventually(agent: AgentHandle, key: str, value: object) -> None:
    """Ask for the status until it is so; the test's time-out ends it."""
    while await status_of(agent, key) != value:
        await trio.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


async def moves_on(hosts: list[AgentHandle], integers: Program) -> None:
    """The enclave can still be moved, to the last page."""
    move = Move(hosts, integers.image, MEMORY_BYTES, export={"verify": True})
    here, there = await move.run()
    assert (here["outcome"], there["outcome"]) == ("completed", "completed")
    assert here["report"]["verified"] is True


async def test_a_program_outlives_its_agent(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 2) as (hosts, nursery):
        before = await hosts[0].request("status")
        for restarts in (1, 2):
            await hosts[0].crash(nursery)
            after = await hosts[0].request("status")
            for key in ("pid", "measurement", "state", "generation", "tracker", "memory_bytes"):
                assert after[key] == before[key], key
            assert f'"restarts": {restarts}' in hosts[0].log()
        assert hosts[0].log().count("agent_restarted") == 2
        await moves_on(hosts, integers)
        await ends_rightly(hosts[1], answer)


async def test_an_end_without_an_agent_is_reported_by_the_next(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, 1, args=ENDLESS, source="start") as (hosts, nursery):
        pid = await status_of(hosts[0], "pid")
        assert isinstance(pid, int)
        os.kill(hosts[0].worker_pid, signal.SIGKILL)
        await hosts[0].lost.wait()
        os.kill(pid, signal.SIGTERM)  # the program does not handle it
        (hosts[0].directory / "mended").touch()
        await hosts[0].connect(nursery)
        exited = await hosts[0].wait_event("exited")
        assert exited["exit_status"] == 128 + signal.SIGTERM
        await eventually(hosts[0], "resident_bytes", 0)


async def test_a_crash_loop_is_slowed_and_the_program_runs_on(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, 1, args=ENDLESS, source="start") as (hosts, nursery):
        pid = await status_of(hosts[0], "pid")
        assert isinstance(pid, int)
        began_s = time.monotonic()
        os.kill(hosts[0].worker_pid, signal.SIGKILL)
        errors = hosts[0].directory / "agent.err"
        while (restarts := errors.read_text().count("started again")) < 4:
            await trio.sleep(0.02)
        # The pause before each but the last has passed, and each was twice the one before.
        assert time.monotonic() - began_s > 0.1 * (2 ** (restarts - 1) - 1)
        assert is_alive(pid)
        (hosts[0].directory / "mended").touch()
        await hosts[0].connect(nursery)
        assert await hosts[0].runs()
        assert await status_of(hosts[0], "pid") == pid


async def test_agent_and_program_die_with_their_keeper(tmp_path: Path, integers: Program) -> None:
    async with running(tmp_path, integers, 2, args=ENDLESS) as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)
        await move.up_to_release(nursery)
        for host in hosts:  # a parked program, and one that waits for its token
            assert host.process is not None
            pids = [host.worker_pid, _program_of(host)]
            assert all(map(is_alive, pids))
            host.process.kill()
            host.process.wait()
            with trio.fail_after(5):
                while any(map(is_alive, pids)):
                    await trio.sleep(0.01)


def _program_of(host: AgentHandle) -> int:
    """The keeper's child that is not its agent."""
    assert host.process is not None
    pid = host.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    [program] = set(map(int, children)) - {host.worker_pid}
    return program


@pytest.mark.parametrize("point", ["tracking", "parking", "parked", "noted"])
async def test_a_source_that_has_not_let_go_runs_on(
    tmp_path: Path, integers: Program, answer: bytes, point: str
) -> None:
    """Also when its token was made already: the control block did not say `released`."""
    async with running(tmp_path, integers, 3, source=point) as (hosts, nursery):
        move = Move(hosts[:2], integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        await hosts[0].recover(nursery)
        ended = await hosts[0].wait_event("ended")
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "failed")
        # As the daemon does. A late question is answered by the end once more.
        await hosts[0].request("cancel", migration_id=move.migration_id)
        await hosts[0].wait_event("ended", 2)
        await hosts[1].request("cancel", migration_id=move.migration_id)
        await hosts[1].wait_event("ended")
        assert not any(event["event"] == "release" for event in hosts[0].events)
        assert await hosts[0].runs()
        await moves_on([hosts[0], hosts[2]], integers)
        await ends_rightly(hosts[2], answer)


async def test_a_cancel_that_comes_with_ready_is_a_cancel(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    """It was taken: so nothing may be released any more, although READY is there."""
    async with running(tmp_path, integers, 3, source=CANCELLED_WITH_READY) as (hosts, nursery):
        move = Move(hosts[:2], integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        for host, outcome in zip(hosts, ("cancelled", "failed"), strict=False):
            assert (await host.wait_event("ended"))["outcome"] == outcome
        assert not any(event["event"] == "release" for event in hosts[0].events)
        assert await hosts[0].runs()
        # The next agent finds nothing in the vault that says otherwise.
        await hosts[0].crash(nursery)
        assert await hosts[0].runs()
        await ends_rightly(hosts[0], answer)


async def test_what_ends_the_destination_in_the_turn_of_ready_keeps_it_unsaid(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    """Said by one that ends, READY would have the source let go for nobody."""
    async with running(tmp_path, integers, 2, destination=SPOILED_BEFORE_READY) as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        for host in reversed(hosts):
            assert (await host.wait_event("ended"))["outcome"] == "failed"
        assert not any(event["event"] == "release" for event in hosts[0].events)
        await ends_rightly(hosts[0], answer)


@pytest.mark.parametrize("point", ["unable to run", "released", "token out"])
async def test_a_source_that_has_let_go_only_goes_forward(
    tmp_path: Path, integers: Program, answer: bytes, point: str
) -> None:
    async with running(tmp_path, integers, 2, source=point) as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        await hosts[0].recover(nursery)
        token = (await hosts[0].wait_event("release"))["payload"]
        ended = await hosts[0].wait_event("ended")
        assert (ended["outcome"], ended["error"]) == ("completed", None)
        there = await hosts[1].wait_event("ended")
        assert ended["report"]["state_digest"] == there["report"]["state_digest"]
        assert ended["report"]["receipt"]["body"]
        assert ended["report"]["downtime_ms"] > 0
        assert ended["report"]["rounds"]
        tokens = [item for item in hosts[0].events if item["event"] == "release"]
        assert all(item["params"]["payload"] == token for item in tokens)
        assert await status_of(hosts[0], "state") == "released"
        await eventually(hosts[0], "resident_bytes", 0)
        # Nothing is left that could run, and the next agent still knows how it ended.
        await hosts[0].crash(nursery)
        assert (await hosts[0].wait_event("ended", 2))["outcome"] == "completed"
        assert await status_of(hosts[0], "state") == "released"
        await ends_rightly(hosts[1], answer)


async def test_a_destination_that_was_not_ready_is_destroyed(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 2, destination="receiving") as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        await hosts[1].recover(nursery)
        ended = await hosts[1].wait_event("ended")
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "failed")
        await eventually(hosts[1], "resident_bytes", 0)
        # The source waits for READY on a stream that has ended.
        ended = await hosts[0].wait_event("ended")
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "channel-closed")
        await ends_rightly(hosts[0], answer)


async def test_a_destination_that_had_not_said_ready_waits_and_can_be_told_to_give_up(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 2, destination="ready noted") as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES)
        await move.begin(nursery)
        await move.add_streams()
        await hosts[1].recover(nursery)
        assert await status_of(hosts[1], "state") == "waiting"
        ended = await hosts[0].wait_event("ended")
        assert (ended["outcome"], ended["error"]["code"]) == ("failed", "channel-closed")
        await hosts[1].request("cancel", migration_id=move.migration_id)
        assert (await hosts[1].wait_event("ended"))["outcome"] == "cancelled"
        await eventually(hosts[1], "resident_bytes", 0)
        await ends_rightly(hosts[0], answer)


async def test_a_destination_that_was_ready_waits_for_the_token(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 3, destination="ready said") as (hosts, nursery):
        move = Move(hosts[:2], integers.image, MEMORY_BYTES, deliver_token=False)
        token = await move.up_to_release(nursery)
        await hosts[1].recover(nursery)
        for wrong in (token[:-1], bytes([token[0] ^ 1]) + token[1:], b""):
            await move.give_token(wrong)
        assert await status_of(hosts[1], "state") == "waiting"
        await hosts[1].crash(nursery)  # and once more
        await move.give_token(token)
        confirmation = (await hosts[1].wait_event("resumed"))["payload"]
        there = await hosts[1].wait_event("ended")
        here = await hosts[0].wait_event("ended")
        assert (here["outcome"], there["outcome"]) == ("completed", "completed")
        assert here["report"]["state_digest"] == there["report"]["state_digest"]
        assert there["report"]["receipt"]["body"]
        assert await status_of(hosts[1], "generation") == 2
        # A third agent answers the token with the same bytes, and can be moved away from.
        await hosts[1].crash(nursery)
        await move.give_token(token)
        assert (await hosts[1].wait_event("resumed", 3))["payload"] == confirmation
        assert await status_of(hosts[1], "generation") == 2
        second = Move(hosts[1:], integers.image, MEMORY_BYTES, generation=2)
        assert (await second.run())[0]["outcome"] == "completed"
        await ends_rightly(hosts[2], answer)


def children_of(agent: AgentHandle) -> set[int]:
    """The keeper's children: its worker, and the enclave's process."""
    assert agent.process is not None
    pid = agent.process.pid
    return {*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())}


async def kill_waiting_process(agent: AgentHandle, killed: set[int]) -> None:
    """Kill the process of an instance that waits for its token, and note it; not one twice."""
    while not (found := children_of(agent) - {agent.worker_pid, *killed}):
        await trio.sleep(0.01)
    (pid,) = found
    killed.add(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("agent_crashes", [False, True])
async def test_a_waiting_process_that_is_killed_is_replaced(
    tmp_path: Path, integers: Program, answer: bytes, agent_crashes: bool
) -> None:
    async with running(tmp_path, integers, 3) as (hosts, nursery):
        move = Move(hosts[:2], integers.image, MEMORY_BYTES, deliver_token=False)
        token = await move.up_to_release(nursery)
        if agent_crashes:
            await hosts[1].crash(nursery)
            assert await status_of(hosts[1], "state") == "waiting"
        killed: set[int] = set()
        await kill_waiting_process(hosts[1], killed)
        await kill_waiting_process(hosts[1], killed)
        await move.give_token(token)  # in the middle of it
        await hosts[1].wait_event("resumed")
        there = await hosts[1].wait_event("ended")
        here = await hosts[0].wait_event("ended")
        assert (here["outcome"], there["outcome"]) == ("completed", "completed")
        assert hosts[1].log().count("waiting_process_replaced") == 2
        second = Move(hosts[1:], integers.image, MEMORY_BYTES, generation=2)
        assert (await second.run())[0]["outcome"] == "completed"
        await ends_rightly(hosts[2], answer)


async def test_a_waiting_process_that_never_lives_long_is_given_up(
    tmp_path: Path, integers: Program, answer: bytes
) -> None:
    async with running(tmp_path, integers, 2) as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES, deliver_token=False)
        await move.up_to_release(nursery)
        killed: set[int] = set()
        for _ in range(6):
            await kill_waiting_process(hosts[1], killed)
        ended = await hosts[1].wait_event("ended")
        assert ended["outcome"] == "failed"
        assert "has ended 5 times and once more" in ended["error"]["message"]


@pytest.mark.parametrize("point", ["running", "sealed", "confirmed"])
async def test_a_destination_that_runs_confirms_with_one_confirmation(
    tmp_path: Path, integers: Program, answer: bytes, point: str
) -> None:
    async with running(tmp_path, integers, 2, destination=point) as (hosts, nursery):
        move = Move(hosts, integers.image, MEMORY_BYTES)
        token = await move.up_to_release(nursery)
        await hosts[1].recover(nursery)
        await hosts[1].wait_event("resumed")
        there = await hosts[1].wait_event("ended")
        here = await hosts[0].wait_event("ended")
        assert (here["outcome"], there["outcome"]) == ("completed", "completed")
        await move.give_token(token)
        await hosts[1].crash(nursery)
        await move.give_token(token)
        with trio.fail_after(20):
            await hosts[1].wait_event("resumed", 3)
        said = {item["params"]["payload"] for item in hosts[1].events if item["event"] == "resumed"}
        assert len(said) == 1
        await ends_rightly(hosts[1], answer)


async def test_an_agent_told_to_shut_down_takes_everything_with_it(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, 1, args=ENDLESS) as (hosts, nursery):
        await hosts[0].crash(nursery)
        pids = [hosts[0].worker_pid, _program_of(hosts[0])]
        await hosts[0].request("shutdown")
        assert hosts[0].process is not None
        status = await trio.to_thread.run_sync(partial(hosts[0].process.wait, 20))
        assert status == 0
        assert not any(map(is_alive, pids))
