"""The pumps: what is sent arrives, once and in order, and what is not whole is refused."""

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmigd.enclave_shim.arena import (
    Arena,
    Runs,
    as_runs,
    count_pages,
    pages_of_runs,
    runs_of_pages,
)
from optmigd.enclave_shim.file_receiver import FileReceiver
from optmigd.enclave_shim.files import Step
from optmigd.enclave_shim.migration.bulk_gate import BulkGate
from optmigd.enclave_shim.migration.handoff_frames import receive_frame
from optmigd.enclave_shim.migration.pump import (
    Receiver,
    RoundMark,
    Sender,
    share_of_stream,
    windows,
)
from optmigd.protocol.errors import ChannelClosed, DecryptFailed, RemoteProtocolError
from optmigd.protocol.records import FileMeta, StreamOpener, StreamSealer, overall_chain
from optmigd.protocol.session import SessionKeys

PAGES = 4096
RECORD_BYTES = 64 << 10
ID = bytes(16)
NOTHING = as_runs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
run_lists = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 200)), max_size=12)


def make_runs(gaps_and_counts: list[tuple[int, int]]) -> Runs:
    at, firsts, counts = 0, [], []
    for gap, count in gaps_and_counts:
        at += gap
        firsts.append(at)
        counts.append(count)
        at += count
    return as_runs(np.array(firsts, dtype=np.int64), np.array(counts, dtype=np.int64))


@given(run_lists, st.integers(1, 5), st.integers(1, 64))
def test_streams_share_every_page_exactly_once(
    shape: list[tuple[int, int]], streams: int, group: int
) -> None:
    runs = make_runs(shape)
    shares = [
        pages_of_runs(share_of_stream(runs, stream, streams, group)) for stream in range(streams)
    ]
    assert sorted(np.concatenate(shares).tolist()) == pages_of_runs(runs).tolist()
    for stream, share in enumerate(shares):
        assert (share // group % streams == stream).all()


@given(run_lists, st.integers(1, 300))
def test_windows_are_the_runs_in_bounded_parts(shape: list[tuple[int, int]], limit: int) -> None:
    runs = make_runs(shape)
    parts = list(windows(runs, limit))
    assert all(0 < count_pages(part) <= limit for part in parts)
    found = [page for part in parts for page in pages_of_runs(part).tolist()]
    assert found == pages_of_runs(runs).tolist()


def send_round(
    sender: Sender,
    round_no: int,
    runs: Runs,
    holes: Runs,
    steps: Iterable[Step] = (),
    *,
    last: bool = False,
) -> None:
    sender.send_pages(round_no, runs, holes)
    sender.send_files(steps)
    sender.close_round(last=last)


@dataclass
class Link:
    """Senders and receivers over socket pairs, the receivers running."""

    source: Arena
    destination: Arena
    senders: list[Sender]
    sockets: list[socket.socket]
    threads: list[threading.Thread]
    receivers: list[Receiver] = field(default_factory=list)
    marks: list[RoundMark] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    gate: BulkGate = field(default_factory=BulkGate)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def round(self, round_no: int, runs: Runs, holes: Runs = NOTHING) -> None:
        threads = [
            threading.Thread(target=partial(send_round, sender, round_no, runs, holes))
            for sender in self.senders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in self.senders:
            assert self.arrived.acquire(timeout=10)

    def finish(self) -> None:
        for sock in self.sockets:
            sock.shutdown(socket.SHUT_WR)
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def linked(tmp_path: Path, streams: int) -> Iterator[Link]:
    source, destination = Arena(PAGES * 4096), Arena(PAGES * 4096)
    link = Link(source, destination, [], [], [])
    keys = SessionKeys(bytes(32))
    files = FileReceiver(tmp_path, tmp_path)
    peers = []

    def run(receiver: Receiver) -> None:
        try:
            while mark := receiver.receive_round():
                link.marks.append(mark)
                link.arrived.release()
        except Exception as error:
            link.errors.append(error)

    for index in range(streams):
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        sealer = StreamSealer(keys, ID, index, "aes-256-gcm", record_bytes=RECORD_BYTES)
        opener = StreamOpener(
            keys, ID, index, "aes-256-gcm", arena_pages=PAGES, record_bytes=RECORD_BYTES
        )
        link.sockets.append(ours)
        link.senders.append(
            Sender(ours, sealer, source, link.gate, streams=streams, record_bytes=RECORD_BYTES)
        )
        receiver = Receiver(theirs, opener, destination, files, record_bytes=RECORD_BYTES)
        link.receivers.append(receiver)
        link.threads.append(threading.Thread(target=run, args=(receiver,), daemon=True))
        link.threads[-1].start()
    try:
        yield link
    finally:
        for sock in (*link.sockets, *peers):
            sock.close()
        source.close()
        destination.close()


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_rounds_make_both_arenas_equal(tmp_path: Path, streams: int) -> None:
    random = np.random.default_rng(streams)
    with linked(tmp_path, streams) as link:
        pages = link.source.pages
        pages[100:1500] = random.integers(0, 256, (1400, 4096), dtype=np.uint8)
        pages[1000:1200] = 0
        pages[1100, 9] = 1
        pages[3500:3540] = 3
        link.round(0, link.source.resident_runs())
        assert (link.destination.pages == pages).all()
        dirty = np.unique(random.integers(100, 3000, 500))
        pages[dirty] = random.integers(0, 256, (len(dirty), 4096), dtype=np.uint8)
        pages[dirty[::5]] = 0
        pages[3500:3540] = 0
        holes = as_runs(np.array([3500]), np.array([40]))
        link.round(1, as_runs(dirty, np.ones(len(dirty))), holes)
        link.finish()
        assert (link.destination.pages == pages).all()
        assert link.errors == []
        last = sorted((mark for mark in link.marks if mark.round_no == 1), key=lambda m: m.stream)
        assert overall_chain([mark.chain for mark in last]) == overall_chain(
            [sender.chain for sender in link.senders]
        )
        assert sum(mark.totals.all_pages for mark in last) == 1440 + len(dirty) + 40


def test_zero_pages_travel_without_a_body(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        link.source.pages[100:1100] = 0
        link.round(0, link.source.resident_runs())
        assert link.senders[0].totals.zero_pages == 1000
        assert link.senders[0].sent_bytes < 1000


def test_zeros_for_fresh_memory_write_nothing(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        link.source.pages[100:1100] = 0
        link.source.pages[500] = 7
        link.round(0, link.source.resident_runs())
        assert link.destination.resident_runs().tolist() == [(500, 1)]
        link.source.pages[500] = 0
        link.round(1, as_runs(np.array([490]), np.array([20])))
        assert not link.destination.pages.any()


def test_files_travel_behind_the_pages(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        steps = [(FileMeta("own", "a.txt", "write", offset=2), b"hello")]
        send_round(link.senders[0], 0, NOTHING, NOTHING, steps)
        assert link.arrived.acquire(timeout=10)
    assert (tmp_path / "a.txt").read_bytes() == b"\0\0hello"


def test_a_page_may_come_twice_in_a_round_and_its_last_content_counts(tmp_path: Path) -> None:
    with linked(tmp_path, 2) as link:
        arena = link.source
        arena.pages[100:1500] = 7
        for sender in link.senders:
            sender.send_pages(0, runs_of_pages(np.arange(100, 1500)), NOTHING)
        arena.pages[700:] = 8
        arena.pages[400:500] = 0
        again = runs_of_pages(np.r_[300:600, 700:1500])
        for sender in link.senders:
            sender.send_pages(0, again, NOTHING)
            sender.close_round(last=False)
        for _ in link.senders:
            assert link.arrived.acquire(timeout=10)
        assert np.array_equal(link.destination.pages[:1500], arena.pages[:1500])
        assert link.errors == []


async def test_manifest_and_ready_travel_on_the_first_stream(tmp_path: Path) -> None:
    manifest, ready = bytes(range(256)) * 900, b"sealed"
    with linked(tmp_path, 2) as link:
        link.source.pages[100:1500] = 7
        for number in range(2):
            link.round(number, link.source.resident_runs())
        threads = [
            threading.Thread(target=partial(send_round, sender, 2, NOTHING, NOTHING, last=True))
            for sender in link.senders
        ]
        threads.append(threading.Thread(target=link.senders[0].send_manifest, args=(manifest,)))
        for thread in threads:  # one after the other: only then the manifest stands behind it all
            thread.start()
            thread.join()
        for _ in link.senders:
            assert link.arrived.acquire(timeout=10)
        marks = {(mark.round_no, mark.stream): mark for mark in link.marks}
        assert [marks[number, 0].last for number in range(3)] == [False, False, True]
        assert marks[2, 1].last
        assert [marks[2, stream].manifest for stream in range(2)] == [manifest, b""]
        link.receivers[0].send_ready(ready)
        assert await receive_frame(link.sockets[0]) == ready
        assert link.errors == []


def test_a_manifest_that_is_announced_too_long_is_refused(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        send_round(link.senders[0], 0, NOTHING, NOTHING, last=True)
        link.sockets[0].sendall(b"\xff\xff\xff\xff")
        link.finish()
        assert [type(error) for error in link.errors] == [RemoteProtocolError]


async def test_a_stream_that_ends_or_breaks_before_ready_is_told(tmp_path: Path) -> None:
    with linked(tmp_path, 2) as link:
        link.receivers[0].send_ready(b"")
        assert await receive_frame(link.sockets[0]) == b""
        for sock in link.sockets:
            sock.shutdown(socket.SHUT_RDWR)
        for sock, receiver in zip(link.sockets, link.receivers, strict=True):
            with pytest.raises(ChannelClosed):
                await receive_frame(sock)
            with pytest.raises(ChannelClosed):
                receiver.send_ready(b"sealed")


def test_a_stream_cut_in_a_record_is_refused(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        link.sockets[0].sendall(bytes(10))
        link.finish()
        assert [type(error) for error in link.errors] == [ChannelClosed]


def test_a_round_waits_at_a_gate_that_is_shut(tmp_path: Path) -> None:
    with linked(tmp_path, 2) as link:
        link.source.pages[100:1500] = 7
        link.gate.set(shut=True)
        round_ = threading.Thread(target=link.round, args=(0, link.source.resident_runs()))
        round_.start()
        time.sleep(0.2)
        assert not link.destination.pages.any()
        link.gate.set(shut=False)
        round_.join(10)
        assert (link.destination.pages == link.source.pages).all()


def test_a_changed_bit_is_refused(tmp_path: Path) -> None:
    with linked(tmp_path, 1) as link:
        link.source.pages[100:120] = 5
        ours, theirs = socket.socketpair()
        with ours, theirs:
            sealer = StreamSealer(
                SessionKeys(bytes(32)), ID, 0, "aes-256-gcm", record_bytes=RECORD_BYTES
            )
            sender = Sender(
                ours, sealer, link.source, link.gate, streams=1, record_bytes=RECORD_BYTES
            )
            send_round(sender, 0, link.source.resident_runs(), NOTHING)
            record = bytearray(theirs.recv(1 << 20))
        record[len(record) // 2] ^= 1
        link.sockets[0].sendall(record)
        link.finish()
        assert [type(error) for error in link.errors] == [DecryptFailed]
