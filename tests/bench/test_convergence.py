"""What is told of moves at several dirty rates, from made-up ones."""

import pytest

from optmigd.bench.convergence import Outcome, throughput_mb_s

ROUNDS = [
    {"bytes": 100_000_000, "duration_ms": 500.0},
    {"bytes": 1_000_000, "duration_ms": 50.0},
]
MOVE = {
    "rounds": ROUNDS,
    "total_time_ms": 700.0,
    "downtime_ms": 8.04,
    "throttle_permille": 0,
    "held_back_ms": 0.0,
}


def test_the_throughput_is_round_0s() -> None:
    assert throughput_mb_s(MOVE) == pytest.approx(200)


def test_a_move_that_was_not_throttled_says_so() -> None:
    outcome = Outcome.of(80, {"rate_mb_s": 160, "migration": MOVE, "slower_percent": 1.0})
    assert str(outcome) == (
        "  80 % (160 MB/s): 2 rounds, 700 ms in all, downtime 8.0 ms, not throttled"
    )


def test_a_move_that_was_throttled_says_by_how_much() -> None:
    throttled = {**MOVE, "throttle_permille": 755, "held_back_ms": 321.0}
    slowed = {"rate_mb_s": 400, "migration": throttled, "slower_percent": 62.5}
    text = "throttled by up to 75.5 %, held back for 321 ms"
    assert text + ", in the median of its rounds 62 % slower" in str(Outcome.of(200, slowed))
    del slowed["slower_percent"]
    assert str(Outcome.of(200, slowed)).endswith(text)
