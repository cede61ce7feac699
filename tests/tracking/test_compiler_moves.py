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


@pytest.mark.timeout(600)  # the first build compiles libc
@pytest.mark.parametrize(
    ("name", "arguments", "moves"),
    [
        # every way in which a C program can write memory
        ("stores", ["9000", "{seed}", "1000"], 4),
        # exceptions, containers, streams and threads of the C++ library
        ("objects.cc", ["200000"], 3),
        pytest.param("threads", ["4", "70000"], 10, marks=pytest.mark.soak),
        pytest.param("integers", ["400000000", "64"], 10, marks=pytest.mark.soak),
        pytest.param("floats", ["27000"], 10, marks=pytest.mark.soak),
        pytest.param("stores", ["60000", "{seed}", "1000"], 100, marks=pytest.mark.soak),
    ],
)
def test_moves_under_the_compiler_tracker(
    name: str, arguments: list[str], moves: int, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    arguments = [one.format(seed=seed) for one in arguments]
    source = PROGRAMS / (name if "." in name else f"{name}.c")
    built = build(source, tmp_path, "-pthread", "-w", marks=True)
    expected = native_run(built, arguments, tmp_path / "native")
    journey = Journey(pair, f"{source.stem}-{seed}", seed)
    launched = pair[0].client.launch(
        built.image,
        enclave=journey.enclave,
        memory_bytes=512 << 20,
        args=arguments,
        tracker="compiler",
    )
    assert launched["tracker"] == "compiler"
    assert journey.travel(moves, 0.1, verify=True) >= 2
    assert journey.finish() == expected
    assert all(move["verified"] for move in journey.moves)
