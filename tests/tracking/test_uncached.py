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
PAGES_A_LOOK = 4 * 4096
"""Four of the blocks that it reads."""
LOOKS = 8
LIMIT_S = 90.0


async def test_a_copy_of_what_is_collected_is_the_memory(
    program: BuildProgram, tmp_path: Path
) -> None:
    """A page that is collected after the disk was asked for it, and before it came, is stale."""
    own = tmp_path / "own"
    own.mkdir()
    how = Start("uncached", own, tmp_path / "output.log", None, argv=["uncached", "end"])
    arena = Arena(MEMORY_BYTES)
    copy = np.zeros_like(arena.pages)

    def take(pages: Runs) -> int:
        for first, count in pages.tolist():
            copy[first : first + count] = arena.pages[first : first + count]
        return len(pages_of_runs(pages))

    async def look(process: Process, tracker: KernelTracker) -> None:
        seen = 0
        while seen < PAGES_A_LOOK:
            seen += take(await trio.to_thread.run_sync(tracker.collect))
        await process.quiesce(10)
        take(tracker.collect(parked=True))
        resident = pages_of_runs(arena.resident_runs())
        stale = resident[(copy[resident] != arena.pages[resident]).any(axis=1)]
        assert stale.tolist() == []
        process.resume()

    async def look_often(process: Process) -> None:
        why = probe(process)
        if why:
            pytest.skip(why)
        while b"reading" not in how.output.read_bytes():  # noqa: ASYNC110 (no event tells of it)
            await trio.sleep(0.01)
        tracker = KernelTracker(process, arena)
        try:
            tracker.arm()
            take(arena.resident_runs())
            for _ in range(LOOKS):
                await look(process, tracker)
        finally:
            tracker.disarm()

    with keeper_in(tmp_path) as keeper:
        image = load(str(program("uncached").image))
        await with_process(keeper, arena, Mode.LAUNCH, image, how, look_often, LIMIT_S)
