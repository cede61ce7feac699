"""How the downtime of a live migration depends on the enclave's size, and what makes it depend.

The random writer at one dirty rate, in several sizes, moved to and fro. A line is fitted through
all downtimes, and one through each part of them: the parts' slopes, in ms per GiB, add up to the
whole, so the causes stand beside it. What is left at size 0 is the same for every enclave.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from optmigd.bench.hosts import Host, two_hosts, wait_until_filled
from optmigd.bench.options import tracker_option
from optmigd.bench.programs import build_workload
from optmigd.requests import Tracker
from optmigd.units import format_size

ARENA_OVERHEAD_BYTES = 256 << 20
BETWEEN_MOVES_S = 0.5
NO_DOWNTIME = frozenset({"quiesce"})
"""Parts during which some of the program still runs."""


def line(sizes_mib: Sequence[int], values_ms: Sequence[float]) -> tuple[float, float]:
    """The least-squares line through measurements: (ms per GiB, ms at size 0)."""
    slope, fixed = np.polyfit(np.asarray(sizes_mib) / 1024, np.asarray(values_ms), 1)
    return float(slope), float(fixed)


def causes(moves: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    """The line of every part of the downtime, the steepest first.

    Args:
        moves: size in MiB and the object of `migrate --json`, of at least two sizes.
    """
    sizes = [size for size, _ in moves]
    names = dict.fromkeys(name for _, move in moves for name in move["downtime_parts_ms"])
    lines = {
        name: line(sizes, [move["downtime_parts_ms"].get(name, 0.0) for _, move in moves])
        for name in names
        if name not in NO_DOWNTIME
    }
    return dict(sorted(lines.items(), key=lambda item: -item[1][0]))


def move_to_and_fro(
    hosts: tuple[Host, Host],
    image: Path,
    size_mib: int,
    rate_mb_s: int,
    repeats: int,
    tracker: Tracker,
) -> list[dict[str, Any]]:
    """Run the writer in one size and move it live that many times."""
    enclave = f"writer-{size_mib}"
    here, there = hosts
    here.client.launch(
        image,
        enclave=enclave,
        memory_bytes=(size_mib << 20) + ARENA_OVERHEAD_BYTES,
        args=tuple(map(str, (size_mib, rate_mb_s, 100_000))),
        tracker=tracker,
    )
    wait_until_filled(here, enclave)
    moves = []
    for _ in range(repeats):
        moves.append(dict(here.client.migrate(enclave, there.name)))
        here, there = there, here
        time.sleep(BETWEEN_MOVES_S)  # each move finds the program at work
    here.client.stop(enclave)
    return moves


def _show(moves: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """Print the figures, and return them."""
    medians = {}
    for size in dict.fromkeys(size for size, _ in moves):
        found = [move["downtime_ms"] for at, move in moves if at == size]
        medians[size] = statistics.median(found)
        click.echo(
            f"{format_size(size << 20):>8}: downtime median {medians[size]:7.2f} ms "
            f"({min(found):.2f} to {max(found):.2f})",
            err=True,
        )
    sizes, downtimes = zip(*((size, move["downtime_ms"]) for size, move in moves), strict=True)
    slope, fixed = line(sizes, downtimes)
    growth = 100 * (medians[max(medians)] / medians[min(medians)] - 1)
    click.echo(
        f"slope {slope:+.2f} ms/GiB, {fixed:.2f} ms at size 0; the largest is {growth:+.0f} % "
        "against the smallest",
        err=True,
    )
    lines = causes(moves)
    for name, (part_slope, part_fixed) in lines.items():
        click.echo(f"  {name:>12} {part_slope:+7.3f} ms/GiB, {part_fixed:7.2f} ms", err=True)
    return {
        "medians_ms": medians,
        "growth_percent": growth,
        "slope_ms_per_gib": slope,
        "fixed_ms": fixed,
        "causes_ms_per_gib": {name: found[0] for name, found in lines.items()},
    }


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, help="Working set in MiB (repeatable).")
@click.option("--rate", type=int, default=200, show_default=True, help="Dirty rate in MB/s.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Moves per size.")
@tracker_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("bench-results/slope.json"))
def main(sizes: tuple[int, ...], rate: int, repeats: int, tracker: Tracker, output: Path) -> None:
    """Measure, print the line and its causes, and write them as JSON."""
    wanted = sizes or (1024, 2048, 4096, 8192)
    if len(set(wanted)) < 2:
        raise click.UsageError("a slope needs two sizes at the least")
    moves: list[tuple[int, dict[str, Any]]] = []
    with two_hosts() as (alpha, beta, folder):
        image = build_workload("writer", folder, marks=tracker == "compiler").image
        for size in wanted:
            found = move_to_and_fro((alpha, beta), image, size, rate, repeats, tracker)
            moves += [(size, move) for move in found]
    figures = _show(moves)
    cells = [{"working_set_mib": size, "move": move} for size, move in moves]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(
        json.dumps(
            {"platform": "sim", "tracker": tracker, "rate_mb_s": rate, **figures, "moves": cells},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
