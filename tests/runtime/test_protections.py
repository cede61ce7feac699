"""What a waiting process protects ahead is a guess: the last table of mappings decides."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.abi import Command, Mode
from optmigd.enclave_shim.arena import Arena
from optmigd.enclave_shim.process import Process
from optmigd.protocol.errors import RuntimeFailed
from tests.runtime.conftest import Parked
from tests.support.instances import with_process

READ_WRITE = 3
MANY = 200

Mapping = tuple[int, int, int]
"""First address, end, protection."""


def in_process(parked: Parked, arena: Arena, act: Callable[[Process], Any]) -> None:
    trio.run(with_process, parked.keeper, arena, Mode.RESTORE, parked.image, parked.start(), act)


def table_of(arena: Arena) -> list[Mapping]:
    state = arena.rt_state
    rows = state["vmas"][: int(state["vma_count"])]
    return [(int(row["start"]), int(row["end"]), int(row["prot"])) for row in rows]


def write_table(arena: Arena, table: list[Mapping]) -> None:
    vmas = arena.rt_state["vmas"]
    for index, (start, end, prot) in enumerate(table):
        vmas[index] = (start, end, prot, 0)
    arena.rt_state["vma_count"] = len(table)


def some_table(arena: Arena, fixed: list[Mapping], rng: random.Random) -> list[Mapping]:
    """What the runtime laid out, and anything above it."""
    low, high = int(arena.rt_state["low"]), int(arena.rt_state["high"])
    pages = (high - low) // abi.PAGE_BYTES
    edges = sorted(rng.sample(range(pages + 1), 2 * rng.randrange(MANY)))
    starts, ends = edges[::2], edges[1::2]
    above = [
        (
            low + start * abi.PAGE_BYTES,
            low + end * abi.PAGE_BYTES,
            rng.choice((0, 1, 3, 3, 3, 5, 7)),
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    return fixed + above


def merged(pieces: list[Mapping]) -> list[Mapping]:
    found: list[Mapping] = []
    for start, end, prot in pieces:
        if found and found[-1][1:] == (start, prot):
            found[-1] = (found[-1][0], end, prot)
        elif start < end:
            found.append((start, end, prot))
    return found


def wanted(table: list[Mapping], low: int, high: int) -> list[Mapping]:
    """The protections from `low` on that a table stands for: between its mappings is nothing."""
    pieces, at = [], low
    for start, end, prot in table:
        if start >= low:
            pieces += [(at, start, 0), (start, end, prot)]
            at = end
    return merged([*pieces, (at, high, 0)])


def protections(pid: int, low: int, high: int) -> list[Mapping]:
    """Those that the kernel tells."""
    pieces = []
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            addresses, flags = line.split()[:2]
            start, end = (int(one, 16) for one in addresses.split("-"))
            prot = sum(bit for bit, flag in zip((1, 2, 4), flags, strict=False) if flag != "-")
            if start < high and end > low:
                pieces.append((max(start, low), min(end, high), prot))
    return merged(pieces)


@pytest.mark.parametrize("seed", range(6))
def test_after_any_guesses_the_last_table_holds(parked: Parked, seed: int) -> None:
    rng = random.Random(seed)
    arena = parked.arena()
    low, high = int(arena.rt_state["low"]), int(arena.rt_state["high"])
    fixed = [one for one in table_of(arena) if one[0] < low]

    async def act(process: Process) -> None:
        for _ in range(rng.randrange(6)):
            table = some_table(arena, fixed, rng)
            write_table(arena, table)
            await process.command(Command.PROTECT)
            assert protections(process.pid, low, high) == wanted(table, low, high)
        last = some_table(arena, fixed, rng)
        write_table(arena, last)
        await process.command(Command.PREPARE)
        assert protections(process.pid, low, high) == wanted(last, low, high)

    in_process(parked, arena, act)


def test_the_runtimes_own_memory_is_protected_where_the_table_says_so(parked: Parked) -> None:
    arena = parked.arena()
    low = int(arena.rt_state["low"])
    listed = [one for one in table_of(arena) if one[0] < low and one[2] != READ_WRITE]
    assert listed, "the guard below the stack, or the image's read-only data"

    async def act(process: Process) -> None:
        for command in (Command.PROTECT, Command.PREPARE):
            await process.command(command)
            for start, end, prot in listed:
                assert protections(process.pid, start, end) == [(start, end, prot)]

    in_process(parked, arena, act)


BROKEN: dict[str, Callable[[list[Mapping]], list[Mapping]]] = {
    "empty": lambda table: [*table[:-1], (table[-1][0], table[-1][0], READ_WRITE)],
    "crooked": lambda table: [*table[:-1], (table[-1][0], table[-1][1] - 1, READ_WRITE)],
    "beyond": lambda table: [*table[:-1], (table[-1][0], 1 << 62, READ_WRITE)],
    "unordered": lambda table: [*table, table[-2]],
    "protection": lambda table: [*table[:-1], (*table[-1][:2], 8)],
}


@pytest.mark.parametrize("broken", [*BROKEN, "count"])
def test_half_a_table_is_left_alone(parked: Parked, broken: str) -> None:
    arena = parked.arena()
    low, high = int(arena.rt_state["low"]), int(arena.rt_state["high"])
    last = table_of(arena)

    async def act(process: Process) -> None:
        before = protections(process.pid, low, high)
        if broken == "count":
            arena.rt_state["vma_count"] = abi.RT_MAX_VMAS + 1
        else:
            write_table(arena, BROKEN[broken](last))
        await process.command(Command.PROTECT)
        assert protections(process.pid, low, high) == before
        write_table(arena, last)
        await process.command(Command.PREPARE)
        assert protections(process.pid, low, high) == wanted(last, low, high)

    in_process(parked, arena, act)


def test_a_prepared_process_protects_nothing_any_more(parked: Parked) -> None:
    async def act(process: Process) -> None:
        await process.command(Command.PREPARE)
        with pytest.raises(RuntimeFailed, match="protect was asked for after prepare"):
            await process.command(Command.PROTECT)

    in_process(parked, parked.arena(), act)
