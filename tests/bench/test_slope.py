"""The line through downtimes, and its causes, from made-up moves."""

import pytest

from optmigd.bench.slope import causes, line


def test_the_slopes_of_the_parts_add_up_to_that_of_the_downtime() -> None:
    moves = [
        (
            size,
            {
                "downtime_ms": 5.0 + 0.5 * gib,
                "downtime_parts_ms": {
                    "quiesce": 99.0 * gib,
                    "last_scan": 0.4 * gib,
                    "token": 5.0,
                    "prepare": 0.1 * gib,
                },
            },
        )
        for size, gib in ((1024, 1), (2048, 2), (8192, 8))
    ]
    sizes = [size for size, _ in moves]
    slope, fixed = line(sizes, [float(str(move["downtime_ms"])) for _, move in moves])
    assert [slope, fixed] == pytest.approx([0.5, 5.0])
    found = causes(moves)
    assert list(found)[:2] == ["last_scan", "prepare"]
    assert sum(part for part, _ in found.values()) == pytest.approx(slope)
    assert list(found["token"]) == pytest.approx([0.0, 5.0])
