"""Several enclaves moved at once between two hosts, against one of the same kind moved alone."""

import threading
import time
from pathlib import Path

from optmigd.bench.cells import ManyCell, tracked_by, writer
from optmigd.bench.hosts import Host
from optmigd.bench.moves import end, launch
from optmigd.bench.results import ManyMove, ManyResult
from optmigd.protocol.errors import OptmigError


def measure(hosts: tuple[Host, Host], image: Path, cell: ManyCell, repeats: int) -> ManyResult:
    """Move one enclave alone, to and fro; then all of them at once, as the hosts' limits allow.

    A migration that fails is part of the result.

    Raises:
        OptmigError: a program did not start, or the one alone did not move.
    """
    program = tracked_by(writer("many", cell.size_mib, cell.rate_mb_s), cell.tracker)
    homes = [(hosts[n % cell.directions], hosts[1 - n % cell.directions]) for n in _each(cell)]
    names = [f"many-{cell.directions}-{number}" for number in _each(cell)]
    where: dict[str, Host] = {}
    try:
        launch(hosts[0], image, program, names[0])
        where[names[0]] = hosts[0]
        alone_ms = _alone(hosts, names[0], repeats)
        for name, (here, _) in zip(names[1:], homes[1:], strict=True):
            launch(here, image, program, name)
            where[name] = here
        moves: list[ManyMove] = []
        failures: list[str] = []

        def move(name: str, here: Host, there: Host) -> None:
            try:
                done = here.client.migrate(name, there.name)
            except OptmigError as error:
                failures.append(f"{name}: {error.code}: {error.message}")
                return
            where[name] = there
            moves.append(
                ManyMove(
                    source=here.name,
                    downtime_ms=done["downtime_ms"],
                    total_time_ms=done["total_time_ms"],
                    queued_time_ms=done["queued_time_ms"],
                )
            )

        threads = [
            threading.Thread(target=move, args=(name, *home), daemon=True)
            for name, home in zip(names, homes, strict=True)
        ]
        started_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall_s = time.monotonic() - started_s
    finally:
        for name, host in where.items():
            end(host, name)
    return ManyResult(
        key=cell.key,
        title=cell.title,
        enclaves=cell.enclaves,
        size_mib=cell.size_mib,
        rate_mb_s=cell.rate_mb_s,
        directions=cell.directions,
        alone_ms=alone_ms,
        moves=moves,
        wall_s=wall_s,
        failures=failures,
    )


def _each(cell: ManyCell) -> range:
    return range(cell.enclaves)


def _alone(hosts: tuple[Host, Host], name: str, repeats: int) -> list[float]:
    """Move one enclave to and fro, an even number of times: it ends where it began."""
    found = []
    here, there = hosts
    for _ in range(2 * repeats):
        time.sleep(0.3)  # it is at work again
        found.append(here.client.migrate(name, there.name)["downtime_ms"])
        here, there = there, here
    return found
