"""What a disk reads straight into the program's memory is collected once it is there."""

from pathlib import Path

import numpy as np
import pytest
import trio

from optmigd.enclave_shim.abi import Mode
from optmigd.enclave_shim.arena import Arena, Runs, pages_of_runs
from optmigd.enclave_shim.image import load
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.starting import Start
from optmigd.enclave_shim.tracker import KernelTracker, probe
from tests.conftest import BuildProgram
from tests.support.instances import with_process
from tests.support.keeper import keeper_in

MEMORY_BYTES = 512 << 20
LOOK_S = 1.5


async def test_a_copy_of_what_is_collected_is_the_memory(
    program: BuildProgram, tmp_path: Path
) -> None:
    """A page that is collected after the disk was asked for it, and before it came, is stale."""
    own = tmp_path / "own"
    own.mkdir()
    how = Start("uncached", own, tmp_path / "output.log", None, argv=["uncached", "end"])
    arena = Arena(MEMORY_BYTES)
    copy = np.zeros_like(arena.pages)
    rounds = 0

    def take(pages: Runs) -> None:
        for first, count in pages.tolist():
            copy[first : first + count] = arena.pages[first : first + count]

    async def look(process: Process) -> None:
        nonlocal rounds
        why = probe(process)
        if why:
            pytest.skip(why)
        while not (own / "blocks.bin").exists():  # noqa: ASYNC110 (no event tells of it)
            await trio.sleep(0.01)
        tracker = KernelTracker(process, arena)
        tracker.arm()
        take(arena.resident_runs())
        with trio.move_on_after(LOOK_S):
            while True:
                take(await trio.to_thread.run_sync(tracker.collect))
                rounds += 1
        await process.quiesce(10)
        take(tracker.collect(parked=True))
        resident = pages_of_runs(arena.resident_runs())
        stale = resident[(copy[resident] != arena.pages[resident]).any(axis=1)]
        assert stale.tolist() == []

    with keeper_in(tmp_path) as keeper:
        image = load(str(program("uncached").image))
        await with_process(keeper, arena, Mode.LAUNCH, image, how, look)
    assert rounds > 20
