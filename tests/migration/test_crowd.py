"""Sixty-four threads that wait in every way there is, moved: no wake-up is lost or made up.

Once they wait most of the time; once more of them compute than there are processors, so that a move
also stops them with a lock half taken, or as they begin and end.
"""

import secrets
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from tests.conftest import BuildProgram
from tests.support.journeys import Journey, answer_line, native_run

THREADS = 64
MEMORY_BYTES = 1 << 30  # their stacks are 8 MiB each
WAYS: dict[str, list[str]] = {"waiting": [], "computing": ["busy"]}


@pytest.mark.parametrize("way", WAYS)
def test_a_crowd_that_nobody_moves_answers_as_natively(
    way: str, program: BuildProgram, pair: tuple[Host, Host], tmp_path: Path
) -> None:
    args = [str(THREADS), "30", *WAYS[way]]
    expected = native_run(program("crowd"), args, tmp_path / "native")
    client = pair[0].client
    enclave = f"at-home-{way}"
    client.launch(program("crowd").image, enclave=enclave, memory_bytes=MEMORY_BYTES, args=args)
    status = client.wait(enclave)["exit_status"]
    assert (status, answer_line(b"".join(client.logs(enclave)))) == expected


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moves", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_sixty_four_threads_moved(
    moves: int, way: str, program: BuildProgram, fresh_pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    own = tmp_path / "own"
    own.mkdir()
    journey = Journey(fresh_pair, f"crowd-{way}-{seed}", seed)
    journey.here.client.launch(
        program("crowd").image,
        enclave=journey.enclave,
        memory_bytes=MEMORY_BYTES,
        args=[str(THREADS), "0", *WAYS[way]],
        dir=own,
    )
    for number in range(moves):
        # Verifying reads the whole arena while the program stands still: the last time only.
        journey.move(0.1, verify=number + 1 == moves)
    assert journey.moves[-1]["verified"]
    (Path(journey.here.client.status(journey.enclave)["dir"] or own) / "stop").touch()
    assert journey.finish() == (0, f"answer: every wait of {THREADS} threads was answered")
