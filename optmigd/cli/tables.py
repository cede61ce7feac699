"""Answers as people read them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optmigd.units import format_ms, format_rate, format_size

_PIPE_COLUMNS = 200
"""Width of a table that is not written to a terminal: nothing of ordinary length is cut."""


def console() -> Console:
    """Return a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without lines; texts are shown as they are, markup included."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading.upper(), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print one ``name  value`` a line, values aligned."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        click.echo(f"{name:<{width}}  {value}")


def platform_text(platform: str) -> str:
    """Name a platform; a simulated one says that it protects nothing."""
    if platform == "sim":
        return "sim (a SOFTWARE root of trust for development: it protects nothing from the host)"
    return platform


def status_pairs(status: Mapping[str, Any]) -> dict[str, str]:
    """A status, for `print_pairs`."""
    migration = status.get("migration")
    pairs = {
        "enclave": status["enclave"],
        "state": state_text(status),
        "host": status["host"],
        "platform": platform_text(status["platform"]),
        "measurement": status["measurement"],
        "tracker": status["tracker"],
        "memory": f"{format_size(status['resident_bytes'] or 0)} used of "
        f"{format_size(status['memory_bytes'] or 0)}",
        "owner generation": str(status["owner_generation"]),
    }
    if status.get("dir"):
        pairs["directory"] = status["dir"]
    if isinstance(migration, Mapping):
        shown = ("migration_id", "state", "role", "peer")
        pairs["migration"] = " ".join(str(migration[key]) for key in shown if migration.get(key))
        if migration.get("queue"):
            pairs["queue"] = queue_text(migration["queue"])
    elif migration:
        pairs["migration"] = str(migration)
    return pairs


def state_text(status: Mapping[str, Any]) -> str:
    """The state of an enclave, with the exit status if it has ended, or its place in the queue."""
    if status.get("exit_status") is not None:
        return f"{status['state']} (status {status['exit_status']})"
    queue = (status.get("migration") or {}).get("queue")
    if queue:
        return f"{status['state']} (queued, place {queue['position']})"
    return str(status["state"])


def queue_text(queue: Mapping[str, Any]) -> str:
    """Where a migration stands in the queue, and before which host."""
    if not queue["position"]:
        return "its turn has come"
    return f"place {queue['position']}: host {queue['waits_for']} is at its limit"


def settings_text(settings: Mapping[str, Any]) -> str:
    """What of a migration can be changed while it is under way, as it is now."""
    bandwidth = settings["max_bandwidth"]
    return (
        f"downtime limit {format_ms(settings['downtime_limit_ms'])}, bandwidth "
        f"{'at most ' + format_rate(bandwidth) if bandwidth else 'without limit'}, "
        f"on stall {settings['on_stall']}"
    )


def print_forecast(forecast: Mapping[str, Any]) -> None:
    """Print what a migration would take, of what is known of it."""
    writers: dict[str, Callable[[Any], str]] = {
        "rounds": str,
        "total_time_ms": format_ms,
        "downtime_ms": format_ms,
        "dirty_pages_rate": lambda rate: f"{rate:.0f} pages/s ({format_rate(rate * 4096)})",
    }
    known = {key: write(forecast[key]) for key, write in writers.items() if key in forecast}
    if known:
        click.echo("forecast:")
        print_pairs({f"  {_words(key)}": value for key, value in known.items()})


def print_holdings(holds: Mapping[str, Mapping[str, int]]) -> None:
    """Print what the program holds, one line a sort; what there is none of is left out."""
    pairs = {}
    for sort, counts in holds.items():
        write = format_size if sort.endswith("_bytes") else str
        parts = [f"{write(count)} {kind}" for kind, count in counts.items() if count]
        if parts:
            pairs[f"  {_words(sort.removesuffix('_bytes'))}"] = ", ".join(parts)
    if pairs:
        click.echo("holds:")
        print_pairs(pairs)


def print_migration(migration: Mapping[str, Any]) -> None:
    """Print the summary of a finished migration: its rounds, then its figures."""
    rounds = migration.get("rounds") or []
    if rounds:
        print_table(
            ("round", "pages", "zero", "bytes", "time", "dirty pages/s"),
            [
                (
                    str(each["round_no"]),
                    str(each["pages"]),
                    str(each["zero_pages"]),
                    format_size(each["bytes"]),
                    format_ms(each["duration_ms"]),
                    f"{each['dirty_pages_rate']:.0f}",
                )
                for each in rounds
            ],
        )
    writers: dict[str, Callable[[Any], str]] = {
        "migration_id": str,
        "platform": platform_text,
        "mode": str,
        "total_bytes": format_size,
        "transferred_bytes": format_size,
        "throughput_mbps": lambda mbps: f"{mbps:.0f} Mbit/s",
        "queued_time_ms": format_ms,
        "setup_time_ms": format_ms,
        "total_time_ms": format_ms,
        "downtime_ms": format_ms,
        "owner_generation": str,
        "state_digest": str,
        "verified": lambda verified: "both arenas are equal" if verified else "NO",
    }
    pairs = {
        _words(key): write(migration[key])
        for key, write in writers.items()
        if migration.get(key) is not None
    }
    parts = migration.get("downtime_parts_ms") or {}
    for name, duration_ms in parts.items():
        pairs[f"  of it, {_words(name)}"] = format_ms(duration_ms)
    if pairs:
        print_pairs(pairs)


def _words(key: str) -> str:
    return key.removesuffix("_ms").removesuffix("_mbps").replace("_", " ")
