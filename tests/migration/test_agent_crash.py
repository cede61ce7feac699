"""Agents killed at random instants of moves between two real daemons: the enclave is never lost."""

import os
import random
import secrets
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from optmigd.protocol.errors import OptmigError
from tests.conftest import BuildProgram
from tests.support.busy import BUSY, NATIVE
from tests.support.journeys import Journey, native_run

MEMORY_BYTES = 256 << 20
KILLS = 2
MOST_MOVES = 12


def newest_agent(host: Host, enclave: str) -> int | None:
    """The process of the latest agent of an enclave on a host."""
    found: list[tuple[int, Path]] = []
    for path in host.folder.glob(f"state/enclaves/{enclave}@*/agent.worker.pid"):
        with suppress(FileNotFoundError):  # its directory is being removed
            found.append((path.stat().st_mtime_ns, path))
    if not found:
        return None
    with suppress(FileNotFoundError, ValueError):
        return int(max(found)[1].read_text())
    return None


def kill_agent(host: Host, enclave: str) -> bool:
    """Kill the agent's own process, if there is one; its keeper goes on."""
    pid = newest_agent(host, enclave)
    if pid is None:
        return False
    with suppress(ProcessLookupError, FileNotFoundError):  # it has ended by itself
        if str(host.folder) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_an_agent_killed_at_a_random_instant_of_a_move_loses_nothing(
    side: str, program: BuildProgram, fresh_pair: tuple[Host, Host], tmp_path: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    built = program("integers")
    expected = native_run(built, NATIVE, tmp_path / "native")
    journey = Journey(fresh_pair, f"crash-{side}", seed)
    journey.here.client.launch(
        built.image, enclave=journey.enclave, memory_bytes=MEMORY_BYTES, args=BUSY
    )
    begun_s = time.monotonic()
    journey.move(0.0, on_stall="switch")
    length_s = time.monotonic() - begun_s  # of a move that nobody disturbs, on this machine now
    kills = 0
    for attempt in range(MOST_MOVES):
        outcome: list[str] = []

        def move(outcome: list[str] = outcome) -> None:
            try:
                journey.here.client.migrate(journey.enclave, journey.there.name, on_stall="switch")
                outcome.append("completed")
            except OptmigError as error:
                outcome.append(error.code)

        mover = threading.Thread(target=move)
        mover.start()
        time.sleep(chance.uniform(0.0, length_s))  # the instant is what is random here
        kills += kill_agent(journey.here if side == "source" else journey.there, journey.enclave)
        mover.join(120)
        assert outcome, "the move did not come to an end"
        print(f"attempt {attempt}: {outcome[0]}")
        assert outcome[0] in ("completed", "failed")
        if outcome[0] == "completed":
            journey.arrive()
        if kills >= KILLS:
            break
    assert kills, "every move had ended before its agent was killed"
    journey.move(verify=True, on_stall="switch")
    journey.let_finish()
    assert journey.finish() == expected
