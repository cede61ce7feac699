"""The downtime of a program that changes large files, against stop-and-copy in the same run.

A store of records in files of its own directory, which travel with it: half of its operations read
a record at a random place, the other half change one in place and append it to a log first.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click

from optmigd.bench.hosts import Host, two_hosts, wait_until_filled
from optmigd.bench.moves import MODES
from optmigd.bench.options import tracker_option
from optmigd.bench.programs import build_workload
from optmigd.requests import Tracker
from optmigd.units import format_size

MEMORY_BYTES = 128 << 20
FOR_EVER = str(10**15)


def move_to_and_fro(
    hosts: tuple[Host, Host], image: Path, table_mib: int, rate: int, repeats: int, tracker: Tracker
) -> list[dict[str, Any]]:
    """Run the store with a table of that size and move it that many times in each mode, in turn."""
    enclave = f"records-{table_mib}"
    here, there = hosts
    here.client.launch(
        image,
        enclave=enclave,
        memory_bytes=MEMORY_BYTES,
        args=(str(table_mib), FOR_EVER, str(rate)),
        tracker=tracker,
    )
    wait_until_filled(here, enclave)
    moves = []
    for _ in range(repeats):
        for mode in MODES:
            moves.append(dict(here.client.migrate(enclave, there.name, mode=mode)))
            here, there = there, here
    here.client.stop(enclave)
    return moves


def _show(table_mib: int, moves: list[dict[str, Any]]) -> dict[str, float]:
    """Print the figures; return the median downtime of each mode, in ms."""
    medians: dict[str, float] = {}
    for index, mode in enumerate(MODES):
        found = [move["downtime_ms"] for move in moves[index :: len(MODES)]]
        medians[mode] = statistics.median(found)
        click.echo(
            f"{format_size(table_mib << 20):>8}, {mode:>13}: downtime median "
            f"{medians[mode]:8.2f} ms ({min(found):.2f} to {max(found):.2f})",
            err=True,
        )
    return medians


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, help="Table in MiB (repeatable).")
@click.option("--rate", type=int, default=0, help="Operations a second.  [default: all it can]")
@click.option("--repeats", type=int, default=3, show_default=True, help="Moves per mode.")
@tracker_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("bench-results/files.json"))
def main(sizes: tuple[int, ...], rate: int, repeats: int, tracker: Tracker, output: Path) -> None:
    """Measure, print the figures, and write them as JSON."""
    tables = []
    with two_hosts() as (alpha, beta, folder):
        image = build_workload("records", folder, marks=tracker == "compiler").image
        for size in sizes or (64, 1024):
            moves = move_to_and_fro((alpha, beta), image, size, rate, repeats, tracker)
            tables.append({"table_mib": size, "medians_ms": _show(size, moves), "moves": moves})
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = {"platform": "sim", "tracker": tracker, "per_second": rate, "tables": tables}
    output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
