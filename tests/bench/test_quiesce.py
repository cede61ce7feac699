"""The time to park a program's threads, from two tiny real measurements."""

import json
from pathlib import Path

from click.testing import CliRunner

from optmigd.bench.quiesce import main

THREADS = 16


def test_both_kinds_of_threads_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "quiesce.json"
    words = ["--threads", str(THREADS), "--repeats", "2", "--output", str(output)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    waiting, computing = json.loads(output.read_text())["rows"]
    assert [waiting["kind"], computing["kind"]] == ["waiting", "computing"]
    for row in (waiting, computing):
        assert row["threads"] == THREADS
        assert len(row["quiesce_ms"]) == len(row["downtime_ms"]) == 2
        assert all(one > 0 for one in row["quiesce_ms"] + row["downtime_ms"])
