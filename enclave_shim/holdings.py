"""What a program holds right now, in numbers: for people who wonder why it can or cannot move.

Read from the runtime's tables in the arena while the program runs: it may be out of date at once,
and a row may be half of what it was and half of what it becomes. So rows are copied before they
are looked at, and those that cannot be are not counted.
"""

from collections import Counter

import numpy as np

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import OfdKind
from optmigd.enclave_shim.arena import Arena

Counts = dict[str, int]

_DESCRIPTORS = {
    OfdKind.OWN: "own files",
    OfdKind.SHARED: "shared files",
    OfdKind.EXTERNAL: "other files",
    OfdKind.DEVICE: "devices",
    OfdKind.STDIN: "standard streams",
    OfdKind.OUTPUT: "standard streams",
    OfdKind.PIPE: "pipe ends",
    OfdKind.SOCKETPAIR: "socket pair ends",
    OfdKind.EVENTFD: "eventfds",
    OfdKind.EPOLL: "epoll instances",
    OfdKind.TIMERFD: "timerfds",
    OfdKind.SIGNALFD: "signalfds",
}
_MAPPINGS = {0: "anonymous", 1: "stack", 2: "heap", 3: "file copy", 4: "image data"}


def holdings(arena: Arena) -> dict[str, Counts]:
    """Descriptors by kind, mapped bytes by kind, threads, timers, epoll registrations."""
    state = arena.rt_state
    return {
        "descriptors": _descriptors(state),
        "mapped_bytes": _mapped_bytes(state, arena.size_bytes),
        "threads": {"threads": int((state["threads"]["used"] != 0).sum())},
        "timers": {"interval timers": int((state["itimer"][:, 2:] != 0).any(axis=1).sum())},
        "registrations": {
            "epoll": int((state["watches"]["epoll"][: _bounded(state, "watch_high")] != 0).sum())
        },
    }


def _bounded(state: np.void, field: str) -> int:
    limits = {"fd_high": abi.RT_MAX_FDS, "vma_count": abi.RT_MAX_VMAS}
    return min(int(state[field]), limits.get(field, abi.RT_MAX_WATCHES))


def _descriptors(state: np.void) -> Counts:
    counts: Counter[str] = Counter()
    for fd in state["fds"][: _bounded(state, "fd_high")].copy():
        if fd["state"] == abi.FD_OPEN and fd["ofd"] < abi.RT_MAX_OFDS:
            ofd = state["ofds"][fd["ofd"]].copy()
            kind = int(ofd["kind"])
            name = _DESCRIPTORS.get(OfdKind(kind)) if kind in set(OfdKind) else None
            counts[name or abi.text(ofd["path"])] += 1
    return dict(sorted(counts.items()))


def _mapped_bytes(state: np.void, most_bytes: int) -> Counts:
    counts: Counter[str] = Counter()
    for vma in state["vmas"][: _bounded(state, "vma_count")].copy():
        size_bytes = int(vma["end"]) - int(vma["start"])
        if 0 < size_bytes <= most_bytes:
            counts[_MAPPINGS.get(int(vma["kind"]), "other")] += size_bytes
    return dict(sorted(counts.items()))
