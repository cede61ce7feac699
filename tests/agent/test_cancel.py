"""A migration that is ended before the release, in whatever phase, leaves nothing at the source.

The program runs on at full speed, and a retry at once moves every byte: `--verify` compares both
whole memories while the program is parked, so a dirty mark that was lost would be found. What the
destination says is held back at a chosen point, so the phase is the one that is meant.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from optmigd.bench.programs import Program
from tests.agent.test_migration import MEMORY_BYTES, eventually, running, state_of
from tests.attacks.hostile import HostileMove
from tests.support.agents import AgentHandle, Move

ENDLESS = ["10000000000"]
TIMEOUT_S = 8.0
WATCHED_S = 0.6


def holding(
    hosts: list[AgentHandle], image: Path, phase: str, held: trio.Event, **export: object
) -> HostileMove:
    """A move in which the source hears nothing more of the destination from that phase on."""

    def hold(payload: bytes) -> list[bytes]:
        held.set()
        return []

    return HostileMove(
        hosts,
        image,
        MEMORY_BYTES,
        export={**EXPORT.get(phase, {}), **export},
        at_source=lambda n, payload: hold(payload) if PHASES[phase](hosts) else [payload],
        at_ready=hold,
    )


def seen(agent: AgentHandle, event: str, **params: object) -> bool:
    """Whether the agent has said it, with these values."""
    return any(
        item["event"] == event and params.items() <= item["params"].items() for item in agent.events
    )


PHASES: dict[str, Callable[[list[AgentHandle]], bool]] = {
    "handshake": lambda hosts: True,
    "setup": lambda hosts: seen(hosts[1], "state", state="setup"),
    "answer": lambda hosts: "room_made" in hosts[1].log(),
    "first round": lambda hosts: seen(hosts[0], "state", state="active"),
    "later round": lambda hosts: seen(hosts[0], "round", round_no=0),
    "switchover": lambda hosts: False,  # all but READY
}
"""From when on the source hears nothing more of the destination."""

EXPORT: dict[str, dict[str, object]] = {
    # No downtime at all is asked for: there will be a second round.
    "later round": {"downtime_limit_ms": 0.0}
}


async def times_stopped(agent: AgentHandle) -> int:
    """How often the program has given up its CPU by itself; one that computes never does."""
    status = trio.Path("/proc", str((await agent.request("status"))["pid"]), "status")
    lines = (await status.read_text()).splitlines()
    (count,) = [line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")]
    return int(count)


async def is_held_back(agent: AgentHandle) -> bool:
    before = await times_stopped(agent)
    await trio.sleep(WATCHED_S)
    return await times_stopped(agent) - before > 2


async def is_tracked(agent: AgentHandle) -> bool:
    """Whether the kernel watches what the program writes; needs root, for it is kept secret."""
    maps = trio.Path("/proc", str((await agent.request("status"))["pid"]), "smaps")
    flags = [line for line in (await maps.read_text()).splitlines() if line.startswith("VmFlags")]
    assert flags
    return any("uw" in line.split() for line in flags)


async def assert_runs_at_full_speed(agent: AgentHandle) -> None:
    assert await agent.runs()
    assert not await is_held_back(agent)
    if os.geteuid() == 0:
        assert not await is_tracked(agent)


async def assert_moves(hosts: list[AgentHandle], image: Path) -> None:
    """Move the program, at once and comparing all of its memory."""
    here, there = await Move(hosts, image, MEMORY_BYTES, export={"verify": True}).run()
    assert (here["outcome"], here["error"]) == ("completed", None)
    assert (there["outcome"], there["error"]) == ("completed", None)
    assert here["report"]["verified"] is True
    assert here["report"]["owner_generation"] == 2
    assert here["report"]["rounds"][0]["pages"] * 4096 >= 8 << 20
    assert await state_of(hosts[0]) == "released"
    assert await state_of(hosts[1]) == "running"


@pytest.mark.parametrize(
    ("phase", "how"),
    [*((phase, "cancel") for phase in PHASES), ("first round", "time"), ("switchover", "time")],
)
async def test_an_ended_migration_is_retried_at_once(
    tmp_path: Path, integers: Program, phase: str, how: str
) -> None:
    async with running(tmp_path, integers, 3, args=ENDLESS) as hosts:
        held = trio.Event()

        timeout_s = TIMEOUT_S if how == "time" else 0.0
        move = holding(hosts, integers.image, phase, held, timeout_s=timeout_s)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            if phase not in ("handshake", "setup", "answer"):
                await move.connect_streams(nursery)
            await held.wait()
            if phase == "switchover":
                assert await state_of(hosts[0]) == "parked"
            if how == "cancel":
                await hosts[0].request("cancel", migration_id=move.migration_id)
            ended = await hosts[0].wait_event("ended")
            code = "cancelled" if how == "cancel" else "timeout"
            assert ended["error"]["code"] == code
            nursery.cancel_scope.cancel()
        await assert_moves([hosts[0], hosts[2]], integers.image)


@pytest.mark.parametrize("phase", ["answer", "first round", "switchover"])
async def test_an_ended_migration_leaves_the_program_at_full_speed(
    tmp_path: Path, integers: Program, phase: str
) -> None:
    async with running(tmp_path, integers, args=ENDLESS) as hosts:
        held = trio.Event()

        move = holding(hosts, integers.image, phase, held)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            if phase != "answer":
                await move.connect_streams(nursery)
            await held.wait()
            if os.geteuid() == 0:
                await eventually(lambda: is_tracked(hosts[0]))
            await hosts[0].request("cancel", migration_id=move.migration_id)
            await hosts[0].wait_event("ended")
            nursery.cancel_scope.cancel()
        await assert_runs_at_full_speed(hosts[0])


async def test_a_cancelled_throttled_migration_leaves_no_throttle(
    tmp_path: Path, integers: Program
) -> None:
    async with running(tmp_path, integers, 3, args=ENDLESS) as hosts:

        def hold(payload: bytes) -> list[bytes]:
            return [] if "program_held_back" in hosts[0].log() else [payload]

        export = {"downtime_limit_ms": 0.0, "on_stall": "throttle", "timeout_s": 0.0}
        move = Move(hosts, integers.image, MEMORY_BYTES, export=export, to_source=hold)
        async with trio.open_nursery() as nursery:
            await move.begin(nursery)
            await move.add_streams()
            # It is held back, and stays so: the source waits for the destination.
            await eventually(lambda: is_held_back(hosts[0]))
            await hosts[0].request("cancel", migration_id=move.migration_id)
            assert (await hosts[0].wait_event("ended"))["outcome"] == "cancelled"
            nursery.cancel_scope.cancel()
        await assert_runs_at_full_speed(hosts[0])
        await assert_moves([hosts[0], hosts[2]], integers.image)
