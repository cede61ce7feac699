"""What a program holds is read while it runs: a torn table gives wrong counts, never an answer that
cannot be sent."""

from collections.abc import Iterator

import pytest

from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.holdings import holdings
from optmigd.protocol.wire import pack


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(16 << 20)
    yield made
    made.close()


def test_a_mapping_is_counted_by_its_kind(arena: Arena) -> None:
    arena.rt_state["vma_count"] = 2
    arena.rt_state["vmas"][0] = (0x1000, 0x3000, 3, 0)
    arena.rt_state["vmas"][1] = (0x4000, 0x5000, 3, 1)
    assert holdings(arena)["mapped_bytes"] == {"anonymous": 0x2000, "stack": 0x1000}


def test_rows_that_are_half_written_are_not_counted(arena: Arena) -> None:
    arena.rt_state["vma_count"] = 3
    arena.rt_state["vmas"][0] = (0x1000, 2**64 - 1, 3, 0)
    arena.rt_state["vmas"][1] = (0x1000, 2**64 - 1, 3, 0)
    arena.rt_state["vmas"][2] = (0x5000, 0x4000, 3, 0)
    assert holdings(arena)["mapped_bytes"] == {}
    pack(holdings(arena))
