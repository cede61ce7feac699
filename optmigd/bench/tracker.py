"""What the compiler tracker's marks cost: each program of the suite, plain and marked, in one run.

Both are built by the same compiler with the same flags, and both run as ordinary processes, one
after the other in pairs: so nothing but the marks (and the marked libraries) makes the
difference. What is compared is the processor time that the process took; it tells more than the
time of day on a machine that others use as well. The answers must be equal.
"""

import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from optmigd.bench.programs import Program, build_workload
from optmigd.bench.suite import SUITE, Workload


def _run(command: Sequence[str | Path], folder: Path) -> tuple[float, str]:
    """Run a program; return its processor time in seconds, and its answer.

    Raises:
        RuntimeError: it failed.
    """
    before = os.times()
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPTMIG_ALONE": "1"},
    )
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer")]
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system, "".join(answers)


def _pair(program: Program, words: Sequence[str], folder: Path) -> tuple[float, float]:
    plain_s, expected = _run([program.native, *words], folder)
    marked_s, answer = _run([program.image, *words], folder)
    if answer != expected:
        raise RuntimeError(f"{program.image}: {answer!r}, expected {expected!r}")
    return plain_s, marked_s


def _measure(workload: Workload, repeats: int, folder: Path) -> dict[str, object]:
    program = build_workload(workload.name, folder, marks=True)
    pairs = [_pair(program, workload.arguments(workload.small), folder) for _ in range(repeats)]
    ratios = [marked / plain for plain, marked in pairs]
    return {
        "program": workload.name,
        "plain_s": statistics.median(plain for plain, _ in pairs),
        "marked_s": statistics.median(marked for _, marked in pairs),
        "ratios": ratios,
    }


@click.command()
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--only", multiple=True, help="Measure this program of the suite; may be repeated.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/tracker.json")
)
def main(repeats: int, only: tuple[str, ...], output: Path) -> None:
    """Print the processor time of every program of the suite with marks, against without."""
    chosen = [one for one in SUITE if not only or one.name in only]
    with tempfile.TemporaryDirectory(prefix="optmigd-") as name:
        rows = [_measure(one, repeats, Path(name)) for one in chosen]
    table = Table(title=f"processor time with marks against without, {repeats} pairs each")
    for heading in ("program", "plain, s", "marked, s", "ratio", "spread"):
        table.add_column(heading, justify="left" if heading == "program" else "right")
    medians = []
    for row in rows:
        ratios = row["ratios"]
        assert isinstance(ratios, list)
        medians.append(statistics.median(ratios))
        table.add_row(
            str(row["program"]),
            f"{row['plain_s']:.2f}",
            f"{row['marked_s']:.2f}",
            f"{medians[-1]:.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
        )
    mean = math.exp(statistics.fmean(math.log(one) for one in medians))
    Console().print(table)
    click.echo(f"geometric mean {mean:.3f}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"repeats": repeats, "geometric_mean": mean, "rows": rows}))


if __name__ == "__main__":
    main()
