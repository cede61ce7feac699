"""The benchmark's matrix: what is measured, in which order, and what it needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

from optmigd.bench.suite import SUITE
from optmigd.requests import Tracker

GROUPS = ("size", "rate", "pages", "streams", "suite", "many")
"""Parts of the matrix, as `--only` names them."""
PATTERNS = ("uniform", "zipfian")
CONTENTS = ("random", "half-zero")
DEFAULT_STREAMS = 2
ENDLESS_S = "100000"
ENDLESS_WORK = 1 << 40
OVERHEAD_BYTES = 256 << 20
HEADROOM_BYTES = 1 << 30
"""What daemons, agents and the rest of the machine need beside both arenas."""


@dataclass(frozen=True)
class Cell:
    """One program that is moved to and fro.

    Attributes:
        key: names it in the results; it says all that decides over the figures.
        group: of `GROUPS`.
        title: for people.
        program: of the suite, or `writer`.
        args: the program's arguments.
        memory_bytes: of the arena.
        ready: what its output has when it is worth moving.
        size_mib, rate_mb_s, pattern, content, streams: what it stands for in plots.
        records: whether the program keeps an account of its own time.
        tracker: which finds its written pages.
    """

    key: str
    group: str
    title: str
    program: str
    args: tuple[str, ...]
    memory_bytes: int
    ready: str
    size_mib: int
    rate_mb_s: int | None
    pattern: str
    content: str
    streams: int
    records: bool
    tracker: Tracker = "auto"

    @property
    def needed_bytes(self) -> int:
        """Memory that both hosts need together while it moves."""
        return 2 * (self.size_mib << 20) + HEADROOM_BYTES

    def expected_s(self, repeats: int) -> float:
        """A first guess of how long it takes; the real speed corrects it as cells are done."""
        gib = self.size_mib / 1024
        return 3 + 3 * gib + 2 * repeats * (2 + 3 * gib)


@dataclass(frozen=True)
class ManyCell:
    """Several enclaves at once, in one direction or in both."""

    enclaves: int
    size_mib: int
    rate_mb_s: int
    directions: int
    tracker: Tracker = "auto"

    @property
    def program(self) -> str:
        """As `Cell.program`."""
        return "writer"

    @property
    def key(self) -> str:
        """As `Cell.key`."""
        key = f"many/{self.enclaves}x{self.size_mib}/{self.rate_mb_s}/{self.directions}"
        return key + _suffix(self.tracker)

    @property
    def title(self) -> str:
        """As `Cell.title`."""
        way = "in both directions" if self.directions == 2 else "in one direction"
        return (
            f"{self.enclaves} enclaves of {_size(self.size_mib)} at once {way}, "
            f"{self.rate_mb_s} MB/s each{_words(self.tracker)}"
        )

    @property
    def needed_bytes(self) -> int:
        """As `Cell.needed_bytes`."""
        return (2 * self.size_mib + 256) * self.enclaves * (1 << 20) + HEADROOM_BYTES

    def expected_s(self, repeats: int) -> float:
        """As `Cell.expected_s`."""
        gib = self.enclaves * self.size_mib / 1024
        return 5 + 6 * gib + 2 * repeats


AnyCell = Cell | ManyCell


@dataclass(frozen=True)
class Choice:
    """How large a matrix: sizes in MiB, dirty rates in MB/s of 10^6 bytes.

    `base_mib` is the size at which rates, contents and streams are varied.
    """

    sizes_mib: Sequence[int]
    rates_mb_s: Sequence[int]
    streams: Sequence[int]
    base_mib: int
    suite: Sequence[str]
    suite_large: bool
    many: ManyCell
    tracker: Tracker = "auto"


FULL = Choice(
    sizes_mib=(512, 1024, 2048, 4096, 8192),
    rates_mb_s=(0, 50, 200, 500),
    streams=(1, 2, 4),
    base_mib=1024,
    suite=tuple(item.name for item in SUITE if item.source != "writer.c"),
    suite_large=True,
    many=ManyCell(8, 512, 20, 1),
)
QUICK = Choice(
    sizes_mib=(256, 512, 1024),
    rates_mb_s=(0, 200),
    streams=(1, 2),
    base_mib=256,
    suite=("hashjoin",),
    suite_large=False,
    many=ManyCell(4, 128, 20, 1),
)


def matrix(choice: Choice, only: Iterable[str] = GROUPS) -> list[AnyCell]:
    """Return the cells of a choice, those of the smallest need first within each part."""
    wanted = set(only)
    cells: list[AnyCell] = []
    if "size" in wanted:
        cells += [writer("size", size, 200) for size in choice.sizes_mib]
    if "rate" in wanted:
        cells += [
            writer("rate", choice.base_mib, rate, pattern=pattern)
            for pattern in PATTERNS
            for rate in choice.rates_mb_s
            if rate or pattern == "uniform"
        ]
    if "pages" in wanted:
        cells += [writer("pages", choice.base_mib, 200, content=content) for content in CONTENTS]
    if "streams" in wanted:
        cells += [writer("streams", choice.base_mib, 0, streams=count) for count in choice.streams]
    if "suite" in wanted:
        cells += [_of_suite(name, large=choice.suite_large) for name in choice.suite]
    if "many" in wanted:
        one = choice.many
        cells += [
            ManyCell(one.enclaves, one.size_mib, one.rate_mb_s, directions) for directions in (1, 2)
        ]
    return [tracked_by(cell, choice.tracker) for cell in cells]


@overload
def tracked_by(cell: Cell, tracker: Tracker) -> Cell: ...
@overload
def tracked_by(cell: ManyCell, tracker: Tracker) -> ManyCell: ...
def tracked_by(cell: AnyCell, tracker: Tracker) -> AnyCell:
    """The same with that tracker, which is a cell of its own unless the tracker is the default."""
    if isinstance(cell, ManyCell):
        return replace(cell, tracker=tracker)
    key, title = cell.key + _suffix(tracker), cell.title + _words(tracker)
    return replace(cell, key=key, title=title, tracker=tracker)


def writer(
    group: str,
    size_mib: int,
    rate_mb_s: int,
    *,
    pattern: str = "uniform",
    content: str = "random",
    streams: int = DEFAULT_STREAMS,
) -> Cell:
    """The random writer: `rate_mb_s` in 10^6 bytes of pages written a second."""
    written = f"{rate_mb_s} MB/s {pattern}" if rate_mb_s else "at rest"
    more = ", every second page zero" if content == "half-zero" else ""
    if group == "streams":
        more += f", {streams} stream{'s' if streams > 1 else ''}"
    return Cell(
        key=f"{group}/{size_mib}/{rate_mb_s}/{pattern}/{content}/{streams}",
        group=group,
        title=f"{_size(size_mib)}, {written}{more}",
        program="writer",
        args=(str(size_mib), str(rate_mb_s), ENDLESS_S, pattern, content, "record"),
        memory_bytes=(size_mib << 20) + OVERHEAD_BYTES,
        ready="filled",
        size_mib=size_mib,
        rate_mb_s=rate_mb_s,
        pattern=pattern,
        content=content,
        streams=streams,
        records=True,
    )


def _of_suite(name: str, *, large: bool) -> Cell:
    item = {one.name: one for one in SUITE}[name]
    size = item.large if large else item.small
    words = (word.format(mib=size.mib, work=ENDLESS_WORK) for word in item.words)
    return Cell(
        key=f"suite/{name}/{size.mib}",
        group="suite",
        title=f"{name}, {_size(size.mib)}",
        program=name,
        args=tuple(words),
        memory_bytes=item.memory_bytes(size),
        ready=item.ready,
        size_mib=size.mib,
        rate_mb_s=None,
        pattern=name,
        content="its own",
        streams=DEFAULT_STREAMS,
        records=False,
    )


def _suffix(tracker: Tracker) -> str:
    return "" if tracker == "auto" else f"/{tracker}"


def _words(tracker: Tracker) -> str:
    return "" if tracker == "auto" else f", {tracker} tracker"


def _size(size_mib: int) -> str:
    return f"{size_mib / 1024:g} GiB" if size_mib >= 1024 else f"{size_mib} MiB"
