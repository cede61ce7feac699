"""When to switch over: a pure decision from measured numbers, taken after every round.

The question is always the same: if the program were stopped now, how long would it stand still? If
that is above the limit, another round makes sense only while rounds shrink: what is dirty after a
round must be less than before. A count of rounds says nothing about that; a program that writes
slowly may need many short rounds, one that writes everywhere none.

The limit is what a program can bear, not what it should be made to bear. So within the limit rounds
go on as long as each leaves clearly less than it sent: they shrink by the ratio of dirty rate to
throughput, so what they cost together is little more than the first of them. The switchover comes
at the minimum, where the fixed cost of a round lets as much become dirty as the round has sent.

That minimum may be above the limit where pages are written nearly as fast as they are sent. But
most of a round's fixed cost is the wait for its confirmation, and what is sent ahead of the last
round's end (see `worth_sending_ahead`) waits for none: done several times, that leaves less. So the
switchover comes as well if that is expected to be within the limit; whoever does it looks again
before the program is parked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import ge
from typing import Literal

from optmigd.protocol.errors import LocalProtocolError

PAGE_BYTES = 4096
# A round shrinks if it leaves less than this share of what was dirty before.
SHRINK = 0.9
# Within the limit, the next round must promise to leave less than this share of what it sends,
SHRINK_CLEARLY = 0.7
# and to shorten the downtime by this much: less is lost in the noise.
LEAST_GAIN_MS = 0.5
# Throughput is the best of so many rounds, bytes and seconds at the least. A round's fixed cost can
# only make the streams look slower than they are, and of a short one it is nearly all.
THROUGHPUT_ROUNDS = 3
THROUGHPUT_BYTES = 64 << 20
THROUGHPUT_S = 0.5
THROTTLE_STEP_PERMILLE = 100
THROTTLE_MAX_PERMILLE = 990
# Gently: a program that needs more is held back by so much more at every stall.
THROTTLE_RISE_PERMILLE = 250
# A throttle aims at rounds that leave half of what they sent.
THROTTLE_TARGET = 0.5
# What sending a little while the program runs takes beside the bytes (measured on loopback).
AHEAD_COST_MS = 2.0
# So often at the most it is done where the limit depends on it.
AHEAD_MOST = 16
# What a round takes with nothing to send, in a forecast (measured on loopback: scan, round trip).
ROUND_COST_S = 0.005

OnStall = Literal["throttle", "switch", "abort"]


@dataclass(frozen=True)
class RoundStats:
    """What one round was like.

    Args:
        round_no: from 0, which sends everything.
        pages: sent with content.
        zero_pages: sent as runs.
        bytes: sent on the wire.
        duration_s: seconds from the start of the round to the confirmation of its end.
        dirty_pages: dirty at its end, so to be sent before the switchover ends; written blocks
            of files, of 4096 bytes, are among them.
        throttle_permille: how much of its time the program was held back meanwhile.
        hot_pages: how many dirty ones the next round leaves out: they are written all the time.
    """

    round_no: int
    pages: int
    zero_pages: int
    bytes: int
    duration_s: float
    dirty_pages: int
    throttle_permille: int = 0
    hot_pages: int = 0

    @property
    def next_pages(self) -> int:
        """How many pages the next round sends."""
        return self.dirty_pages - self.hot_pages


@dataclass(frozen=True)
class Settings:
    """What the decision depends on besides measurements.

    Args:
        downtime_limit_ms: no switchover while the expected downtime is above this.
        on_stall: what to do when rounds stop shrinking.
        fixed_ms: the part of the downtime that does not depend on dirty pages.
        page_bytes: size of a page.
        ahead: whether to count on what can be sent ahead.
    """

    downtime_limit_ms: float
    on_stall: OnStall
    fixed_ms: float
    page_bytes: int = PAGE_BYTES
    ahead: bool = True


@dataclass(frozen=True)
class Continue:
    """Send another round, with the throttle as it is."""


@dataclass(frozen=True)
class SwitchOver:
    """Quiesce now; `reason` is `converged` or `stalled`.

    `ahead`: first send ahead up to AHEAD_MOST times, and only if that has come within the limit.
    """

    reason: Literal["converged", "stalled"]
    ahead: bool = False


@dataclass(frozen=True)
class Throttle:
    """Hold the program back for `permille` of its time, and send another round."""

    permille: int


@dataclass(frozen=True)
class Abort:
    """Give up; `reason` is for a person."""

    reason: str


Decision = Continue | SwitchOver | Throttle | Abort


def throughput(history: Sequence[RoundStats]) -> float:
    """Return bytes per second over the last rounds; 0 where nothing was measured."""
    sent_bytes, took_s, best = 0, 0.0, 0.0
    least = (THROUGHPUT_ROUNDS, THROUGHPUT_BYTES, THROUGHPUT_S)
    for count, stats in enumerate(reversed(history)):
        if all(map(ge, (count, sent_bytes, took_s), least)):
            break
        sent_bytes += stats.bytes
        took_s += stats.duration_s
        if stats.duration_s > 0:
            best = max(best, stats.bytes / stats.duration_s)
    return best


def expected_downtime_ms(
    dirty_pages: int, throughput_bytes_s: float, fixed_ms: float, page_bytes: int = PAGE_BYTES
) -> float:
    """Return how long the program would stand still if it were stopped now.

    Infinite where pages are dirty and no throughput is known.
    """
    if dirty_pages == 0:
        return fixed_ms
    if throughput_bytes_s <= 0:
        return math.inf
    return fixed_ms + 1000.0 * dirty_pages * page_bytes / throughput_bytes_s


def stalled(history: Sequence[RoundStats]) -> bool:
    """Whether rounds have stopped shrinking under the throttle that is in force.

    Two rounds in a row must fail to shrink: one may have been unlucky. With nothing dirty there is
    nothing left to shrink.
    """
    if len(history) < 3:
        return False
    before, *last_two = history[-3:]
    if any(stats.throttle_permille != history[-1].throttle_permille for stats in last_two):
        return False
    return min(stats.dirty_pages for stats in last_two) >= SHRINK * before.dirty_pages


def worth_another(history: Sequence[RoundStats], settings: Settings) -> bool:
    """Whether a further round would shorten a downtime that is within the limit already.

    It is expected to shrink as the last one did; hot pages stay. With nothing to go by but a round
    that did not shrink, it is at the minimum.
    """
    last = history[-1]
    sent_pages = last.pages + last.zero_pages
    if sent_pages == 0 or last.next_pages >= SHRINK_CLEARLY * sent_pages:
        return False
    would_go = last.next_pages * (1 - last.next_pages / sent_pages)
    speed = throughput(history)
    gain_ms = expected_downtime_ms(math.ceil(would_go), speed, 0.0, settings.page_bytes)
    return gain_ms >= LEAST_GAIN_MS


def worth_sending_ahead(history: Sequence[RoundStats]) -> bool:
    """Whether to send what is dirty before the program is parked, and only then look again.

    What became dirty meanwhile is left for the parked program: clearly less, if sending is faster
    than writing. That is a round without an end: nobody waits for its account, or collects before
    it is decided about.
    """
    last = history[-1]
    if last.next_pages == 0 or last.duration_s <= 0:
        return False
    return _written_meanwhile(history, last.next_pages) < SHRINK_CLEARLY * last.next_pages


def _written_meanwhile(history: Sequence[RoundStats], pages: float) -> float:
    """How many pages are written while so many are sent ahead."""
    last = history[-1]
    ahead_ms = expected_downtime_ms(math.ceil(pages), throughput(history), AHEAD_COST_MS)
    return ahead_ms * 1e-3 * last.dirty_pages / last.duration_s


def _left_ahead(history: Sequence[RoundStats]) -> float:
    """How many pages sending ahead is expected to leave, hot ones among them."""
    last = history[-1]
    left = float(last.next_pages)
    if left and last.duration_s > 0:
        for _ in range(AHEAD_MOST):
            written = _written_meanwhile(history, left)
            if written >= left:
                break
            left = written
    return left + last.hot_pages


def decide(history: Sequence[RoundStats], settings: Settings) -> Decision:
    """Return what to do after the last round of `history`.

    Args:
        history: all rounds so far, in order.
        settings: limits and strategy.
    """
    if not history:
        return Continue()
    last = history[-1]
    speed = throughput(history)
    expected = expected_downtime_ms(last.dirty_pages, speed, settings.fixed_ms, settings.page_bytes)
    if expected <= settings.downtime_limit_ms:
        return Continue() if worth_another(history, settings) else SwitchOver("converged")
    if not stalled(history):
        return Continue()
    left = math.ceil(_left_ahead(history))
    ahead_ms = expected_downtime_ms(left, speed, settings.fixed_ms, settings.page_bytes)
    if settings.ahead and ahead_ms <= settings.downtime_limit_ms:
        return SwitchOver("converged", ahead=True)
    if settings.on_stall == "switch":
        return SwitchOver("stalled")
    if settings.on_stall == "throttle" and last.throttle_permille < THROTTLE_MAX_PERMILLE:
        return Throttle(_next_throttle(last, speed, settings.page_bytes))
    held = f" although it is held back {last.throttle_permille / 10:g} % of the time"
    return Abort(
        f"rounds have stopped shrinking{held if last.throttle_permille else ''}: "
        f"{last.dirty_pages} pages are dirty after round {last.round_no}, sent at "
        f"{speed / 1e6:.0f} MB/s; the expected downtime is {expected:.0f} ms and the limit "
        f"{settings.downtime_limit_ms:g} ms. Raise the limit, give it more bandwidth, or choose "
        f"another strategy for stalls"
    )


def _next_throttle(last: RoundStats, speed: float, page_bytes: int) -> int:
    """Return the throttle under which rounds should halve, or a step towards it."""
    least = last.throttle_permille + THROTTLE_STEP_PERMILLE
    most = min(THROTTLE_MAX_PERMILLE, last.throttle_permille + THROTTLE_RISE_PERMILLE)
    dirtied = last.next_pages * page_bytes / last.duration_s if last.duration_s > 0 else math.inf
    share = min(1.0, THROTTLE_TARGET * speed / dirtied) if dirtied > 0 else 1.0
    running = (1000 - last.throttle_permille) * share
    return min(most, max(least, round(1000 - running)))


@dataclass(frozen=True)
class Forecast:
    """What a migration would be like at a sampled dirty rate.

    Args:
        rounds: before the switchover.
        total_time_ms: from the first page to the program running.
        downtime_ms: of that, how long it would stand still.
        converges: whether the downtime limit would be met.
    """

    rounds: int
    total_time_ms: float
    downtime_ms: float
    converges: bool


def forecast(
    *,
    resident_pages: int,
    dirty_pages_rate: float,
    written_pages: int,
    throughput_bytes_s: float,
    settings: Settings,
) -> Forecast:
    """Predict rounds, time and downtime.

    Args:
        resident_pages: what round 0 sends.
        dirty_pages_rate: distinct pages dirtied per second, from a sample.
        written_pages: the most that can be dirty at once: the working set that is written.
        throughput_bytes_s: of the data streams, more than 0.
        settings: as for `decide`.

    Raises:
        LocalProtocolError: the throughput is not positive.
    """
    if throughput_bytes_s <= 0:
        raise LocalProtocolError("a forecast needs a throughput")
    history: list[RoundStats] = []
    to_send = resident_pages
    decision: Decision = Continue()
    while isinstance(decision, Continue):
        sent_bytes = to_send * settings.page_bytes
        duration_s = ROUND_COST_S + sent_bytes / throughput_bytes_s
        dirty = round(min(dirty_pages_rate * duration_s, written_pages, resident_pages))
        history.append(RoundStats(len(history), to_send, 0, sent_bytes, duration_s, dirty))
        to_send = dirty
        decision = decide(history, settings)
    left = to_send
    if isinstance(decision, SwitchOver) and decision.ahead:
        left = math.ceil(_left_ahead(history))
    downtime_ms = expected_downtime_ms(
        left, throughput(history), settings.fixed_ms, settings.page_bytes
    )
    return Forecast(
        rounds=len(history),
        total_time_ms=1000.0 * sum(stats.duration_s for stats in history) + downtime_ms,
        downtime_ms=downtime_ms,
        converges=isinstance(decision, SwitchOver) and decision.reason == "converged",
    )
