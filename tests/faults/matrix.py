"""`make crash-matrix`: every boundary of a real migration x every fault, as a table.

Environment:
    CRASH_MATRIX_FILTER: a regular expression; only cells whose name matches are run.
    CRASH_MATRIX_WORKERS: how many cells run at the same time (default 2).
    CRASH_MATRIX_SEED: run the cells in a random order, of this seed.
    CRASH_MATRIX_MINUTES: begin no cell after so long.
    CRASH_MATRIX_RESUME=1: leave out what an earlier run has found to be right, and keep it in the
        table. Results are written after every cell.
"""

import json
import os
import queue
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from optmigd.bench.programs import build
from tests.faults.cells import FAULTS, Cell, run_cell, trace_of
from tests.faults.evidence import LedgerWork, Work
from tests.faults.gate import Boundary
from tests.faults.hosts import Faulty, faulty_hosts

PROGRAM = Path(__file__).parents[1] / "support/programs/ledger.c"
RESULTS = Path("bench-results")
CELLS_PER_PAIR = 25
"""After so many cells a worker starts two new daemons, so that no file or memory piles up."""

SHORT = {
    "kill daemon alpha": "KDs",
    "kill daemon beta": "KDd",
    "kill agent alpha": "KAs",
    "kill agent beta": "KAd",
    "kill program alpha": "KPs",
    "kill program beta": "KPd",
    "cut link": "CL",
    "cut data": "CD",
    "freeze daemon alpha": "FDs",
    "freeze daemon beta": "FDd",
    "freeze agent alpha": "FAs",
    "freeze agent beta": "FAd",
    "full alpha": "DFs",
    "full beta": "DFd",
}

Task = tuple[Boundary, tuple[str, ...]]


class Workplace:
    """Two hosts that serve one cell after the other, and are renewed now and then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._hosts: Faulty | None = None
        self._served = 0
        self._pairs = 0

    def hosts(self) -> Faulty:
        """The hosts for the next cell."""
        if self._hosts is None or self._served >= CELLS_PER_PAIR:
            self.discard()
            self._pairs += 1
            folder = self._folder / str(self._pairs)
            folder.mkdir(parents=True)
            # An agent that was killed a moment ago may still be on its way out of its directory.
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._hosts = self._stack.enter_context(faulty_hosts(folder))
        self._served += 1
        return self._hosts

    def keep_logs(self, where: Path) -> None:
        """Copy what daemons and agents have logged."""
        assert self._hosts is not None
        for path in self._hosts.folder.rglob("*"):
            if path.name in ("daemon.log", "agent.log", "agent.err"):
                target = where / path.relative_to(self._hosts.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)

    def discard(self) -> None:
        """End the hosts."""
        stack, self._stack, self._hosts, self._served = self._stack, ExitStack(), None, 0
        stack.close()


def boundaries_of(folder: Path, work: Work) -> list[Boundary]:
    """The boundaries of an undisturbed migration: the first of each, in their order."""
    workplace = Workplace(folder)
    try:
        trace = trace_of(workplace.hosts(), work, "undisturbed")
    finally:
        workplace.discard()
    return list(dict.fromkeys(Boundary(b.host, b.kind, b.name) for b in trace))


def run_cells(
    folder: Path,
    work: Work,
    tasks: Sequence[Task],
    workers: int,
    results: Path,
    keep: Callable[[Cell], None] = lambda cell: None,
    minutes: float = float("inf"),
) -> list[Cell]:
    """Run cells, some at the same time; those that break a rule leave their logs in `results`.

    Args:
        folder: for the hosts, with a short path.
        work: what moves.
        tasks: boundaries and faults.
        workers: how many at the same time.
        results: for the logs of daemons and agents.
        keep: called after each cell, by one thread at a time.
        minutes: begin no cell after so long.
    """
    until_s = time.monotonic() + 60 * minutes
    todo: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
    for number, task in enumerate(tasks):
        todo.put((number, task))
    done: list[Cell] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def serve(worker: int) -> None:
        workplace = Workplace(folder / f"w{worker}")
        try:
            while not errors and time.monotonic() < until_s:
                try:
                    number, (boundary, faults) = todo.get_nowait()
                except queue.Empty:
                    return
                cell = run_cell(workplace.hosts(), work, f"c{number}", boundary, faults)
                with lock:
                    done.append(cell)
                    keep(cell)
                    said = "; ".join(cell.violations) or "ok"
                    print(
                        f"[{len(done)}/{len(tasks)}] {cell.name}: {cell.outcome} "
                        f"(caller: {cell.caller or '-'}; settled in {cell.settle_s:.1f} s, "
                        f"{cell.total_s:.1f} s in all) {said}",
                        flush=True,
                    )
                if cell.violations:
                    workplace.keep_logs(results / "crash-matrix-logs" / f"c{number}")
                    workplace.discard()
        except BaseException as error:
            errors.append(error)
        finally:
            workplace.discard()

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as error:
        errors.append(error)  # the cells under way are brought to their end
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return done


def table(cells: Sequence[Cell], boundaries: Sequence[Boundary]) -> str:
    """One row a boundary, in their order, one column a fault; see docs/crash-matrix.md."""
    order = {boundary: number for number, boundary in enumerate(boundaries)}
    rows: dict[Boundary, dict[str, str]] = {}
    for cell in cells:
        mark = {"dead": "x", "not reached": "?"}.get(cell.outcome, cell.outcome)
        if cell.violations:
            mark += "!"
        rows.setdefault(cell.boundary, {})["+".join(cell.faults)] = mark
    rows = dict(sorted(rows.items(), key=lambda row: order.get(row[0], len(order))))
    columns = [fault for fault in FAULTS if any(fault in row for row in rows.values())]
    width = max(len(str(boundary)) for boundary in rows)
    lines = [" " * width + "".join(f"{SHORT[fault]:>5}" for fault in columns)]
    for boundary, row in rows.items():
        marks = "".join(f"{row.get(fault, ''):>5}" for fault in columns)
        lines.append(f"{boundary!s:<{width}}{marks}")
    return "\n".join(lines)


class Results:
    """The cells so far, on disk: a run that is ended early has its results."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._begun_s = time.monotonic()
        self._took_s = 0.0
        self.cells: dict[tuple[Boundary, tuple[str, ...]], Cell] = {}
        if resume and path.exists():
            earlier = json.loads(path.read_text())
            self._took_s = earlier["took_s"]
            for found in earlier["cells"]:
                boundary, faults = Boundary(**found.pop("boundary")), tuple(found.pop("faults"))
                self.cells[(boundary, faults)] = Cell(boundary, faults, **found)

    @property
    def took_s(self) -> float:
        """The time of all runs together."""
        return self._took_s + time.monotonic() - self._begun_s

    def right(self, task: Task) -> bool:
        """Whether this cell was run and broke no rule."""
        return task in self.cells and not self.cells[task].violations

    def keep(self, cell: Cell) -> None:
        """Add a cell, and write all."""
        self.cells[(cell.boundary, cell.faults)] = cell
        content = {"took_s": self.took_s, "cells": [asdict(c) for c in self.cells.values()]}
        self._path.write_text(json.dumps(content, indent=1))


def main() -> int:
    """Run the matrix; 0 if no cell broke a rule."""
    wanted = re.compile(os.environ.get("CRASH_MATRIX_FILTER", ""))
    workers = int(os.environ.get("CRASH_MATRIX_WORKERS", "2"))
    minutes = float(os.environ.get("CRASH_MATRIX_MINUTES", "inf"))
    RESULTS.mkdir(exist_ok=True)
    resume = bool(os.environ.get("CRASH_MATRIX_RESUME"))
    results = Results(RESULTS / "crash-matrix.json", resume=resume)
    with tempfile.TemporaryDirectory(prefix="optmigd-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = LedgerWork(build(PROGRAM, folder))
        boundaries = boundaries_of(folder / "b", work)
        every = [(boundary, (fault,)) for boundary in boundaries for fault in FAULTS]
        tasks = [t for t in every if wanted.search(f"{t[0]} x {t[1][0]}") and not results.right(t)]
        if seed := os.environ.get("CRASH_MATRIX_SEED"):
            random.Random(int(seed)).shuffle(tasks)
        print(f"{len(boundaries)} boundaries x {len(FAULTS)} faults = {len(every)} cells; ", end="")
        print(f"{len(tasks)} of them now", flush=True)
        run_cells(folder, work, tasks, workers, RESULTS, results.keep, minutes)
    cells = list(results.cells.values())
    if not cells:
        print("no cell has such a name")
        return 2
    text = table(cells, boundaries)
    broken = [cell for cell in cells if cell.violations]
    applied = [cell for cell in cells if cell.outcome != "-"]
    print(text)
    print(f"{len(cells)} cells, {len(applied)} with a fault that found something to harm; ", end="")
    print(f"{len(broken)} broke a rule; {results.took_s:.0f} s in all")
    for cell in broken:
        print(f"  {cell.name}: {'; '.join(cell.violations)}")
    (RESULTS / "crash-matrix.txt").write_text(text + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
