"""`make soak`, second part: random faults at random boundaries (SOAK_FAULTS, SOAK_SEED)."""

import os
import random
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.conftest import BuildProgram
from tests.faults.cells import FAULTS, run_cell
from tests.faults.evidence import LedgerWork, PlainWork, Work
from tests.faults.gate import Boundary
from tests.faults.matrix import Workplace, boundaries_of
from tests.support.journeys import native_run

pytestmark = pytest.mark.soak

# Shorter than for moves without faults: one that ends meanwhile is judged by its answer as well.
ARGUMENTS = {
    "integers": ["100000000", "32"],
    "pointers": ["300000"],
    "floats": ["7000"],
    "threads": ["4", "17000"],
}
TWO_FAULTS = 0.3
"""How often a second fault strikes."""
LONGEST_GAP_S = 1.0


def test_random_faults(program: BuildProgram, tmp_path: Path) -> None:
    runs = int(os.environ.get("SOAK_FAULTS", "200"))
    seed = int(os.environ.get("SOAK_SEED", str(secrets.randbits(32))))
    print(f"SOAK_SEED={seed} SOAK_FAULTS={runs}")
    works: list[Work] = [LedgerWork(program("ledger"))] * 2
    for name, arguments in ARGUMENTS.items():
        expected = native_run(program(name), arguments, tmp_path / name)
        works.append(PlainWork(name, program(name), arguments, expected))
    folder = Path(tempfile.mkdtemp(prefix="optmigd-"))
    workplace = Workplace(folder / "w")
    broken: list[str] = []
    try:
        boundaries = boundaries_of(folder / "b", works[0])
        for run in range(runs):
            work, boundary, faults, gap_s = _choose(random.Random(seed + run), works, boundaries)
            cell = run_cell(workplace.hosts(), work, f"f{run}", boundary, faults, gap_s)
            said = "; ".join(cell.violations) or "ok"
            print(
                f"run {run}, seed {seed + run}, {work.name}: {cell.name} (gap {gap_s:.2f} s): "
                f"{cell.outcome}, {cell.total_s:.1f} s, {said}",
                flush=True,
            )
            if cell.violations:
                broken.append(f"seed {seed + run}: {cell.name}: {said}")
                workplace.keep_logs(tmp_path / f"f{run}")
                workplace.discard()
    finally:
        workplace.discard()
        shutil.rmtree(folder, ignore_errors=True)
    assert broken == [], f"logs are in {tmp_path}"


def _choose(
    chosen: random.Random, works: list[Work], boundaries: list[Boundary]
) -> tuple[Work, Boundary, tuple[str, ...], float]:
    faults = [chosen.choice(FAULTS)]
    gap_s = 0.0
    if chosen.random() < TWO_FAULTS:
        faults.append(chosen.choice(FAULTS))
        gap_s = chosen.uniform(0.0, LONGEST_GAP_S)
    return chosen.choice(works), chosen.choice(boundaries), tuple(faults), gap_s
