"""The benchmark's report: one HTML file that needs nothing else, for a screen or for paper."""

from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from optmigd.bench import plots
from optmigd.bench.plots import Bar, Point, Series
from optmigd.bench.results import CellResult, ManyResult, ModeName, Move, Results, Spread
from optmigd.units import format_ms, format_rate, format_size

PAGE_BYTES = 4096
MODE_NAMES: dict[ModeName, str] = {"precopy": "live", "stop-and-copy": "stop-and-copy"}
BUSY_LOAD = 1.0
"""A machine on which as much ran before the benchmark began is not quiet."""

_Value = Callable[[Move], float]


def write_report(path: Path, results: Results) -> None:
    """Write the report of everything in the results."""
    path.write_text(page(results), encoding="utf-8")


def page(results: Results) -> str:
    """The report as HTML, which is well-formed XML too."""
    style = resources.files("optmigd.bench").joinpath("report.css").read_text("utf-8")
    drawn = "".join(figure for figure in _figures(results) if figure)
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head>'
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>optmigd: benchmark</title><style>{style}</style></head><body>"
        f"<h1>optmigd: live migration against stop-and-copy</h1>{_machine(results)}"
        f"{_cells(results.cells)}{_many(results.many)}"
        f'<h2>Plots</h2><div class="plots">{drawn}</div>'
        f"{_left_out(results)}{_explanation()}</body></html>\n"
    )


def _machine(results: Results) -> str:
    here = results.machine
    runs = "".join(
        f"<li>{escape(run.started)}: load {run.load_before:.1f} before"
        + ("" if run.load_after is None else f", {run.load_after:.1f} after")
        + (" (<strong>the machine was not quiet</strong>)" if run.load_before > BUSY_LOAD else "")
        + "</li>"
        for run in results.runs
    )
    return (
        f'<p class="note">{escape(here.cpu)}, {here.cores} cores, '
        f"{format_size(here.memory_bytes)}, Linux {escape(here.kernel)}, Python "
        f"{escape(here.python)}, optmigd {escape(here.optmigd)}, platform {escape(here.platform)}; "
        "both hosts on this machine, over the loopback</p>"
        f"<ul>{runs}</ul>"
    )


def _cells(cells: Sequence[CellResult]) -> str:
    if not cells:
        return ""
    headings = (
        *("program", "live downtime", "as the program saw it", "stop-and-copy", "ratio"),
        *("spread of the ratio", "total live", "total stop-and-copy"),
    )
    rows = []
    for cell in cells:
        live, stopped = cell.of_mode("precopy"), cell.of_mode("stop-and-copy")
        ratio = Spread.of(cell.ratios())
        seen = [move.program_pause_ms for move in live if move.program_pause_ms is not None]
        strays = sum(not move.converged for move in live)
        note = f" ({strays} of {len(live)} did not converge)" if strays else ""
        rows.append(
            (
                cell.title + note,
                Spread.of(cell.downtimes_ms("precopy")).ms,
                Spread.of(seen).ms if seen else "-",
                Spread.of(cell.downtimes_ms("stop-and-copy")).ms,
                f"{100 * ratio.median:.2f} %",
                f"{100 * ratio.low:.2f} to {100 * ratio.high:.2f} %",
                Spread.of([move.total_time_ms for move in live]).ms,
                Spread.of([move.total_time_ms for move in stopped]).ms,
            )
        )
    return f"<h2>Downtime and total time</h2>{_table(headings, rows)}"


def _many(results: Sequence[ManyResult]) -> str:
    if not results:
        return ""
    headings = (
        *("what", "moved", "one alone", "at once", "longest / one alone"),
        *("time for all", "waited in the queue", "failures"),
    )
    rows = []
    for one in results:
        ratio = one.worst_ratio()
        rows.append(
            (
                one.title,
                f"{len(one.moves)} of {one.enclaves}",
                Spread.of(one.alone_ms).ms if one.alone_ms else "-",
                Spread.of([move.downtime_ms for move in one.moves]).ms if one.moves else "-",
                "-" if ratio is None else f"{ratio:.2f}",
                format_ms(1000 * one.wall_s),
                Spread.of([move.queued_time_ms for move in one.moves]).ms if one.moves else "-",
                "; ".join(one.failures) or "none",
            )
        )
    return f"<h2>Many at once</h2>{_table(headings, rows)}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(
        f'<th class="figure">{escape(text)}</th>' if index else f"<th>{escape(text)}</th>"
        for index, text in enumerate(headings)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="figure">{escape(text)}</td>' if index else f"<td>{escape(text)}</td>"
            for index, text in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _left_out(results: Results) -> str:
    if not results.left_out:
        return ""
    items = "".join(
        f"<li>{escape(left.title)}: {escape(left.reason)}</li>" for left in results.left_out
    )
    return f"<h2>Not measured</h2><ul>{items}</ul>"


def _explanation() -> str:
    return (
        '<h2>How it was measured</h2><p class="note">Each program was moved to and fro, live and '
        "by stop-and-copy in turn, in one run. Figures are medians, with the smallest and largest "
        "value; a ratio is taken pair by pair. Downtime is what the source measures from the last "
        "instruction there to the confirmation that the program runs; what the program saw is the "
        "longest pause in its own account, which also holds whatever else held it up while "
        "it was moved. Absolute figures are those of this machine; ratios are what to compare.</p>"
    )


def _figures(results: Results) -> list[str]:
    sizes = _group(results, "size")
    rates = _group(results, "rate")
    return [
        plots.lines(
            "Downtime against the enclave's size",
            "size",
            "downtime",
            [
                *(_series(MODE_NAMES[mode], sizes, _size, mode, _downtime) for mode in MODE_NAMES),
                _series("live, as the program saw it", sizes, _size, "precopy", _seen),
            ],
            log_y=True,
            write_x=lambda mib: format_size(mib * (1 << 20)),
            write_y=format_ms,
        ),
        _against_rate("Downtime against the dirty rate", "downtime", rates, _downtime, log_y=True),
        _against_rate("Total time against the dirty rate", "total time", rates, _total),
        plots.stacked("The parts of the downtime, live", "downtime", _parts(sizes)),
        _rounds("Bytes on the wire in each round", "bytes", rates, 1, _decimal),
        _rounds("Time of each round", "time", rates, 2, format_ms),
        plots.lines(
            "Throughput of round 0 against data streams",
            "streams",
            "throughput",
            [_series("sealed pages", _group(results, "streams"), _streams, "precopy", _round_0)],
            write_y=format_rate,
        ),
        _timeline(sizes or rates),
        _at_once(results.many),
    ]


def _group(results: Results, group: str) -> list[CellResult]:
    return [cell for cell in results.cells if cell.group == group]


def _size(cell: CellResult) -> float:
    return cell.size_mib


def _streams(cell: CellResult) -> float:
    return cell.streams


def _downtime(move: Move) -> float:
    return move.downtime_ms


def _total(move: Move) -> float:
    return move.total_time_ms


def _seen(move: Move) -> float:
    return move.program_pause_ms if move.program_pause_ms is not None else move.downtime_ms


def _round_0(move: Move) -> float:
    first = move.rounds[0]
    return 1000 * first.bytes / first.duration_ms if first.duration_ms else 0.0


def _series(
    name: str,
    cells: Sequence[CellResult],
    x: Callable[[CellResult], float],
    mode: ModeName,
    value: _Value,
) -> Series:
    points = []
    for cell in sorted(cells, key=x):
        spread = Spread.of([value(move) for move in cell.of_mode(mode)])
        points.append(Point(x(cell), spread.median, spread.low, spread.high))
    return Series(name, points)


def _against_rate(
    title: str, y_name: str, cells: Sequence[CellResult], value: _Value, *, log_y: bool = False
) -> str:
    patterns = list(dict.fromkeys(cell.pattern for cell in cells))
    series = [
        _series(
            f"{MODE_NAMES[mode]}, {pattern}",
            [cell for cell in cells if cell.pattern == pattern],
            lambda cell: float(cell.rate_mb_s or 0),
            mode,
            value,
        )
        for pattern in patterns
        for mode in MODE_NAMES
    ]
    return plots.lines(
        title,
        "dirty rate in MB/s",
        y_name,
        series,
        log_y=log_y,
        write_y=format_ms,
    )


def _middle(moves: Sequence[Move]) -> Move:
    """The move of the median downtime."""
    return sorted(moves, key=_downtime)[(len(moves) - 1) // 2]


def _parts(cells: Sequence[CellResult]) -> list[Bar]:
    bars = []
    for cell in sorted(cells, key=_size):
        move = _middle(cell.of_mode("precopy"))
        parts = [(name.replace("_", " "), ms) for name, ms in move.downtime_parts_ms.items()]
        bars.append(Bar(format_size(cell.size_mib << 20), parts))
    return bars


def _rounds(
    title: str, y_name: str, cells: Sequence[CellResult], column: int, write: plots.Write
) -> str:
    """Each round of the median live move of every cell; the last round is the switchover's."""
    series = []
    for cell in cells:
        rows = [
            (one.round_no, float(one.bytes), one.duration_ms)
            for one in _middle(cell.of_mode("precopy")).rounds
        ]
        points = [
            Point(row[0], row[column], row[column], row[column]) for row in rows if row[column]
        ]
        series.append(Series(cell.title, points))
    return plots.lines(title, "round", y_name, series, log_y=True, write_y=write)


def _timeline(cells: Sequence[CellResult]) -> str:
    told = [cell for cell in cells if cell.samples and cell.rate_mb_s]
    if not told:
        return ""
    cell = max(told, key=_size)
    points = []
    before_s = 0.0
    for sample in cell.samples:
        length_s = sample.at_s - before_s
        if length_s > 0:
            points.append((sample.at_s, sample.pages * PAGE_BYTES / 1e6 / length_s))
        before_s = sample.at_s
    spans = [(mark.begin_s, mark.end_s, MODE_NAMES[mark.mode]) for mark in cell.marks]
    return plots.timeline(
        f"The program's own speed while it is moved ({cell.title})",
        "seconds since its first write",
        "MB/s written",
        points,
        spans,
        list(MODE_NAMES.values()),
    )


def _at_once(results: Sequence[ManyResult]) -> str:
    series = []
    for one in results:
        found = sorted(move.downtime_ms for move in one.moves)
        ways = "both directions" if one.directions == 2 else "one direction"
        series.append(
            Series(ways, [Point(rank, ms, ms, ms) for rank, ms in enumerate(found, start=1)])
        )
        alone = sorted(one.alone_ms)
        series.append(
            Series(
                f"one alone, beside {ways}",
                [Point(rank, ms, ms, ms) for rank, ms in enumerate(alone, start=1)],
            )
        )
    return plots.lines(
        "Downtimes of many at once, in order of size",
        "rank",
        "downtime",
        series,
        write_y=format_ms,
    )


def _decimal(value: float) -> str:
    """Bytes with a power of 1000, which is what the ticks of a logarithmic axis are."""
    return format_rate(value).removesuffix("/s")
