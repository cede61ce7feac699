"""Signals that threads send each other while they are being parked are neither lost nor doubled."""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from tests.conftest import BuildProgram
from tests.support.journeys import Journey

LISTENERS = 32


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moves", [6, pytest.param(40, marks=pytest.mark.soak)])
def test_a_signal_to_a_thread_that_is_parked_already_arrives(
    moves: int, program: BuildProgram, fresh_pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    own = tmp_path / "own"
    own.mkdir()
    journey = Journey(fresh_pair, "bells", seed)
    journey.here.client.launch(
        program("bells").image,
        enclave=journey.enclave,
        memory_bytes=1 << 30,
        args=[str(LISTENERS)],
        dir=own,
    )
    for _ in range(moves):
        journey.move(0.1)
    (Path(journey.here.client.status(journey.enclave)["dir"] or own) / "stop").touch()
    assert journey.finish() == (0, "answer: 0 and 0 bells too many")
