"""Which bulk cipher is the fastest on this host: measured, because no list of CPU features tells.

AES-256-GCM is ahead of AEGIS-256 where the CPU works on four blocks at once (VAES with AVX-512)
and far behind it where it does not, and it depends on how the two libraries were built as well.
"""

import os
import time
from functools import cache

from optmigd.protocol.ciphers import cipher_under, tag_bytes

SAMPLE_BYTES = 256 << 10
SAMPLES = 5


@cache
def fastest_first(names: tuple[str, ...]) -> list[str]:
    """The ciphers in the order of their speed in this process; about a millisecond, once.

    Args:
        names: of ciphers that this host has.

    """
    content = memoryview(bytearray(SAMPLE_BYTES))
    return sorted(names, key=lambda name: _seconds(name, content))


def _seconds(name: str, content: memoryview) -> float:
    """CPU time of this thread to seal the content: the best of a few, so that others count less."""
    cipher = cipher_under(os.urandom(32), name)
    out = memoryview(bytearray(len(content) + tag_bytes(name)))
    best_s = float("inf")
    for sample in range(SAMPLES):
        begun_s = time.thread_time()
        cipher.seal_into(sample.to_bytes(12, "little"), content, b"", out)
        best_s = min(best_s, time.thread_time() - begun_s)
    cipher.forget_key()
    return best_s
