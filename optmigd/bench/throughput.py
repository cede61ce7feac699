"""How fast round 0 goes, against the fastest plain copy of the same machine in the same run.

A program at rest, with a working set of incompressible pages (or half of them zero), moves to and
fro between two daemons on this machine with 1, 2 and 4 data streams in turn, and once by
stop-and-copy. Round 0 is timed by the source from its first record to the destination's
confirmation that all of it was opened and stands in memory. The yardstick (`plain_copy`) runs
between the moves. Both sides share this machine's processors, so the CPU seconds that a GiB takes
on either side decide as much as the time.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click

from optmigd.bench.hosts import Host, two_hosts, wait_until_filled
from optmigd.bench.plain_copy import PlainCopy, best_of, plain_copies
from optmigd.bench.programs import build_workload
from optmigd.requests import Mode

ARENA_OVERHEAD_BYTES = 256 << 20
PAGE_BYTES = 4096
_GIB = float(1 << 30)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process has used so far: CPU seconds in user mode and in the kernel, page faults."""

    user_s: float = 0.0
    system_s: float = 0.0
    faults: int = 0

    def since(self, before: "Usage") -> "Usage":
        """The difference to an earlier look."""
        return Usage(
            self.user_s - before.user_s,
            self.system_s - before.system_s,
            self.faults - before.faults,
        )


def usage_of(pid: int) -> Usage:
    """Look at a process; nothing used if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return Usage()
    fields = text.rpartition(")")[2].split()
    # Fields 10 (minor faults), 14 and 15 (ticks) of proc_pid_stat(5); `fields` starts with the 3rd.
    ticks = int(fields[11]), int(fields[12])
    return Usage(ticks[0] / _TICKS_PER_S, ticks[1] / _TICKS_PER_S, int(fields[7]))


class AgentWatch:
    """CPU of both hosts' agents of one enclave between two events of its migration."""

    def __init__(self, hosts: tuple[Host, Host], enclave: str) -> None:
        self._hosts = hosts
        self._enclave = enclave
        self._begun: tuple[Usage, Usage] | None = None
        self.round_0: tuple[Usage, Usage] | None = None

    def look(self, event: dict[str, Any]) -> None:
        """See one event of the migration."""
        if event.get("state") in ("active", "pre-switchover") and self._begun is None:
            self._begun = self._now()
        if event.get("round") and self._begun is not None and self.round_0 is None:
            source, destination = self._now()
            self.round_0 = source.since(self._begun[0]), destination.since(self._begun[1])

    def _now(self) -> tuple[Usage, Usage]:
        here, there = (usage_of(_agent_pid(host, self._enclave)) for host in self._hosts)
        return here, there


def _agent_pid(host: Host, enclave: str) -> int:
    """The newest agent of the enclave on a host; 0 if there is none."""
    paths = host.folder.glob(f"state/enclaves/{enclave}@*/agent.worker.pid")
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    return int(newest.read_text()) if newest else 0


def move(hosts: tuple[Host, Host], enclave: str, mode: Mode, streams: int) -> dict[str, Any]:
    """Move the enclave from the first host to the second; returns what is known of round 0."""
    here, there = hosts
    watch = AgentWatch(hosts, enclave)
    moved = here.client.migrate(
        enclave, there.name, mode=mode, streams=streams, on_event=watch.look
    )
    first = moved["rounds"][0]
    content_bytes = (first["pages"] + first["zero_pages"]) * PAGE_BYTES
    result: dict[str, Any] = {
        "mode": mode,
        "streams": streams,
        "bytes_per_s": content_bytes / (first["duration_ms"] * 1e-3),
        "zero_pages": first["zero_pages"],
        "setup_time_ms": moved["setup_time_ms"],
        "total_time_ms": moved["total_time_ms"],
        "downtime_ms": moved["downtime_ms"],
        "setup_parts_ms": _setup_parts(there, enclave),
    }
    if watch.round_0 is not None:
        gib = content_bytes / _GIB
        for side, usage in zip(("source", "destination"), watch.round_0, strict=True):
            result[f"{side}_cpu_s_per_gib"] = (usage.user_s + usage.system_s) / gib
            result[f"{side}_system_s_per_gib"] = usage.system_s / gib
            result[f"{side}_faults"] = usage.faults
    return result


def _setup_parts(host: Host, enclave: str) -> dict[str, float]:
    """What the destination's agent logged of its setup: milliseconds by part."""
    parts: dict[str, float] = {}
    for path in host.folder.glob(f"state/enclaves/{enclave}@*/agent.log"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("event") == "room_made":
                parts = {key: entry[key] for key in entry if key.endswith("_ms")}
    return parts


def measure(
    hosts: tuple[Host, Host],
    image: Path,
    size_mib: int,
    content: str,
    streams: Iterable[int],
    repeats: int,
) -> dict[str, Any]:
    """Move the program `repeats` times in every way, and copy plainly in between."""
    enclave = "resting"
    here, there = hosts
    here.client.launch(
        image,
        enclave=enclave,
        memory_bytes=(size_mib << 20) + ARENA_OVERHEAD_BYTES,
        args=(str(size_mib), "0", "100000", "uniform", content),
    )
    wait_until_filled(here, enclave)
    turns: list[list[tuple[Mode, int]]] = [[("precopy", count)] for count in streams]
    turns[0].append(("stop-and-copy", 1))  # always beside the live move that it is compared with
    copies: list[PlainCopy] = []
    moves: list[dict[str, Any]] = []
    for repeat in range(repeats):
        copies += plain_copies(size_mib << 20, repeats=1)
        first = repeat % len(turns)
        for mode, count in chain(*turns[first:], *turns[:first]):
            moves.append(move((here, there), enclave, mode, count))
            here, there = there, here
    here.client.stop(enclave)
    return {
        "working_set_mib": size_mib,
        "content": content,
        "plain_copy": asdict(best_of(copies)),
        "plain_copies": [asdict(copy) for copy in copies],
        "moves": moves,
    }


def _spread(values: list[float], show: Callable[[float], str]) -> str:
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def show(result: dict[str, Any]) -> None:
    """Print the figures for people."""
    plain = result["plain_copy"]
    speeds = [
        copy["bytes_per_s"]
        for copy in result["plain_copies"]
        if copy["chunk_bytes"] == plain["chunk_bytes"]
    ]
    click.echo(
        f"{result['working_set_mib']} MiB, {result['content']}; "
        f"plain copy ({plain['chunk_bytes'] >> 10} KiB chunks): "
        f"{_spread(speeds, lambda v: f'{v * 1e-9:.2f}')} GB/s, CPU s/GiB "
        f"{plain['sender_cpu_s_per_gib']:.2f} + {plain['receiver_cpu_s_per_gib']:.2f}",
        err=True,
    )
    totals = {}
    ways = dict.fromkeys((m["mode"], m["streams"]) for m in result["moves"])
    for mode, streams in sorted(ways):
        moves = [m for m in result["moves"] if (m["mode"], m["streams"]) == (mode, streams)]
        speed = [m["bytes_per_s"] for m in moves]
        totals[mode, streams] = [m["total_time_ms"] for m in moves]
        click.echo(
            f"  {mode:>13}, {streams} stream(s): round 0 "
            f"{_spread(speed, lambda v: f'{v * 1e-9:.2f}')} GB/s, "
            f"{100 * statistics.median(speed) / plain['bytes_per_s']:.0f} % of the plain copy; "
            f"{_cpu(moves)}; setup {statistics.median(m['setup_time_ms'] for m in moves):.0f} ms, "
            f"total {_spread(totals[mode, streams], lambda v: f'{v:.0f}')} ms",
            err=True,
        )
    live, stopped = totals.get(("precopy", 1)), totals.get(("stop-and-copy", 1))
    if live and stopped:
        ratios = [one / other for one, other in zip(live, stopped, strict=True)]
        click.echo(
            f"  live total time is {_spread(ratios, lambda v: f'{v:.2f}')} x stop-and-copy's",
            err=True,
        )


def _cpu(moves: list[dict[str, Any]]) -> str:
    """CPU seconds per GiB of both sides; stop-and-copy tells of no round while it goes on."""
    if any("source_cpu_s_per_gib" not in m for m in moves):
        return "CPU not measured"
    source, in_kernel, destination, there_in_kernel = (
        statistics.median(m[f"{side}_{kind}_s_per_gib"] for m in moves)
        for side in ("source", "destination")
        for kind in ("cpu", "system")
    )
    return (
        f"CPU s/GiB source {source:.2f} ({in_kernel:.2f} in the kernel), "
        f"destination {destination:.2f} ({there_in_kernel:.2f})"
    )


@click.command()
@click.option("--size", default=1024, show_default=True, help="Working set in MiB, in 16s.")
@click.option(
    "--content",
    type=click.Choice(["random", "half-zero"]),
    default="random",
    show_default=True,
    help="What the pages hold.",
)
@click.option("--streams", multiple=True, type=int, help="Data streams (repeatable): 1, 2, 4.")
@click.option("--repeats", default=5, show_default=True, help="Moves in every way.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/throughput.json")
)
def main(size: int, content: str, streams: tuple[int, ...], repeats: int, output: Path) -> None:
    """Measure, print the figures, and write them as JSON."""
    with two_hosts() as (alpha, beta, folder):
        program = build_workload("writer", folder)
        result = measure((alpha, beta), program.image, size, content, streams or (1, 2, 4), repeats)
    show(result)
    report = {"platform": "sim", "cpus": os.cpu_count(), **result}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1))
    json.dump({"output": str(output)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
