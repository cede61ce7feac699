"""Whether this host has room for one more enclave."""

from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from optmigd.config import LimitSettings
from optmigd.daemon.registry import Instance
from optmigd.protocol.blockers import Blocker
from optmigd.protocol.errors import EnclaveError

AGENT_BYTES = 300 << 20
"""What a shim agent may take beside the arena."""

SETTLE_S = 30.0
"""A kernel takes a few GiB a second back; whoever waits for the answer does so twice as long."""
SETTLE_STEP_S = 0.25
SETTLE_STEP_BYTES = 32 << 20

_PAGE_BYTES = 4096


def memory_blocker(
    host_name: str, needed_bytes: int, incoming: Iterable[tuple[int, int | None]]
) -> Blocker | None:
    """Compare what an enclave needs at once with what the kernel says is free.

    Args:
        host_name: for the message.
        needed_bytes: its resident memory; the shim agent's own is added.
        incoming: for each enclave that is on its way here, the memory it needs in bytes and its
            agent's process, of which a child maps what has been populated of it.
    """
    promised_bytes = sum(
        max(0, resident_bytes + AGENT_BYTES - _shared_bytes(pid))
        for resident_bytes, pid in incoming
    )
    found_bytes = available_bytes()
    missing_bytes = needed_bytes + AGENT_BYTES + promised_bytes - found_bytes
    if missing_bytes <= 0:
        return None
    return Blocker(
        "memory",
        host_name,
        f"expected {needed_bytes + AGENT_BYTES} bytes of free memory on host {host_name}, found "
        f"{found_bytes}, of which {promised_bytes} are promised to others on their way: free "
        f"{missing_bytes} bytes there or choose another host",
    )


def available_bytes() -> int:
    """What the kernel says a new program could take without swapping."""
    return _meminfo("MemAvailable")


async def memory_settles(enough: Callable[[], bool], leaving: Callable[[], bool]) -> None:
    """Wait while memory comes free, unless there is enough; for SETTLE_S at most.

    It is expected for as long as an enclave is leaving, because its memory is in use until its
    process has ended; without one, for as long as it grows. Cancellation is safe.

    Args:
        enough: whether there is enough now.
        leaving: whether an agent of this host is about to give memory back.
    """
    with trio.move_on_after(SETTLE_S):
        while not enough():
            expected, before_bytes = leaving(), available_bytes()
            await trio.sleep(SETTLE_STEP_S)  # the kernel tells of no memory that comes free
            if not expected and available_bytes() < before_bytes + SETTLE_STEP_BYTES:
                return


def limit_blocker(
    host_name: str, limits: LimitSettings, live: Iterable[Instance], needed_bytes: int
) -> Blocker | None:
    """Compare with the limits of the configuration."""
    instances = list(live)
    if len(instances) >= limits.max_enclaves:
        return Blocker(
            "enclaves",
            host_name,
            f"host {host_name} has {len(instances)} enclaves, limits.max_enclaves there is "
            f"{limits.max_enclaves}",
        )
    taken_bytes = sum(instance.row.facts["memory_bytes"] for instance in instances)
    allowed_bytes = limits.max_memory_bytes
    if allowed_bytes and taken_bytes + needed_bytes > allowed_bytes:
        return Blocker(
            "memory",
            host_name,
            f"expected room for {needed_bytes} bytes, found {taken_bytes} of {allowed_bytes} bytes "
            f"taken on host {host_name}: limits.max_memory_bytes there bounds all together",
        )
    return None


def refuse_over_limits(
    host_name: str, limits: LimitSettings, live: Iterable[Instance], needed_bytes: int
) -> None:
    """The same for a launch.

    Raises:
        EnclaveError: there is no room for one more.
    """
    blocker = limit_blocker(host_name, limits, live, needed_bytes)
    if blocker is not None:
        raise EnclaveError(blocker.message)


def _meminfo(name: str) -> int:
    """A value of /proc/meminfo in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(f"/proc/meminfo has no {name}")


def _shared_bytes(pid: int | None) -> int:
    """Shared memory populated by a process or one of its children; the arena is a memfd.

    Source: proc(5), statm and children.
    """
    if pid is None:
        return 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:  # it has ended, or this kernel does not tell
        children = []
    return max(_shared_bytes_of(each) for each in (str(pid), *children))


def _shared_bytes_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[2]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0
