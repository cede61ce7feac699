"""How fast programs run inside an enclave while no migration runs, against natively."""

import json
import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from optmigd.bench.hosts import Host, start_host, stop_host
from optmigd.bench.programs import Program, build_workload

PROGRAMS = {
    "hashjoin": ("256", "3"),  # computes: a system call now and then
    "records": ("64", "1000000"),  # every operation is one to three system calls on files
}
MEMORY_BYTES = 1 << 30
_AFTER = re.compile(r"after ([0-9.]+) s")


def _seconds(output: str) -> float:
    """What the program itself measured, up to its last pass."""
    return float(_AFTER.findall(output)[-1])


def _pair(host: Host, name: str, program: Program, folder: Path, number: int) -> dict[str, float]:
    """Run it natively, then as an enclave; seconds of both."""
    words = PROGRAMS[name]
    native = subprocess.run(
        [program.native, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    enclave = f"{name}-{number}"
    host.client.launch(program.image, enclave=enclave, memory_bytes=MEMORY_BYTES, args=words)
    status = host.client.wait(enclave)["exit_status"]
    inside = b"".join(host.client.logs(enclave)).decode()
    if status:
        raise RuntimeError(f"{enclave} ended with status {status}: {inside[-500:]}")
    return {"native_s": _seconds(native), "enclave_s": _seconds(inside)}


@click.command()
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    *("--program", "names"),
    type=click.Choice(list(PROGRAMS)),
    multiple=True,
    default=list(PROGRAMS),
    help="Measure this one; may be repeated.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("bench-results/compute.json")
)
def main(repeats: int, names: tuple[str, ...], output: Path) -> None:
    """Run programs natively and as enclaves in turn, and print the ratio of their times."""
    rows = {}
    with tempfile.TemporaryDirectory(prefix="optmigd-") as name:
        folder = Path(name)
        host = start_host("alpha", folder / "alpha")
        try:
            for chosen in names:
                program = build_workload(chosen, folder)
                pairs = [_pair(host, chosen, program, folder, n) for n in range(repeats)]
                rows[chosen] = pairs
                click.echo(_line(chosen, pairs))
        finally:
            stop_host(host)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows))


def _line(name: str, pairs: Sequence[dict[str, float]]) -> str:
    ratios = [pair["enclave_s"] / pair["native_s"] for pair in pairs]
    native, enclave = (
        statistics.median(pair[key] for pair in pairs) for key in ("native_s", "enclave_s")
    )
    return (
        f"{name} {' '.join(PROGRAMS[name])}: native {native:.1f} s, enclave {enclave:.1f} s; "
        f"ratio pair by pair: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
