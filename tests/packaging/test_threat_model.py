"""The threat model names tests that exist: a defence without its test is a claim."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "attacks.md").read_text("utf-8")
NAME = re.compile(r"`([a-z_]+/test_[a-z_]+\.py)::(test_[a-z0-9_]+)`")

ROWS = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| asset | attacker", "| asset | what"))
]


@cache
def functions_of(path: Path) -> frozenset[str]:
    """Names of all test functions of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def test_the_page_has_its_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_row_names_a_test_that_exists(row: str) -> None:
    named = NAME.findall(row.rsplit("|", 2)[1])
    assert named, f"this row names no test: {row}"
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / "tests" / file).is_file() or name not in functions_of(ROOT / "tests" / file)
    ]
    assert missing == []


def test_every_other_test_that_the_page_mentions_exists() -> None:
    for file, name in NAME.findall(PAGE):
        assert name in functions_of(ROOT / "tests" / file), f"{file}::{name}"
