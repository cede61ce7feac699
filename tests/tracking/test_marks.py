"""The runtime's page marks, taken while another process goes on marking."""

import mmap
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from optmigd.enclave_shim.arena import pages_of_runs
from optmigd.enclave_shim.tracker import BLOCK_MARKS, take_marks

PAGES = 1 << 20
PATIENCE_S = 30.0
"""The other process may have to wait for a processor."""


@pytest.fixture
def marks() -> Iterator["np.ndarray[tuple[int], np.dtype[np.uint8]]"]:
    """Marks that another process sets all the time."""
    shared = mmap.mmap(-1, PAGES)
    array = np.frombuffer(shared, dtype=np.uint8)
    child = os.fork()
    if child == 0:
        while True:  # until it is killed
            for at in range(0, PAGES, 4096):
                shared[at] = 1
    try:
        yield array
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_marks_are_taken_while_they_are_set(
    marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
) -> None:
    every = set(range(0, PAGES, 4096))
    deadline_s = time.monotonic() + PATIENCE_S
    taken: set[int] = set()
    rounds_with_marks = 0
    while (taken != every or rounds_with_marks <= 10) and time.monotonic() < deadline_s:
        pages = pages_of_runs(take_marks(marks)).tolist()
        taken |= set(pages)
        rounds_with_marks += bool(pages)
    assert rounds_with_marks > 10
    assert taken == every


def test_a_taken_mark_is_cleared() -> None:
    marks = np.zeros(100, dtype=np.uint8)
    marks[[3, 4, 70]] = 1
    assert pages_of_runs(take_marks(marks)).tolist() == [3, 4, 70]
    assert not marks.any()
    assert len(take_marks(marks)) == 0


@pytest.mark.parametrize("count", [1, BLOCK_MARKS - 1, BLOCK_MARKS, 5 * BLOCK_MARKS + 13])
@pytest.mark.parametrize("offset", [0, 3, 8])
def test_no_mark_is_overlooked_wherever_it_is(count: int, offset: int) -> None:
    marks = np.zeros(offset + count, dtype=np.uint8)[offset:]
    for page in range(count):
        marks[page] = 1
        assert pages_of_runs(take_marks(marks)).tolist() == [page]
    marks[:] = 1
    assert pages_of_runs(take_marks(marks)).tolist() == list(range(count))
    assert not marks.any()
