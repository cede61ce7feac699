"""`make demo`: a real program moves between two daemons while it computes.

The program is an in-memory hash join over about 1 GiB, plain C, built by `optmig-cc`. It runs three
times: uninterrupted and outside any enclave (for the right answer), moved live, and moved by
stop-and-copy. Both daemons run on this machine, with host keys of their own.
"""

import subprocess
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from optmigd.bench.hosts import Host, two_hosts
from optmigd.bench.programs import Program, build_workload
from optmigd.requests import Mode

TABLE_MIB = 1024
PROBE_PASSES = 3
MEMORY_BYTES = 1400 << 20
ARGUMENTS = (str(TABLE_MIB), str(PROBE_PASSES))


def answer_of(output: str) -> str:
    """The program's last line, which is its answer.

    Raises:
        RuntimeError: it has none.
    """
    lines = [line for line in output.splitlines() if line.startswith("answer")]
    if not lines:
        raise RuntimeError(f"the program gave no answer; its output:\n{output[-1000:]}")
    return lines[-1]


def _wait_for_output(host: Host, enclave: str, text: str) -> None:
    seen = b""
    for piece in host.client.logs(enclave, follow=True):
        seen += piece
        if text.encode() in seen:
            return
    raise RuntimeError(f"the program ended before it said {text!r}:\n{seen.decode()}")


def moved(
    console: Console, source: Host, destination: Host, program: Program, mode: Mode
) -> tuple[dict[str, Any], str]:
    """Run the program, move it while it probes, and wait for its end on the other host.

    Returns:
        what the migration reported, and the program's answer.
    """
    enclave = f"hashjoin-{mode}"
    source.client.launch(program.image, enclave=enclave, memory_bytes=MEMORY_BYTES, args=ARGUMENTS)
    _wait_for_output(source, enclave, "probed 1")
    console.print(f"[bold]{enclave}[/bold] is probing on {source.name}; moving it ({mode})")

    def show(event: dict[str, Any]) -> None:
        if done := event.get("round"):
            console.print(
                f"  round {done['round_no']}: {done['pages']:>7} pages, "
                f"{done['bytes'] / 1e6:8.1f} MB in {done['duration_ms']:7.1f} ms"
            )

    migration = source.client.migrate(enclave, destination.name, mode=mode, on_event=show)
    console.print(
        f"  runs on {destination.name}: down {migration['downtime_ms']:.1f} ms, "
        f"{migration['total_time_ms'] / 1000:.2f} s in all"
    )
    ended = source.client.wait(enclave)
    if ended["exit_status"] != 0:
        raise RuntimeError(f"{enclave} ended with status {ended['exit_status']}")
    output = b"".join(destination.client.logs(enclave)).decode()
    return dict(migration), answer_of(output)


@click.command()
def main() -> None:
    """Show a live migration, a stop-and-copy of the same program, and both downtimes."""
    console = Console()
    console.print(
        "Platform [bold]sim[/bold]: a software stand-in for a TEE. It shows the mechanism and "
        "protects nothing from the host."
    )
    begin = time.monotonic()
    with two_hosts() as (alpha, beta, folder):
        console.print("compiling the hash join (the first time also the C library, about a minute)")
        program = build_workload("hashjoin", folder)
        console.print(f"the uninterrupted run, outside any enclave: hash join of {TABLE_MIB} MiB")
        native = subprocess.run(
            [program.native, *ARGUMENTS], check=True, capture_output=True, text=True
        )
        right = answer_of(native.stdout)
        results = {mode: moved(console, alpha, beta, program, mode) for mode in MODES}
    table = Table(title=f"hash join, {TABLE_MIB} MiB, moved while it computes")
    for heading in ("", "downtime", "total time", "rounds", "transferred", "answer"):
        table.add_column(heading, justify="left" if heading in ("", "answer") else "right")
    for mode, (migration, answer) in results.items():
        table.add_row(
            mode,
            f"{migration['downtime_ms']:.1f} ms",
            f"{migration['total_time_ms']:.0f} ms",
            str(len(migration["rounds"])),
            f"{migration['transferred_bytes'] / 1e6:.0f} MB",
            "right" if answer == right else f"WRONG: {answer}",
        )
    console.print(table)
    live, stopped = (results[mode][0]["downtime_ms"] for mode in MODES)
    console.print(
        f"live downtime is {100 * live / stopped:.2f} % of stop-and-copy's "
        f"({stopped / live:.0f} times shorter); {right}; {time.monotonic() - begin:.0f} s in all"
    )
    if any(answer != right for _, answer in results.values()):
        sys.exit("optmigd demo: a moved program gave another answer than the uninterrupted run")


MODES: tuple[Mode, Mode] = ("precopy", "stop-and-copy")

if __name__ == "__main__":
    main()
