"""What of a machine decides over figures."""

import os
import platform
from pathlib import Path

import optmigd
from optmigd.bench.results import Machine


def describe() -> Machine:
    """This machine, and what runs on it."""
    return Machine(
        cpu=_first("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory("MemTotal"),
        kernel=platform.release(),
        python=platform.python_version(),
        optmigd=optmigd.__version__,
        platform="sim",
    )


def available_bytes() -> int:
    """Memory that can be taken without anything being pushed out, as the kernel sees it."""
    return _memory("MemAvailable")


def load() -> float:
    """How many processes wanted to run in the last minute, in the mean."""
    return os.getloadavg()[0]


def _memory(name: str) -> int:
    return int(_first("/proc/meminfo", name).split()[0]) << 10


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
