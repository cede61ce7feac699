"""Every parser meets its corpus on every Python; where the fuzzer is there, new inputs as well."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import binaries, channels, messages, streams, texts  # noqa: F401
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
RUNS = 500
CORPUS_LIMIT_BYTES = 500 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused_by_name(name: str) -> None:
    inputs = sorted((HERE / "corpus" / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name].attack(path.read_bytes())
    for seed in TARGETS[name].seeds():
        TARGETS[name].attack(seed)


def test_the_corpus_is_small() -> None:
    sizes = [path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file()]
    assert sum(sizes) < CORPUS_LIMIT_BYTES
    assert {path.name for path in (HERE / "corpus").iterdir()} == set(TARGETS)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris, the coverage-guided fuzzer, has no wheel for this Python",
)
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "all", "1", f"-runs={RUNS}"],
        cwd=HERE.parents[1],
        env={**os.environ, "FUZZ_FOUND": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert run.stderr.count("stat::number_of_executed_units") == len(TARGETS)
