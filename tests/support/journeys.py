"""Moving a program to and fro at random instants, and comparing its answer with a native run."""

import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optmigd.bench.hosts import Host
from optmigd.bench.programs import Program
from optmigd.protocol.errors import OptmigError
from tests.support.busy import let_finish


def answer_line(output: bytes) -> str:
    """The line with which every test program ends."""
    lines = [line for line in output.decode().splitlines() if line.startswith("answer")]
    assert len(lines) == 1, f"expected one answer, found {lines}; output: {output[-500:]!r}"
    return lines[0]


def native_run(
    program: Program, args: Sequence[str], folder: Path, stdin: bytes = b""
) -> tuple[int, str]:
    """Run the program outside any enclave; return its exit status and its answer."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [program.native, *args], cwd=folder, input=stdin, capture_output=True, check=False
    )
    return done.returncode, answer_line(done.stdout)


class Journey:
    """One enclave that travels between two hosts."""

    def __init__(self, hosts: tuple[Host, Host], enclave: str, seed: int) -> None:
        self.enclave = enclave
        self.here, self.there = hosts
        self.random = random.Random(seed)
        self.moves: list[dict[str, Any]] = []
        self._travelled = False

    def move(self, longest_wait_s: float = 0.4, **options: Any) -> None:
        """Wait a random while, then move it to the other host.

        On a machine that is too busy to converge it switches over all the same: what is asked here
        is whether the right state arrives, not how fast.
        """
        time.sleep(self.random.uniform(0.0, longest_wait_s))  # the instant is what is random here
        options.setdefault("on_stall", "switch")
        moved = self.here.client.migrate(self.enclave, self.there.name, **options)
        self.moves.append(dict(moved))
        self.arrive()

    def arrive(self) -> None:
        """It is on the other host now."""
        self.here, self.there = self.there, self.here
        self._travelled = True

    def travel(self, moves: int, longest_wait_s: float = 0.3, **options: Any) -> int:
        """Move it that often, or until its program has ended; return how often it was moved.

        How far a program comes meanwhile depends on the machine, its answer does not.
        """
        for made in range(moves):
            try:
                self.move(longest_wait_s, **options)
            except OptmigError:
                if self.here.client.status(self.enclave)["state"] != "exited":
                    raise
                return made
        return moves

    def let_finish(self) -> None:
        """Let a program end that is busy until then; see `tests.support.busy`."""
        let_finish(self.here.client.status(self.enclave)["dir"])

    def finish(self) -> tuple[int, str]:
        """Wait for the program's end; return its exit status and its answer."""
        # Asked on the host it left last, if there is one: the question is passed on.
        asked = self.there if self._travelled else self.here
        status = asked.client.wait(self.enclave)["exit_status"]
        output = b"".join(asked.client.logs(self.enclave))
        assert output == b"".join(self.here.client.logs(self.enclave))
        return status, answer_line(output)
