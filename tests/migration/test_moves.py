"""A program moved ten times while it computes gives the answer of an uninterrupted run.

Every move compares both whole arenas while the enclave is parked (`verify`), which shows that the
tracker missed no page.
"""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from tests.conftest import BuildProgram
from tests.support.journeys import Journey, native_run

MOVES = 10
MEMORY_BYTES = 512 << 20

# Long enough that the last move still finds them at work.
ARGUMENTS = {
    "integers": ["400000000", "64"],
    "pointers": ["1200000"],
    "floats": ["27000"],
    "threads": ["4", "70000"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_ten_moves_at_random_instants(
    name: str, program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = program(name)
    expected = native_run(built, ARGUMENTS[name], tmp_path / "native")
    journey = Journey(pair, f"{name}-{seed}", seed)
    pair[0].client.launch(
        built.image, enclave=journey.enclave, memory_bytes=MEMORY_BYTES, args=ARGUMENTS[name]
    )
    for _ in range(MOVES):
        journey.move(verify=True)
    assert pair[0].client.status(journey.enclave)["state"] == "running"
    assert journey.finish() == expected
    assert [move["verified"] for move in journey.moves] == [True] * MOVES
    assert [move["owner_generation"] for move in journey.moves] == list(range(2, MOVES + 2))


def test_a_file_reader_and_writer_moves_with_its_directory(
    program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = program("files")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(secrets.token_bytes(300_000))
    stdin = tmp_path / "stdin.txt"
    stdin.write_bytes(b"first\nsecond\nthird\n")
    args = ["900000", str(outside)]
    expected = native_run(built, args, tmp_path / "native", stdin.read_bytes())
    own = tmp_path / "own"
    own.mkdir()
    journey = Journey(pair, f"files-{seed}", seed)
    pair[0].client.launch(
        built.image,
        enclave=journey.enclave,
        memory_bytes=MEMORY_BYTES,
        dir=own,
        stdin=stdin,
        args=args,
    )
    for _ in range(MOVES):
        journey.move(verify=True)
    assert journey.finish() == expected
    assert [move["verified"] for move in journey.moves] == [True] * MOVES
    written = {
        path.relative_to(tmp_path / "native"): path.read_bytes()
        for path in (tmp_path / "native").rglob("*")
        if path.is_file()
    }
    directory = pair[0].client.status(journey.enclave)["dir"]
    assert directory is not None
    last = Path(directory)
    assert written == {
        path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "argument", "moves", "longest_wait_s"),
    [
        ("signals", "150", 4, 0.1),
        ("mappings", "30000", 5, 0.2),
        ("descriptors", "15000", 6, 0.2),
        ("timers", "3", 4, 0.2),
        ("world", "200", 4, 0.2),
    ],
)
def test_signals_mappings_descriptors_and_surroundings_survive_moves(
    name: str,
    argument: str,
    moves: int,
    longest_wait_s: float,
    program: BuildProgram,
    pair: tuple[Host, Host],
    tmp_path: Path,
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    built = program(name)
    expected = native_run(built, [argument], tmp_path / "native")
    journey = Journey(pair, f"{name}-{seed}", seed)
    pair[0].client.launch(
        built.image, enclave=journey.enclave, memory_bytes=MEMORY_BYTES, args=[argument]
    )
    assert journey.travel(moves, longest_wait_s, verify=True) >= 2
    assert journey.finish() == expected


def test_a_program_that_dies_of_a_signal_after_a_move_says_so(
    program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    journey = Journey(pair, "aborts", seed=1)
    pair[0].client.launch(
        program("signals").image, enclave="aborts", memory_bytes=256 << 20, args=["60", "abort"]
    )
    journey.move(verify=True)
    status, answer = journey.finish()
    assert status == 128 + 6
    assert answer.startswith("answer alarms 120 users 60 jumps 60 early 0 backwards 0")
