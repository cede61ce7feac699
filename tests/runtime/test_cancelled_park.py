"""A program that is parked and let go on, again and again, notices nothing.

That is what a migration does that is cancelled at its end: what stood unread in pipes, sockets,
eventfds and timers has been looked at, and must be there as before. It may also be cancelled when
only some of the threads have parked.
"""

import random
import secrets
from pathlib import Path

import numpy as np
import pytest
import trio

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
ENOUGH_S = 15.0  # of parking: on a busy machine each one takes its time
CANCELLED = 20
LIMIT_S = 120.0
TIMERS_THAT_GO_ON = 400  # of the program `timers`, which arms one at a time again


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
    own = tmp_path / "own"
    own.mkdir()
    how = Start(name, own, tmp_path / "output.log", None, argv=[name, rounds])
    parks = 0
    status: list[int | None] = []

    async def park_often(process: Process) -> None:
        nonlocal parks
        begin_s = trio.current_time()
        try:
            while parks < PARKS and trio.current_time() - begin_s < ENOUGH_S:
                await trio.sleep(chance.uniform(0.0, 0.03))  # the instant is what is random here
                await process.quiesce(10)
                parks += 1
                process.resume()
                for _ in range(CANCELLED):  # some threads have parked then, or all, or none
                    with trio.move_on_after(chance.uniform(0.0, 0.0004)):
                        await process.quiesce(10)
                    process.resume()
        except RuntimeFailed:
            pass  # it has ended: its status and answer tell
        await process.exited.wait()
        status.append(process.exit_status)

    with keeper_in(tmp_path) as keeper:
        loaded = image.load(str(built.image))
        arena = Arena(256 << 20)
        trio.run(with_process, keeper, arena, Mode.LAUNCH, loaded, how, park_often, LIMIT_S)
    assert (status[0], answer_line(how.output.read_bytes())) == expected
    assert parks >= 3


def test_a_timer_that_is_due_and_has_not_gone_off_yet_counts_as_armed(
    program: BuildProgram, tmp_path: Path
) -> None:
    """A processor's interrupt may be milliseconds late: then the kernel tells of no time left."""
    own = tmp_path / "own"
    own.mkdir()
    built = program("timers")
    how = Start("timers", own, tmp_path / "output.log", None, argv=["timers", "30"])
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

    with keeper_in(tmp_path) as keeper:
        loaded = image.load(str(built.image))
        arena = Arena(256 << 20)
        trio.run(with_process, keeper, arena, Mode.LAUNCH, loaded, how, park_often, LIMIT_S)
