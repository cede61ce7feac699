"""Programs that mark their own writes are moved by these marks alone, and nothing is missing.

Every move compares both whole arenas while the enclave is parked (`verify`).
"""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.bench.programs import build
from tests.conftest import PROGRAMS
from tests.support.journeys import Journey, native_run

# Long enough that the last move still finds them at work.
ARGUMENTS = {
    "integers": ["400000000", "64"],
    "floats": ["27000"],
    "threads": ["4", "70000"],
}
MOVES = 4


@pytest.mark.parametrize("name", ARGUMENTS)
def test_moves_under_the_compiler_tracker(
    name: str, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = build(PROGRAMS / f"{name}.c", tmp_path, "-pthread", marks=True)
    expected = native_run(built, ARGUMENTS[name], tmp_path / "native")
    journey = Journey(pair, f"{name}-{seed}", seed)
    launched = pair[0].client.launch(
        built.image,
        enclave=journey.enclave,
        memory_bytes=512 << 20,
        args=ARGUMENTS[name],
        tracker="compiler",
    )
    assert launched["tracker"] == "compiler"
    for _ in range(MOVES):
        journey.move(verify=True)
    assert journey.here.client.status(journey.enclave)["tracker"] == "compiler"
    assert journey.finish() == expected
    assert [move["verified"] for move in journey.moves] == [True] * MOVES
