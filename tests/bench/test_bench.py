"""`optmigctl bench` with one tiny cell: it measures, can be taken up again, and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from optmigd.bench import results
from optmigd.cli.ctl import ctl
from optmigd.cli.invocation import run

TINY = ("--only", "rate", "--rates", "0", "--base-size", "16MiB", "--repeats", "1")


def bench(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would."""
    command = [sys.executable, "-m", "optmigd.cli.ctl", "bench", "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def processes_of(folder: Path) -> list[str]:
    """Command lines of daemons and agents whose folders lie below the temporary directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder) in line and "optmigd." in line:
            found.append(line)
    return found


def test_one_cell_is_measured_kept_and_shown(tmp_path: Path) -> None:
    done = bench(tmp_path / "out", *TINY, "--json")
    assert done.returncode == 0, done.stderr
    assert "16 MiB, at rest: live" in done.stderr
    content = (tmp_path / "out/bench.json").read_bytes()
    assert json.loads(done.stdout) == json.loads(content)
    whole = results.load(tmp_path / "out/bench.json")
    assert whole is not None
    (cell,) = whole.cells
    assert [move.mode for move in cell.moves] == ["precopy", "stop-and-copy"]
    assert all(move.downtime_ms > 0 and move.rounds for move in cell.moves)
    assert all((move.program_pause_ms or 0) > 0 for move in cell.moves)
    assert cell.samples
    assert len(cell.marks) == 2
    (only,) = whole.runs
    assert only.finished is not None
    ElementTree.fromstring((tmp_path / "out/bench.html").read_text().partition("\n")[2])

    again = bench(tmp_path / "out", *TINY)
    assert again.returncode == 0, again.stderr
    assert "1 of 1 cells are measured already" in again.stderr
    assert "building" not in again.stderr
    assert "16 MiB, at rest" in again.stdout


def test_ctrl_c_leaves_what_was_measured_and_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    options = ("--only", "size", "--sizes", "16MiB,32MiB", "--repeats", "20")
    command = [sys.executable, "-m", "optmigd.cli.ctl", "bench", *options]
    running = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job's is off
    )
    try:
        deadline = time.monotonic() + 150
        while not any("enclave_shim" in line for line in processes_of(tmp_path)):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # As a terminal does: to everyone in the foreground.
        os.killpg(running.pid, signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            running.terminate()  # which leaves no process either
            running.communicate(timeout=60)
    assert running.returncode == 130, output
    whole = results.load(tmp_path / "out/bench.json")
    assert whole is not None
    assert whole.runs[0].finished is not None
    assert (tmp_path / "out/bench.html").exists()
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("optmigd-*")) == []


def test_wrong_options_and_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")

    for wrong in (
        ("--sizes", "big"),
        ("--sizes", "10B"),
        ("--rates", "-1"),
        ("--streams", "0"),
        ("--only", "all"),
        ("--programs", "writer-uniform"),
    ):
        assert run(ctl, "optmigctl", ["bench", "--output", output, *wrong]) == 2
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert run(ctl, "optmigctl", ["bench", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$ref"] == "#/$defs/Results"
