"""One enclave for all attacks of a module."""

import shutil
from collections.abc import Iterator

import pytest
import trio

from tests.attacks.hostile import Victim
from tests.conftest import BuildProgram


@pytest.fixture(scope="module")
def victim(program: BuildProgram) -> Iterator[Victim]:
    """A running enclave; at the end of the module its answer is compared with a native run's."""
    it = Victim(program("stepper"))
    try:
        trio.run(it.launch)
        yield it
    finally:
        try:
            it.close()
        finally:
            shutil.rmtree(it.folder)
