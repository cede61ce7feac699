"""The downtime of a program that changes files, from a tiny real measurement."""

import json
from pathlib import Path

from click.testing import CliRunner

from optmigd.bench.files import main


def test_both_modes_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "files.json"
    words = ["--size", "8", "--rate", "1000", "--repeats", "1", "--output", str(output)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    (table,) = json.loads(output.read_text())["tables"]
    assert table["table_mib"] == 8
    assert set(table["medians_ms"]) == {"precopy", "stop-and-copy"}
    assert [len(move["rounds"]) > 1 for move in table["moves"]] == [True, False]
