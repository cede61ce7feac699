"""What a program itself shows: its answer, and its ledger if it keeps one (`ledger.c`)."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optmigd.bench.programs import Program
from tests.support.journeys import answer_line

LINE_BYTES = 24
EXIT_STATUS = 7


@dataclass(frozen=True)
class Ledger:
    """The shared folder of one enclave: where it writes, and the file that ends it."""

    folder: Path

    @property
    def path(self) -> Path:
        """A line for each step."""
        return self.folder / "ledger"

    @property
    def stop(self) -> Path:
        """The program ends when this exists."""
        return self.folder / "stop"

    def arguments(self, nap_us: int = 1000) -> list[str]:
        """The program's arguments; it pauses so long after each step."""
        return [str(self.path), str(self.stop), str(nap_us)]

    def steps(self) -> int:
        """How many lines there are."""
        try:
            return self.path.stat().st_size // LINE_BYTES
        except FileNotFoundError:
            return 0

    def fault(self) -> str:
        """What is wrong with the lines: empty unless a step is there twice or missing."""
        if not self.path.exists():
            return "the program has written nothing"
        content = self.path.read_bytes()
        if len(content) % LINE_BYTES:
            return f"a torn line: {len(content)} bytes"
        found = np.frombuffer(content, dtype=np.uint64).reshape(-1, 3)[:, 0]
        expected = np.arange(1, len(found) + 1, dtype=np.uint64)
        wrong = np.flatnonzero(found != expected)
        if not len(wrong):
            return ""
        first = int(wrong[0])
        return f"line {first + 1} is step {int(found[first])}: two instances ran, or one went back"

    def longest_pause_ms(self, first: int, last: int) -> float:
        """The program's longest pause between two steps from line `first` to line `last`."""
        content = np.frombuffer(self.path.read_bytes(), dtype=np.uint64).reshape(-1, 3)
        times = content[first:last, 2].astype(np.int64)
        return float(np.diff(times).max()) * 1e-6


class LedgerWork:
    """The program that keeps a ledger, and ends when it is told to."""

    name = "ledger"
    exit_status = EXIT_STATUS

    def __init__(self, program: Program) -> None:
        self.program = program

    def arguments(self, ledger: Ledger) -> list[str]:
        """The program's arguments."""
        return ledger.arguments()

    def answer(self, ledger: Ledger) -> str:
        """The answer of an uninterrupted native run of as many steps as the ledger has."""
        native = [str(self.program.native), str(ledger.steps())]
        done = subprocess.run(native, capture_output=True, check=False)
        assert done.returncode == EXIT_STATUS
        return answer_line(done.stdout)


class PlainWork:
    """Any other test program: it computes for a while, answers and ends."""

    def __init__(
        self, name: str, program: Program, arguments: list[str], expected: tuple[int, str]
    ) -> None:
        """Remember what an uninterrupted native run gave: exit status and answer."""
        self.name = name
        self.program = program
        self._arguments = arguments
        self.exit_status, self._answer = expected

    def arguments(self, _ledger: Ledger) -> list[str]:
        """The program's arguments."""
        return self._arguments

    def answer(self, _ledger: Ledger) -> str:
        """The native run's answer."""
        return self._answer


Work = LedgerWork | PlainWork
