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


class Move:
    """A move under way, seen from one side: its agent there, and how it ends."""

    def __init__(self, journey: Journey, side: str) -> None:
        self.outcome: str | None = None
        self._journey = journey
        self._host = journey.here if side == "source" else journey.there
        # The destination starts an agent for the move; the source has had its own all along.
        self._old = None if side == "source" else newest_agent(self._host, journey.enclave)
        self._mover = threading.Thread(target=self._move)
        self._mover.start()

    def _move(self) -> None:
        journey = self._journey
        try:
            journey.here.client.migrate(journey.enclave, journey.there.name, on_stall="switch")
            self.outcome = "completed"
        except OptmigError as error:
            self.outcome = error.code

    def agent(self) -> int | None:
        """The agent's process as soon as there is one; none when the move ended before."""
        while True:
            under_way = self._mover.is_alive()
            pid = newest_agent(self._host, self._journey.enclave)
            if pid is not None and pid != self._old:
                return pid
            if not under_way:
                return None
            time.sleep(0.001)

    def kill(self, pid: int) -> bool:
        """Kill the agent's own process, if it is there still; its keeper goes on."""
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended by itself
            if str(self._host.folder) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def end(self) -> str:
        """Wait for the move's end; how it ended."""
        self._mover.join(120)
        assert self.outcome is not None, "the move did not come to an end"
        return self.outcome


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
    undisturbed = Move(journey, side)
    assert undisturbed.agent() is not None
    seen_s = time.monotonic()
    assert undisturbed.end() == "completed"
    length_s = time.monotonic() - seen_s  # of the agent's part in a move, on this machine now
    journey.arrive()
    kills = 0
    for attempt in range(MOST_MOVES):
        move = Move(journey, side)
        pid = move.agent()
        time.sleep(chance.uniform(0.0, length_s))  # the instant is what is random here
        kills += pid is not None and move.kill(pid)
        outcome = move.end()
        print(f"attempt {attempt}: {outcome}, {kills} killed")
        assert outcome in ("completed", "failed")
        if outcome == "completed":
            journey.arrive()
        if kills >= KILLS:
            break
    assert kills, "every move had ended before its agent was killed"
    journey.move(verify=True, on_stall="switch")
    journey.let_finish()
    assert journey.finish() == expected
