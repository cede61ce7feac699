"""The same instant on two clocks.

The runtime notes the ends of a downtime on CLOCK_MONOTONIC, which no two hosts share; what travels
is CLOCK_REALTIME. Two clocks cannot be read at once, and on a busy host an agent may lose its
processor between the two readings for longer than the downtime lasts.
"""

import time

TRIES = 5


def real_ns(monotonic_ns: int) -> int:
    """CLOCK_REALTIME at an instant of CLOCK_MONOTONIC, both in ns; the best of a few tries."""
    best_ns, offset_ns = None, 0
    for _ in range(TRIES):
        before_ns = time.monotonic_ns()
        now_ns = time.time_ns()
        took_ns = time.monotonic_ns() - before_ns
        if best_ns is None or took_ns < best_ns:
            best_ns, offset_ns = took_ns, now_ns - before_ns - took_ns // 2
    return monotonic_ns + offset_ns
