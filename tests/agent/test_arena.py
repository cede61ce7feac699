"""Page runs and the arena: what is listed, found, cleared and compared is what is there."""

import errno
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.enclave_shim import abi, linux
from optmigd.enclave_shim import arena as arena_module
from optmigd.enclave_shim.arena import (
    Arena,
    Control,
    Runs,
    as_runs,
    coarse_runs,
    count_pages,
    merge_runs,
    pages_of_runs,
    runs_of_pages,
    split_huge,
    zero_pages,
)

PAGES = 4096  # 16 MiB
page_sets = st.sets(st.integers(0, 300), max_size=120)


def runs(pages: set[int]) -> Runs:
    return runs_of_pages(np.array(sorted(pages), dtype=np.int64))


def pages(found: Runs) -> set[int]:
    return {int(page) for page in pages_of_runs(found)}


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(PAGES * 4096)
    yield made
    made.close()


@given(page_sets)
def test_runs_and_pages_say_the_same(wanted: set[int]) -> None:
    found = runs(wanted)
    assert pages(found) == wanted
    assert count_pages(found) == len(wanted)
    first = found["first"].astype(int)
    assert (first[1:] > first[:-1] + found["count"][:-1]).all()  # sorted, and joined where adjacent


@given(st.lists(page_sets, max_size=4))
def test_merging_is_the_union(parts: list[set[int]]) -> None:
    merged = merge_runs(*[runs(part) for part in parts])
    assert pages(merged) == set().union(*parts)
    assert merged.tolist() == runs(set().union(*parts)).tolist()


@given(page_sets, st.integers(1, 10))
def test_coarse_runs_cover_and_keep_the_limit(wanted: set[int], limit: int) -> None:
    coarse = coarse_runs(runs(wanted), limit)
    assert len(coarse) <= limit
    assert pages(coarse) >= wanted
    if wanted:
        assert min(pages(coarse)) == min(wanted)
        assert max(pages(coarse)) == max(wanted)


@given(st.sets(st.integers(0, 40), max_size=12), st.integers(0, 600))
def test_huge_stretches_and_the_rest_are_the_whole(blocks: set[int], offset: int) -> None:
    wanted = {offset + block * 100 + page for block in blocks for page in range(100)}
    huge, rest = split_huge(runs(wanted))
    assert pages(huge) | pages(rest) == wanted
    assert not pages(huge) & pages(rest)
    assert all(first % 512 == count % 512 == 0 for first, count in huge.tolist())
    whole = [at for at in range(0, 5120, 512) if set(range(at, at + 512)) <= wanted]
    assert pages(huge) == {page for at in whole for page in range(at, at + 512)}


def populated(arena: Arena, wanted: Runs) -> None:
    huge, rest = split_huge(wanted)
    arena.populate(rest)
    arena.advise_huge(True)
    arena.populate(huge)
    arena.advise_huge(False)


def test_populating_takes_the_named_pages_and_no_more(arena: Arena) -> None:
    wanted = as_runs(np.array([5, 1000, 3000]), np.array([1, 1500, 40]))
    populated(arena, wanted)
    assert arena.resident_runs().tolist() == wanted.tolist()
    assert not arena.pages[:2600].any()


def test_a_page_touched_after_populating_takes_the_memory_of_one(arena: Arena) -> None:
    populated(arena, as_runs(np.array([512]), np.array([512])))
    arena.pages[2048] = 1
    assert arena.resident_bytes() == 513 * 4096


def test_huge_pages_given_back_in_part_read_as_zeros(arena: Arena) -> None:
    populated(arena, as_runs(np.array([0]), np.array([2048])))
    arena.pages[:2048] = 7
    arena.write_zeros(as_runs(np.array([600]), np.array([100])))
    assert not arena.pages[600:700].any()
    assert (arena.pages[512:600] == 7).all()
    assert (arena.pages[700:2048] == 7).all()


def test_without_the_right_to_mount_an_arena_is_a_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise PermissionError(errno.EPERM, "fsopen")

    monkeypatch.setattr(linux, "huge_memory_file", refused)
    made = Arena(PAGES * 4096)
    try:
        assert "memfd:optmig-arena" in os.readlink(f"/proc/self/fd/{made.fd}")
        populated(made, as_runs(np.array([3000]), np.array([1024])))
        assert made.resident_runs().tolist() == [(3000, 1024)]
    finally:
        made.close()


def test_only_touched_pages_are_resident(arena: Arena) -> None:
    arena.pages[3000] = 1
    arena.pages[3100:3105] = 2
    assert arena.resident_runs().tolist() == [(3000, 1), (3100, 5)]
    assert arena.resident_runs(3001, 3103).tolist() == [(3100, 3)]
    assert arena.resident_bytes() == 6 * 4096


def test_a_page_that_is_given_back_meanwhile_makes_no_empty_run(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in (3, 5, 9):
        arena.pages[page] = 1
    lseek = os.lseek

    def give_back_first(fd: int, at: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and at == 5 * abi.PAGE_BYTES:
            linux.punch_hole(fd, at, abi.PAGE_BYTES)
        return lseek(fd, at, whence)

    monkeypatch.setattr(os, "lseek", give_back_first)
    assert arena.resident_runs().tolist() == [(3, 1), (9, 1)]


def test_residency_is_split_without_allocating(arena: Arena) -> None:
    arena.pages[3000:3010] = 1
    asked = as_runs(np.array([2990, 3500]), np.array([40, 1]))
    resident, holes = arena.split_resident(asked, thorough=True)
    assert pages(resident) == set(range(3000, 3010))
    assert pages(holes) == (set(range(2990, 3030)) | {3500}) - set(range(3000, 3010))
    resident, holes = arena.split_resident(asked, thorough=False)
    assert pages(resident) == set(range(3000, 3010)) | {3500}  # short runs are not looked at
    assert arena.resident_bytes() == 10 * 4096


def test_residency_of_many_runs_takes_one_walk_over_the_memory(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena.pages[2500:3600] = 1
    arena.pages[3700:3800] = 1
    firsts = np.concatenate((np.arange(2480, 3860, 40), [4050]))
    asked = as_runs(firsts, np.full(len(firsts), 30))
    calls = []
    lseek = os.lseek

    def counted(fd: int, offset: int, how: int) -> int:
        calls.append(how)
        return lseek(fd, offset, how)

    monkeypatch.setattr(os, "lseek", counted)
    resident, holes = arena.split_resident(asked, thorough=False)
    allocated = set(range(2500, 3600)) | set(range(3700, 3800))
    assert pages(resident) == pages(asked) & allocated
    assert pages(holes) == pages(asked) - allocated
    # The kernel walks to the end of what is allocated every time: once for each stretch is enough.
    assert calls.count(os.SEEK_HOLE) == 2


def test_zeros_are_written_over_short_and_long_runs(arena: Arena) -> None:
    arena.pages[3000:3200] = 7
    arena.write_zeros(as_runs(np.array([3000, 3050]), np.array([2, 100])))
    assert not arena.pages[3000:3002].any()
    assert not arena.pages[3050:3150].any()
    assert (arena.pages[3002:3050] == 7).all()
    assert (arena.pages[3150:3200] == 7).all()


def test_a_page_is_zero_only_if_every_byte_is(arena: Arena) -> None:
    arena.pages[3000:3200] = 0
    arena.pages[3001, 4095] = 1
    arena.pages[3150, 0] = 1
    zero = zero_pages(arena.pages, np.arange(3000, 3200))
    assert np.flatnonzero(~zero).tolist() == [1, 150]


def test_zero_pages_are_found_side_by_side_and_scattered(arena: Arena) -> None:
    """More than one chunk of either, and pages that only the whole reading tells from zeros."""
    arena.pages[2000:3000] = 0
    used = np.concatenate((np.arange(2300, 2900, 2), [2950]))
    arena.pages[used, 1000] = 1
    numbers = np.arange(2000, 3000)
    assert numbers[~zero_pages(arena.pages, numbers)].tolist() == used.tolist()
    some = np.arange(2001, 3000, 3)
    wanted = [page for page in some.tolist() if page not in used]
    assert some[zero_pages(arena.pages, some)].tolist() == wanted


def test_content_hash_sees_content_and_place_but_not_allocation(arena: Arena) -> None:
    other = Arena(PAGES * 4096)
    try:
        arena.pages[2500] = 9
        arena.pages[2600] = 0  # allocated here, a hole there
        other.pages[2500] = 9
        assert arena.content_hash() == other.content_hash()
        other.pages[2500, 77] = 8
        assert arena.content_hash() != other.content_hash()
        other.pages[2500, 77] = 9
        other.pages[2501] = 9
        other.pages[2500] = 0
        assert arena.content_hash() != other.content_hash()
    finally:
        other.close()


def test_a_closed_arena_holds_no_memory(arena: Arena) -> None:
    arena.pages[3000:3100] = 1
    view = arena.pages
    arena.close()
    arena.close()
    with arena.kept() as there:
        assert not there
    assert not view[3000:3100].any()


def test_an_arena_is_not_given_back_under_who_looks_at_it(arena: Arena) -> None:
    arena.pages[:] = 1
    closers = [threading.Thread(target=arena.close) for _ in range(2)]
    with arena.kept() as there:
        assert there
        for closer in closers:
            closer.start()
        time.sleep(0.1)
        assert arena.resident_bytes() == PAGES * abi.PAGE_BYTES
        assert arena.pages.all()
    for closer in closers:
        closer.join(10)
    assert arena.resident_bytes() == 0


def test_giving_memory_back_pauses_between_its_pieces(arena: Arena) -> None:
    arena.pages[:] = 1
    left: list[int] = []
    pieces = PAGES * abi.PAGE_BYTES // 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena_module, "CLOSE_BYTES", pieces)
        arena.close(lambda: left.append(os.fstat(arena.fd).st_blocks * 512))
    assert left == [4 * pieces, 3 * pieces, 2 * pieces, pieces]


@pytest.mark.parametrize("size", [0, 4096, (16 << 20) + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="arena"):
        Arena(size)


def test_the_launch_block_is_bounded() -> None:
    ctl = Control(PAGES * 4096)
    try:
        ctl.set_launch_block(["a", "b"], {"K": "v"}, ["/shared"], "/enclave", "name")
        assert (ctl["launch_argc"], ctl["launch_envc"], ctl["shared_count"]) == (2, 1, 1)
        with pytest.raises(ValueError, match="too long"):
            ctl.set_launch_block(["x" * (1 << 20)], {}, [], "/enclave", "name")
        with pytest.raises(ValueError, match="NUL"):
            ctl.set_launch_block(["a\0b"], {}, [], "/enclave", "name")
    finally:
        ctl.close()
