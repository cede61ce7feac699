"""Shares of a host's bandwidth: fair, never above what was asked, set again at every change."""

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from optmigd.daemon.bandwidth import Bandwidth, fair_shares
from optmigd.daemon.streams import StreamDuplicates

_LIMITS = st.lists(st.integers(0, 10**10), max_size=12)


def test_shares() -> None:
    assert fair_shares(0, [0, 50]) == [0, 50]
    assert fair_shares(100, [0]) == [100]
    assert fair_shares(100, [0, 0]) == [50, 50]
    assert fair_shares(100, [10, 0, 0]) == [10, 45, 45]
    assert fair_shares(100, [10, 200, 20]) == [10, 70, 20]
    assert fair_shares(1, [0, 0, 0]) == [1, 1, 1]
    assert fair_shares(100, []) == []


@given(st.integers(100, 10**10), _LIMITS)
def test_nobody_gets_more_while_another_could_use_it(total: int, limits: list[int]) -> None:
    shares = fair_shares(total, limits)
    assert sum(shares) <= total
    for share, limit in zip(shares, limits, strict=True):
        assert share >= 1
        assert not limit or share <= limit
        if not limit or share < limit:  # it could use more: then nobody has clearly more
            assert max(shares) <= share + 1
    if any(not limit for limit in limits) or sum(limits) >= total:
        assert sum(shares) > total - max(1, len(limits)) or shares == limits


def test_shares_follow_who_comes_and_goes() -> None:
    bandwidth = Bandwidth(1000)
    rates: dict[str, int] = {}
    with bandwidth.share(0, lambda rate: rates.update(a=rate)):
        assert rates == {"a": 1000}
        with bandwidth.share(300, lambda rate: rates.update(b=rate)) as second:
            assert rates == {"a": 700, "b": 300}
            second.change(0)
            assert rates == {"a": 500, "b": 500}
        assert rates["a"] == 1000


def _pace(sock: socket.socket) -> int:
    (pace,) = struct.unpack("@L", sock.getsockopt(socket.SOL_SOCKET, 47, 8))
    return int(pace)


def test_a_rate_is_divided_among_the_streams_of_a_migration_and_lifted_again() -> None:
    with socket.socket() as first, socket.socket() as second, first.dup() as agents:
        duplicates = StreamDuplicates(2)
        duplicates.keep(0, first)
        assert _pace(first) == 2**64 - 1
        duplicates.pace(5)
        duplicates.keep(1, second)
        # On the agent's descriptor too: it is one socket.
        assert [_pace(sock) for sock in (first, second, agents)] == [3, 3, 3]
        duplicates.pace(0)
        assert [_pace(sock) for sock in (first, second)] == [2**64 - 1] * 2
