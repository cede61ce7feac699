"""A program in modern C++, moved five times at random instants, by either tracker."""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.bench.programs import build
from optmigd.requests import Tracker
from tests.conftest import PROGRAMS
from tests.support.journeys import Journey, native_run

MOVES = 5
MEMORY_BYTES = 512 << 20
ROUNDS = "60000"  # long enough that the last move still finds it at work


@pytest.mark.timeout(900)  # the first build compiles the libraries, for the marks once more
@pytest.mark.parametrize("tracker", ["kernel", pytest.param("compiler", marks=pytest.mark.soak)])
def test_exceptions_threads_futures_and_clocks_survive_moves(
    tracker: Tracker, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = build(PROGRAMS / "lively.cc", tmp_path, "-pthread", marks=tracker == "compiler")
    expected = native_run(built, [ROUNDS], tmp_path / "native")
    assert expected[0] == 0
    assert expected[1].endswith("clocks never step back")
    journey = Journey(pair, f"lively-{tracker}-{seed}", seed)
    launched = pair[0].client.launch(
        built.image,
        enclave=journey.enclave,
        memory_bytes=MEMORY_BYTES,
        args=[ROUNDS],
        tracker=tracker,
    )
    assert launched["tracker"] == tracker
    for _ in range(MOVES):
        journey.move(verify=True)
    assert pair[0].client.status(journey.enclave)["state"] == "running"
    assert journey.finish() == expected
    assert [move["verified"] for move in journey.moves] == [True] * MOVES
