"""What all tests share: programs built once in a session, and pairs of real daemons."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optmigd.bench.hosts import Host, two_hosts
from optmigd.bench.programs import Program, build, build_workload
from tests.support.busy import native_output

PROGRAMS = Path(__file__).parent / "support" / "programs"

BuildProgram = Callable[[str], Program]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> BuildProgram:
    """A function that builds one of the C programs, as an image and natively, once a session."""
    folder = tmp_path_factory.mktemp("programs")
    built: dict[str, Program] = {}

    def get(name: str) -> Program:
        if name not in built:
            source = PROGRAMS / f"{name}.c"
            flags = (
                ("-pthread",)
                if name in ("threads", "parker", "descriptors", "world", "direct")
                else ()
            )
            if source.exists():
                built[name] = build(source, folder, *flags)
            else:
                built[name] = build_workload(name, folder)
        return built[name]

    return get


@pytest.fixture(scope="session")
def integers(program: BuildProgram) -> Program:
    """The program that is busy for as long as a test needs it; see `tests.support.busy`."""
    return program("integers")


@pytest.fixture(scope="session")
def answer(integers: Program) -> bytes:
    """What it prints when nothing happens to it."""
    return native_output(integers)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    """Two daemons that know each other, for all tests of a module."""
    with two_hosts() as (first, second, _):
        yield first, second


@pytest.fixture
def fresh_pair() -> Iterator[tuple[Host, Host]]:
    """Two daemons that know each other, for one test that does them harm."""
    with two_hosts() as (first, second, _):
        yield first, second
