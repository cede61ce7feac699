"""How much work keeps a test program busy for so long on the machine at hand.

A fixed amount is over too soon on a fast machine, before the test has done to the program what it
wanted to do, and takes too long on a slow one.
"""

import functools
import subprocess
import time
from pathlib import Path

from optmigd.bench.programs import Program

SAMPLE_UPDATES = 20_000_000
SAMPLES = 3


def busy_for(integers: Program, seconds: float) -> str:
    """How many updates keep `integers` busy for so many seconds, natively and undisturbed."""
    return str(round(_updates_per_s(integers.native) * seconds))


@functools.cache
def _updates_per_s(native: Path) -> float:
    return max(_measure(native) for _ in range(SAMPLES))


def _measure(native: Path) -> float:
    begun_s = time.monotonic()
    subprocess.run([native, str(SAMPLE_UPDATES)], stdout=subprocess.DEVNULL, check=False)
    return SAMPLE_UPDATES / (time.monotonic() - begun_s)
