"""`make soak`: hundreds of moves at random instants (SOAK_MOVES, SOAK_SEED)."""

import os
import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from tests.conftest import BuildProgram
from tests.migration.test_moves import ARGUMENTS, MEMORY_BYTES
from tests.support.journeys import Journey, native_run

pytestmark = pytest.mark.soak


def test_hundreds_of_moves(program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path) -> None:
    moves = int(os.environ.get("SOAK_MOVES", "300"))
    seed = int(os.environ.get("SOAK_SEED", str(secrets.randbits(32))))
    print(f"SOAK_SEED={seed} SOAK_MOVES={moves}")
    expected = {
        name: native_run(program(name), args, tmp_path / name) for name, args in ARGUMENTS.items()
    }
    done = run = 0
    while done < moves:
        for name, args in ARGUMENTS.items():
            run += 1
            journey = Journey(pair, f"soak-{name}-{run}", seed + run)
            journey.here.client.launch(
                program(name).image, enclave=journey.enclave, memory_bytes=MEMORY_BYTES, args=args
            )
            while journey.here.client.status(journey.enclave)["state"] != "exited":
                journey.move(verify=True)
                done += 1
                if len(journey.moves) == 12:
                    break
            assert journey.finish() == expected[name], f"run {run} of {name}, seed {seed + run}"
            assert all(move["verified"] for move in journey.moves)
            print(f"{done} moves; run {run}, {name}: right")
