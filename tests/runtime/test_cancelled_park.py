"""A program that is parked and let go on, again and again, notices nothing.

That is what a migration does that is cancelled at its end: what stood unread in pipes, sockets,
eventfds and timers has been looked at, and must be there as before. It may also be cancelled when
only some of the threads have parked.
"""

import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import trio

from optmigd.bench.programs import Program
from optmigd.enclave_shim import image
from optmigd.enclave_shim.abi import Mode, OfdKind
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.starting import Start
from optmigd.protocol.errors import RuntimeFailed
from tests.conftest import BuildProgram
from tests.support.instances import with_process
from tests.support.journeys import answer_line, native_run
from tests.support.keeper import keeper_in

PARKS = 60
ENOUGH_S = 15.0  # of parks more than are asked for: on a busy machine each takes its time
CANCELLED = 20
LIMIT_S = 120.0
AGAIN_S = 10.0  # of parks that are asked for again at once
SLOT_ENDS = 2  # of a thread in which no more of the program runs
THREADS_ROUNDS = "3000"
TIMERS_THAT_GO_ON = 400  # of the program `timers`, which arms one at a time again


def run(
    program: Program,
    argv: list[str],
    task: Callable[[Process], Awaitable[None]],
    folder: Path,
) -> bytes:
    """Run the program until the task returns; return what it has written."""
    own = folder / "own"
    own.mkdir()
    how = Start(argv[0], own, folder / "output.log", None, argv=argv)
    with keeper_in(folder) as keeper:
        loaded = image.load(str(program.image))
        arena = Arena(256 << 20)
        trio.run(with_process, keeper, arena, Mode.LAUNCH, loaded, how, task, LIMIT_S)
    return how.output.read_bytes()


@pytest.mark.parametrize(
    ("name", "rounds"),
    [("descriptors", "800"), ("direct", "600"), ("interrupts", "300"), ("timers", "2")],
)
def test_the_program_goes_on_as_if_nothing_had_been(
    name: str, rounds: str, program: BuildProgram, tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    built = program(name)
    expected = native_run(built, [rounds], tmp_path / "native")
    parks = 0
    status: list[int | None] = []

    async def park_often(process: Process) -> None:
        nonlocal parks
        begin_s = trio.current_time()
        try:
            for _ in range(PARKS):
                await trio.sleep(chance.uniform(0.0, 0.03))  # the instant is what is random here
                await process.quiesce(10)
                parks += 1
                process.resume()
                cancelled = CANCELLED if trio.current_time() - begin_s < ENOUGH_S else 0
                for _ in range(cancelled):  # some threads have parked then, or all, or none
                    with trio.move_on_after(chance.uniform(0.0, 0.0004)):
                        await process.quiesce(10)
                    process.resume()
        except RuntimeFailed:
            pass  # it has ended: its status and answer tell
        await process.exited.wait()
        status.append(process.exit_status)

    output = run(built, [name, rounds], park_often, tmp_path)
    assert (status[0], answer_line(output)) == expected
    assert parks >= 10


def standing(arena: Arena) -> bytes:
    """Threads and descriptors, but whether the kernel has let go of threads that have ended."""
    threads = arena.rt_state["threads"].copy()
    threads["used"][threads["used"] == SLOT_ENDS] = 0
    return bytes(threads.data) + bytes(arena.rt_state["fds"].data)


def test_a_park_that_is_asked_for_again_at_once_is_a_whole_one(
    program: BuildProgram, tmp_path: Path
) -> None:
    """Threads are on their way in or out then, end and begin: all must stand still."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    built = program("threads")
    expected = native_run(built, ["6", THREADS_ROUNDS], tmp_path / "native")
    status: list[int | None] = []
    parks = 0

    async def ask_again(process: Process) -> None:
        nonlocal parks
        begin_s = trio.current_time()
        try:
            while trio.current_time() - begin_s < AGAIN_S:
                for _ in range(chance.randrange(1, 4)):
                    with trio.move_on_after(chance.uniform(0.0, 0.0003)):
                        await process.quiesce(10)
                    process.resume()
                await process.quiesce(10)
                parks += 1
                before = standing(process.arena)
                await trio.sleep(0.0005)  # what still ran would have written by then
                assert process.ctl["running"] == 0
                assert standing(process.arena) == before
                assert process.arena.rt_state["lock"] == 0
                process.resume()
        except RuntimeFailed:
            pass  # it has ended: its status and answer tell
        await process.exited.wait()
        status.append(process.exit_status)

    output = run(built, ["threads", "6", THREADS_ROUNDS], ask_again, tmp_path)
    assert (status[0], answer_line(output)) == expected
    print(f"{parks} parks")
    assert parks >= 50


def test_a_timer_that_is_due_and_has_not_gone_off_yet_counts_as_armed(
    program: BuildProgram, tmp_path: Path
) -> None:
    """A processor's interrupt may be milliseconds late: then the kernel tells of no time left."""
    chance = random.Random(5)

    async def park_often(process: Process) -> None:
        await trio.sleep(0.5)  # from then on all of them are armed, but the one that was just read
        begin_s = trio.current_time()
        for _ in range(3 * PARKS):
            if trio.current_time() - begin_s > ENOUGH_S:
                break
            await trio.sleep(chance.uniform(0.01, 0.03))  # time to read all; the instant is random
            await process.quiesce(10)
            ofds = process.arena.rt_state["ofds"]
            timers = ofds[(ofds["kind"] == OfdKind.TIMERFD) & (ofds["refs"] > 0)]["object"]
            armed = int(np.count_nonzero(timers["due_ns"]))
            process.resume()
            assert TIMERS_THAT_GO_ON - 1 <= armed <= TIMERS_THAT_GO_ON

    run(program("timers"), ["timers", "30"], park_often, tmp_path)
