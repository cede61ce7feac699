"""Which files' reads go past the program's page tables is looked at anew on every host."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from optmigd.enclave_shim.abi import Command, Mode, OfdKind
from optmigd.enclave_shim.process import Process
from tests.runtime.conftest import Parked
from tests.support.instances import with_process


@pytest.fixture
def overlay(parked: Parked, tmp_path: Path) -> Iterator[Path]:
    """A copy of the own directory on a file system that may read in any way."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    shutil.copytree(parked.own, lower)
    for folder in (upper, work, merged):
        folder.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user or kernel can mount no overlay")
    yield merged
    subprocess.run(["umount", str(merged)], check=True)


def restored(parked: Parked, own: Path, flags: int = 0) -> dict[bytes, int]:
    """Prepare it in a fresh process; return `pins` of its own directory and of a file there."""

    async def prepare(process: Process) -> None:
        await process.command(Command.PREPARE)
        for ofd in state["ofds"][files]:
            pins[bytes(ofd["path"])] = int(ofd["pins"])

    pins: dict[bytes, int] = {}
    arena = parked.arena()
    state = arena.rt_state
    files = (state["ofds"]["kind"] == OfdKind.OWN) & (state["ofds"]["refs"] > 0)
    state["ofds"]["flags"][files] |= flags
    state["ofds"]["pins"][files] = 2
    start = dataclasses.replace(parked.start(), own_dir=own)
    trio.run(with_process, parked.keeper, arena, Mode.RESTORE, parked.image, start, prepare)
    return pins


def test_a_known_file_system_pins_for_direct_reads_alone(parked: Parked) -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%t", str(parked.own)], capture_output=True, check=True, text=True
    ).stdout.strip()
    if kind not in ("ef53", "58465342", "9123683e", "f2f52010", "1021994", "6969"):
        pytest.skip(f"the file system {kind} is not one that is known")
    assert restored(parked, parked.own) == {b".": 0, b"own.txt": 0}
    # A directory cannot be opened so, and is opened otherwise.
    assert restored(parked, parked.own, os.O_DIRECT) == {b".": 0, b"own.txt": 1}


def test_any_other_file_system_may_pin(parked: Parked, overlay: Path) -> None:
    assert restored(parked, overlay) == {b".": 1, b"own.txt": 1}
