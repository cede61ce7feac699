"""`make bench`: downtime of a live migration against stop-and-copy, in the same run.

The program is the random writer: a working set of incompressible pages of which it rewrites random
ones at a given rate. It moves to and fro between two daemons on this machine, live and by
stop-and-copy in turn. Absolute figures depend on the machine; the ratio is what counts. Besides
what the daemons report, the program's own longest pause is reported: that is what its users would
feel.
"""

import json
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from optmigd.bench.hosts import Host, two_hosts
from optmigd.bench.programs import Program, build_workload
from optmigd.requests import Mode
from optmigd.units import format_size

MODES: tuple[Mode, Mode] = ("precopy", "stop-and-copy")
ARENA_OVERHEAD_BYTES = 256 << 20
_PAUSE = re.compile(rb"longest pause ([0-9.]+) ms")


@dataclass(frozen=True)
class Cell:
    """One measurement: working set in MiB, dirty rate in MB/s, moves per mode."""

    working_set_mib: int
    rate_mb_s: int
    repeats: int


def _own_memory_bytes(pid: int) -> int:
    """Memory of a process that is its own, without the arena; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields.get("RssAnon", "0").split()[0]) << 10


class MemoryWatch:
    """The largest memory of any daemon and any agent, as seen at every event of a migration."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        self._hosts = hosts
        self.daemon_bytes = 0
        self.agent_bytes = 0

    def look(self, event: object = None) -> None:
        """Look once."""
        for host in self._hosts:
            self.daemon_bytes = max(self.daemon_bytes, _own_memory_bytes(host.process.pid))
            for path in host.folder.glob("state/enclaves/*/agent.worker.pid"):
                self.agent_bytes = max(self.agent_bytes, _own_memory_bytes(int(path.read_text())))


def measure_mode(
    hosts: tuple[Host, Host], program: Program, cell: Cell, mode: Mode, seconds: int
) -> dict[str, Any]:
    """Run the writer once and move it `cell.repeats` times in one mode."""
    enclave = f"writer-{mode}-{cell.working_set_mib}-{cell.rate_mb_s}"
    here, there = hosts
    here.client.launch(
        program.image,
        enclave=enclave,
        memory_bytes=(cell.working_set_mib << 20) + ARENA_OVERHEAD_BYTES,
        args=(str(cell.working_set_mib), str(cell.rate_mb_s), str(seconds)),
    )
    for piece in here.client.logs(enclave, follow=True):
        if b"filled" in piece:
            break
    moves = []
    memory = MemoryWatch(hosts)
    for _ in range(cell.repeats):
        moved = here.client.migrate(enclave, there.name, mode=mode, on_event=memory.look)
        moves.append(dict(moved))
        memory.look()
        here, there = there, here
        time.sleep(0.5)  # let the program run between two moves, so that each finds it at work
    output = b"".join(here.client.logs(enclave))
    here.client.stop(enclave)
    pauses = [float(pause) for pause in _PAUSE.findall(output)]
    return {
        "mode": mode,
        "moves": moves,
        "downtime_ms": [move["downtime_ms"] for move in moves],
        "total_time_ms": [move["total_time_ms"] for move in moves],
        "longest_pause_ms": max(pauses, default=None),
        "memory": {"daemon_bytes": memory.daemon_bytes, "agent_bytes": memory.agent_bytes},
    }


def measure(hosts: tuple[Host, Host], program: Program, cell: Cell) -> dict[str, Any]:
    """Measure one cell in both modes."""
    results = {mode: measure_mode(hosts, program, cell, mode, 100_000) for mode in MODES}
    live, stopped = (statistics.median(results[mode]["downtime_ms"]) for mode in MODES)
    return {
        "working_set_mib": cell.working_set_mib,
        "rate_mb_s": cell.rate_mb_s,
        "repeats": cell.repeats,
        "live": results["precopy"],
        "stop_and_copy": results["stop-and-copy"],
        "downtime_ratio": live / stopped,
    }


def _show(result: dict[str, Any]) -> None:
    click.echo(
        f"{format_size(result['working_set_mib'] << 20)}, written at {result['rate_mb_s']} MB/s:",
        err=True,
    )
    for name in ("live", "stop_and_copy"):
        part = result[name]
        down, total = part["downtime_ms"], part["total_time_ms"]
        click.echo(
            f"  {name:>13}: downtime median {statistics.median(down):8.2f} ms "
            f"({min(down):.2f} to {max(down):.2f}), total {statistics.median(total):8.0f} ms, "
            f"agents at most {part['memory']['agent_bytes'] >> 20} MiB, "
            f"daemons {part['memory']['daemon_bytes'] >> 20} MiB",
            err=True,
        )
    click.echo(
        f"  live downtime is {100 * result['downtime_ratio']:.2f} % of stop-and-copy's", err=True
    )


@click.command()
@click.option("--size", "sizes", multiple=True, type=int, help="Working set in MiB (repeatable).")
@click.option("--rate", type=int, default=200, show_default=True, help="Dirty rate in MB/s.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Moves per mode.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/downtime.json")
)
def main(sizes: tuple[int, ...], rate: int, repeats: int, output: Path) -> None:
    """Measure, print the figures, and write them as JSON."""
    with two_hosts() as (alpha, beta, folder):
        program = build_workload("writer", folder)
        results = []
        for size in sizes or (1024, 4096):
            results.append(measure((alpha, beta), program, Cell(size, rate, repeats)))
            _show(results[-1])
    report = {"platform": "sim", "cpus": os.cpu_count(), "cells": results}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1))
    json.dump({"output": str(output)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
