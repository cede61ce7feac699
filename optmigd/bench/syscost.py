"""What one mediated system call costs against the same call natively, in one run."""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from optmigd.bench.hosts import Host, start_host, stop_host
from optmigd.bench.programs import Program, build_workload

CALLS = 50_000


def _costs(output: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in output.splitlines())
    return {name: float(cost) for name, cost in lines}


def _native(program: Program, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [program.native, str(CALLS)], cwd=folder, check=True, capture_output=True, text=True
    )
    return _costs(done.stdout)


def _mediated(host: Host, program: Program, number: int) -> dict[str, float]:
    enclave = f"syscost-{number}"
    host.client.launch(program.image, enclave=enclave, memory_bytes=256 << 20, args=(str(CALLS),))
    ended = host.client.wait(enclave)
    output = b"".join(host.client.logs(enclave)).decode()
    if ended["exit_status"] != 0:
        raise RuntimeError(f"syscost ended with status {ended['exit_status']}: {output}")
    return _costs(output)


@click.command()
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/syscost.json")
)
def main(repeats: int, output: Path) -> None:
    """Print nanoseconds per call, native and mediated, medians over the repeats."""
    with tempfile.TemporaryDirectory(prefix="optmigd-") as name:
        folder = Path(name)
        program = build_workload("syscost", folder)
        host = start_host("alpha", folder / "alpha")
        try:
            runs = [(_native(program, folder), _mediated(host, program, n)) for n in range(repeats)]
        finally:
            stop_host(host)
    table = Table(title=f"nanoseconds per call, median of {repeats} runs of {CALLS} calls")
    for heading in ("call", "native", "mediated", "added"):
        table.add_column(heading, justify="left" if heading == "call" else "right")
    rows = []
    for call in runs[0][0]:
        native, mediated = (statistics.median(run[side][call] for run in runs) for side in (0, 1))
        rows.append({"call": call, "native_ns": native, "mediated_ns": mediated})
        table.add_row(call, f"{native:.0f}", f"{mediated:.0f}", f"{mediated - native:.0f}")
    Console().print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"calls": CALLS, "repeats": repeats, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
