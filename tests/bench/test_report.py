"""What is kept of a benchmark, and how it is shown; on results that are made up."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from optmigd.bench import results, run
from optmigd.bench.cells import FULL, QUICK, Cell, ManyCell, matrix, writer
from optmigd.bench.report import page
from optmigd.bench.results import Spread
from optmigd.protocol.errors import ConfigError
from tests.bench.synthetic import all_results, result

XHTML = "{http://www.w3.org/1999/xhtml}"


def test_the_whole_matrix_is_what_the_issue_names() -> None:
    cells = matrix(FULL)
    assert len({cell.key for cell in cells}) == len(cells)
    sizes = [cell.size_mib for cell in cells if isinstance(cell, Cell) and cell.group == "size"]
    assert sizes == [512, 1024, 2048, 4096, 8192]
    rates = {
        (cell.pattern, cell.rate_mb_s)
        for cell in cells
        if isinstance(cell, Cell) and cell.group == "rate"
    }
    assert rates == {("uniform", 0)} | {
        (pattern, rate) for pattern in ("uniform", "zipfian") for rate in (50, 200, 500)
    }
    assert {cell.content for cell in cells if isinstance(cell, Cell) and cell.group == "pages"} == {
        "random",
        "half-zero",
    }
    assert [cell.directions for cell in cells if isinstance(cell, ManyCell)] == [1, 2]
    assert [type(cell) for cell in matrix(QUICK, ["many"])] == [ManyCell, ManyCell]


def test_another_tracker_makes_other_cells() -> None:
    marked = matrix(dataclasses.replace(FULL, tracker="compiler"))
    assert all(cell.tracker == "compiler" for cell in marked)
    assert not {cell.key for cell in marked} & {cell.key for cell in matrix(FULL)}
    assert all("compiler tracker" in cell.title for cell in marked)


def test_results_are_read_back_and_measured_cells_are_known(tmp_path: Path) -> None:
    whole = all_results()
    path = tmp_path / "deep" / "bench.json"
    assert results.load(path) is None
    results.save(path, whole)
    again = results.load(path)
    assert again == whole
    assert again.has(whole.cells[0].key, 2)
    assert not again.has(whole.cells[0].key, 3)
    assert again.has(whole.many[0].key, 3)
    assert not again.has("size/1/1", 1)
    again.put(result(writer("size", 8192, 200)))
    assert len(again.cells) == len(whole.cells) + 1


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"schema_version": "one"}', msgspec.json.encode([1])]
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / run.RESULTS_NAME
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="--fresh"):
        results.load(path)
    assert path.read_bytes() == content


def test_results_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    whole = all_results()
    whole.machine.cpu = "another"
    results.save(tmp_path / run.RESULTS_NAME, whole)
    plan = run.Plan(cells=[], repeats=1, output=tmp_path, fresh=False, options={})
    with pytest.raises(ConfigError, match="another"):
        run.run(plan, lambda _line: None)


def test_ratios_are_taken_pair_by_pair() -> None:
    cell = result(writer("size", 64, 200))
    assert cell.ratios() == pytest.approx([0.05, 0.05])
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_the_report_is_one_well_formed_file_that_needs_nothing_else() -> None:
    whole = all_results()
    text = page(whole)
    root = ElementTree.fromstring(text.partition("\n")[2])
    tags = {element.tag for element in root.iter()}
    assert not tags & {f"{XHTML}{name}" for name in ("script", "link", "img", "iframe")}
    for element in root.iter():
        assert not {"href", "src"} & set(element.attrib)
    assert "url(" not in text
    assert "@import" not in text
    captions = {figure.text for figure in root.iter(f"{XHTML}figcaption")}
    assert captions >= {
        "Downtime against the enclave's size",
        "Downtime against the dirty rate",
        "Total time against the dirty rate",
        "The parts of the downtime, live",
        "Bytes on the wire in each round",
        "Time of each round",
        "Throughput of round 0 against data streams",
        "Downtimes of many at once, in order of size",
    }
    assert any((caption or "").startswith("The program's own speed") for caption in captions)
    shown = "".join(root.itertext())
    assert "the machine was not quiet" in shown
    assert "8 GiB & more: needs <more> memory" in shown
    assert "5.00 %" in shown
    assert "(1 of 2 did not converge)" in shown


def test_a_report_of_nothing_is_a_page_too() -> None:
    whole = all_results()
    whole.cells, whole.many, whole.left_out = [], [], []
    ElementTree.fromstring(page(whole).partition("\n")[2])
