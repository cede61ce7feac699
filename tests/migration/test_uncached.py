"""Reads past the page cache: the disk writes into the program's memory, and no tracker sees it."""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.bench.programs import build
from optmigd.requests import Tracker
from tests.conftest import PROGRAMS
from tests.support.busy import FILE
from tests.support.journeys import Journey, native_run


@pytest.mark.parametrize("tracker", ["kernel", "compiler"])
def test_what_a_disk_reads_straight_into_memory_arrives(
    tracker: Tracker, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = build(PROGRAMS / "uncached.c", tmp_path, marks=tracker == "compiler")
    expected = native_run(built, [], tmp_path / "native")
    assert expected == (0, "answer 0 pages are not as they were read")
    journey = Journey(pair, f"uncached-{seed}", seed)
    pair[0].client.launch(
        built.image, enclave=journey.enclave, memory_bytes=512 << 20, args=[FILE], tracker=tracker
    )
    for _ in range(3):
        journey.move(0.1, verify=True)
    journey.let_finish()
    assert journey.finish() == expected
