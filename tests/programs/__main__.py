"""`make programs`: every program of the suite and of others, moved five times under each tracker.

Prints a table and writes `bench-results/programs.json`. Ends with status 1 if an answer differed, a
move was not verified, or a program ended before its last move.
"""

import json
import secrets
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from optmigd.bench.hosts import two_hosts
from optmigd.requests import Tracker
from tests.programs.cases import CASES, Case, temporary
from tests.programs.fetch import Unreachable
from tests.programs.travel import Travelled, travel

TRACKERS: tuple[Tracker, ...] = ("kernel", "compiler")


def _one(
    case: Case, tracker: Tracker, folder: Path, moves: int, scale: int, seed: int
) -> Travelled:
    """Build and move one; one that ends before its last move is run anew, twice as long."""
    image = case.build(folder, tracker)
    with two_hosts() as (alpha, beta, _):
        for attempt in range(4):
            here = folder / f"{case.name}-{tracker}-{attempt}"
            expected = case.alone(image, scale, here / "alone")
            result = travel(
                *(case, image, expected, (alpha, beta), here),
                scale=scale,
                moves=moves,
                tracker=tracker,
                seed=seed + attempt,
            )
            if result.moves == moves or not result.equal or not result.verified:
                break
            scale *= 2
    return result


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    *("--tracker", "trackers"),
    type=click.Choice(TRACKERS),
    multiple=True,
    default=TRACKERS,
    show_default=True,
)
@click.option("--moves", type=int, default=5, show_default=True)
@click.option("--scale", type=int, default=2, show_default=True, help="How long each one runs.")
@click.option("--seed", type=int, default=None, help="Of the instants.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/programs.json")
)
def main(
    names: tuple[str, ...],
    trackers: tuple[Tracker, ...],
    moves: int,
    scale: int,
    seed: int | None,
    output: Path,
) -> None:
    """Move the named programs, or all of them, and print what came of it."""
    seed = secrets.randbits(32) if seed is None else seed
    console = Console(width=110)
    console.print(f"seed {seed}")
    table = Table("program", "tracker", "moves", "downtime ms, median", "verified", "answer equal")
    results, absent, wrong = [], [], False
    for name in names or CASES:
        for tracker in trackers:
            begin = time.monotonic()
            try:
                with temporary() as folder:
                    done = _one(CASES[name], tracker, Path(folder), moves, scale, seed)
            except Unreachable as error:
                absent.append({"program": name, "why": str(error)})
                console.print(f"{name}: left out, it cannot be fetched: {error}")
                break
            results.append(done.as_json())
            wrong = wrong or not (done.equal and done.verified and done.moves == moves)
            row = (name, tracker, str(done.moves), f"{done.downtime_ms:.1f}")
            table.add_row(*row, *("yes" if ok else "NO" for ok in (done.verified, done.equal)))
            console.print(*row, done.verified, done.equal, f"({time.monotonic() - begin:.0f} s)")
    console.print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"seed": seed, "programs": results, "absent": absent}, indent=1))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
