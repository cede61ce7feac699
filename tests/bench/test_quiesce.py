"""The time to park a program's threads, from two tiny real measurements."""

import json
from pathlib import Path

from click.testing import CliRunner

from optmigd.bench.quiesce import main

THREADS = 128
FAR_TOO_LONG_MS = 60.0
"""With two processors, what parking took when it began with a thread that waited for its turn."""


def test_threads_park_soon_even_where_they_outnumber_the_processors(tmp_path: Path) -> None:
    output = tmp_path / "quiesce.json"
    words = ["--threads", str(THREADS), "--repeats", "4", "--output", str(output)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    waiting, computing = json.loads(output.read_text())["rows"]
    assert [waiting["kind"], computing["kind"]] == ["waiting", "computing"]
    for row in (waiting, computing):
        assert row["threads"] == THREADS
        assert len(row["quiesce_ms"]) == len(row["downtime_ms"]) == 4
        assert all(one > 0 for one in row["quiesce_ms"] + row["downtime_ms"])
    # Others may use the processors as well; the best of several tells.
    assert min(computing["quiesce_ms"]) < FAR_TOO_LONG_MS
