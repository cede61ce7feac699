"""What a move costs the program: its own speed before, during and after, as a time line.

The random writer records how many pages it wrote in every tenth of a second, and its longest pause
in it; the migration's phases come from the daemon. A program that has time to spare catches up and
looks untouched, so with a rate that the machine cannot keep (`--rate 5000`) it is measured at its
limit, where everything that the migration takes is missing.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from optmigd.bench.hosts import two_hosts, wait_until_filled
from optmigd.bench.options import tracker_option
from optmigd.bench.programs import build_workload
from optmigd.bench.writer_record import Interval, read_record, whole_lines
from optmigd.requests import Mode, Tracker
from optmigd.units import format_size

ARENA_OVERHEAD_BYTES = 256 << 20
SETTLE_S = 2.0
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Mark:
    """When the daemon told of something: a state, or the end of a round."""

    at_s: float
    what: str


def speeds(intervals: list[Interval], marks: list[Mark]) -> dict[str, float]:
    """Median pages per second before the move, in its rounds, and after it; `slower_percent`.

    The interval of the switchover belongs to none of them: it is the downtime, which stands apart.
    """
    at = {mark.what: mark.at_s for mark in reversed(marks)}  # the first of each name counts
    begin_s, parked_s, end_s = at["begin"], at["pre-switchover"], at["end"]
    active_s = at.get("active", begin_s)
    inside = {
        "before": [i for i in intervals if i.end_s <= begin_s],
        "rounds": [i for i in intervals if active_s <= i.end_s - i.took_s and i.end_s <= parked_s],
        "after": [i for i in intervals if i.end_s - i.took_s >= end_s],
    }
    found = {
        f"{name}_pages_s": statistics.median(i.pages_s for i in part) if part else 0.0
        for name, part in inside.items()
    }
    if inside["rounds"] and found["before_pages_s"]:
        found["slower_percent"] = 100 * (1 - found["rounds_pages_s"] / found["before_pages_s"])
    moving = [i for i in intervals if i.end_s > begin_s and i.end_s - i.took_s < end_s]
    found["longest_pause_ms"] = max((i.longest_pause_ms for i in moving), default=0.0)
    return found


def measure(
    size_mib: int,
    rate_mb_s: int,
    pattern: str,
    mode: Mode,
    tracker: Tracker = "auto",
    *,
    max_bandwidth: int = 0,
) -> dict[str, Any]:
    """Move the writer once and return its time line.

    Args:
        size_mib: working set.
        rate_mb_s: pages written, in 10^6 bytes a second.
        pattern: `uniform` or `zipfian`.
        mode: of the migration.
        tracker: which finds the written pages.
        max_bandwidth: of the move, in bytes a second; 0: none.
    """
    with two_hosts() as (alpha, beta, folder):
        program = build_workload("writer", folder, marks=tracker == "compiler")
        record = folder / "record"
        record.touch()
        alpha.client.launch(
            program.image,
            enclave="writer",
            memory_bytes=(size_mib << 20) + ARENA_OVERHEAD_BYTES,
            args=(*map(str, (size_mib, rate_mb_s, 100_000)), pattern, "random", str(record)),
            shared=(str(record),),
            tracker=tracker,
        )
        wait_until_filled(alpha, "writer")
        first_write_s = time.monotonic()
        marks: list[Mark] = []

        def mark(what: str) -> None:
            marks.append(Mark(round(time.monotonic() - first_write_s, 4), what))

        def look(event: Any) -> None:
            if "state" in event:
                mark(event["state"])
            elif "round" in event:
                mark(f"round {event['round']['round_no']}")

        time.sleep(SETTLE_S)
        mark("begin")
        moved = alpha.client.migrate(
            "writer", "beta", mode=mode, max_bandwidth=max_bandwidth, on_event=look
        )
        mark("end")
        time.sleep(SETTLE_S)
        beta.client.stop("writer")
        intervals = read_record(whole_lines(record.read_text()))
    return {
        "working_set_mib": size_mib,
        "rate_mb_s": rate_mb_s,
        "pattern": pattern,
        "mode": mode,
        "tracker": tracker,
        "migration": dict(moved),
        "marks": [asdict(mark) for mark in marks],
        "intervals": [asdict(interval) for interval in intervals],
        **speeds(intervals, marks),
    }


@click.command()
@click.option("--size", type=int, default=1024, show_default=True, help="Working set in MiB.")
@click.option("--rate", type=int, default=200, show_default=True, help="Dirty rate in MB/s.")
@click.option("--pattern", type=click.Choice(["uniform", "zipfian"]), default="uniform")
@click.option("--mode", type=click.Choice(["precopy", "stop-and-copy"]), default="precopy")
@tracker_option
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/timeline.json")
)
def main(size: int, rate: int, pattern: str, mode: Mode, tracker: Tracker, output: Path) -> None:
    """Measure one move, print the program's speeds, and write the time line as JSON."""
    result = measure(size, rate, pattern, mode, tracker)
    megabytes = {
        name: result[f"{name}_pages_s"] * PAGE_BYTES / 1e6 for name in ("before", "rounds", "after")
    }
    click.echo(
        f"{format_size(size << 20)}, asked to write {rate} MB/s {pattern}, {mode}: "
        f"{megabytes['before']:.0f} MB/s before, {megabytes['rounds']:.0f} during rounds "
        f"({result.get('slower_percent', float('nan')):.1f} % slower), "
        f"{megabytes['after']:.0f} after; its longest pause {result['longest_pause_ms']:.2f} ms, "
        f"downtime {result['migration']['downtime_ms']:.2f} ms, "
        f"held back {result['migration']['held_back_ms']:.0f} ms"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"platform": "sim", "moves": [result]}, indent=1))


if __name__ == "__main__":
    main()
