"""The decision after every round, from made-up measurements."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.protocol.convergence import (
    THROTTLE_MAX_PERMILLE,
    Abort,
    Continue,
    OnStall,
    RoundStats,
    Settings,
    SwitchOver,
    Throttle,
    decide,
    expected_downtime_ms,
    forecast,
    stalled,
    throughput,
    worth_another,
    worth_sending_ahead,
)
from optmigd.protocol.errors import LocalProtocolError

SPEED = 1_000_000_000  # bytes per second


def settings(on_stall: OnStall = "abort", limit_ms: float = 100) -> Settings:
    return Settings(downtime_limit_ms=limit_ms, on_stall=on_stall, fixed_ms=10)


def rounds(*dirty: int, throttle: int = 0) -> list[RoundStats]:
    """Rounds at SPEED; the first sends a million pages, each leaves `dirty`."""
    history = []
    to_send = 1_000_000
    for round_no, left in enumerate(dirty):
        size = to_send * 4096
        history.append(
            RoundStats(round_no, to_send, 0, size, max(size, 4096) / SPEED, left, throttle)
        )
        to_send = left
    return history


def test_expected_downtime_is_pages_over_throughput_and_the_fixed_part() -> None:
    assert expected_downtime_ms(250_000, SPEED, 10) == pytest.approx(10 + 1024)
    assert expected_downtime_ms(0, 0, 10) == 10
    assert math.isinf(expected_downtime_ms(1, 0, 10))


def test_throughput_is_taken_over_the_last_rounds() -> None:
    assert throughput([]) == 0
    slow = RoundStats(0, 1, 0, 1, 1000.0, 1)
    assert throughput([slow, *rounds(1000, 1000, 1000)]) == pytest.approx(SPEED)


AT_LIMIT = 90 * SPEED // 1000 // 4096
"""With the fixed part of `settings` these pages take 100 ms."""


def test_short_rounds_do_not_make_the_streams_look_slow() -> None:
    # 4 MB in 60 ms, three times: nearly all of that is the fixed cost of a round.
    short = [RoundStats(number, 1000, 0, 4_096_000, 0.06, 1000) for number in (1, 2, 3)]
    speed = throughput([*rounds(1000), *short])
    assert speed == pytest.approx(SPEED)
    assert decide([*rounds(1000), *short], settings(limit_ms=20)) == SwitchOver("converged")


def test_rounds_that_hardly_shrink_switch_over_at_the_limit_and_not_above() -> None:
    before = AT_LIMIT * 10 // 8
    assert decide(rounds(before, AT_LIMIT), settings()) == SwitchOver("converged")
    assert decide(rounds(before, AT_LIMIT + 1), settings()) == Continue()


def test_within_the_limit_rounds_go_on_to_the_minimum() -> None:
    shrinking = [AT_LIMIT, AT_LIMIT // 5, AT_LIMIT // 25]
    for count in (1, 2, 3):
        assert decide(rounds(*shrinking[:count]), settings()) == Continue()
    # Here the fixed cost of a round has let as many pages become dirty as it has sent.
    assert decide(rounds(*shrinking, AT_LIMIT // 28), settings()) == SwitchOver("converged")


def test_a_gain_that_nobody_would_notice_is_not_sought() -> None:
    half_a_millisecond = SPEED // 2000 // 4096
    assert decide(rounds(1000, half_a_millisecond), settings()) == SwitchOver("converged")
    assert decide(rounds(100_000, 0), settings()) == SwitchOver("converged")


def test_rounds_go_on_for_what_is_not_hot() -> None:
    first, last = rounds(AT_LIMIT, AT_LIMIT * 3 // 4)
    assert decide([first, last], settings()) == SwitchOver("converged")
    without_hot = dataclasses.replace(last, hot_pages=AT_LIMIT // 2)
    assert decide([first, without_hot], settings()) == Continue()
    only_hot = dataclasses.replace(last, hot_pages=last.dirty_pages)
    assert decide([first, only_hot], settings()) == SwitchOver("converged")


def test_no_round_yet_means_a_first_one() -> None:
    assert decide([], settings()) == Continue()


def test_a_limit_below_the_fixed_part_is_never_met_and_is_seen() -> None:
    assert isinstance(decide(rounds(0, 0, 0), settings(limit_ms=5)), Abort)


def test_shrinking_rounds_go_on_however_many() -> None:
    dirty = [int(900_000 * 0.93**n) for n in range(40)]
    for count in range(1, len(dirty) + 1):
        decision = decide(rounds(*dirty[:count]), settings(limit_ms=50))
        assert decision in (Continue(), SwitchOver("converged"))


def test_one_unlucky_round_is_no_stall() -> None:
    assert not stalled(rounds(500_000, 600_000, 300_000))
    assert stalled(rounds(500_000, 600_000, 490_000))


@pytest.mark.parametrize(
    ("on_stall", "expected"), [("switch", SwitchOver), ("abort", Abort), ("throttle", Throttle)]
)
def test_a_stall_is_answered_by_the_strategy(on_stall: OnStall, expected: type) -> None:
    assert isinstance(decide(rounds(500_000, 500_000, 500_000), settings(on_stall)), expected)
    assert decide(rounds(500_000, 500_000), settings(on_stall)) == Continue()


def test_an_abort_names_the_figures() -> None:
    decision = decide(rounds(500_000, 500_000, 500_000), settings())
    assert isinstance(decision, Abort)
    assert "500000 pages" in decision.reason
    assert "2058 ms" in decision.reason
    assert "limit 100 ms" in decision.reason


def steady(pages: int, duration_s: float, *, throttle: int = 0, hot: int = 0) -> RoundStats:
    """A round that leaves as many pages as it sent."""
    return RoundStats(1, pages, 0, pages * 4096, duration_s, pages, throttle, hot)


@pytest.mark.parametrize(
    ("rate", "cost_s", "hot", "on_stall", "expected"),
    [
        # 24,000 pages take 98 ms and their round 10 ms more, so as many are dirty at its end: above
        # the limit with the fixed part. What is sent ahead takes 2 ms beside the bytes.
        pytest.param(0.9, 0.010, 0, "throttle", SwitchOver("converged", ahead=True), id="near"),
        pytest.param(0.9, 0.010, 0, "abort", SwitchOver("converged", ahead=True), id="abort"),
        pytest.param(1.0, 0.0, 0, "switch", SwitchOver("stalled"), id="as fast as it is sent"),
        pytest.param(0.9, 0.010, 23_900, "switch", SwitchOver("stalled"), id="nearly all is hot"),
    ],
)
def test_at_the_minimum_it_counts_what_sending_ahead_leaves(
    rate: float, cost_s: float, hot: int, on_stall: OnStall, expected: SwitchOver
) -> None:
    pages = 24_000
    duration_s = pages * 4096 / SPEED / rate
    assert duration_s == pytest.approx(pages * 4096 / SPEED + cost_s, rel=0.02)
    history = [*rounds(pages), *[steady(pages, duration_s, hot=hot)] * 3]
    assert decide(history, settings(on_stall)) == expected
    without = dataclasses.replace(settings(on_stall), ahead=False)
    assert decide(history, without) != SwitchOver("converged", ahead=True)


def test_a_round_that_shrinks_is_followed_by_another_before_anything_is_sent_ahead() -> None:
    shrinking = [steady(pages, 1.1 * pages * 4096 / SPEED) for pages in (40_000, 30_000)]
    assert decide([*rounds(60_000), *shrinking], settings()) == Continue()


def test_a_throttle_gets_time_to_work_and_then_rises_to_its_end() -> None:
    history = rounds(500_000, 500_000, 500_000)
    applied = [0]
    for _ in range(60):
        decision = decide(history, settings("throttle"))
        if isinstance(decision, Abort):
            break
        if isinstance(decision, Throttle):
            assert decision.permille > applied[-1]
            applied.append(decision.permille)
        history.append(steady(500_000, 500_000 * 4096 / SPEED, throttle=applied[-1]))
    assert applied[-1] == THROTTLE_MAX_PERMILLE
    assert isinstance(decision, Abort)
    assert "held back 99 % of the time" in decision.reason
    for permille in applied[1:]:
        assert sum(stats.throttle_permille == permille for stats in history) >= 2


@given(st.lists(st.integers(0, 2_000_000), max_size=12), st.sampled_from(["switch", "abort"]))
def test_every_history_has_a_decision(dirty: list[int], on_stall: OnStall) -> None:
    history = rounds(*dirty)
    decision = decide(history, settings(on_stall))
    if dirty and expected_downtime_ms(dirty[-1], throughput(history), 10) <= 100:
        going_on = worth_another(history, settings(on_stall))
        assert decision == (Continue() if going_on else SwitchOver("converged"))
    else:
        assert decision != SwitchOver("converged")


@pytest.mark.parametrize(
    ("pages_per_s", "hot_pages", "worth"),
    [
        (50_000, 0, True),  # 2 ms and the sending leave 170 of 400
        (200_000, 0, False),  # 600 of 400
        (50_000, 250, False),  # 130 of the 150 that would be sent
    ],
)
def test_what_is_dirty_is_sent_ahead_where_that_leaves_clearly_less(
    pages_per_s: float, hot_pages: int, worth: bool
) -> None:
    big = RoundStats(0, 1 << 20, 0, 4096 << 20, 4096 * (1 << 20) / SPEED, 400)
    last = RoundStats(1, 400, 0, 400 << 12, 400 / pages_per_s, 400, hot_pages=hot_pages)
    assert worth_sending_ahead([big, last]) is worth


def test_nothing_is_sent_ahead_where_nothing_is_dirty_or_known() -> None:
    assert not worth_sending_ahead([RoundStats(0, 100, 0, 100 << 12, 0.1, 0)])
    assert not worth_sending_ahead([RoundStats(0, 0, 0, 0, 0.1, 100)])
    assert not worth_sending_ahead([RoundStats(0, 100, 0, 100 << 12, 0.0, 100)])


def test_a_forecast_follows_the_decision() -> None:
    calm = forecast(
        resident_pages=1_000_000,
        dirty_pages_rate=50_000,
        written_pages=1_000_000,
        throughput_bytes_s=SPEED,
        settings=settings(),
    )
    # 4.1 s leave 205,050 pages, 845 ms leave 42,244, 178 ms leave 8,902, 41 ms leave 2,073,
    # 13 ms leave 675, 8 ms leave 388, 7 ms leave 329: 1.3 ms, and there it would stay.
    assert calm.converges
    assert calm.rounds == 7
    assert calm.downtime_ms == pytest.approx(10 + 1.35, abs=0.1)
    assert calm.total_time_ms == pytest.approx(4101 + 845 + 178 + 41 + 13 + 8 + 7 + 11, abs=5)


def test_a_forecast_counts_what_sending_ahead_leaves() -> None:
    found = forecast(
        resident_pages=1_000_000,
        dirty_pages_rate=0.8 * SPEED / 4096,
        written_pages=1_000_000,
        throughput_bytes_s=SPEED,
        settings=settings(limit_ms=28),
    )
    # Rounds come to four times their fixed cost of 5 ms, so to 20 ms and the fixed part.
    assert found.converges
    assert found.downtime_ms < 28


def test_a_forecast_says_when_it_will_not_converge() -> None:
    wild = forecast(
        resident_pages=1_000_000,
        dirty_pages_rate=900_000,
        written_pages=600_000,
        throughput_bytes_s=SPEED,
        settings=settings(),
    )
    assert not wild.converges
    assert wild.downtime_ms == pytest.approx(10 + 2457.6, rel=0.01)


def test_a_forecast_needs_a_throughput() -> None:
    with pytest.raises(LocalProtocolError):
        forecast(
            resident_pages=1,
            dirty_pages_rate=1,
            written_pages=1,
            throughput_bytes_s=0,
            settings=settings(),
        )


@given(
    st.integers(1, 10**7),
    st.floats(0, 1e7),
    st.integers(0, 10**7),
    st.floats(1e3, 1e11),
    st.sampled_from(["switch", "abort", "throttle"]),
    st.floats(0, 1000),
)
def test_every_forecast_ends(
    resident: int, rate: float, written: int, speed: float, on_stall: OnStall, limit_ms: float
) -> None:
    found = forecast(
        resident_pages=resident,
        dirty_pages_rate=rate,
        written_pages=written,
        throughput_bytes_s=speed,
        settings=settings(on_stall, limit_ms),
    )
    assert found.rounds >= 1
    assert found.converges == (found.downtime_ms <= limit_ms)
