"""The downtime of one kind of program alone: some cells of `optmigctl bench`, without its folder.

For changes that are tried again and again: sizes and rate on the command line, the parts of the
downtime on the terminal.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from optmigd.bench.cells import tracked_by, writer
from optmigd.bench.hosts import two_hosts
from optmigd.bench.moves import MODES, measure
from optmigd.bench.options import tracker_option
from optmigd.bench.programs import build_workload
from optmigd.bench.results import CellResult, Spread
from optmigd.bench.run import describe_cell
from optmigd.requests import Tracker


def _show(result: CellResult) -> None:
    click.echo(f"{result.title}: {describe_cell(result)}", err=True)
    for mode in MODES:
        moves = result.of_mode(mode)
        down = Spread.of([move.downtime_ms for move in moves])
        total = statistics.median(move.total_time_ms for move in moves)
        seen = max((move.program_pause_ms or 0.0 for move in moves), default=0.0)
        click.echo(
            f"  {mode:>13}: downtime {down.median:8.2f} ms ({down.low:.2f} to {down.high:.2f}), "
            f"the program saw at most {seen:.2f} ms, total {total:8.0f} ms",
            err=True,
        )
        parts = {name for move in moves for name in move.downtime_parts_ms}
        for name in sorted(parts):
            part_ms = statistics.median(move.downtime_parts_ms.get(name, 0.0) for move in moves)
            click.echo(f"    {name:>20}: {part_ms:8.2f} ms", err=True)
    click.echo(
        f"  agents at most {result.agent_bytes >> 20} MiB beside the arena, daemons "
        f"{result.daemon_bytes >> 20} MiB",
        err=True,
    )


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, help="Working set in MiB (repeatable).")
@click.option("--rate", type=int, default=200, show_default=True, help="Dirty rate in MB/s.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Moves per mode.")
@click.option("--arena", type=int, default=0, help="Size of its arena in MiB.  [default: enough]")
@tracker_option
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/downtime.json")
)
def main(
    sizes: tuple[int, ...], rate: int, repeats: int, arena: int, tracker: Tracker, output: Path
) -> None:
    """Measure, print the figures, and write them as JSON."""
    with two_hosts() as (alpha, beta, folder):
        image = build_workload("writer", folder, marks=tracker == "compiler").image
        results = []
        for size in sizes or (1024, 4096):
            cell = tracked_by(writer("size", size, rate), tracker)
            if arena:
                cell = replace(cell, memory_bytes=arena << 20)
            results.append(measure((alpha, beta), image, cell, repeats))
            _show(results[-1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    json.dump({"output": str(output)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
