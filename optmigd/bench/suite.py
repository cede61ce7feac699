"""The workload suite: which programs there are, and with which arguments they are run.

All are plain C or C++ that knows nothing of enclaves, after the programs that the literature on
trusted execution measures. Each ends with one line that begins with `answer`; most check it
themselves and end with status 3 if it is wrong. The line does not depend on time, on the number of
threads or on moves, so that of an uninterrupted native run is what any other run must print.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ARENA_OVERHEAD_MIB = 192
"""What a program needs beside its data: the runtime's tables, stacks, and the allocator's slack."""


@dataclass(frozen=True)
class Size:
    """How large a run is: memory of the data in MiB, and work in the program's own unit."""

    mib: int
    work: int


@dataclass(frozen=True)
class Workload:
    """One program with the kind of arguments it takes.

    Attributes:
        name: of this workload; two may share a source.
        source: file name in `optmigd.bench.workloads`.
        flags: for the compiler, beside those that every program is built with.
        words: the arguments, in which `{mib}` and `{work}` stand for a size.
        small: a run of a few seconds on one slow processor.
        large: several GiB and about a minute or more; `work` may be raised at will.
        ready: what its output has when its memory is filled and the measured work begins.
    """

    name: str
    source: str
    flags: tuple[str, ...]
    words: tuple[str, ...]
    small: Size
    large: Size
    ready: str

    def arguments(self, size: Size) -> tuple[str, ...]:
        """The command line's arguments for a run of that size."""
        return tuple(word.format(mib=size.mib, work=size.work) for word in self.words)

    def memory_bytes(self, size: Size) -> int:
        """What `launch` must be given for a run of that size.

        The allocator takes up to two fifths more than what the program asks it for.
        """
        return (size.mib + size.mib // 2 + ARENA_OVERHEAD_MIB) << 20


_OPENMP = ("-fopenmp",)
_THREADS = ("-pthread",)

SUITE: Sequence[Workload] = (
    Workload(
        *("writer-uniform", "writer.c", (), ("{mib}", "200", "{work}")),
        *(Size(128, 8), Size(4096, 60), "filled"),
    ),
    Workload(
        *("writer-zipfian", "writer.c", (), ("{mib}", "200", "{work}", "zipfian", "half-zero")),
        *(Size(128, 8), Size(4096, 60), "filled"),
    ),
    Workload(
        *("hashjoin", "hashjoin.c", (), ("{mib}", "{work}")),
        *(Size(128, 12), Size(4096, 3), "built"),
    ),
    Workload(
        *("btree", "btree.c", (), ("{mib}", "{work}")),
        *(Size(64, 6_000_000), Size(4096, 20_000_000), "filled"),
    ),
    Workload(
        *("pagerank", "graph.c", _OPENMP, ("pagerank", "{mib}", "{work}")),
        *(Size(48, 60), Size(2800, 10), "built"),
    ),
    Workload(
        *("bfs", "graph.c", _OPENMP, ("bfs", "{mib}", "{work}")),
        *(Size(48, 60), Size(2800, 8), "built"),
    ),
    Workload(
        *("kvstore-a", "kvstore.c", _THREADS, ("{mib}", "{work}", "50", "4")),
        *(Size(128, 4_000_000), Size(4096, 20_000_000), "loaded"),
    ),
    Workload(
        *("kvstore-b", "kvstore.c", _THREADS, ("{mib}", "{work}", "95", "4")),
        *(Size(128, 4_000_000), Size(4096, 20_000_000), "loaded"),
    ),
    Workload(
        *("xsbench", "xsbench.c", _OPENMP, ("{mib}", "{work}")),
        *(Size(128, 3_000_000), Size(4096, 10_000_000), "built"),
    ),
    Workload(
        *("logistic", "logistic.c", _OPENMP, ("{mib}", "{work}")),
        *(Size(64, 100), Size(4096, 8), "made"),
    ),
    Workload(
        *("inverted", "inverted.cc", _THREADS, ("{mib}", "{work}", "4")),
        *(Size(48, 20_000), Size(4096, 50_000), "indexed"),
    ),
)


def workload(name: str) -> Workload:
    """The workload of that name.

    Raises:
        KeyError: there is none.
    """
    return {item.name: item for item in SUITE}[name]
