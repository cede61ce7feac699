"""Which dirty rates converge: below a link's throughput by themselves, above it by throttling.

No program on two processors writes faster than they can seal, so the link is made slow instead:
`--max-bandwidth` bounds what a move sends. The writer then writes at parts and at multiples of what
a move has reached, with the default downtime limit and `--on-stall throttle`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from optmigd.bench.options import tracker_option
from optmigd.bench.timeline import measure
from optmigd.requests import Tracker
from optmigd.units import format_size

PERCENTS = (20, 50, 80, 120, 200)


@dataclass(frozen=True)
class Outcome:
    """One move; `percent` is the dirty rate in hundredths of the throughput that was measured."""

    percent: int
    rate_mb_s: int
    rounds: int
    total_ms: float
    downtime_ms: float
    throttle_permille: int
    held_back_ms: float
    slower_percent: float | None

    @classmethod
    def of(cls, percent: int, result: dict[str, Any]) -> "Outcome":
        """What is to be known of what `timeline.measure` has returned."""
        move = result["migration"]
        return cls(
            percent=percent,
            rate_mb_s=result["rate_mb_s"],
            rounds=len(move["rounds"]),
            total_ms=move["total_time_ms"],
            downtime_ms=move["downtime_ms"],
            throttle_permille=move["throttle_permille"],
            held_back_ms=move["held_back_ms"],
            slower_percent=result.get("slower_percent"),
        )

    def __str__(self) -> str:
        """One line."""
        text = (
            f"{self.percent:4} % ({self.rate_mb_s} MB/s): {self.rounds} rounds, "
            f"{self.total_ms:.0f} ms in all, downtime {self.downtime_ms:.1f} ms, "
        )
        if not self.throttle_permille:
            return text + "not throttled"
        text += (
            f"throttled by up to {self.throttle_permille / 10:.1f} %, "
            f"held back for {self.held_back_ms:.0f} ms"
        )
        if self.slower_percent is not None:
            text += f", in the median of its rounds {self.slower_percent:.0f} % slower"
        return text


def throughput_mb_s(move: dict[str, Any]) -> float:
    """What round 0 has sent, in 10^6 bytes a second."""
    first = move["rounds"][0]
    return float(first["bytes"] / first["duration_ms"] / 1e3)


@click.command()
@click.option("--size", type=int, default=256, show_default=True, help="Working set in MiB.")
@click.option(
    "--max-bandwidth", type=int, default=200, show_default=True, help="Of the link, in MB/s."
)
@click.option(
    "--percent",
    "percents",
    multiple=True,
    type=click.IntRange(1, 1000),
    help=f"Dirty rate, of the throughput (repeatable).  [default: {', '.join(map(str, PERCENTS))}]",
)
@tracker_option
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/convergence.json")
)
def main(
    size: int, max_bandwidth: int, percents: tuple[int, ...], tracker: Tracker, output: Path
) -> None:
    """Measure the throughput at rest, then move the writer at each rate; write it as JSON."""

    def move(rate_mb_s: int) -> dict[str, Any]:
        limit = max_bandwidth * 10**6
        return measure(size, rate_mb_s, "uniform", "precopy", tracker, max_bandwidth=limit)

    speed_mb_s = throughput_mb_s(move(0)["migration"])
    click.echo(
        f"{format_size(size << 20)} at rest, at most {max_bandwidth} MB/s: {speed_mb_s:.0f} MB/s"
    )
    outcomes = []
    for percent in percents or PERCENTS:
        result = move(round(speed_mb_s * percent / 100))
        outcomes.append(Outcome.of(percent, result))
        click.echo(str(outcomes[-1]))
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = {"throughput_mb_s": speed_mb_s, "moves": [asdict(one) for one in outcomes]}
    output.write_text(json.dumps({"platform": "sim", "size_mib": size, **figures}, indent=1))


if __name__ == "__main__":
    main()
