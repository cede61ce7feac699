"""The time line's figures, from a made-up record of a move."""

import pytest

from optmigd.bench.timeline import Mark, speeds
from optmigd.bench.writer_record import read_record


def test_speeds_are_taken_between_the_marks_and_the_downtime_stands_apart() -> None:
    # Ten intervals before, two of setup, four with rounds, one with the downtime, two after.
    lines = [f"{0.1 * n:.3f} 100 1.0" for n in range(1, 11)]
    lines += ["1.100 90 2.0", "1.200 90 2.0"]
    lines += [f"{1.2 + 0.1 * n:.3f} 80 3.0" for n in range(1, 5)]
    lines += ["1.720 60 22.5", "1.820 100 1.0", "1.920 100 1.0"]
    marks = [
        Mark(1.0, "begin"),
        Mark(1.2, "active"),
        Mark(1.4, "round 0"),
        Mark(1.65, "pre-switchover"),
        Mark(1.71, "end"),
    ]
    found = speeds(read_record("\n".join(lines)), marks)
    assert found["before_pages_s"] == pytest.approx(1000)
    assert found["rounds_pages_s"] == pytest.approx(800)
    assert found["slower_percent"] == pytest.approx(20)
    assert found["after_pages_s"] == pytest.approx(1000)
    assert found["longest_pause_ms"] == 22.5


def test_a_move_without_rounds_has_no_speed_in_them() -> None:
    marks = [Mark(0.1, "begin"), Mark(0.1, "pre-switchover"), Mark(0.2, "end")]
    found = speeds(read_record("0.100 10 1.0\n0.300 5 120.0\n"), marks)
    assert "slower_percent" not in found
    assert found["longest_pause_ms"] == 120.0
