"""A program that is busy for exactly as long as a test needs it.

A fixed amount of work, or of time, is over too soon on some machine, before the test has done to
the program what it wanted to do. So `integers` does a little that decides on its answer, and goes
on with what does not until it finds a file in its own directory. A native run waits for none.
"""

import subprocess
from pathlib import Path

from optmigd.bench.programs import Program
from tests.support.agents import AgentHandle

EXIT_STATUS = 7
UPDATES = "20000000"
TABLE_MIB = "8"
FILE = "finish"

BUSY = (UPDATES, TABLE_MIB, FILE)
"""Arguments of `integers` in an enclave."""
NATIVE = (UPDATES, TABLE_MIB)
"""Those of a native run with the same answer."""


def native_output(integers: Program) -> bytes:
    """What an uninterrupted native run prints."""
    run = subprocess.run([integers.native, *NATIVE], check=False, stdout=subprocess.PIPE)
    assert run.returncode == EXIT_STATUS
    return run.stdout


def let_finish(own_dir: str | Path | None) -> None:
    """Let a busy program end; `own_dir` is its directory on the host where it runs."""
    assert own_dir is not None
    (Path(own_dir) / FILE).touch()


async def ends_rightly(agent: AgentHandle, answer: bytes) -> None:
    """Let the agent's busy program end: it has printed what a native run prints."""
    let_finish(agent.directory / "own")
    assert (await agent.wait_event("exited"))["exit_status"] == EXIT_STATUS
    assert agent.output() == answer
