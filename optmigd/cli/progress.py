"""What a migration looks like while it runs: live on a terminal, plain lines elsewhere.

Displays take the events of the control socket as they come. They are told nothing twice and ask
nothing: a display that is too slow or absent changes no migration.
"""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optmigd.cli.tables import console, queue_text, settings_text
from optmigd.units import format_ms, format_rate, format_size

PAGE_BYTES = 4096


class SilentDisplay:
    """Shows nothing but remarks, on standard error: for `--json`. The others build on it."""

    def __enter__(self) -> Self:
        """Begin showing."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End showing."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one ``{"state": …}``, ``{"round": …}`` or ``{"progress": …}``."""

    def say(self, text: str) -> None:
        """Tell the person something that is no event."""
        click.echo(text, err=True)


class PlainDisplay(SilentDisplay):
    """One line for each state and each round: for files and pipes."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Print states and rounds; progress within a round is left out."""
        line = event_line(event)
        if line and "progress" not in event:
            click.echo(line)
            sys.stdout.flush()


class LiveDisplay(SilentDisplay):
    """A few lines that are drawn again with every event: for terminals."""

    def __init__(self, enclave: str, host: str) -> None:
        """Show the migration of `enclave` to `host`."""
        self._title = f"{enclave} → {host}"
        self._state = "setup"
        self._progress: Mapping[str, Any] = {}
        self._pages = 0
        self._queue = ""
        self._live = Live(console=console(), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        """Begin showing."""
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the display away; what has been said stays."""
        self._live.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        """Draw again with what the event says."""
        if "state" in event:
            self._state = str(event["state"])
        if "queue" in event:
            waits = event["queue"]["position"] > 0
            self._queue = f"  queued, {queue_text(event['queue'])}" if waits else ""
        if "round" in event:
            self._pages += event["round"]["pages"]
        if "progress" in event:
            self._progress = event["progress"]
        self._draw()

    def say(self, text: str) -> None:
        """Print above the display."""
        self._live.console.print(Text(text))

    def _draw(self) -> None:
        progress = self._progress
        total = progress.get("total_bytes") or 0
        remaining = progress.get("remaining_bytes") or 0
        figures = Table.grid(padding=(0, 3))
        figures.add_row(
            Text(f"round {progress.get('round_no', 0)}"),
            Text(f"{self._pages} pages in finished rounds"),
            Text(f"{format_size(remaining)} remaining"),
        )
        figures.add_row(
            Text(format_rate((progress.get("throughput_mbps") or 0) * 1e6 / 8)),
            Text(f"{format_rate((progress.get('dirty_pages_rate') or 0) * PAGE_BYTES)} dirtied"),
            Text(f"expected downtime {_downtime(progress)}"),
        )
        bar = Table.grid(expand=True)  # a bar by itself does not end its line
        bar.add_row(ProgressBar(total=max(total, 1), completed=max(total - remaining, 0)))
        heading = Text(f"{self._title}  {self._state}{self._queue}", style="bold")
        self._live.update(Group(heading, bar, figures), refresh=True)


def make_display(enclave: str, host: str, *, as_json: bool) -> SilentDisplay:
    """Choose a display for where standard output goes."""
    if as_json:
        return SilentDisplay()
    return LiveDisplay(enclave, host) if sys.stdout.isatty() else PlainDisplay()


def event_line(event: Mapping[str, Any]) -> str:
    """One event as a line of text; empty for one of a kind that is not known here."""
    match event:
        case {"state": state}:
            return f"state {state}"
        case {"queue": queue}:
            return f"queued, {queue_text(queue)}" if queue["position"] else queue_text(queue)
        case {"settings": settings}:
            return f"settings changed: {settings_text(settings)}"
        case {"round": each}:
            return (
                f"round {each['round_no']} done: {each['pages']} pages "
                f"({each['zero_pages']} zero), {format_size(each['bytes'])} in "
                f"{format_ms(each['duration_ms'])}, {each['dirty_pages_rate']:.0f} pages/s dirtied"
            )
        case {"progress": progress}:
            rate = format_rate(progress["throughput_mbps"] * 1e6 / 8)
            return (
                f"round {progress['round_no']}: {format_size(progress['remaining_bytes'])} "
                f"remaining at {rate}, expected downtime {_downtime(progress)}"
            )
    return ""


def _downtime(progress: Mapping[str, Any]) -> str:
    expected_ms = progress.get("expected_downtime_ms")
    return "not known yet" if expected_ms is None else format_ms(expected_ms)
