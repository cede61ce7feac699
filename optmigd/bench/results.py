"""What a benchmark has measured, as it is written down: `optmigctl bench --schema` prints the form.

Everything is kept move by move, so that medians, spreads and plots can be made anew from the file.
Times of the program itself (pauses, its time line) are those that the program has seen; the
others are what the migration reports.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from optmigd.protocol.errors import ConfigError
from optmigd.units import format_ms

SCHEMA_VERSION = 1

ModeName = Literal["precopy", "stop-and-copy"]


class _Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An object of the results."""


class Machine(_Record):
    """Where it was measured; memory in bytes."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    optmigd: str
    platform: str


class Run(_Record):
    """One call of the benchmark; results may come from several. Loads are of the last minute."""

    started: str
    options: dict[str, Any]
    load_before: float
    load_after: float | None = None
    finished: str | None = None


class Round(_Record):
    """One round; `bytes` on the wire."""

    round_no: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ms: float


class Move(_Record):
    """One migration; `program_pause_ms`: the longest pause that the program saw, if it tells.

    `converged`: whether the downtime limit was met, throttled if need be. If not, it was moved by
    the strategy `switch`.
    """

    mode: ModeName
    converged: bool
    downtime_ms: float
    program_pause_ms: float | None
    setup_time_ms: float
    total_time_ms: float
    transferred_bytes: int
    rounds: list[Round]
    downtime_parts_ms: dict[str, float]


class Sample(_Record):
    """The program's own account of a tenth of a second, in seconds since its first write."""

    at_s: float
    pages: int
    longest_pause_ms: float


class Mark(_Record):
    """Between which instants of the program's time a migration ran."""

    mode: ModeName
    begin_s: float
    end_s: float


class CellResult(_Record):
    """One program, moved in both modes in turn."""

    key: str
    group: str
    title: str
    size_mib: int
    rate_mb_s: int | None
    pattern: str
    content: str
    streams: int
    moves: list[Move]
    agent_bytes: int
    daemon_bytes: int
    samples: list[Sample]
    marks: list[Mark]

    def of_mode(self, mode: ModeName) -> list[Move]:
        """The moves in one mode, in order."""
        return [move for move in self.moves if move.mode == mode]

    def downtimes_ms(self, mode: ModeName) -> list[float]:
        """The downtime of each move in one mode."""
        return [move.downtime_ms for move in self.of_mode(mode)]

    def ratios(self) -> list[float]:
        """Live downtime over that of stop-and-copy, pair by pair in the order of measurement."""
        live, stopped = self.downtimes_ms("precopy"), self.downtimes_ms("stop-and-copy")
        return [mine / theirs for mine, theirs in zip(live, stopped, strict=False) if theirs]


class ManyMove(_Record):
    """One of several migrations at once."""

    source: str
    downtime_ms: float
    total_time_ms: float
    queued_time_ms: float


class ManyResult(_Record):
    """Several enclaves moved at once, and one of the same kind moved alone in the same run."""

    key: str
    title: str
    enclaves: int
    size_mib: int
    rate_mb_s: int
    directions: int
    alone_ms: list[float]
    moves: list[ManyMove]
    wall_s: float
    failures: list[str]

    def worst_ratio(self) -> float | None:
        """The longest downtime at once over the median of one alone."""
        if not self.moves or not self.alone_ms:
            return None
        return max(move.downtime_ms for move in self.moves) / statistics.median(self.alone_ms)


class LeftOut(_Record):
    """What was not measured, and why."""

    key: str
    title: str
    reason: str


class Results(_Record):
    """All of a results file."""

    schema_version: int
    machine: Machine
    runs: list[Run]
    cells: list[CellResult]
    many: list[ManyResult]
    left_out: list[LeftOut]

    def has(self, key: str, repeats: int) -> bool:
        """Whether a cell was measured with at least so many moves in each mode."""
        for cell in self.cells:
            if cell.key == key:
                return min(len(cell.of_mode("precopy")), len(cell.of_mode("stop-and-copy"))) >= (
                    repeats
                )
        return any(many.key == key for many in self.many)

    def put(self, result: CellResult | ManyResult) -> None:
        """Add a result in place of an earlier one of the same key."""
        self.left_out = [left for left in self.left_out if left.key != result.key]
        if isinstance(result, CellResult):
            self.cells = [cell for cell in self.cells if cell.key != result.key] + [result]
        else:
            self.many = [many for many in self.many if many.key != result.key] + [result]

    def leave_out(self, key: str, title: str, reason: str) -> None:
        """Note what could not be measured."""
        kept = [left for left in self.left_out if left.key != key]
        self.left_out = [*kept, LeftOut(key=key, title=title, reason=reason)]


class Spread(msgspec.Struct, frozen=True):
    """Median, smallest and largest of some values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    @property
    def ms(self) -> str:
        """As text, where they are milliseconds."""
        return f"{format_ms(self.median)} ({format_ms(self.low)} to {format_ms(self.high)})"


def schema() -> dict[str, Any]:
    """The JSON Schema of a results file."""
    return msgspec.json.schema(Results)


def load(path: Path) -> Results | None:
    """Read a results file; None where there is none.

    Raises:
        ConfigError: it is something else, or of another version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        results = msgspec.json.decode(content, type=Results)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path}: expected the results of `optmigctl bench`: {error}; choose another --output, "
            "or begin anew with --fresh",
            file=str(path),
        ) from error
    if results.schema_version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: expected results of version {SCHEMA_VERSION}, found "
            f"{results.schema_version}; begin anew with --fresh",
            file=str(path),
        )
    return results


def save(path: Path, results: Results) -> None:
    """Write a results file; whoever reads it meanwhile sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    fresh.replace(path)
