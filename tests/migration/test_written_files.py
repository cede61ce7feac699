"""Files that change while they are moved arrive, though few of their blocks are looked at."""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.bench.programs import build
from optmigd.requests import Tracker
from tests.conftest import PROGRAMS
from tests.support.journeys import Journey, native_run

ROUNDS, PAUSE_US = "1000", "5000"


@pytest.mark.parametrize("tracker", ["kernel", "compiler"])
def test_files_that_change_in_every_way_arrive(
    tracker: Tracker, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = build(PROGRAMS / "rewriter.c", tmp_path, "-pthread", marks=tracker == "compiler")
    expected = native_run(built, [ROUNDS], tmp_path / "native")
    journey = Journey(pair, f"rewriter-{seed}", seed)
    pair[0].client.launch(
        built.image,
        enclave=journey.enclave,
        memory_bytes=128 << 20,
        args=[ROUNDS, PAUSE_US],
        tracker=tracker,
    )
    assert journey.travel(20) >= 3
    assert journey.finish() == expected
