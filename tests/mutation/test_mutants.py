"""Every listed defence can be removed, its test exists, and for a few it is tried here.

`make mutants` tries all of them.
"""

import re
from pathlib import Path

import pytest

from tests.mutation.defences import DEFENCES, Defence
from tests.mutation.document import DOCUMENT, refreshed
from tests.mutation.runner import ROOT, copy_tree, imports_from, remove, run_tests

QUICK = [defence for defence in DEFENCES if defence.quick]


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_defence_stands_where_the_list_says(defence: Defence) -> None:
    text = (ROOT / defence.file).read_text("utf-8")
    assert text.count(defence.search) == 1
    assert defence.replace != defence.search
    file, _, test = defence.test.partition("::")
    function, _, _ = test.partition("[")
    assert re.search(
        rf"^(async )?def {re.escape(function)}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE
    )


def test_names_are_given_once() -> None:
    names = [defence.name for defence in DEFENCES]
    assert len(names) == len(set(names))
    assert len(names) >= 25


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert refreshed(text) == text, "run `python -m tests.mutation.document`"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree in which the quick tests pass."""
    tree = tmp_path_factory.mktemp("tree").resolve()
    copy_tree(tree)
    assert imports_from(tree)
    whole = run_tests(sorted({defence.test for defence in QUICK}), tree)
    assert whole.all_passed, whole.output
    return tree


@pytest.mark.parametrize("defence", QUICK, ids=lambda defence: defence.name)
def test_a_removed_defence_is_noticed(defence: Defence, tree: Path) -> None:
    path = tree / defence.file
    before = path.read_text("utf-8")
    remove(defence, tree)
    try:
        ran = run_tests([defence.test], tree)
    finally:
        path.write_text(before, "utf-8")
    assert ran.noticed, ran.output
