"""Work of lower priority: only that work is, and what comes of it comes back."""

import os
import threading

import pytest

from optmigd.enclave_shim.migration.background import NICENESS, run_in_background


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_the_work_is_nicer_than_who_waits_for_it() -> None:
    before = niceness()
    assert run_in_background(niceness) == min(before + NICENESS, 19)
    assert niceness() == before


def test_an_error_comes_back() -> None:
    def fail() -> None:
        raise OSError("the stream broke")

    with pytest.raises(OSError, match="the stream broke"):
        run_in_background(fail)
