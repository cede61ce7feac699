"""A program that is busy for exactly as long as a test needs it.

A fixed amount of work, or of time, is over too soon on some machine, before the test has done to
the program what it wanted to do. So `integers` does a little that decides on its answer, and goes
on with what does not until it finds a file in its own directory. A native run waits for none.
"""

from pathlib import Path

UPDATES = "20000000"
TABLE_MIB = "8"
FILE = "finish"

BUSY = (UPDATES, TABLE_MIB, FILE)
"""Arguments of `integers` in an enclave."""
NATIVE = (UPDATES, TABLE_MIB)
"""Those of a native run with the same answer."""


def let_finish(own_dir: Path) -> None:
    """Let a busy program end; `own_dir` is its directory on the host where it runs."""
    (own_dir / FILE).touch()
