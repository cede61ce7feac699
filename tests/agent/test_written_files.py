"""Of a file that changes only the blocks are looked at that the program says it wrote."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optmigd.enclave_shim import abi
from optmigd.enclave_shim.arena import Arena, Control
from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.written_files import WrittenFiles
from optmigd.protocol.records import FileMeta
from tests.agent.test_files import bring_up_to_date, tree

ARENA_BYTES = 16 << 20
BLOCK = abi.FILE_BLOCK_BYTES
CHUNK = 2 * BLOCK
ANY_INODE = 2**64 - 1


class Runtime:
    """What the runtime does around a call that changes a file; see `runtime/written.c`."""

    def __init__(self) -> None:
        self.arena, self.ctl = Arena(ARENA_BYTES), Control(ARENA_BYTES)
        self._slots = self.arena.rt_state["writings"]

    def close(self) -> None:
        self.arena.close()
        self.ctl.close()

    def mark(self, inode: int, start: int, length: int) -> None:
        home = (inode * abi.FILE_MARKS_FACTOR % 2**64) >> abi.FILE_MARKS_SHIFT
        for block in range(start // BLOCK, (start + length - 1) // BLOCK + 1):
            self.ctl.file_marks[(home + block) % abi.FILE_MARKS] = 1

    def mark_whole(self, inode: int) -> None:
        home = (inode * abi.FILE_MARKS_FACTOR % 2**64) >> abi.FILE_MARKS_SHIFT
        self.ctl.file_whole_marks[home % abi.FILE_WHOLE_MARKS] = 1

    def begin(self, slot: int, inode: int, start: int, length: int) -> None:
        self._slots[slot] = (1, 0, inode, start, length, 0)

    def end(self, slot: int) -> None:
        self._slots[slot]["used"] = 0


class Trip:
    """A directory that a program writes to, its copy, and the machinery between."""

    def __init__(self, folder: Path) -> None:
        self.own, self.copy = folder / "own", folder / "copy"
        self.own.mkdir()
        self.copy.mkdir()
        self.runtime = Runtime()
        self.written = WrittenFiles(self.runtime.ctl, self.runtime.arena)
        self.written.watch()
        self.files = TravellingFiles(self.own, {}, CHUNK, self.written)
        self.receiver = FileReceiver(self.copy, folder)

    def send(self) -> list[FileMeta]:
        """Bring the copy up to date; return the steps that it took."""
        return bring_up_to_date(self.files, self.receiver)

    def write(self, name: str, start: int, content: bytes) -> None:
        """Do as the program does; where it appends, without a mark."""
        path = self.own / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(fd).st_size == 0:
            self.runtime.mark_whole(path.stat().st_ino)
        if start != os.fstat(fd).st_size:
            self.runtime.mark(path.stat().st_ino, start, len(content))
        os.pwrite(fd, content, start)
        os.close(fd)


@pytest.fixture
def trip(tmp_path: Path) -> Iterator[Trip]:
    trip = Trip(tmp_path)
    yield trip
    trip.runtime.close()


def spans(steps: list[FileMeta]) -> list[int]:
    return [step.offset for step in steps if step.op == "write"]


def test_only_what_was_written_is_sent(trip: Trip) -> None:
    trip.write("a", 0, os.urandom(60 * BLOCK + 5))
    trip.send()
    trip.write("a", 3 * BLOCK - 1, b"two blocks")
    trip.write("a", 29 * BLOCK, os.urandom(3 * BLOCK))
    trip.write("a", 37 * BLOCK, b"so close that they are sent together")
    assert spans(trip.send()) == [2 * BLOCK, *range(29 * BLOCK, 38 * BLOCK, CHUNK)]
    assert tree(trip.copy) == tree(trip.own)
    assert trip.send() == []


def test_what_is_appended_needs_no_mark(trip: Trip) -> None:
    trip.write("log", 0, os.urandom(2 * BLOCK + 5))
    trip.send()
    trip.write("log", 2 * BLOCK + 5, os.urandom(BLOCK))
    assert spans(trip.send()) == [2 * BLOCK]
    assert tree(trip.copy) == tree(trip.own)


def test_a_write_that_is_under_way_counts_until_it_was_seen_to_be_over(trip: Trip) -> None:
    trip.write("a", 0, bytes(8 * BLOCK))
    trip.send()
    inode = (trip.own / "a").stat().st_ino
    with open(trip.own / "a", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"touched", 0)  # the time is set when the call begins
        trip.runtime.begin(7, inode, 5 * BLOCK, 10)
        trip.runtime.mark(inode, 5 * BLOCK, 10)
        assert spans(trip.send()) == [5 * BLOCK]
        status = os.stat(file.fileno())
        os.pwrite(file.fileno(), b"late", 5 * BLOCK)
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        trip.runtime.end(7)
    assert spans(trip.send()) == [5 * BLOCK]
    assert (trip.copy / "a").read_bytes()[5 * BLOCK :][:4] == b"late"
    assert trip.send() == []


@pytest.mark.parametrize("inode", [None, ANY_INODE])
def test_a_write_without_an_end_reaches_to_the_files(inode: int | None, trip: Trip) -> None:
    trip.write("a", 0, bytes(8 * BLOCK))
    trip.send()
    mine = (trip.own / "a").stat().st_ino
    trip.runtime.begin(0, inode or mine, 6 * BLOCK, ANY_INODE)
    assert trip.written.take().blocks(mine, 8).tolist() == [False] * 6 + [True] * 2
    trip.runtime.end(0)


def test_a_threads_own_slot_counts_as_well(trip: Trip) -> None:
    slot = trip.runtime.arena.rt_state["threads"]["writing"]
    slot[3] = (1, 0, 77, BLOCK, BLOCK, 0)
    for found in ([False, True, True], [False, True, True], [False] * 3):
        # Its last byte is the first of the next block: more than was written, never less.
        assert trip.written.take().blocks(77, 3).tolist() == found
        slot[3]["used"] = 0


def test_a_file_that_begins_late_in_the_table_goes_on_at_its_front(trip: Trip) -> None:
    late = next(
        inode
        for inode in range(1, 10**7)
        if (inode * abi.FILE_MARKS_FACTOR % 2**64) >> abi.FILE_MARKS_SHIFT == abi.FILE_MARKS - 2
    )
    trip.runtime.mark(late, 0, BLOCK)
    trip.runtime.mark(late, 3 * BLOCK, BLOCK)
    assert trip.written.take().blocks(late, 5).tolist() == [True, False, False, True, False]


def test_a_file_larger_than_the_table_meets_itself(trip: Trip) -> None:
    trip.runtime.mark(5, BLOCK, BLOCK)
    found = trip.written.take().blocks(5, abi.FILE_MARKS + 3)
    assert found.nonzero()[0].tolist() == [1, abi.FILE_MARKS + 1]


def cut(trip: Trip) -> None:
    trip.runtime.mark_whole((trip.own / "a").stat().st_ino)
    os.truncate(trip.own / "a", 3 * BLOCK)


def cut_before_its_mark(trip: Trip) -> None:
    trip.write("a", 0, b"written")
    os.truncate(trip.own / "a", 3 * BLOCK)


def cut_and_fill(trip: Trip) -> None:
    cut(trip)
    os.truncate(trip.own / "a", 8 * BLOCK)


def replace(trip: Trip) -> None:
    (trip.own / "b").write_bytes(os.urandom(8 * BLOCK))
    os.rename(trip.own / "b", trip.own / "a")


def change_from_outside(trip: Trip) -> None:
    with open(trip.own / "a", "r+b") as file:
        file.write(b"by somebody else")


@pytest.mark.parametrize(
    "change", [cut, cut_before_its_mark, cut_and_fill, replace, change_from_outside]
)
def test_what_is_no_write_is_found_by_comparing(change: Callable[[Trip], None], trip: Trip) -> None:
    trip.write("a", 0, os.urandom(8 * BLOCK))
    trip.send()
    trip.write("a", 4 * BLOCK, b"known to the copy without a digest")
    trip.send()
    change(trip)
    trip.send()
    assert tree(trip.copy) == tree(trip.own)


def test_a_file_that_could_not_be_looked_at_is_compared(trip: Trip) -> None:
    trip.write("0", 0, b"looked at first")
    trip.write("a", 0, os.urandom(4 * BLOCK))
    trip.send()
    trip.write("0", 0, b"changed")
    trip.write("a", 2 * BLOCK, b"changed")
    for change, content in trip.files.delta():
        trip.receiver.apply(change, content)
        if (trip.own / "a").exists():  # gone when its turn comes
            os.rename(trip.own / "a", trip.own.parent / "away")
    os.rename(trip.own.parent / "away", trip.own / "a")
    trip.write("a", 0, b"changed again")
    trip.send()
    assert tree(trip.copy) == tree(trip.own)


@pytest.mark.parametrize("seed", range(20))
def test_any_changes_arrive(seed: int, trip: Trip) -> None:
    rng = random.Random(seed)
    late: list[tuple[int, Path, int, bytes]] = []
    for _ in range(60):
        name = rng.choice("ab")
        path = trip.own / name
        start, content = rng.randrange(6 * BLOCK), rng.randbytes(rng.randrange(1, 2 * BLOCK))
        match rng.randrange(8):
            case 0 | 1 | 2:
                trip.write(name, start, content)
            case 3:
                trip.write(name, path.stat().st_size if path.exists() else 0, content)
            case 4 if path.exists():
                inode = path.stat().st_ino
                trip.runtime.begin(len(late), inode, start, len(content))
                trip.runtime.mark(inode, start, len(content))
                late.append((len(late), path, start, content))
            case 5 if path.exists() and not late:
                trip.runtime.mark_whole(path.stat().st_ino)
                os.truncate(path, start)
            case 6 if path.exists() and not late:
                path.unlink()
            case 7:
                trip.send()
        if late and rng.random() < 0.3:
            while late:
                slot, path, start, content = late.pop()
                status = path.stat()
                with open(path, "r+b", buffering=0) as file:
                    os.pwrite(file.fileno(), content, start)
                    if path.stat().st_size == status.st_size:  # as if begun when that was set
                        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                trip.runtime.end(slot)
    for slot, *_ in late:
        trip.runtime.end(slot)
    trip.send()
    assert tree(trip.copy) == tree(trip.own)
