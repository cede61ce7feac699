"""How fast a program computes inside an enclave while no migration runs, against natively."""

import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import click

from optmigd.bench.hosts import start_host, stop_host
from optmigd.bench.programs import build_workload

TABLE_MIB = 256
PASSES = 3
_AFTER = re.compile(r"after ([0-9.]+) s")


def _seconds(output: str) -> float:
    """What the program itself measured, up to its last pass."""
    return float(_AFTER.findall(output)[-1])


@click.command()
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/compute.json")
)
def main(repeats: int, output: Path) -> None:
    """Run the hash join natively and as an enclave in turn, and print the ratio of their times."""
    arguments = (str(TABLE_MIB), str(PASSES))
    with tempfile.TemporaryDirectory(prefix="optmigd-") as name:
        folder = Path(name)
        program = build_workload("hashjoin", folder)
        host = start_host("alpha", folder / "alpha")
        native, enclave = [], []
        try:
            for number in range(repeats):
                done = subprocess.run(
                    [program.native, *arguments], check=True, capture_output=True, text=True
                )
                native.append(_seconds(done.stdout))
                host.client.launch(
                    program.image, enclave=f"join-{number}", memory_bytes=1 << 30, args=arguments
                )
                host.client.wait(f"join-{number}")
                logs = b"".join(host.client.logs(f"join-{number}")).decode()
                enclave.append(_seconds(logs))
        finally:
            stop_host(host)
    ratios = [mine / theirs for mine, theirs in zip(enclave, native, strict=True)]
    click.echo(
        f"hash join of {TABLE_MIB} MiB: native {statistics.median(native):.1f} s, "
        f"enclave {statistics.median(enclave):.1f} s; ratio pair by pair: median "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"native_s": native, "enclave_s": enclave, "ratios": ratios}))


if __name__ == "__main__":
    main()
