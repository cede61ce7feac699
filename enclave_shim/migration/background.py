"""Work that leaves the processors to whoever else wants them.

Most of a migration's processor time goes into round 0. Nobody waits for it, while the program that
is moved, and others on both hosts, go on working. A thread that is nicer cannot be made an
ordinary one again without a privilege, so the work is done in a thread of its own, and what
follows, when the program stands still, is not.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

NICENESS = 5
"""Against a program that computes: a third of its weight, so neither of them starves."""


def run_in_background(work: Callable[[], T]) -> T:
    """Do the work in a thread of lower priority; blocks, and returns or raises what it does."""
    result: Future[T] = Future()

    def run() -> None:
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        with suppress(PermissionError):  # of a security module: then with the priority it has
            os.setpriority(os.PRIO_PROCESS, thread, nice)
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return result.result()
