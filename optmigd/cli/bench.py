"""`optmigctl bench`: measure this machine with two daemons of its own."""

import importlib.util
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from optmigd.bench import cells, results
from optmigd.bench.cells import FULL, GROUPS, QUICK, ManyCell
from optmigd.bench.options import tracker_option
from optmigd.bench.results import CellResult, Results, Spread
from optmigd.cli.invocation import ControlCommand, Invocation
from optmigd.cli.tables import print_table
from optmigd.exitcodes import ExitCode
from optmigd.protocol.errors import ConfigError
from optmigd.requests import Tracker
from optmigd.units import parse_size

MIB = 1 << 20


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(parse_size(one) // MIB for one in text.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not all(sizes):
        raise click.BadParameter("expected sizes of 1MiB or more")
    return sizes


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers such as 0,200; found {text!r}") from error
    if min(numbers) < 0:
        raise click.BadParameter("expected numbers of 0 or more")
    return numbers


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names out of those that are known, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = set(names) - set(known)
        if unknown:
            raise click.BadParameter(
                f"expected some of {', '.join(known)}; found {', '.join(sorted(unknown))}"
            )
        return names

    return parse


@click.command(cls=ControlCommand)
@click.option("--quick", is_flag=True, help="A small matrix, about three minutes.")
@click.option("--sizes", type=_sizes, metavar="SIZE,…", help="Enclave sizes, such as 512MiB,4GiB.")
@click.option("--rates", type=_numbers, metavar="MB/S,…", help="Dirty rates in MB/s.")
@click.option("--streams", type=_numbers, metavar="N,…", help="Numbers of data streams.")
@click.option("--base-size", type=_sizes, metavar="SIZE", help="Size where rates are varied.")
@click.option("--repeats", type=click.IntRange(1, 1000), help="Moves in each mode.")
@click.option(
    "--only",
    type=_some_of(GROUPS),
    default=",".join(GROUPS),
    metavar="PART,…",
    help=", ".join(GROUPS) + ".",
)
@click.option(
    "--programs", type=_some_of(FULL.suite), metavar="NAME,…", help="Which ones of the suite."
)
@tracker_option
@click.option("--enclaves", type=click.IntRange(2, 64), help="How many at once.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-results"),
    show_default=True,
    help="Folder of bench.json and bench.html; a run goes on where an earlier one has ended.",
)
@click.option("--fresh", is_flag=True, help="Leave earlier results aside.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of bench.json, and end.")
@click.pass_obj
def bench(
    invocation: Invocation,
    quick: bool,
    sizes: tuple[int, ...] | None,
    rates: tuple[int, ...] | None,
    streams: tuple[int, ...] | None,
    base_size: tuple[int, ...] | None,
    repeats: int | None,
    only: tuple[str, ...],
    programs: tuple[str, ...] | None,
    tracker: Tracker,
    enclaves: int | None,
    output: Path,
    fresh: bool,
    schema: bool,
) -> int:
    """Measure live migration against stop-and-copy on this machine.

    Two daemons of its own, over the loopback; no daemon of this host takes part. Ctrl-C ends it and
    leaves the results so far.
    """
    if schema:
        click.echo(json.dumps(results.schema(), indent=2))
        return ExitCode.OK
    if importlib.util.find_spec("ziglang") is None:
        raise ConfigError(
            "the benchmark compiles its programs: expected the toolchain, which `pip install "
            "'optmigd[toolchain]'` brings, and found none"
        )
    # Loaded here: the other commands should not wait for it.
    from optmigd.bench.run import RESULTS_NAME, Plan, run

    choice = QUICK if quick else FULL
    many = choice.many
    chosen = cells.Choice(
        sizes_mib=sizes or choice.sizes_mib,
        rates_mb_s=rates or choice.rates_mb_s,
        streams=streams or choice.streams,
        base_mib=base_size[0] if base_size else choice.base_mib,
        suite=programs or choice.suite,
        suite_large=choice.suite_large,
        many=ManyCell(enclaves or many.enclaves, many.size_mib, many.rate_mb_s, 1),
        tracker=tracker,
    )
    if min(chosen.streams) < 1:
        raise click.BadParameter("expected at least one stream", param_hint="--streams")
    plan = Plan(
        cells=cells.matrix(chosen, only),
        repeats=repeats or (2 if quick else 3),
        output=output,
        fresh=fresh,
        options={"quick": quick, "only": list(only), "repeats": repeats, "tracker": tracker},
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing may be left
    whole, interrupted = run(plan, lambda line: click.echo(line, err=True))
    if invocation.json:
        click.echo((output / RESULTS_NAME).read_bytes())
    else:
        _show(whole)
        click.echo(f"results in {output / RESULTS_NAME}, report in {output / 'bench.html'}")
    if interrupted:
        return ExitCode.INTERRUPTED
    failed = any(left.reason.startswith("failed") for left in whole.left_out)
    return ExitCode.ERROR if failed or any(many.failures for many in whole.many) else ExitCode.OK


def _show(whole: Results) -> None:
    if whole.cells:
        print_table(
            ("program", "live", "stop-and-copy", "live/stop-and-copy", "total live", "total s-c"),
            [_row(cell) for cell in whole.cells],
        )
    for many in whole.many:
        from optmigd.bench.run import describe_many

        click.echo(f"{many.title}: {describe_many(many)}")
    for left in whole.left_out:
        click.echo(f"not measured: {left.title}: {left.reason}")


def _row(cell: CellResult) -> tuple[str, ...]:
    live, stopped = cell.of_mode("precopy"), cell.of_mode("stop-and-copy")
    ratio = Spread.of(cell.ratios())
    return (
        cell.title,
        *(Spread.of([move.downtime_ms for move in moves]).ms for moves in (live, stopped)),
        f"{100 * ratio.median:.2f} % ({100 * ratio.low:.2f} to {100 * ratio.high:.2f})",
        *(Spread.of([move.total_time_ms for move in moves]).ms for moves in (live, stopped)),
    )
