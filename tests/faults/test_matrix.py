"""A small part of the crash matrix; `make crash-matrix` runs all of it."""

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import BuildProgram
from tests.faults.cells import FAULTS, Trial
from tests.faults.evidence import LedgerWork
from tests.faults.gate import Boundary, Gate
from tests.faults.hosts import FaultyHost, faulty_hosts
from tests.faults.matrix import SHORT, Task, boundaries_of, run_cells, table

SEED = 20261123
RANDOM_CELLS = 8

# Around the point of no return. Each is struck by one fault of each kind, chosen by the seed.
CRITICAL = (
    ("beta", "agent", "has noted AwaitingToken"),
    ("alpha", "agent", "after READY_EQUAL"),
    ("alpha", "agent", "has noted Released"),
    ("alpha", "agent", "before TOKEN_MADE"),
    ("alpha", "daemon", "writes migration active with token"),
    ("alpha", "daemon", "sends the token on a stream"),
    ("alpha", "daemon", "has sent the token on a stream"),
    ("alpha", "daemon", "has written migration active with token"),
    ("beta", "agent", "before TOKEN_ACCEPTED"),
    ("beta", "agent", "after RUNNING"),
    ("beta", "daemon", "writes instance running, migration active with resumed"),
    ("alpha", "agent", "before RESUMED_RECEIVED"),
)
DAEMONS = ("kill daemon alpha", "kill daemon beta", "cut link")
AGENTS = ("kill agent alpha", "kill agent beta")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because UNIX sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="optmigd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(1500)
def test_a_part_of_the_matrix(program: BuildProgram, folder: Path, tmp_path: Path) -> None:
    """About two minutes on a quiet machine, most of which are starts of Python processes."""
    work = LedgerWork(program("ledger"))
    boundaries = boundaries_of(folder / "b", work)
    chosen = random.Random(SEED)
    tasks: list[Task] = []
    for critical in CRITICAL:
        boundary = Boundary(*critical)
        assert boundary in boundaries
        tasks += [(boundary, (chosen.choice(DAEMONS),)), (boundary, (chosen.choice(AGENTS),))]
    every = [(boundary, (fault,)) for boundary in boundaries for fault in FAULTS]
    tasks += chosen.sample([task for task in every if task not in tasks], RANDOM_CELLS)
    cells = run_cells(folder, work, tasks, workers=2, results=tmp_path)
    print(table(cells, boundaries))
    assert len(cells) == len(tasks)
    broken = [f"{cell.name}: {cell.violations}" for cell in cells if cell.violations]
    assert broken == [], f"logs are in {tmp_path}"


def test_the_boundaries_of_every_phase_are_found(program: BuildProgram, folder: Path) -> None:
    """A wrapped method that was renamed would silently take its boundaries out of the matrix."""
    found = {str(b) for b in boundaries_of(folder / "b", LedgerWork(program("ledger")))}
    expected = {
        "alpha daemon: sends Offer",
        "beta daemon: receives Offer",
        "beta daemon: sends ImageWanted",
        "alpha daemon: sends ImageChunk",
        "beta daemon: asks agent receive",
        "beta daemon: sends Accepted",
        "alpha daemon: asks agent export",
        "alpha daemon: asks agent add_stream",
        "alpha agent: sends Proposal",
        "beta agent: before OFFERED",
        "alpha agent: before ROUND_DONE",
        "alpha agent: before QUIESCED",
        "alpha agent: sends Manifest",
        "beta agent: sends Ready",
        "alpha agent: makes itself unable to run",
        "alpha daemon: hears release",
        "alpha daemon: sends Token",
        "beta daemon: tells agent token_delivered",
        "beta daemon: hears resumed",
        "beta daemon: sends Resumed",
        "alpha daemon: tells agent resumed_delivered",
        "alpha daemon: hears ended",
        "alpha daemon: sends Finished",
        *(f"{host} {kind}: {name}" for host, kind, name in CRITICAL),
    }
    assert expected - found == set()
    assert set(SHORT) == set(FAULTS)


def test_an_agent_that_crashes_by_itself_is_noted(program: BuildProgram, folder: Path) -> None:
    """One that was killed is not: that is what the matrix does."""
    with faulty_hosts(folder) as hosts:
        trial = Trial(hosts, LedgerWork(program("ledger")), "e")
        try:
            trial.launch()
            for number in (signal.SIGKILL, signal.SIGSEGV):
                pid = hosts.alpha.agent_pid("e")
                assert pid is not None
                os.kill(pid, number)
                following = partial(_another_agent_lives, hosts.alpha, pid)
                assert trial._wait(following, 20.0)
            assert hosts.alpha.crashed_agents("e") == [f"e@1 {-signal.SIGSEGV}"]
            assert hosts.beta.crashed_agents("e") == []
        finally:
            trial.leave()


def _another_agent_lives(host: FaultyHost, than: int) -> bool:
    return host.agent_pid("e") not in (None, than)


def test_a_closed_gate_accepts_nothing_any_more(folder: Path) -> None:
    """Its thread would take reports that are meant for the next gate with the same descriptor."""
    gate = Gate(folder / "gate")
    gate.close()
    assert not gate._accepter.is_alive()
