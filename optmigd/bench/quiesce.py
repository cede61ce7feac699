"""How long it takes to park every thread of a program, against the number of its threads.

A program of one to 64 threads is moved to and fro between two daemons. The figure is the part
`quiesce` of each move's report: from the agent's decision to switch over until it hears that the
last thread is parked, with every move's real work going on beside it. The agent could be asked to
park and resume a program over and over without moving it, but then no thread would ever be parked
that came back on another host, and nothing else would want a processor; what an owner gets is this.

Threads that wait are in the kernel and only need to be woken. Threads that compute must first get a
processor, where there are fewer processors than threads. While some threads are parked the others
still run, so this is no part of the downtime; that stands beside it, since more threads are also
more to save and to make again.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from optmigd.bench.hosts import Host, two_hosts
from optmigd.bench.programs import build_workload
from optmigd.bench.results import Spread

KINDS = ("waiting", "computing")
THREADS = (1, 2, 4, 8, 16, 32, 64)
MEMORY_BYTES = 128 << 20
BETWEEN_MOVES_S = 0.2


def move_to_and_fro(
    hosts: tuple[Host, Host], image: Path, kind: str, threads: int, repeats: int
) -> list[dict[str, Any]]:
    """Run a program of so many threads of a kind, move it live that many times, and end it.

    Returns:
        the objects of `migrate --json`.

    Raises:
        OptmigError: it did not start, or a move failed.
    """
    enclave = f"crew-{kind}-{threads}"
    here, there = hosts
    here.client.launch(image, enclave=enclave, memory_bytes=MEMORY_BYTES, args=(str(threads), kind))
    for piece in here.client.logs(enclave, follow=True):
        if b"ready" in piece:
            break
    moves = []
    for _ in range(repeats):
        time.sleep(BETWEEN_MOVES_S)  # each move finds all threads at it
        # No throttle: it parks the threads as well, and a thread just resumed is no longer at rest.
        moves.append(dict(here.client.migrate(enclave, there.name, on_stall="switch")))
        here, there = there, here
    here.client.stop(enclave)
    return moves


def row(kind: str, threads: int, moves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the moves of one program come to; every single figure is kept."""
    return {
        "kind": kind,
        "threads": threads,
        "quiesce_ms": [move["downtime_parts_ms"]["quiesce"] for move in moves],
        "downtime_ms": [move["downtime_ms"] for move in moves],
    }


def table(rows: Sequence[dict[str, Any]], repeats: int) -> Table:
    """The figures for people: median, smallest and largest."""
    shown = Table(title=f"ms, median of {repeats} moves (smallest to largest)")
    for heading in ("threads", "they are", "quiesce", "downtime"):
        shown.add_column(heading, justify="left" if heading == "they are" else "right")
    for one in rows:
        found = (Spread.of(one[name]) for name in ("quiesce_ms", "downtime_ms"))
        times = (f"{at.median:.2f} ({at.low:.2f} to {at.high:.2f})" for at in found)
        shown.add_row(str(one["threads"]), one["kind"], *times)
    return shown


@click.command()
@click.option("--threads", "counts", multiple=True, type=click.IntRange(1, 256), help="Repeatable.")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Moves of each program.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/quiesce.json")
)
def main(counts: tuple[int, ...], repeats: int, output: Path) -> None:
    """Measure, print the time against the number of threads, and write all figures as JSON."""
    rows = []
    with two_hosts() as (alpha, beta, folder):
        image = build_workload("crew", folder).image
        for kind in KINDS:
            for count in counts or THREADS:
                moves = move_to_and_fro((alpha, beta), image, kind, count, repeats)
                rows.append(row(kind, count, moves))
                spread = Spread.of(rows[-1]["quiesce_ms"])
                click.echo(f"{count} threads, {kind}: quiesce {spread.ms}", err=True)
    Console().print(table(rows, repeats))
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {"platform": "sim", "cpus": os.cpu_count(), "repeats": repeats, "rows": rows}
    output.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
