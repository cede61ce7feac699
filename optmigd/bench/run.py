"""Going through the benchmark's matrix: two daemons of its own, cell by cell, resumable.

Results are written after every cell, so whatever ends a run leaves what it has measured, and the
next run with the same folder goes on there. The daemons have temporary state directories and talk
over the loopback; when the run ends, however it does, they, their agents and programs end.
"""

import datetime
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmigd.bench import machine, many, moves, results
from optmigd.bench.cells import AnyCell, ManyCell
from optmigd.bench.hosts import Host, two_hosts
from optmigd.bench.programs import build_workload
from optmigd.bench.report import write_report
from optmigd.bench.results import CellResult, ManyResult, Results, Run, Spread
from optmigd.protocol.errors import ConfigError, OptmigError
from optmigd.units import format_ms, format_size

RESULTS_NAME = "bench.json"
REPORT_NAME = "bench.html"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where the results go; `fresh`: leave earlier ones aside."""

    cells: Sequence[AnyCell]
    repeats: int
    output: Path
    fresh: bool
    options: dict[str, Any]


def run(plan: Plan, say: Say) -> tuple[Results, bool]:
    """Measure what is not yet measured.

    Args:
        plan: what.
        say: told one line for each cell.

    Returns:
        Everything in the results file, and whether Ctrl-C ended the run before its end.

    Raises:
        ConfigError: the output folder holds something else, or results of another machine.
    """
    path = plan.output / RESULTS_NAME
    here = machine.describe()
    found = None if plan.fresh else results.load(path)
    if found is not None and found.machine != here:
        raise ConfigError(
            f"{path}: expected results of this machine and this version, found those of another; "
            "choose another --output, or begin anew with --fresh",
            file=str(path),
        )
    whole = found or Results(
        schema_version=results.SCHEMA_VERSION,
        machine=here,
        runs=[],
        cells=[],
        many=[],
        left_out=[],
    )
    this_run = Run(started=_now(), options=plan.options, load_before=machine.load())
    whole.runs.append(this_run)
    interrupted = False
    try:
        _Matrix(plan, whole, path, say).go_through()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        this_run.load_after = machine.load()
        this_run.finished = _now()
        results.save(path, whole)
        write_report(plan.output / REPORT_NAME, whole)
    return whole, interrupted


class _Matrix:
    def __init__(self, plan: Plan, whole: Results, path: Path, say: Say) -> None:
        self._plan = plan
        self._whole = whole
        self._path = path
        self._say = say
        self._images: dict[tuple[str, bool], Path] = {}
        self._hosts: tuple[Host, Host] | None = None

    def go_through(self) -> None:
        repeats = self._plan.repeats
        to_do = [cell for cell in self._plan.cells if not self._whole.has(cell.key, repeats)]
        done = len(self._plan.cells) - len(to_do)
        if done:
            self._say(f"{done} of {len(self._plan.cells)} cells are measured already")
        guessed_s = took_s = 0.0
        with ExitStack() as cleanup:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="optmigd-")))
            daemons = cleanup.enter_context(ExitStack())
            for number, cell in enumerate(to_do, 1):
                outcome = self._measure(cell, folder, daemons)
                results.save(self._path, self._whole)
                if outcome.took_s:
                    took_s += outcome.took_s
                    guessed_s += cell.expected_s(repeats)
                rest_s = sum(one.expected_s(repeats) for one in to_do[number:])
                rest_s *= took_s / guessed_s if guessed_s else 1.0
                left = f"; about {format_ms(1000 * rest_s)} left" if number < len(to_do) else ""
                self._say(f"[{number}/{len(to_do)}] {cell.title}: {outcome.text}{left}")

    def _measure(self, cell: AnyCell, folder: Path, daemons: ExitStack) -> "_Outcome":
        available = machine.available_bytes()
        if cell.needed_bytes > available:
            reason = (
                f"needs {format_size(cell.needed_bytes)} of free memory for both hosts, found "
                f"{format_size(available)}"
            )
            self._whole.leave_out(cell.key, cell.title, reason)
            return _Outcome(f"left out: {reason}")
        try:
            image = self._image(cell, folder)
            if self._hosts is None:
                alpha, beta, _ = daemons.enter_context(two_hosts())
                self._hosts = alpha, beta
            started_s = time.monotonic()
            if isinstance(cell, ManyCell):
                at_once = many.measure(self._hosts, image, cell, self._plan.repeats)
                self._whole.put(at_once)
                return _Outcome(describe_many(at_once), time.monotonic() - started_s)
            result = moves.measure(self._hosts, image, cell, self._plan.repeats)
            self._whole.put(result)
            return _Outcome(describe_cell(result), time.monotonic() - started_s)
        except (OptmigError, RuntimeError, subprocess.CalledProcessError) as error:
            # The next cell gets other daemons: nothing of this one is in its way.
            self._hosts = None
            daemons.close()
            reason = f"failed: {getattr(error, 'message', error)}"
            self._whole.leave_out(cell.key, cell.title, reason)
            return _Outcome(reason)

    def _image(self, cell: AnyCell, folder: Path) -> Path:
        marks = cell.tracker == "compiler"
        if (cell.program, marks) not in self._images:
            self._say(f"building {cell.program}{' with marks' if marks else ''}")
            image = build_workload(cell.program, folder, marks=marks).image
            self._images[cell.program, marks] = image
        return self._images[cell.program, marks]


@dataclass(frozen=True)
class _Outcome:
    """One line about a cell, and how long its measurement took; 0: there was none."""

    text: str
    took_s: float = 0.0


def describe_cell(result: CellResult) -> str:
    """A cell's downtimes on one line."""
    live = Spread.of(result.downtimes_ms("precopy"))
    stopped = Spread.of(result.downtimes_ms("stop-and-copy"))
    ratio = Spread.of(result.ratios())
    return (
        f"live {format_ms(live.median)}, stop-and-copy {format_ms(stopped.median)} "
        f"({100 * ratio.median:.2f} %)"
    )


def describe_many(result: ManyResult) -> str:
    """The outcome of several at once, on one line."""
    failed = f", {len(result.failures)} FAILED" if result.failures else ""
    ratio = result.worst_ratio()
    if ratio is None:
        return f"none moved{failed}"
    worst_ms = max(move.downtime_ms for move in result.moves)
    alone = Spread.of(result.alone_ms)
    return (
        f"{len(result.moves)} of {result.enclaves} moved in {format_ms(1000 * result.wall_s)}"
        f"{failed}, longest downtime {format_ms(worst_ms)}: {ratio:.2f} of one alone "
        f"({format_ms(alone.median)}, {format_ms(alone.low)} to {format_ms(alone.high)})"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
