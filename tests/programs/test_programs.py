"""Programs moved five times at random instants answer as they do when nobody moves them.

One small program of somebody else's runs by default, where a registry answers; all of them, under
both trackers, is `make programs`.
"""

from pathlib import Path

import pytest

from optmigd.bench.hosts import Host
from tests.programs.cases import CASES
from tests.programs.fetch import Unreachable
from tests.programs.travel import travel


@pytest.mark.timeout(300)
def test_lua_as_its_authors_wrote_it(pair: tuple[Host, Host], tmp_path: Path) -> None:
    case = CASES["lua"]
    try:
        image = case.build(tmp_path, "kernel")
    except Unreachable as error:
        pytest.skip(f"the source cannot be fetched: {error}")
    expected = case.alone(image, 4, tmp_path / "alone")
    done = travel(case, image, expected, pair, tmp_path, scale=4, moves=3, tracker="kernel", seed=4)
    assert done.equal
    assert done.verified
    assert done.moves >= 1
