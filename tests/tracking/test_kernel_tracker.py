"""The kernel tracker misses no write, by whatever way the program makes it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from optmigd.enclave_shim.arena import Runs, as_runs, merge_runs, pages_of_runs
from optmigd.enclave_shim.reach import PART_PAGES
from optmigd.enclave_shim.tracker import KernelTracker, probe, tracked_ranges
from optmigd.protocol.errors import TrackerUnavailable
from tests.support.tracked import TrackedProcess, build, tracked

PAGES = 8192  # 32 MiB; the first 8 MiB are the runtime's state
FREE = 3000  # a page number behind the runtime's state
HUGE = as_runs(np.array([2560]), np.array([4608]))  # whole huge pages, up to page 7168


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tracked"))


@contextmanager
def armed(
    binary: Path,
    *,
    pages: int = PAGES,
    data_page: int = 0,
    data_pages: int = 0,
    huge: Runs | None = None,
) -> Iterator[tuple[TrackedProcess, KernelTracker]]:
    with tracked(binary, pages, data_page, data_pages, huge) as process:
        why = probe(process)
        if why:
            pytest.skip(why)
        process.do(f"w {FREE} 4000 1")
        tracker = KernelTracker(process, process.arena)
        try:
            tracker.arm()
            assert pages_of_runs(tracker.collect()).tolist() == []
            yield process, tracker
        finally:
            tracker.disarm()


def collected(tracker: KernelTracker) -> list[int]:
    return [int(page) for page in pages_of_runs(tracker.collect())]


@pytest.mark.parametrize("huge", [None, HUGE], ids=["small pages", "huge pages"])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param("w 3100 1 7", id="store"),
        pytest.param("w 3100 700 7", id="stores over two page tables"),
        pytest.param("k 3100 3", id="read(2) into pages"),
        pytest.param("z 3100 2\nw 3100 2 7", id="MADV_DONTNEED and store"),
        pytest.param("w 3100 2 7\nz 3100 2", id="store and MADV_DONTNEED"),
        pytest.param("w 3100 2 7\no 3100 2", id="store and MADV_PAGEOUT"),
        pytest.param("m 3100 2 1\nm 3100 2 3\nw 3100 2 7", id="mprotect and store"),
        pytest.param("w 3100 2 7\nm 3100 2 0", id="store and mprotect to none"),
        pytest.param("p 3100 5", id="punched hole"),
        pytest.param("p 3100 5\nw 3102 1 9", id="store into a punched hole"),
        pytest.param("w 7500 3 9", id="first touch"),
    ],
)
def test_a_write_is_collected_once(binary: Path, command: str, huge: Runs | None) -> None:
    first, count = (int(word) for word in command.splitlines()[0].split()[1:3])
    with armed(binary, huge=huge) as (process, tracker):
        for line in command.splitlines():
            process.do(line)
        found = collected(tracker)
        assert set(range(first, first + count)) <= set(found)
        # A page table made meanwhile counts as written; nothing else may.
        assert all(first // 512 * 512 <= page < first + count + 512 for page in found)
        assert collected(tracker) == []


def test_one_write_to_a_huge_page_is_one_page(binary: Path) -> None:
    with armed(binary, huge=HUGE) as (process, tracker):
        process.do("w 3100 1 7")
        assert collected(tracker) == [3100]


@pytest.mark.parametrize("parked", [False, True])
def test_memory_that_was_never_touched_has_no_page_tables_until_it_is(
    binary: Path, parked: bool
) -> None:
    """An arena is as large as a program may become; how large it is now is what counts."""
    far = 5 * PART_PAGES + 100
    with armed(binary, pages=6 * PART_PAGES + 1000) as (process, tracker):
        assert page_table_bytes(process) < 1 << 19  # those of all parts take 1.5 MiB
        process.do(f"w {far} 3 7")
        process.do(f"w {6 * PART_PAGES + 999} 1 7")
        assert pages_of_runs(tracker.collect(parked=parked)).tolist() == [
            *(far, far + 1, far + 2),
            6 * PART_PAGES + 999,
        ]
        assert collected(tracker) == []
        process.do(f"w {far + 1} 1 8")
        assert far + 1 in collected(tracker)
        process.do(f"w {FREE} 1 8")
        assert collected(tracker) == [FREE]


def page_table_bytes(process: TrackedProcess) -> int:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmPTE" in line)


def test_reading_is_not_writing(binary: Path) -> None:
    with armed(binary) as (process, tracker):
        process.do(f"r {FREE} 4000")
        assert collected(tracker) == []


def test_a_write_through_the_data_range_names_the_page_in_the_arena(binary: Path) -> None:
    with armed(binary, data_page=2500, data_pages=64) as (process, tracker):
        process.do("d 0 64 1")
        assert set(range(2500, 2564)) <= set(collected(tracker))
        process.do("d 10 2 5")
        assert collected(tracker) == [2510, 2511]
        process.do("w 2511 2 6")
        assert collected(tracker) == [2511, 2512]


def test_marks_are_cleared_by_the_collection_that_reports_them(binary: Path) -> None:
    with armed(binary) as (process, tracker):
        process.ctl.marks[3500:3503] = 1
        assert collected(tracker) == [3500, 3501, 3502]
        assert not process.ctl.marks.any()


def test_memory_that_lost_its_registration_fails_loudly(binary: Path) -> None:
    with armed(binary) as (process, tracker):
        process.do("f 3100 4")
        with pytest.raises(OSError) as failure:
            tracker.collect()
        assert failure.value.errno == errno.EPERM


def test_after_disarm_nothing_is_registered_and_arming_again_works(binary: Path) -> None:
    with armed(binary) as (process, tracker):
        tracker.disarm()
        tracker.disarm()
        process.do(f"w {FREE} 10 3")
        again = KernelTracker(process, process.arena)
        again.arm()
        try:
            process.do("w 3333 1 3")
            assert collected(again) == [3333]
        finally:
            again.disarm()


def test_long_work_pauses_between_slices_while_the_program_runs(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmigd.enclave_shim.tracker.SLICE_PAGES", 500)
    pauses: list[int] = []
    with armed(binary) as (process, earlier):
        earlier.disarm()
        tracker = KernelTracker(process, process.arena, lambda: pauses.append(1))
        tracker.arm()
        try:
            process.do(f"w {FREE} 2000 3")
            pauses.clear()
            assert len(collected(tracker)) == 2000
            assert len(pauses) == 4
            process.do(f"w {FREE} 2000 4")
            assert len(pages_of_runs(tracker.collect(parked=True))) == 2000
            assert len(pauses) == 4, "parked, the program waits for this"
        finally:
            tracker.disarm()


def test_disarm_after_the_process_is_gone(binary: Path) -> None:
    with armed(binary) as (process, tracker):
        process.popen.kill()
        process.popen.wait()
        with pytest.raises(OSError):
            tracker.collect()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_copying_what_is_collected_reproduces_a_busy_memory(binary: Path, seed: int) -> None:
    """The rule 'first re-arm, then read', against a writer that never pauses."""
    with armed(binary) as (process, tracker):
        arena = process.arena
        copy = arena.pages.copy()
        process.send(f"x {seed} 400")
        rounds = 0
        while rounds < 40:
            runs = tracker.collect()
            pages = pages_of_runs(runs)
            copy[pages] = arena.pages[pages]
            rounds += 1
        process.done()
        pages = pages_of_runs(merge_runs(tracker.collect()))
        copy[pages] = arena.pages[pages]
        different = np.flatnonzero((copy != arena.pages).any(axis=1))
        assert different.tolist() == [], f"seed {seed}"
        assert rounds == 40


def test_a_kernel_without_the_feature_is_named(binary: Path) -> None:
    with tracked(binary, PAGES) as process:
        uffd, process.uffd, process.tracker_errno = process.uffd, -1, errno.EINVAL
        try:
            assert "userfaultfd" in probe(process)
            with pytest.raises(TrackerUnavailable, match=r"Linux 6\.7"):
                KernelTracker(process, process.arena)
        finally:
            process.uffd = uffd


def test_an_implausible_data_range_is_refused(binary: Path) -> None:
    with tracked(binary, PAGES, data_page=2500, data_pages=4) as process:
        process.arena.rt_state["data_copy"] = 12345
        with pytest.raises(TrackerUnavailable):
            tracked_ranges(process.arena)
