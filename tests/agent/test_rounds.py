"""When the source collects: what it decides by is what is dirty when the round is confirmed."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trio

from optmigd.enclave_shim.arena import Arena, Runs, as_runs, pages_of_runs, runs_of_pages
from optmigd.enclave_shim.files import TravellingFiles
from optmigd.enclave_shim.migration import rounds as rounds_module
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.common import Streams
from optmigd.enclave_shim.migration.pump import Sender
from optmigd.enclave_shim.migration.rounds import FEW_PAGES, STALE_S, Rounds
from optmigd.enclave_shim.migration.sending import Sending
from optmigd.protocol.errors import RemoteProtocolError
from optmigd.protocol.records import Counts
from optmigd.protocol.session import RoundDone


class Busy:
    """A tracker of a program that writes another page before every collection."""

    name = "busy"
    gave_back = False

    def __init__(self) -> None:
        self.collections = 0
        self.collected = threading.Event()

    def arm(self) -> None: ...

    def collect(self, *, parked: bool = False) -> Runs:
        self.collections += 1
        self.collected.set()
        return as_runs(np.array([self.collections * 2]), np.array([1]))

    def disarm(self) -> None: ...


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(16 << 20)
    arena.pages[:] = 1
    yield arena
    arena.close()


@pytest.mark.parametrize(("stale_s", "collections"), [(60.0, 1), (STALE_S, 2)])
async def test_a_confirmation_that_takes_its_time_is_followed_by_another_collection(
    arena: Arena,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stale_s: float,
    collections: int,
) -> None:
    monkeypatch.setattr(rounds_module, "STALE_S", stale_s)
    tracker = Busy()
    rounds = Rounds(arena, [], TravellingFiles(tmp_path, {}, 4096), tracker)

    async def confirm() -> RoundDone:
        await trio.to_thread.run_sync(tracker.collected.wait)
        await trio.sleep(20 * STALE_S)  # it is the wait that is asked about
        return RoundDone(-1, 0, 0, rounds.chain)

    await rounds.collect_while_confirmed(confirm)
    assert tracker.collections == rounds.dirty_pages == collections


async def test_a_wrong_account_of_a_round_is_refused(arena: Arena, tmp_path: Path) -> None:
    rounds = Rounds(arena, [], TravellingFiles(tmp_path, {}, 4096), Busy())

    async def confirm() -> RoundDone:
        return RoundDone(-1, 1, 0, rounds.chain)

    with pytest.raises(ExceptionGroup) as caught:
        await rounds.collect_while_confirmed(confirm)
    assert caught.group_contains(RemoteProtocolError, match="account")


class Scripted:
    """A tracker that finds what it was told: as round 0 begins, and collection by collection."""

    name = "scripted"
    gave_back = False

    def __init__(self, *written: list[int]) -> None:
        self._written = iter(written)

    def arm(self) -> None: ...

    def collect(self, *, parked: bool = False) -> Runs:
        return runs_of_pages(np.array(next(self._written), dtype=np.int64))

    def disarm(self) -> None: ...


class Recorder:
    """In the place of a sender: notes which pages each round sends, and in which thread."""

    def __init__(
        self, meet: threading.Barrier | None = None, meet_in: int = 0, sent_bytes: int = 0
    ) -> None:
        self._meet = meet
        self._meet_in = meet_in
        self._sent_bytes = sent_bytes
        self.sent: list[list[int]] = []
        self.threads: list[int] = []
        self.closed = False
        self.rounds_closed = 0
        self.file_steps = 0
        self.manifest = b""

    def send_manifest(self, payload: bytes) -> None:
        self.manifest = payload

    def send_pages(self, round_no: int, runs: Runs, holes: Runs) -> None:
        assert not self.closed
        assert round_no == self.rounds_closed
        if self._meet is not None and round_no == self._meet_in:
            self._meet.wait(timeout=10)
        self.sent.append(pages_of_runs(runs).tolist())
        self.threads.append(threading.get_ident())

    def send_files(self, steps: Iterable[object]) -> None:
        self.file_steps += len(list(steps))

    def close_round(self, *, last: bool) -> Counts:
        self.rounds_closed += 1
        self.closed = last
        return Counts(bytes=self._sent_bytes)


@pytest.mark.parametrize("pages", [1, FEW_PAGES])
async def test_the_manifest_is_made_when_every_stream_has_closed_the_last_round(
    arena: Arena, tmp_path: Path, pages: int
) -> None:
    senders = [Recorder(), Recorder()]
    files = TravellingFiles(tmp_path, {}, 4096)
    tracker = Scripted(list(range(pages)))
    rounds = Rounds(arena, [cast(Sender, one) for one in senders], files, tracker)

    def seal() -> bytes:
        return b"sealed" if all(one.closed for one in senders) else b"too early"

    rounds.collect(parked=True)
    await rounds.send(seal)
    assert [one.manifest for one in senders] == [b"sealed", b""]


async def run_rounds(rounds: Rounds, count: int) -> None:
    """Send round 0 and those after it, each followed by a collection; then the last, parked."""
    rounds.begin()
    for _ in range(count):
        await rounds.send()
        rounds.collect()
        rounds.record()
    rounds.collect(parked=True)
    await rounds.send()


async def test_hot_pages_are_sent_late_and_never_forgotten(arena: Arena, tmp_path: Path) -> None:
    hot, cools, now_and_then = 5, 6, 7
    sender = Recorder()
    tracker = Scripted(
        [],
        [hot, cools, now_and_then],
        [hot, cools],
        [hot, cools, now_and_then],  # both written in three rounds running
        [hot],
        [hot],
        [],  # while it is parked
    )
    rounds = Rounds(arena, [cast(Sender, sender)], TravellingFiles(tmp_path, {}, 4096), tracker)
    await run_rounds(rounds, 5)
    assert sender.sent[0] == list(range(arena.page_count))
    assert sender.sent[1:] == [[5, 6, 7], [5, 6], [7], [6], [hot]]
    assert [(one.dirty_pages, one.hot_pages) for one in rounds.history] == [
        (3, 0),
        (2, 0),
        (3, 2),
        (2, 1),
        (1, 1),
    ]


async def test_what_is_held_back_is_sent_when_the_last_round_finds_nothing_new(
    arena: Arena, tmp_path: Path
) -> None:
    sender = Recorder()
    tracker = Scripted([], [5], [5], [5], [])
    rounds = Rounds(arena, [cast(Sender, sender)], TravellingFiles(tmp_path, {}, 4096), tracker)
    await run_rounds(rounds, 3)
    assert sender.sent[-1] == [5]


async def test_the_last_round_goes_in_two_parts_and_hot_pages_in_the_second(
    arena: Arena, tmp_path: Path
) -> None:
    sender = Recorder()
    tracker = Scripted([6], [5, 6], [5, 7], [5, 8], [9])  # 5 is hot, 9 written while 8 was sent
    (tmp_path / "record").write_text("written")
    files = TravellingFiles(tmp_path, {}, 4096)
    rounds = Rounds(arena, [cast(Sender, sender)], files, tracker)
    rounds.begin()
    for _ in range(3):
        await rounds.send()
        rounds.collect()
        rounds.record()
    sent_before = sender.file_steps
    await rounds.send_ahead()
    assert (sender.sent[-1], sender.rounds_closed, rounds.round_no) == ([8], 3, 3)
    assert sender.file_steps == sent_before
    rounds.collect(parked=True)
    await rounds.send(lambda: b"manifest")
    assert (sender.sent[-1], sender.rounds_closed, sender.closed) == ([5, 9], 4, True)
    assert rounds.record().round_no == 3


async def test_a_program_that_is_held_back_has_no_hot_pages(arena: Arena, tmp_path: Path) -> None:
    sender = Recorder()
    tracker = Scripted(*[[5]] * 7)
    rounds = Rounds(arena, [cast(Sender, sender)], TravellingFiles(tmp_path, {}, 4096), tracker)
    rounds.hot_pages.stop()
    await run_rounds(rounds, 5)
    assert sender.sent[1:] == [[5]] * 5
    assert not any(one.hot_pages for one in rounds.history)


async def test_little_is_sent_by_one_thread_and_much_by_one_for_each_stream(
    arena: Arena, tmp_path: Path
) -> None:
    meet = threading.Barrier(2)  # in round 0, at the same time or never
    # So much in a round that lasts for less than a second: the link is fast.
    senders = [Recorder(meet, sent_bytes=1 << 40), Recorder(meet, sent_bytes=1 << 40)]
    files = TravellingFiles(tmp_path, {}, 4096)
    rounds = Rounds(arena, [cast(Sender, one) for one in senders], files, Scripted([], [5], []))
    assert arena.page_count >= FEW_PAGES
    await run_rounds(rounds, 1)
    (_, little), (_, other_little) = (one.threads for one in senders)
    assert little == other_little


async def test_over_a_slow_link_little_is_sent_by_one_thread_for_each_stream(
    arena: Arena, tmp_path: Path
) -> None:
    meet = threading.Barrier(2)  # in round 1, at the same time or never
    senders = [Recorder(meet, 1, sent_bytes=1), Recorder(meet, 1, sent_bytes=1)]
    files = TravellingFiles(tmp_path, {}, 4096)
    rounds = Rounds(arena, [cast(Sender, one) for one in senders], files, Scripted([], [5], []))
    await run_rounds(rounds, 1)
    (_, one), (_, other) = (sender.threads for sender in senders)
    assert one != other


async def test_after_something_was_sent_ahead_the_program_may_run_on(
    arena: Arena, tmp_path: Path
) -> None:
    """Too much had become dirty meanwhile: the round ends as any other, and the next is one too."""
    sender = Recorder()
    tracker = Scripted([], [5], [6], [7], [8], [9], [])
    rounds = Rounds(arena, [cast(Sender, sender)], TravellingFiles(tmp_path, {}, 4096), tracker)
    rounds.begin()
    await rounds.send()
    rounds.collect()
    rounds.record()
    await Sending(Streams(1), BulkGate()).send_ahead(rounds)  # always one page
    assert sender.sent[1:] == [[5], [6]]
    assert (sender.rounds_closed, rounds.dirty_pages) == (1, 1)
    await rounds.send()
    rounds.collect()
    assert rounds.record().round_no == 1
    before_s = time.monotonic()
    await rounds.send()
    rounds.collect()
    assert rounds.record().duration_s <= time.monotonic() - before_s
    assert sender.sent[3:] == [[7], [8]]


async def test_it_is_sent_ahead_again_while_that_leaves_less(arena: Arena, tmp_path: Path) -> None:
    sender = Recorder()
    left = [list(range(count)) for count in (40, 30, 31, 20, 25, 22, 1)]
    rounds = Rounds(
        arena,
        [cast(Sender, sender)],
        TravellingFiles(tmp_path, {}, 4096),
        Scripted([], *left),
    )
    rounds.hot_pages.stop()
    rounds.begin()
    await rounds.send()
    rounds.collect()
    rounds.record()
    await Sending(Streams(1), BulkGate()).send_ahead(rounds)
    assert [len(pages) for pages in sender.sent[1:]] == [40, 30, 31, 20, 25]
    assert rounds.dirty_pages == 22
