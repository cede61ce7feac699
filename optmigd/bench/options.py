"""What several benchmarks can be told."""

from collections.abc import Callable
from typing import Any

import click

tracker_option: Callable[[Any], Any] = click.option(
    "--tracker",
    type=click.Choice(["auto", "kernel", "compiler"]),
    default="auto",
    show_default=True,
    help="What finds the written pages; for `compiler` the programs are built with marks.",
)
