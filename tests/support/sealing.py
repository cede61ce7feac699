"""A sender in a process of its own, for looking into its memory: `python -m … CIPHER`.

Reads the secret of a session from standard input. Then it stops before a round, in the middle of
it, after it and at the end, says so, and goes on when it reads a byte.
"""

import sys

import numpy as np

from optmigd.protocol.records import PAGE_BYTES, RUN, StreamSealer
from optmigd.protocol.session import SessionKeys


def stop(where: str) -> None:
    """Say where it is, and wait."""
    sys.stdout.buffer.write(where.encode() + b"\n")
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read(1)


def main() -> None:
    """Seal two rounds."""
    secret = sys.stdin.buffer.read(32)
    sealer = StreamSealer(SessionKeys(secret), bytes(16), 0, sys.argv[1])
    out = memoryview(bytearray(sealer.max_wire_bytes))
    runs = np.array([(0, 1)], dtype=RUN)
    stop("before")
    sealer.next_round(0)
    sealer.seal_pages(runs, bytes(PAGE_BYTES), out)
    stop("in the round")
    sealer.seal_end(out, last=False)
    stop("after")
    sealer.next_round(1)
    sealer.seal_pages(runs, bytes(PAGE_BYTES), out)
    stop("in the next round")


if __name__ == "__main__":
    main()
