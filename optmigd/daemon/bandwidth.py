"""Sharing what this host may send among the migrations that send.

The kernel paces each data stream (SO_MAX_PACING_RATE) at the rate that the daemon sets on its own
duplicate of the socket, which works while the shim agent uses it. Whenever a migration comes, goes
or gets another limit, the shares are worked out anew and set on every stream.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Pace = Callable[[int], None]
"""Sets the rate of all streams of a migration together, in bytes per second; 0: no limit."""


def fair_shares(total: int, limits: Sequence[int]) -> list[int]:
    """Divide a rate fairly: nobody gets more while somebody who could use it gets less.

    Args:
        total: to be divided, in bytes per second; 0: there is no bound to it.
        limits: what each may have at most; 0: any rate.

    Returns:
        The rate of each, at least 1; 0: no limit.

    Source: max-min fairness, Bertsekas and Gallager, Data Networks, 6.5.2.
    """
    if not total:
        return list(limits)
    shares = [0] * len(limits)
    order = sorted(range(len(limits)), key=lambda index: limits[index] or total)
    left = total
    for rank, index in enumerate(order):
        equal = left // (len(order) - rank)
        shares[index] = max(1, min(limits[index] or equal, equal))
        left -= shares[index]
    return shares


class Bandwidth:
    """The rate of one host, and who shares it now."""

    def __init__(self, total: int) -> None:
        """Begin with nobody.

        Args:
            total: bytes per second of all together; 0: no limit.
        """
        self._total = total
        self._shares: list[Share] = []

    @contextmanager
    def share(self, limit: int, pace: Pace) -> Iterator["Share"]:
        """Take part until the block is left.

        Args:
            limit: of this migration, in bytes per second; 0: none.
            pace: called with the rate now, and whenever it changes.
        """
        share = Share(self, limit, pace)
        self._shares.append(share)
        self.divide()
        try:
            yield share
        finally:
            self._shares.remove(share)
            self.divide()

    def divide(self) -> None:
        """Work the shares out anew and set them."""
        rates = fair_shares(self._total, [share.limit for share in self._shares])
        for share, rate in zip(self._shares, rates, strict=True):
            share.pace(rate)


class Share:
    """One migration's part in it; `limit` is in bytes per second, 0: none."""

    def __init__(self, bandwidth: Bandwidth, limit: int, pace: Pace) -> None:
        """Use `Bandwidth.share`."""
        self.limit = limit
        self.pace = pace
        self._bandwidth = bandwidth

    def change(self, limit: int) -> None:
        """Give it another limit."""
        self.limit = limit
        self._bandwidth.divide()
