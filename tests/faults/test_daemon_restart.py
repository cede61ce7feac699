"""A restart of the daemon is nothing that the program notices, whatever the daemon was doing."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import BuildProgram
from tests.faults.cells import MEMORY_BYTES
from tests.faults.evidence import Ledger
from tests.faults.hosts import Faulty, faulty_hosts

AWAY_S = 4.0
"""How long the daemon is dead: a program that waits for it would pause as long."""
NOISE_MS = 1500.0
SLOW_BYTES_S = 500_000
"""So slow that the 2 MiB of the program are still under way when the daemon is killed."""


@pytest.fixture
def hosts() -> Iterator[Faulty]:
    """Two hosts as a user starts them."""
    folder = Path(tempfile.mkdtemp(prefix="optmigd-"))
    try:
        with faulty_hosts(folder, gated=False) as pair:
            yield pair
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_restart_is_invisible_to_the_program(program: BuildProgram, hosts: Faulty) -> None:
    alpha = hosts.alpha
    ledger = Ledger(hosts.folder / "shared")
    ledger.folder.mkdir()
    alpha.client.launch(
        program("ledger").image,
        enclave="e1",
        memory_bytes=MEMORY_BYTES,
        shared=[ledger.folder],
        args=ledger.arguments(),
    )

    def longest_pause_ms(meanwhile: Callable[[], None]) -> float:
        first = ledger.steps()
        meanwhile()
        begun = ledger.steps()
        wait_until(lambda: ledger.steps() > begun + 100)
        return ledger.longest_pause_ms(first, ledger.steps())

    def precopy() -> None:
        alpha.client.migrate("e1", "beta", detach=True, max_bandwidth=SLOW_BYTES_S)
        wait_until(lambda: (alpha.client.status("e1")["migration"] or {})["state"] == "active")

    def cancelled_precopy() -> None:
        precopy()
        time.sleep(AWAY_S / 2)  # as long a part of a round as in the run with the restart
        alpha.client.cancel("e1")

    def restart() -> None:
        alpha.kill()
        time.sleep(AWAY_S)  # the daemon is away
        alpha.start()

    def precopy_and_restart() -> None:
        precopy()
        restart()
        # The move under way is rolled back meanwhile.
        wait_until(lambda: alpha.client.status("e1")["state"] == "running")

    pauses = {
        "undisturbed": longest_pause_ms(lambda: time.sleep(AWAY_S)),
        "pre-copy": longest_pause_ms(cancelled_precopy),
        "restart": longest_pause_ms(restart),
        "pre-copy and restart": longest_pause_ms(precopy_and_restart),
    }
    print({name: f"{pause:.1f} ms" for name, pause in pauses.items()})
    assert pauses["restart"] < pauses["undisturbed"] + NOISE_MS
    assert pauses["pre-copy and restart"] < pauses["pre-copy"] + NOISE_MS

    alpha.client.migrate("e1", "beta", downtime_limit_ms=5000)
    ledger.stop.touch()
    assert alpha.client.wait("e1")["exit_status"] == 7
    assert ledger.fault() == ""


def wait_until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for what no event tells."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come so"
        time.sleep(0.02)  # a poll
