"""A program that is parked once, for tests that restore its memory again and again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from optmigd.enclave_shim import abi, image
from optmigd.enclave_shim.abi import Mode
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.kept import KeeperClient
from optmigd.enclave_shim.process import Process
from optmigd.enclave_shim.starting import Start
from tests.conftest import BuildProgram
from tests.support.instances import with_process
from tests.support.keeper import keeper_in

MEMORY_BYTES = 128 << 20


@dataclass
class Parked:
    """A program's whole memory, as it was when every thread was parked."""

    keeper: KeeperClient
    image: image.Image
    pieces: list[tuple[int, bytes]]
    own: Path
    outside: Path
    shared: Path

    def start(self) -> Start:
        """How a fresh process of it is started; beneath an own directory that is there."""
        return Start("parked", self.own, self.own.parent / "output.log", None)

    def arena(self) -> Arena:
        """A fresh arena with that memory."""
        arena = Arena(MEMORY_BYTES)
        for offset, content in self.pieces:
            arena.view[offset : offset + len(content)] = content
        return arena


@pytest.fixture(scope="module")
def parked(program: BuildProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parked]:
    folder = tmp_path_factory.mktemp("damaged")
    own, shared = folder / "own", folder / "shared"
    own.mkdir()
    shared.mkdir()
    (shared / "file").write_bytes(b"shared content")
    outside = folder / "outside"
    outside.write_bytes(b"precious content")
    loaded = image.load(str(program("parker").image))
    arena = Arena(MEMORY_BYTES)
    pieces: list[tuple[int, bytes]] = []
    how = Start(
        "parked",
        own,
        folder / "output.log",
        None,
        argv=["parked", str(outside), str(shared / "file")],
        shared=[str(shared)],
    )

    async def park(process: Process) -> None:
        while b"ready" not in how.output.read_bytes():  # noqa: ASYNC110 (no event tells of it)
            await trio.sleep(0.01)
        await process.quiesce(10)
        for first, count in arena.resident_runs().tolist():
            start, end = first * abi.PAGE_BYTES, (first + count) * abi.PAGE_BYTES
            pieces.append((start, bytes(arena.view[start:end])))

    with keeper_in(folder) as keeper:
        trio.run(with_process, keeper, arena, Mode.LAUNCH, loaded, how, park)
        yield Parked(keeper, loaded, pieces, own, outside, shared / "file")
